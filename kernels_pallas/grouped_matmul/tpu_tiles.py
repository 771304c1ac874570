"""How much of a matrix a TPU kernel holds in VMEM at once, from the shapes and the chip being compiled for.

tpu_tiles.json has what `python -m kernels_pallas.tune` found better than the rules below, by chip.
"""

import functools
import json
import pathlib

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from kernels_pallas.tpu_chip import chip, vmem_limit

LANES = 128
SQUARE = 1024  # columns of x that a block of the weights' gradient holds at least, if there are so many
TABLE = pathlib.Path(__file__).parent / "tpu_tiles.json"


@functools.cache
def _table() -> dict[str, dict[str, list[int]]]:
    return json.loads(TABLE.read_text())


def table_key(kernel: str, dtype, tile: int, depth: int, width: int) -> str:
    return f"{kernel} {jnp.dtype(dtype).name} tile={tile} K={depth} N={width}"


def tuned(kernel: str, dtype, tile: int, depth: int, width: int) -> tuple[int, ...] | None:
    """The block for this chip and shape, where one was found that beats the rules."""
    entries = _table().get(str(chip().chip_version), {}) if chip() else {}
    found = entries.get(table_key(kernel, dtype, tile, depth, width))
    return found and tuple(found)


def fits(contracted: int, tile: int, itemsize: int) -> bool:
    """Whether one tile of rows and one block of 128 columns of two weights, double-buffered, fit beside each other."""
    return 2 * itemsize * contracted * (2 * tile + 2 * LANES) <= vmem_limit() * 7 // 8


def columns(width: int, per_column: int, fixed: int) -> int:
    """Columns in a block: equal multiples of 128 lanes, as few blocks as fit; `width` itself if that fits."""
    room = (vmem_limit() * 7 // 8 - fixed) // per_column
    if width <= room:
        return width
    most = max(room // LANES, 1)
    lanes = -(-width // LANES)
    count = -(-lanes // most)
    return -(-lanes // count) * LANES


def gradient_blocks(depth: int, width: int, tile: int, itemsize: int) -> tuple[int, int]:
    """(columns of x, columns of dy) in a block of the weights' gradient, which is float32; a block a core at least.

    The rows' own share of VMEM is left out for `inner`: `fits` has made sure that it is small.
    """
    room = vmem_limit() * 7 // 8
    per_element = 12  # a block and its copy on the way out, and the step's product beside them
    inner = columns(depth, per_element * min(width, room // (2 * per_element * SQUARE)), fixed=0)
    per_column = per_element * inner + 2 * itemsize * tile
    outer = columns(width, per_column, fixed=2 * itemsize * tile * inner)
    if inner == depth and outer == width > LANES and chip() and chip().num_cores > 1:
        outer = -(-width // (chip().num_cores * LANES)) * LANES
    return inner, outer


def multiply(a, b, contract: tuple[int, int]):
    """The product over one axis of each, in float32, whatever precision the caller has set for jax's own products.

    By default the matrix units would round float32 to bfloat16; "high", and jax's algorithms, no kernel can have.
    """
    if contract[1] == 1 and b.shape[0] == 1:  # of bfloat16 jax makes a reduction that its own verifier refuses
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    contracted = (contract[:1], contract[1:]), ((), ())
    return lax.dot_general(a, b, contracted, precision=precision, preferred_element_type=jnp.float32)


def clear(ref) -> None:
    """Zeros in a [rows, columns] block, 16 rows at a time: written out whole it would swell the kernel."""
    rows = 16

    def some(i, _):
        ref[pl.ds(i * rows, rows), :] = jnp.zeros((rows, ref.shape[1]), ref.dtype)

    lax.fori_loop(0, ref.shape[0] // rows, some, None)
    rest = ref.shape[0] % rows
    if rest:
        ref[-rest:, :] = jnp.zeros((rest, ref.shape[1]), ref.dtype)
