"""The train step of a run, compiled from shapes alone: no array is made, no data set where the model says enough."""

import dataclasses
import re
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from kernels_pallas import ahead_of_time
from mot_jax import config
from mot_jax.aot.topology import Target
from mot_jax.batch import Batch
from mot_jax.config import Model, Run, rules_with
from mot_jax.data.cache import ensure_dataset
from mot_jax.data.dataset import open_dataset
from mot_jax.errors import UserError
from mot_jax.parallel.mesh import batch_sharding, make_mesh
from mot_jax.training.optimizer import make_optimizer
from mot_jax.training.state import TrainState, abstract_state, split_values
from mot_jax.training.step import make_train_step, rows_only
from mot_jax.vocabulary import Vocabulary, build_vocabulary

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Of one device. `activations`: what is kept for the backward pass; `temporaries`: all else that comes and goes.

    `program`: the code. `limit`: what the device has, as its compiler says where it refuses, else its data sheet.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    temporaries: int
    program: int
    limit: int

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.gradients + self.activations + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Compiled:
    """`text` is the compiled HLO, None where the compiler refused for want of memory. `seconds`: of compiling it."""

    run: Run
    mesh: Mesh
    bytes: Bytes
    fits: bool
    text: str | None
    seconds: float


def resolved(run: Run, report: Callable[[str, float], None]) -> tuple[Run, Vocabulary]:
    """The run for an accelerator, with its modalities and vocabulary: the model's own, else the data's.

    Raises:
      UserError: as training would.
    """
    model = run.model
    if model.modalities and model.vocab_size:
        vocabulary = _vocabulary(model)
    else:
        vocabulary = open_dataset(ensure_dataset(run.data, report), verify=False).vocabulary
    model = config.resolve(model, vocabulary.names, vocabulary.size)
    if model.dtype == "auto":  # which asks the machine that compiles
        model = dataclasses.replace(model, dtype="bfloat16")
    return dataclasses.replace(run, model=model), vocabulary


def _vocabulary(model: Model) -> Vocabulary:
    """One of the model's size: which ids are whose changes nothing in the program's shape."""
    others = model.modalities[1:]
    return build_vocabulary(model.vocab_size - 3 * (len(others) + 1), [(name, 1, None) for name in others])


def compile_step(run: Run, vocabulary: Vocabulary, target: Target) -> Compiled:
    """The whole optimizer step of a resolved run on the target's mesh; not compiled where its state alone does not fit.

    Raises:
      ConfigError: the mesh does not fit the devices, or the model the mesh.
      UserError: the target's compiler is not installed, or refuses for another reason than the device's memory.
    """
    mesh, tx, state = _laid_out(run, target)
    step, batch = make_train_step(run, vocabulary, mesh, tx), abstract_batch(run, mesh)
    gradients = _gradients(run, state, mesh)
    if (least := _local(state.params) + _local(state.opt_state) + gradients) > target.memory:
        return Compiled(run, mesh, _bytes(state, gradients, 0, least, 0, target.memory), False, None, 0.0)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # tells kernels which chip they are traced for
        traced = step.trace(state, batch)
        lowered = traced.lower()
        began = time.perf_counter()
        try:
            program, refused = lowered.compile(), None
        except jax.errors.JaxRuntimeError as error:
            if not re.search(r"(?i)ran out of memory (in memory space|on) hbm", str(error)):
                reason = " ".join(str(error).split("\n")[:2])[:500]
                raise UserError(f"--aot {target.name}: the compiler refuses the step: {reason}") from error
            program, refused = None, str(error)
    seconds = time.perf_counter() - began
    kept = saved_for_backward(traced.jaxpr.jaxpr)
    if program is None:
        limit, needed = _needed(refused, target, _local(state))
        held = _bytes(state, gradients, kept, needed, 0, limit)
        return Compiled(run, mesh, held, False, None, seconds)
    stats = program.memory_analysis()
    whole = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    held = _bytes(
        state,
        _gradients(run, state, mesh),
        kept,
        whole + stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
        target.memory,
    )
    return Compiled(run, mesh, held, held.total <= held.limit, program.as_text(), seconds)


