"""One optimizer step: loss and gradient in a fully manual shard_map, the update on sharded arrays around it."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from mot_jax.batch import Batch
from mot_jax.config import Model, Run, expand, pools, rules_with, sees_future, selects
from mot_jax.config.experts import ExpertChoice
from mot_jax.config.rules import AXES, BATCH_AXES
from mot_jax.errors import ConfigError
from mot_jax.nn import transformer
from mot_jax.nn.context import Noise, first_block
from mot_jax.nn.report import Metrics
from mot_jax.objectives.next_token import loss_sum, target_count
from mot_jax.parallel.collectives import axis_size, sum_over
from mot_jax.parallel.mesh import batch_sharding, replicated
from mot_jax.training import table_gradients, values
from mot_jax.training.compiling import compiler_options
from mot_jax.training.optimizer import global_norm
from mot_jax.training.state import TrainState, parameter_shardings, split_values, state_shardings
from mot_jax.training.table_gradients import recall_with, taps
from mot_jax.vocabulary import Vocabulary


def rows_only(run: Run, mesh: Mesh) -> bool:
    """Whether the step knows the gradient of memory tables only by the rows that were read.

    On a mesh of several devices each one's shard of it is dense, since tokens of all of them read it.
    """
    return run.model.memory is not None and run.optimizer.values.update == "touched" and mesh.size == 1


def gradients(
    run: Run, vocabulary: Vocabulary, params: dict, batch: Batch, step: jax.Array, by_row: bool = False
) -> tuple[dict, Metrics]:
    """Gradient of the objective and summed metrics, from one device's shards of parameters and rows.

    Microbatches are runs of this device's rows; the count they are divided by is the whole step's, taken first.
    Gradients of memory tables are float32, or with `by_row` a `RowsGradient` each.
    """
    model, train, rules = run.model, run.train, rules_with(run.parallel.rules)
    blocks = model.selection_groups * train.accumulation * axis_size("tensor")
    # Auxiliary routers learn what is selected without noise.
    noisy = train.only is None and _has_noise(model)
    key = jax.random.fold_in(jax.random.key(train.seed), step) if noisy else None
    count = jnp.maximum(sum_over(target_count(batch), BATCH_AXES), 1.0) * axis_size("tensor")

    trained, tables = (split_values(params)[0], params["values"]) if model.memory else (params, {})

    def objective(trained, taps, microbatch, number):
        noise = None if key is None else Noise(key, first_block(model.selection_groups, train.accumulation, number))
        total, metrics, routing = loss_sum(
            model,
            {**trained, "values": tables} if tables else trained,
            microbatch,
            vocabulary,
            z_loss=train.z_loss,
            modality_weights=train.modality_weights,
            noise=noise,
            recall=recall_with(model, rules, tables, taps) if taps else None,
            rules=rules,
        )
        loss = (total + routing.auxiliary) / count + routing.balance / blocks
        if train.only == "auxiliary_routers":
            loss = routing.auxiliary / count
        return loss, (metrics, routing.reads)

    micro = jax.tree.map(lambda x: x.reshape(train.accumulation, -1, *x.shape[1:]), batch)
    first = jax.tree.map(lambda x: x[0], micro)
    zeros = taps(model, rules, jax.eval_shape(objective, trained, {}, first, 0)[1][1]) if tables else {}

    def one(microbatch, number):
        """(what adds up over microbatches, what does not)"""
        (grads, d_taps), (metrics, reads) = jax.grad(objective, argnums=(0, 1), has_aux=True)(
            trained, zeros, microbatch, number
        )
        if tables and not by_row:
            grads["values"] = table_gradients.whole(model, rules, tables, d_taps, reads)
        return (grads, metrics), (d_taps, reads) if by_row else ()

    if train.accumulation == 1:
        (grads, metrics), read = one(batch, 0)
    else:
        start = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, first, 0)[0])

        def add(carry, microbatch):
            added, read = one(*microbatch)
            # The compiler would move sums over devices out of the loop, past this addition: whole gradients would be
            # carried, and libtpu of jax 0.10.2 fails over it (RET_CHECK in while_loop_all_reduce_code_motion).
            return jax.tree.map(jnp.add, carry, jax.lax.optimization_barrier(added)), read

        numbers = jnp.arange(train.accumulation, dtype=jnp.int32)
        (grads, metrics), read = jax.lax.scan(add, start, (micro, numbers))
        # A count of tokens adds up over microbatches; how many values it is the mean of does not.
        metrics = {k: (s, jnp.float32(1) if k.startswith("modality_tokens/") else n) for k, (s, n) in metrics.items()}

    def reduce(grad, spec):
        return sum_over(grad, tuple(axis for axis in AXES if axis not in spec))

    specs = transformer.partition_specs(model, rules)
    if by_row:  # on one device
        return {**grads, "values": table_gradients.by_row(model, *read)}, _sum_metrics(metrics)
    grads = jax.tree.map(reduce, grads, specs)
    return grads, _sum_metrics(metrics)


def _sum_metrics(metrics: Metrics) -> Metrics:
    summed = sum_over(metrics, BATCH_AXES)  # all in one collective
    # A count of tokens adds up over devices; how many values it is the mean of does not.
    return {k: (s, metrics[k][1] if k.startswith("modality_tokens/") else n) for k, (s, n) in summed.items()}


def _has_noise(model: Model) -> bool:
    kinds = (pool.kind for block in expand(model) for pool in pools(model, block))
    return any(isinstance(kind, ExpertChoice) and kind.noise for kind in kinds)


def check_rows(run: Run, mesh: Mesh) -> None:
    """Raises ConfigError unless the batch's rows divide into devices and microbatches, and blocks of rows into both."""
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    parts = devices * run.train.accumulation
    if run.data.global_batch_size % parts:
        raise ConfigError(
            f"Data.global_batch_size: {run.data.global_batch_size} rows are not a multiple of {parts} "
            f"({devices} devices over data x fsdp x expert, {run.train.accumulation} microbatches)"
        )
    groups, rows = run.model.selection_groups, run.data.global_batch_size // run.train.accumulation
    if rows % groups:
        raise ConfigError(f"Model.selection_groups: {groups} blocks do not divide the {rows} rows of a microbatch")
    if selects(run.model) and groups % devices:
        raise ConfigError(
            f"Model.selection_groups: {groups} blocks of {rows // groups} rows in which routers compare tokens "
            f"do not lie whole on {devices} devices (data x fsdp x expert); expected a multiple of {devices}"
        )


