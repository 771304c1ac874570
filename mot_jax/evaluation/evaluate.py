"""Evaluating a finished run: held-out losses, tasks by name, pictures, and `eval.json` that holds the numbers."""

import dataclasses
import importlib.util
import json
import math
from collections.abc import Mapping

from etils import epath

import mot_jax.run
from mot_jax.config import Model, Run, sees_future
from mot_jax.data.artifacts import read_manifest
from mot_jax.data.cache import ensure_dataset
from mot_jax.data.dataset import Dataset, open_dataset
from mot_jax.data.pipeline import evaluation_batches
from mot_jax.errors import ConfigError, DataError
from mot_jax.evaluation.losses import HeldOutLoss, evaluation_mesh, heldout_losses
from mot_jax.evaluation.pictures import sample_picture
from mot_jax.evaluation.report import print_losses, print_scores
from mot_jax.evaluation.tasks import Accuracy, Scores, TaskContext, find_task
from mot_jax.evaluation.usage import memory_usage
from mot_jax.generation.auxiliary import cannot_generate
from mot_jax.training.flops import training_flops
from mot_jax.training.progress import preparation, say

SPLIT = "validation"
FILE = "eval.json"
CAUSAL = "causal_losses"


def evaluate(run_dir: epath.PathLike, run: Run, *, step: int | None = None) -> dict:
    """Evaluates a checkpoint on the whole validation split and prints what it finds.

    Args:
      run_dir: a run directory; `eval.json` and `samples/eval_*.png` are written into it.
      run: the run's config; its `eval`, `sample`, `data` and `parallel` decide how to evaluate.
      step: the checkpoint, None for the last.

    Returns:
      what eval.json holds.

    Raises:
      UserError: no such run, checkpoint or task, or a data set that is not the run's.
    """
    from rich.console import Console

    console = Console()
    run_dir = epath.Path(run_dir)
    for name, prompts in (("Eval.prompts", run.eval.prompts), ("Sample.prompts", run.sample.prompts)):
        if prompts < 1:
            raise ConfigError(f"{name}: expected at least 1, got {prompts}")
    mot_jax.run.check_sample(run.sample)
    tasks = {name: find_task(name) for name in run.eval.tasks}
    loaded = mot_jax.run.load(run_dir, step)
    model = loaded.config.model
    with preparation(console) as report:
        dataset = open_dataset(ensure_dataset(run.data, report), verify=run.data.verify)
    check_same_data(read_manifest(run_dir / "artifacts"), dataset)
    run = dataclasses.replace(run, model=model)
    pictures = run_dir / "samples"
    if importlib.util.find_spec("matplotlib") is None:
        pictures = None
        say(console, "no pictures: they need matplotlib (pip install 'mot_jax[logging]')")
    if reason := cannot_generate(model, run_dir):
        tasks, pictures = {}, None
        say(console, f"no tasks and no pictures: {reason}")

    with console.status("losses on the validation split"):
        mesh = evaluation_mesh(run)
        losses = {}
        for name in _losses_of(model):
            batches = evaluation_batches(dataset, run.data, SPLIT)
            causal = name == CAUSAL
            losses[name] = heldout_losses(run, loaded.vocabulary, loaded.params, batches, mesh, causal=causal)
        batches = evaluation_batches(dataset, run.data, SPLIT)
        usage = memory_usage(run, loaded.params, batches, mesh)
    documents = len(dataset.split(SPLIT))
    say(console, f"{run_dir} at step {loaded.step}: {documents:,} held-out documents")
    for name, by in _losses_of(model).items():
        print_losses(console, losses[name], by)
    for layer, of in usage.items():
        say(
            console,
            f"memory of layer {layer}: {of.used:.1%} of its values read, KL of usage to uniform {of.kl_to_uniform:.2f}",
        )

    scores: dict[str, Scores] = {}
    for name, task in tasks.items():
        with console.status(f"task {name}"):
            scores[name] = task(TaskContext(loaded, dataset, run.eval, run.sample, pictures))
        print_scores(console, name, scores[name])
    if pictures is not None:
        with console.status("sample picture"):
            sample_picture(
                run.model,
                loaded.params,
                loaded.vocabulary,
                loaded.codecs,
                dataset,
                run.sample,
                run.eval.seed,
                pictures / "eval_samples.png",
            )
    result = {
        "step": loaded.step,
        "training_flops": training_flops(loaded.config, loaded.step),
        "data_set": dataset.fingerprint,
        "split": SPLIT,
        "documents": documents,
        **{kind: {name: _loss_json(loss) for name, loss in of.items()} for kind, of in losses.items()},
        **({"memory": {str(layer): dataclasses.asdict(of) for layer, of in usage.items()}} if usage else {}),
        "tasks": {name: {score: _score_json(value) for score, value in of.items()} for name, of in scores.items()},
        "eval": dataclasses.asdict(run.eval),
        "sample": dataclasses.asdict(run.sample),
    }
    write_json(run_dir / FILE, result)
    say(console, f"wrote {run_dir / FILE}" + (f" and {pictures}/eval_*.png" if pictures else ""))
    return result


def _losses_of(model: Model) -> dict[str, str]:
    """The losses there are, by their key in eval.json, and by which routers: what one sees the other must not claim."""
    if not sees_future(model):
        return {"losses": ""}
    seeing = {"losses": "routers see later tokens"}
    return seeing | ({CAUSAL: "auxiliary routers"} if model.auxiliary_routers else {})


def check_same_data(artifacts: Mapping, dataset: Dataset) -> None:
    """Raises DataError naming what differs unless the data set is the one that a run's artifacts were copied from."""
    for modality, entry in artifacts["codecs"].items():
        other = dataset.manifest["codecs"].get(modality)
        if other != entry:
            raise DataError(f"{dataset.directory}: its {modality} codec is not the run's; the codes mean other things")
    for part in ("vocabulary", "codecs", "splits"):
        if dataset.manifest[part] != artifacts[part]:
            raise DataError(f"{dataset.directory}: its {part} differ from those of the data the run was trained on")


def _loss_json(loss: HeldOutLoss) -> dict[str, float | int | None]:
    return {"loss": _finite(loss.loss), "perplexity": _finite(loss.perplexity), "tokens": loss.tokens}


def _score_json(score: float | Accuracy) -> dict[str, float | int | None]:
    if isinstance(score, Accuracy):
        return {"value": score.value, "standard_error": score.standard_error, "count": score.count}
    return {"value": _finite(float(score))}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def write_json(path: epath.Path, value: object) -> None:
    """Writes beside and renames, so that a reader finds the old file or the new one, whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)