def _laid_out(run: Run, target: Target) -> tuple[Mesh, optax.GradientTransformation, TrainState]:
    """The mesh, the optimizer and the state as shapes."""
    mesh = make_mesh(run.parallel, devices_of(target))
    tx, _ = make_optimizer(run.optimizer, run.train.steps, run.train.only)
    rules = rules_with(run.parallel.rules)
    return mesh, tx, abstract_state(run.model, tx, mesh, rules, only=run.train.only)


def devices_of(target: Target) -> list[jax.Device]:
    """Descriptions of its devices, for a mesh to compile for; raises UserError where its compiler is not installed."""
    if reason := ahead_of_time.missing(target.kind):
        raise UserError(f"--aot {target.name}: {reason}")
    if not target.shape:
        return list(ahead_of_time.gpu_topology().devices)
    return list(ahead_of_time.tpu_topology(target.grid).devices)


def abstract_batch(run: Run, mesh: Mesh) -> Batch:
    """A whole step's batch as shapes."""
    rows, sharding = (run.data.global_batch_size, run.data.sequence_length), batch_sharding(mesh)
    ids = jax.ShapeDtypeStruct(rows, np.int32, sharding=sharding)
    return Batch(
        tokens=ids,
        modality_ids=ids,
        segment_ids=ids,
        span_ids=ids,
        positions=jax.ShapeDtypeStruct((*rows, 1), np.int32, sharding=sharding),
        targets=ids,
        loss_weights=jax.ShapeDtypeStruct(rows, np.float32, sharding=sharding),
    )


def _bytes(state: TrainState, gradients: int, kept: int, needed: int, program: int, limit: int) -> Bytes:
    parameters, optimizer = _local(state.params), _local(state.opt_state)
    coming = max(needed - parameters - optimizer, 0)
    gradients = min(gradients, coming)
    activations = min(kept, coming - gradients)
    return Bytes(parameters, optimizer, gradients, activations, coming - gradients - activations, program, limit)


def _gradients(run: Run, state: TrainState, mesh: Mesh) -> int:
    """As large as parameters, but of tables whose gradient is known by row."""
    return _local(split_values(state.params)[0] if rows_only(run, mesh) else state.params)


def _local(tree) -> int:
    """Bytes of one device's shards."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _needed(message: str, target: Target, state: int) -> tuple[int, int]:
    """(what the device has, what the program needs), from the compiler's refusal: of all, or of temporaries alone."""
    size = r"([\d.]+)([KMGT]?)"
    whole = re.search(rf"Used {size} of {size} hbm", message)
    temporaries = re.search(rf"HLO temporaries \({size}\) exceeds available HBM \({size}\)", message)
    found = whole or temporaries
    if not found:
        return target.memory, target.memory + 1
    used, unit, limit, limit_unit = found.groups()
    needed = int(float(used) * _UNITS[unit]) + (0 if whole else state)
    return int(float(limit) * _UNITS[limit_unit]), needed


def saved_for_backward(jaxpr) -> int:
    """Bytes that the forward pass makes and the backward pass reads, as traced: fusion may recompute some instead.

    Of microbatches that follow one another, one's.
    """
    made = {}
    for eqn in jaxpr.eqns:
        if "transpose(" not in str(eqn.source_info.name_stack):
            made |= {variable: variable.aval for variable in eqn.outvars}
    kept = {}
    for eqn in jaxpr.eqns:
        if "transpose(" in str(eqn.source_info.name_stack):
            kept |= {v: made[v] for v in eqn.invars if not hasattr(v, "val") and v in made}
    own = sum(int(np.prod(aval.shape, dtype=np.int64)) * aval.dtype.itemsize for aval in kept.values())
    inner = (
        saved_for_backward(getattr(value, "jaxpr", value))
        for eqn in jaxpr.eqns
        if eqn.primitive.name in ("jit", "pjit", "shard_map", "scan", "closed_call")
        for value in eqn.params.values()
        if hasattr(getattr(value, "jaxpr", value), "eqns")
    )
    return max((own, *inner))
