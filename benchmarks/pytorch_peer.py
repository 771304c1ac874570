"""MoT's training step against the same model in PyTorch: `python benchmarks/pytorch_peer.py [--json FILE]`.

The peer (pytorch_mot.py) is given mot_jax's parameters and has to show the same gradients and then the same losses
before anything is timed. float32 on all cores of one CPU, every arm on the same batch. Compiled arms first see another
mix of modalities, so that what is timed is the program that serves every mix, as in training.
"""

import argparse
import functools
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import report
import step_time

from mot_jax.batch import Batch
from mot_jax.config import Model, Run
from mot_jax.nn import transformer
from mot_jax.objectives.next_token import loss_sum, target_count
from mot_jax.training.host_memory import keep_freed_pages
from mot_jax.vocabulary import Vocabulary

INSTALL = "pip install torch --index-url https://download.pytorch.org/whl/cpu"
ROUNDS = 20
TOLERANCE = 5e-5


def initial(model: Model) -> dict:
    """The parameters that step_time.py starts with."""
    return jax.jit(lambda key: transformer.init(model, key))(jax.random.key(0))


def gradient_difference(run: Run, vocabulary: Vocabulary, batch: Batch, masks: bool) -> float:
    """The largest difference of a gradient between mot_jax and the peer, over the largest entry of that gradient.

    Raises:
      SystemExit: it, or the difference of the losses, is more than TOLERANCE.
    """
    import pytorch_step

    params = initial(run.model)

    def objective(params):
        total, _, _ = loss_sum(run.model, params, batch, vocabulary, z_loss=run.train.z_loss)
        return total / target_count(batch)

    loss, gradients = jax.jit(jax.value_and_grad(objective))(params)
    peer = pytorch_step.transformer(run.model, params)
    other, _ = peer(pytorch_step.inputs(run.model, batch, masks), run.train.z_loss)
    other.backward()
    expect_equal("objective", float(loss), other.item())
    wanted, worst = pytorch_step.arrays(run.model, gradients), 0.0
    for name, parameter in peer.named_parameters():
        apart = np.abs(parameter.grad.numpy() - wanted[name]).max() / np.abs(wanted[name]).max()
        if not apart < TOLERANCE:
            raise SystemExit(f"pytorch_peer: the gradient of {name} differs by {apart:.1e} of its largest entry")
        worst = max(worst, float(apart))
    return worst


def expect_equal(name: str, mine: float, other: float) -> None:
    if not abs(mine - other) < TOLERANCE * abs(mine):
        raise SystemExit(f"pytorch_peer: {name}: {mine} in mot_jax, {other} in PyTorch")


def peer_step(run: Run, batch: Batch, other_mix: Batch, *, masks: bool = False, compiled: bool = False) -> Callable:
    """A call that runs one step more of the peer on this batch, from the parameters mot_jax starts with."""
    import pytorch_step
    import torch

    peer = pytorch_step.transformer(run.model, initial(run.model))
    forward = torch.compile(peer) if compiled else peer
    if compiled:
        for each in (batch, other_mix):
            forward(pytorch_step.inputs(run.model, each), run.train.z_loss)[0].backward()
    step = pytorch_step.train_step(run, peer, forward, step_time.STEPS, masks)
    return lambda: step(batch)


def arms(setting: step_time.Setting, masks: bool, compiles: bool) -> dict[str, Callable]:
    """Every arm's step; checked to be the same step."""
    vocabulary, batch = step_time.problem(setting)
    other_mix = step_time.packed_batch(vocabulary, setting.rows, setting.length, setting.shares[::-1])
    calls = {}
    for arm in ("dense", "MoT"):
        run = step_time.run_of(setting, arm, vocabulary)
        mine = {f"mot_jax {arm}": step_time.step_of(run, vocabulary, batch)}
        mine[f"PyTorch {arm}"] = peer_step(run, batch, other_mix)
        if compiles:
            mine[f"PyTorch {arm}, compiled"] = peer_step(run, batch, other_mix, compiled=True)
        forms = [False]
        if masks and arm == "MoT":
            mine["PyTorch MoT, boolean masks"] = peer_step(run, batch, other_mix, masks=True)
            forms.append(True)
        worst = max(gradient_difference(run, vocabulary, batch, form) for form in forms)
        for _ in range(3):
            losses = {name: call() for name, call in mine.items()}
            total, count = losses.pop(f"mot_jax {arm}")["loss"]
            for name, loss in losses.items():
                expect_equal(f"loss of {name}", float(total / count), loss)
        print(f"{arm}: gradients within {worst:.0e} of mot_jax's, and the losses of three steps within {TOLERANCE:.0e}")
        calls |= mine
    return calls


def timed(calls: dict[str, Callable], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every call by the clock, and of all threads together, which other programs disturb less."""
    spent = {name: [] for name in calls}

    def counted(name: str):
        start = time.process_time()
        jax.block_until_ready(calls[name]())
        spent[name].append(time.process_time() - start)

    clock = report.alternate({name: functools.partial(counted, name) for name in calls}, repeats)
    return {"time": clock, "CPU time": {name: seconds[1:] for name, seconds in spent.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="also write the rows here")
    args = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        print(f"pytorch_peer: the peer needs PyTorch: {INSTALL}", file=sys.stderr)
        raise SystemExit(2)
    # Threads of torch that spin between two operations would take a core from whatever arm runs next.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(os.cpu_count())
    compiler = os.environ.get("CXX", "g++")
    compiles = shutil.which(compiler) is not None
    if not compiles:
        print(f"no compiled arms: torch.compile needs a C++ compiler, and there is no {compiler}")
    keep_freed_pages()  # as train.py does
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    rows = []
    for place, (name, setting) in enumerate(list(step_time.settings().items())[:2]):
        # The masks' gradients are slow; the small setting shows how much.
        for metric, seconds in timed(arms(setting, place == 0, compiles), min(setting.repeats, ROUNDS)).items():
            for arm in seconds:
                against = "mot_jax MoT" if "MoT" in arm else "mot_jax dense"
                row = report.row(f"{arm}: {name}", seconds[arm], against, seconds[against])
                rows.append({**row, "metric": metric})
        report.show("training step, optimizer included", rows, args.json)  # what there is: the next takes long


if __name__ == "__main__":
    main()
