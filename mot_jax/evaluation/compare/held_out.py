"""What the held-out losses of a run in training are over; only losses over the same tokens can be compared."""

from mot_jax.config import Run


def held_out_rows(run: Run) -> tuple[int | None, int]:
    """(rows at most, the first ones of the split, None for all; tokens of a row)."""
    batches = run.eval.batches
    return None if batches is None else batches * run.data.global_batch_size, run.data.sequence_length


def held_out_text(run: Run) -> str:
    """`Eval.batches = 8 of 16 rows of 256 tokens`, or `the whole split in rows of 256 tokens`."""
    length = run.data.sequence_length
    if run.eval.batches is None:
        return f"the whole split in rows of {length} tokens"
    return f"Eval.batches = {run.eval.batches} of {run.data.global_batch_size} rows of {length} tokens"
