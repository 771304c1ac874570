"""Which pairs of halves can be among the k best: with both halves sorted, only those with (i + 1)(j + 1) <= k.

The pair (i, j) has (i + 1)(j + 1) - 1 others that are at least as good: all (i', j') with i' <= i and j' <= j. For
k = 32 that leaves 119 pairs of 1,024.
"""


def sorted_runs(k: int, most: int) -> list[list[tuple[int, int]]]:
    """The pairs with i, j < `most` as runs, each descending in both halves, and so in their sum; long runs first.

    Run 2n goes along row n from its diagonal, run 2n + 1 down column n below it.
    """
    runs = []
    for n in range(most):
        columns = range(n, min(most, k // (n + 1)))
        runs += [[(n, j) for j in columns], [(i, n) for i in columns[1:]]]
    return [run for run in runs if run]