def make_train_step(
    run: Run, vocabulary: Vocabulary, mesh: Mesh, tx: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The compiled step `(state, batch) -> (state, metrics)`; the state given is consumed.

    A step whose loss or gradient is not finite changes nothing but the counters. `run.model` is resolved.

    Raises:
      ConfigError: the rows do not divide over devices and microbatches, or a parameter over its mesh axis.
    """
    check_rows(run, mesh)
    rules = rules_with(run.parallel.rules)
    specs, by_row = transformer.partition_specs(run.model, rules), rows_only(run, mesh)
    tell = optax.with_extra_args_support(tx)
    sharded_gradients = jax.shard_map(
        lambda params, batch, step: gradients(run, vocabulary, params, batch, step, by_row),
        mesh=mesh,
        in_specs=(specs, PartitionSpec(BATCH_AXES), PartitionSpec()),
        out_specs=({**specs, "values": PartitionSpec()} if by_row else specs, PartitionSpec()),
        check_vma=False,
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, metrics = sharded_gradients(state.params, batch, state.step)
        one = jnp.float32(1)
        params, opt_state, tables = state.params, state.opt_state, {}
        if run.model.memory is not None:
            grads, d_tables = split_values(grads)
            params, tables = split_values(params)
            opt_state, tables_state = opt_state["rest"], opt_state.get("values")
            metrics["values_grad_norm"] = (values.gradient_norm(d_tables), one)
        norm = global_norm(grads)
        finite = jnp.isfinite(norm + metrics.get("values_grad_norm", (0.0,))[0]) & jnp.isfinite(metrics["loss"][0])

        told = {} if run.train.only else {"norm": norm}  # of all gradients, not of the part that is trained

        def update():
            updates, new_state = tell.update(grads, opt_state, params, **told)
            return optax.apply_updates(params, updates), new_state

        # A branch, not a select: that would copy the optimizer's moments.
        params, opt_state = jax.lax.cond(finite, update, lambda: (params, opt_state))
        if tables and run.train.only is None:
            key = jax.random.fold_in(jax.random.key(run.train.seed), state.step)
            tables, tables_state = values.update(
                run.optimizer, run.train.steps, tables, tables_state, d_tables, finite, key
            )
        if tables:
            params, opt_state = {**params, **tables}, {"rest": opt_state}
            opt_state |= {} if tables_state is None else {"values": tables_state}
        bad = 1 - finite.astype(jnp.int32)
        new = TrainState(
            params=params,
            opt_state=opt_state,
            step=state.step + 1,
            bad_steps=(state.bad_steps + 1) * bad,
            skipped=state.skipped + bad,
        )
        metrics["grad_norm"] = (norm, one)
        metrics["skipped"] = (bad.astype(jnp.float32), one)
        metrics["bad_steps"] = (new.bad_steps.astype(jnp.float32), one)
        return new, metrics

    placed = state_shardings(run.model, tx, mesh, rules, only=run.train.only)
    return jax.jit(
        step,
        in_shardings=(placed, batch_sharding(mesh)),
        out_shardings=(placed, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def make_loss_eval(
    run: Run, vocabulary: Vocabulary, mesh: Mesh, *, causal: bool = False
) -> Callable[[dict, Batch], Metrics]:
    """The compiled held-out loss `(params, batch) -> metrics`: sums and counts of plain cross-entropy.

    `causal`: with auxiliary routers in place of what would see later tokens. No token is dropped for want of capacity.
    """
    causal, rules = causal or not sees_future(run.model), rules_with(run.parallel.rules)
    # The batch is a whole step's: blocks are as large as in training's microbatches.
    model = dataclasses.replace(run.model, selection_groups=run.model.selection_groups * run.train.accumulation)
    evaluate = jax.shard_map(
        lambda params, batch: _sum_metrics(loss_sum(model, params, batch, vocabulary, causal=causal, rules=rules)[1]),
        mesh=mesh,
        in_specs=(transformer.partition_specs(run.model, rules), PartitionSpec(BATCH_AXES)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.jit(
        evaluate,
        in_shardings=(parameter_shardings(run.model, mesh, rules), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(mesh),
    )
