"""The k best of R^2 keys, each a pair of sub-keys: T tokens, H heads, R sub-keys a half of d numbers."""

from kernels_pallas.product_key.api import product_key_topk

__all__ = ["product_key_topk"]
