"""The public function: it checks shapes and picks a back end."""

from jaxtyping import Array, Float, Int

from kernels_pallas.back_ends import check_implementation
from kernels_pallas.product_key import operations

IMPLEMENTATIONS = ("xla", *operations.KERNELS, "reference")
MOST_KEYS = 46_340  # sub-keys a half whose pairs int32 can number


def product_key_topk(
    queries: Float[Array, "T H _ d"],
    sub_keys: Float[Array, "_ _ R _"],
    k: int,
    *,
    packed: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "T H k"], Int[Array, "T H k"]]:
    """The k best of all R^2 keys for each token and head, best first: their scores, float32, and their rows, int32.

    The key of row i * R + j scores queries[t, h, 0] @ sub_keys[h, 0, i] + queries[t, h, 1] @ sub_keys[h, 1, j]
    (arXiv 2412.09764 section 3.1; Lample et al., arXiv 1907.05242). Exact: no pair with a better score is left out;
    equal scores come in an order that is always the same, but not every back end's. Scores that are not finite give
    meaningless rows, within 0..R^2 - 1.

    The scores have gradients to queries and sub_keys; which rows win has none. Accumulates in float32.

    With `packed`, a back end may carry each half's index in its score's low mantissa bits: faster, but a half's score
    loses up to 2^(ceil(log2 R) - 23) of itself, and keys that are closer than this may be mistaken for each other. Only
    the TPU's does.

    Raises ValueError naming the argument that does not fit.
    """
    if queries.ndim != 4 or queries.shape[2] != 2:
        raise ValueError(f"queries: got {queries.dtype}{list(queries.shape)}, expected [T, H, 2, d]")
    _, heads, _, depth = queries.shape
    fits = sub_keys.ndim == 4 and sub_keys.shape[:2] == (heads, 2) and sub_keys.shape[3] == depth
    if not fits or sub_keys.dtype != queries.dtype:
        expected = f"{queries.dtype}[H={heads}, 2, R, d={depth}]"
        raise ValueError(f"sub_keys: got {sub_keys.dtype}{list(sub_keys.shape)}, expected {expected}")
    num_keys = sub_keys.shape[2]
    if num_keys > MOST_KEYS:
        raise ValueError(f"sub_keys: got R={num_keys}, expected at most {MOST_KEYS}: rows up to R^2 - 1 are int32")
    if not 1 <= k <= num_keys**2:
        raise ValueError(f"k: got {k}, expected 1 to R^2 = {num_keys**2}")
    check_implementation(implementation, operations.KERNELS, queries, sub_keys, k)
    return operations.topk(queries, sub_keys, k, packed, implementation)
