"""Every architecture on every mesh of 8 fake devices: losses and gradients of 3 steps equal one device's, in float32.

Then a run checkpointed on one mesh after two steps takes its third on every other mesh and on one device.

    JAX_PLATFORMS=cpu PYTHONPATH=. python tests/proofs/meshes.py [ARCHITECTURE ...]
"""

import argparse
import dataclasses
import os
import tempfile
import time

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # before jax is imported

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from mot_jax.config import Block, FrozenMapping, Optimizer, Parallel, ValuesOptimizer, rules_with
from mot_jax.config.experts import AverageKey, Depth, ExpertChoice, HashExperts, TokenChoice
from mot_jax.config.memory import Memory
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.state import abstract_state, init_state
from mot_jax.training.step import make_train_step
from tests.batches import ALL, VOCABULARY, random_batch, small_model, small_run

ROWS, LENGTH, STEPS, BOUND = 8, 47, 3, 1e-5
MEMORY = Memory(layers=(0,), num_keys=8, heads=3, top_k=5, value_dim=256)
MOMA = {"untied": ("feed_forward",), "feed_forward": ExpertChoice(experts=4, noise=True)}
SHARED = TokenChoice(experts=6, shared=1)

ARCHITECTURES = {
    "dense": {},
    "MoT": {"untied": ALL},
    "MoMa": MOMA,
    "MoMa with depth": {**MOMA, "plan": ((1, (Block(depth=Depth(capacity=0.5)),)),)},
    "depth over the batch": {"plan": ((1, (Block(depth=Depth(capacity=0.5, selection="batch")),)),)},
    "token choice": {"feed_forward": TokenChoice(experts=4)},
    "token choice with capacity": {"feed_forward": TokenChoice(experts=8, capacity=1.25)},
    "average key": {"feed_forward": AverageKey(experts=8, top_k=2)},
    "hash experts": {"feed_forward": HashExperts(experts=4)},
    "MoT, pools of three kinds": {
        "untied": ALL,
        "feed_forward": FrozenMapping(text=ExpertChoice(experts=4), image=SHARED),
    },
    "memory": {"memory": MEMORY},
    "MoT with memory": {"memory": MEMORY, "untied": ALL},
}
MESHES = {
    "one device": Parallel(data=1),
    "data 8": Parallel(data=8),
    "fsdp 8": Parallel(data=1, fsdp=8),
    "data 2 fsdp 2 tensor 2": Parallel(data=2, fsdp=2, tensor=2),
    "expert 4 data 2": Parallel(data=2, expert=4),
    "expert 2 tensor 2 fsdp 2": Parallel(data=1, expert=2, tensor=2, fsdp=2),
    "the same, other rules": Parallel(
        data=1, expert=2, tensor=2, fsdp=2, rules=FrozenMapping(embed="expert", expert="fsdp", value_row="expert")
    ),
}


def keeping(rate: float) -> optax.GradientTransformation:
    """Gradient descent whose state is the last gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, _, params: (jax.tree.map(lambda g: -rate * g, grads), grads),
    )


def gradients(state) -> dict:
    """Of all but memory tables the last gradient; of tables, which have an optimizer of their own, the first moment."""
    return jax.device_get(state.opt_state)


def distance(expected, got) -> float:
    """The largest relative error of any array, by its norm."""
    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True)
    return max(float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-30)) for a, b in pairs)


def prove(name: str, table: Table) -> bool:
    model = small_model(**{"num_layers": 1, "num_kv_heads": 2, "selection_groups": 8, **ARCHITECTURES[name]})
    optimizer = Optimizer(epsilon=1.0, warmup_steps=0, values=ValuesOptimizer(learning_rate=1.0, clip_norm=0.0))
    run = dataclasses.replace(small_run(model, ROWS, LENGTH, z_loss=1e-3), optimizer=optimizer)
    generator, tx = np.random.default_rng(0), keeping(0.1)
    batches = [random_batch(generator, ROWS, LENGTH) for _ in range(STEPS)]
    expected, whole = None, True
    with tempfile.TemporaryDirectory() as directory, Checkpoints(directory, keep=1) as checkpoints:
        for where, parallel in MESHES.items():
            began, rules = time.perf_counter(), rules_with(parallel.rules)
            mesh = make_mesh(parallel, jax.devices()[: 1 if where == "one device" else 8])
            step = make_train_step(dataclasses.replace(run, parallel=parallel), VOCABULARY, mesh, tx)
            state, losses = init_state(model, tx, mesh, 0, rules), []
            for number, batch in enumerate(batches):
                if number == STEPS - 1 and where == "expert 4 data 2":
                    checkpoints.save(number, state, {}, {}, wait=True)
                state, metrics = step(state, batch)
                losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
            found = np.array(losses), gradients(state)
            expected = found if expected is None else expected
            resumed = ""
            if checkpoints.steps():
                restored = checkpoints.restore(abstract_state(model, tx, mesh, rules)).state
                resumed = distance(expected[1], gradients(step(restored, batches[-1])[0]))
            errors = distance(expected[0], found[0]), distance(expected[1], found[1]), resumed or 0.0
            whole &= max(errors) <= BOUND
            shown = [f"{error:.1e}" for error in errors[:2]] + [f"{resumed:.1e}" if resumed else ""]
            table.add_row(name, where, *shown, f"{time.perf_counter() - began:.0f}")
            print(name, where, *shown, flush=True)
        mesh = make_mesh(Parallel(data=1), jax.devices()[:1])  # and back to one device
        step, restored = (
            make_train_step(run, VOCABULARY, mesh, tx),
            checkpoints.restore(abstract_state(model, tx, mesh)),
        )
        resumed = distance(expected[1], gradients(step(restored.state, batches[-1])[0]))
        table.add_row(name, "resumed on one device", "", "", f"{resumed:.1e}", "")
        print(name, "resumed on one device", f"{resumed:.1e}", flush=True)
    return whole and resumed <= BOUND


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architectures", nargs="*", help=f"some of: {', '.join(ARCHITECTURES)}; none: all")
    arguments = parser.parse_args()
    table = Table("architecture", "mesh", "losses", "gradients", "resumed", "seconds", title="largest relative error")
    good = [prove(name, table) for name in arguments.architectures or ARCHITECTURES]
    Console().print(table)
    print("equal" if all(good) else f"NOT EQUAL within {BOUND}")
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
