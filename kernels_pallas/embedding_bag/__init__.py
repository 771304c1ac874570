"""Weighted sums of a table's rows, and the gradient of only the rows that were read: T tokens, K rows each, width D."""

from kernels_pallas.embedding_bag.api import RowsGradient, embedding_bag, embedding_bag_rows_gradient

__all__ = ["RowsGradient", "embedding_bag", "embedding_bag_rows_gradient"]
