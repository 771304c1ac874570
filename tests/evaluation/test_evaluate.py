"""eval.py on a whole run directory: what it writes, and what it refuses in one line."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

import eval as entry
from mot_jax import cli
from mot_jax.data.artifacts import read_manifest
from mot_jax.data.dataset import open_dataset
from mot_jax.errors import DataError
from mot_jax.evaluation import tasks
from mot_jax.evaluation.evaluate import check_same_data
from mot_jax.evaluation.tasks import Accuracy, register_task
from tests.evaluation.conftest import write_dataset


def evaluate(*argv) -> int:
    return cli.run_main(entry.main, [str(argument) for argument in argv])


@pytest.fixture
def own_task():
    """A task such as a user registers."""

    @register_task("talks")
    def talks(context):
        answers = [context.run.generate(word, to="speech").codes for word in ("one", "two")]
        return {"codes": float(np.mean([len(a) for a in answers])), "long": Accuracy(1, 2)}

    yield
    del tasks._TASKS["talks"]


def test_eval_writes_losses_scores_and_pictures(run_dir, small_run, own_task, capsys):
    assert evaluate("--run_dir", run_dir, "--gin.Eval.tasks=('talks',)", "--gin.Sample.prompts=2") == 0
    result = json.loads((run_dir / "eval.json").read_text())
    assert (result["step"], result["split"], result["documents"]) == (7, "validation", 40)
    losses = result["losses"]
    assert set(losses) == {"all", "text", "image", "speech"}
    for loss in losses.values():
        assert loss["perplexity"] == pytest.approx(math.exp(loss["loss"]))
    assert losses["all"]["tokens"] == sum(losses[name]["tokens"] for name in ("text", "image", "speech"))
    # An untrained model is near the uniform one.
    assert losses["all"]["loss"] == pytest.approx(math.log(small_run.model.vocab_size), rel=0.3)
    assert 1 <= result["tasks"]["talks"]["codes"]["value"] <= small_run.sample.max_tokens
    assert result["tasks"]["talks"]["long"] == {"value": 0.5, "standard_error": pytest.approx(0.125**0.5), "count": 2}
    assert result["sample"]["prompts"] == 2
    assert [path.name for path in (run_dir / "samples").iterdir()] == ["eval_samples.png"]
    assert not list(run_dir.glob("*.partial"))
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("perplexity", "speech", "talks", "eval.json"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--run_dir", "/nowhere/at/all"], "/nowhere/at/all"),
        ([], "--run_dir"),
        (["--run_dir", "{run}", "--step", "8"], "no checkpoint of step 8"),
        (["--run_dir", "{run}", "--gin.Eval.tasks=('digit',)"], "did you mean 'digits'?"),
        (["--run_dir", "{run}", "--gin.Eval.promts=3"], "did you mean 'prompts'?"),
        (["--run_dir", "{run}", "--gin.Model.dim=8"], "Model"),
        (["--run_dir", "{run}", "--gin.Eval.prompts=0"], "Eval.prompts"),
        (["--run_dir", "{run}", "--gin.Sample.top_p=0.0"], "top_p"),
        (["--run_dir", "{run}", "--gin.Eval.tasks=('digits',)"], "evaluation/digits.npz"),
        (["--run_dir", "{run}", "--gin.Data.path={other}"], "codec is not the run's"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run_dir, tmp_path, capsys, flags, said):
    write_dataset(epath.Path(tmp_path) / "other", seed=1)
    flags = [flag.format(run=run_dir, other=tmp_path / "other") for flag in flags]
    assert evaluate(*flags) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert not (run_dir / "eval.json").exists()


def test_a_run_without_checkpoints_is_refused(run_dir, capsys):
    (run_dir / "checkpoints").rmtree()
    assert evaluate("--run_dir", run_dir) == 2
    error = capsys.readouterr().err
    assert "checkpoints" in error and len(error.strip().splitlines()) == 1


def test_data_of_another_split_or_vocabulary_are_not_the_same(tmp_path, dataset):
    manifest = read_manifest(dataset.directory)
    check_same_data(manifest, dataset)
    elsewhere = open_dataset(write_dataset(epath.Path(tmp_path) / "copy", provenance_note="another place"))
    check_same_data(manifest, elsewhere)
    with pytest.raises(DataError, match="splits differ"):
        check_same_data(manifest | {"splits": {"train": manifest["splits"]["train"]}}, dataset)
    with pytest.raises(DataError, match="vocabulary differ"):
        check_same_data(manifest | {"vocabulary": manifest["vocabulary"] | {"bos": 0}}, dataset)


def test_a_mistake_is_answered_without_heavy_imports():
    code = "import eval, sys; eval.run_main(eval.main, ['--run_dir', '/nowhere']); sys.exit('jax' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=epath.Path(entry.__file__).parent, check=False).returncode == 0
    )
