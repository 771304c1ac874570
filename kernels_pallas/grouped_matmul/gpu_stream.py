"""What the Hopper kernels share: one warpgroup streams blocks from memory, two others multiply them.

The kernels are persistent: a thread block a multiprocessor, which takes every so-many-th job. A job is one block of the
result, and the number of steps to it (blocks that are multiplied and added up) may differ from job to job and be zero.
The streaming warpgroup runs ahead across jobs, so the pipeline is full again while a result is still being written.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.gpu_chip import device

PIECE = 64  # rows a warpgroup multiplies at once, and rows or columns of a step
WORKERS = 2  # warpgroups that multiply
STAGES = 4  # steps in shared memory
WIDEST = 256  # columns: the most that one instruction multiplies
MULTIPROCESSORS = 132  # of an H100 SXM, where no device says otherwise; more only wait for a place


@dataclasses.dataclass(frozen=True)
class Job:
    """One block of the result; every field but `steps` is the kernel's own."""

    steps: jax.Array  # int32[]
    where: tuple[jax.Array, ...]


def multiprocessors() -> int:
    return getattr(device(), "num_cores", None) or getattr(device(), "core_count", None) or MULTIPROCESSORS


def lane(*sizes: int) -> int:
    """Columns in a swizzled row of shared memory, which must divide every array's; 0 where there is no such number."""
    return next((columns for columns in (64, 32, 16) if not any(size % columns for size in sizes)), 0)


def shared(*shape: int, columns: int):
    """A bfloat16 buffer in shared memory as the tensor cores and the copies to and from it want it laid out."""
    transforms = plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(2 * columns)
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)


def stream(
    job_of: Callable,
    num_jobs: int,
    fetch: Callable,
    multiply: Callable,
    finish: Callable,
    *,
    buffers: tuple,
    accumulator: tuple[int, int],
    accumulators: int,
    results: tuple,
    num_inputs: int,
    columns: int,
    name: str,
):
    """A kernel of the job numbers 0 .. num_jobs - 1, to be called with its inputs.

    Args:
      job_of: (number, inputs) -> Job.
      fetch: (job, step, inputs, one stage of every buffer, barrier) -> None; starts one copy into each.
      multiply: (worker, one stage of every buffer, accumulators) -> None; starts one product into each.
      finish: (worker, job, sums, results, the worker's two [PIECE, PIECE] blocks in shared memory) -> None.
      buffers: shapes of a step's blocks in shared memory.
      accumulator: a worker's share of a block of the result.
      results: what comes out.
      columns: `lane` of all arrays' columns.
    """

    def kernel(*refs):
        refs, scratch = refs[: num_inputs + len(results)], refs[num_inputs + len(results) :]
        inputs, outs = refs[:num_inputs], refs[num_inputs:]
        *stages, staging, full, empty = scratch
        worker = lax.axis_index("worker")

        @pl.when(worker == WORKERS)
        def _():
            plgpu.set_max_registers(40, action="decrease")

            @plgpu.nd_loop((num_jobs,), collective_axes="processor", init_carry=jnp.int32(0))
            def done(info, carry):
                job = job_of(info.index[0], inputs)

                def step(i, done):
                    slot = lax.rem(done, STAGES)

                    @pl.when(done >= STAGES)
                    def _():
                        plgpu.barrier_wait(empty.at[slot])

                    fetch(job, i, inputs, [buffer.at[slot] for buffer in stages], full.at[slot])
                    return done + 1

                return lax.fori_loop(0, job.steps, step, carry)

            def drain(done, _):
                plgpu.barrier_wait(empty.at[lax.rem(done, STAGES)])

            lax.fori_loop(jnp.maximum(done - STAGES, 0), done, drain, None)

        @pl.when(worker < WORKERS)
        def _():
            plgpu.set_max_registers(232, action="increase")

            @plgpu.nd_loop((num_jobs,), collective_axes="processor", init_carry=jnp.int32(0))
            def _(info, carry):
                job = job_of(info.index[0], inputs)

                def add(*sums):
                    def step(i, done):
                        slot = lax.rem(done, STAGES)
                        plgpu.barrier_wait(full.at[slot])
                        multiply(worker, [buffer.at[slot] for buffer in stages], sums)
                        plgpu.wgmma_wait(accumulators)  # the step before is through

                        @pl.when(i > 0)
                        def _():
                            plgpu.barrier_arrive(empty.at[lax.rem(done - 1, STAGES)])

                        return done + 1

                    lax.fori_loop(0, job.steps, step, carry)
                    return [total[...] for total in sums]

                sums = pl.run_scoped(add, *(plgpu.ACC(accumulator) for _ in range(accumulators)))
                done = carry + job.steps

                @pl.when(job.steps > 0)
                def _():
                    plgpu.barrier_arrive(empty.at[lax.rem(done - 1, STAGES)])

                finish(worker, job, sums, outs, staging.at[worker])
                return done

            plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        kernel,
        out_type=results,
        grid=(multiprocessors(),),
        grid_names=("processor",),
        num_threads=WORKERS + 1,
        thread_name="worker",
        kernel_name=f"grouped_{name}",
        scratch_types=[
            *(shared(STAGES, *shape, columns=columns) for shape in buffers),
            shared(WORKERS, 2, PIECE, PIECE, columns=columns),
            plgpu.Barrier(num_arrivals=len(buffers), num_barriers=STAGES),
            plgpu.Barrier(num_arrivals=WORKERS, num_barriers=STAGES),
        ],
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )


def in_bands(number, rows: int, columns: int, band: int):
    """The (row, column) of a block when bands of so many rows are walked column by column."""
    first = lax.div(number, jnp.int32(band * columns)) * band
    height = jnp.minimum(band, rows - first)  # not by planar_snake: it divides by zero where bands divide the rows
    number = lax.rem(number, jnp.int32(band * columns))
    return first + lax.rem(number, height), lax.div(number, height)


def store(pieces: list[tuple], staging) -> None:
    """Writes (values [PIECE, PIECE], where they go) one after the other, two of them under way at a time."""
    for i, (values, out) in enumerate(pieces):
        block = staging.at[i % 2]
        # The first of a job waits for all: the last block of the job before may be the same one.
        plgpu.wait_smem_to_gmem(1 if i else 0, wait_read_only=True)
        block[...] = values.astype(block.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(block, out)
