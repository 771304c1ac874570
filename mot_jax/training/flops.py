"""Counting the floating-point operations of training a model."""

from mot_jax.config import Model, expand, heads

# Dense bfloat16 operations per second of one device, by the start of `device_kind`; vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
}


def forward_flops_per_token(model: Model, sequence_length: int) -> float:
    """Matrix multiplications of one token's forward pass; a multiply-add is two operations.

    A token meets one group's weights, so untying changes nothing. Attention is counted as causal over whole rows: half
    of S keys a query on average. Norms, rotary embedding, softmax and the embedding's lookup are left out.
    """
    num_heads, kv_heads, head_dim = heads(model)
    projections = model.dim * head_dim * (num_heads + 2 * kv_heads) + num_heads * head_dim * model.dim
    scores = 2 * num_heads * head_dim * sequence_length / 2
    layers = sum(projections + scores + 3 * model.dim * block.ffn_dim for block in expand(model))
    return 2.0 * (layers + model.dim * model.vocab_size)


def train_flops_per_token(model: Model, sequence_length: int) -> float:
    """Forward and backward: the backward pass multiplies twice as much. Recomputation is not counted."""
    return 3.0 * forward_flops_per_token(model, sequence_length)


def peak_flops(devices) -> float | None:
    """Operations per second of all devices together; None where a device kind is not in the table (CPUs)."""
    kinds = [device.device_kind for device in devices]
    peaks = [next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), None) for kind in kinds]
    return None if None in peaks else float(sum(peaks))
