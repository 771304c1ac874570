"""Counting the floating-point operations of training a model."""

from mot_jax.config import Block, Model, Run, expand, expert_dim, group_names, has_memory, heads, pools
from mot_jax.config.experts import AverageKey, ExpertChoice, TokenChoice
from mot_jax.config.memory import Memory, key_dim, value_dim

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
    """Matrix multiplications of one token's forward pass, of the group that costs most; a multiply-add is two.

    A token meets one group's weights, so untying changes nothing; of experts it meets as many as its pool's routing
    says. A layer that some tokens skip is run by the others alone. Attention is counted as causal over whole rows: half
    of S keys a query on average. Left out are norms, rotary embedding, softmax and the embedding's lookup.
    """
    return sum(forward_flops_by_part(model, sequence_length).values())


def forward_flops_by_part(model: Model, sequence_length: int) -> dict[str, float]:
    """The same by part: attention's projections and scores, feed-forwards with their routers, memories, auxiliary
    routers where the model has some, and the head.
    """
    return max(forward_flops_by_group(model, sequence_length).values(), key=lambda parts: sum(parts.values()))


def forward_flops_by_group(model: Model, sequence_length: int) -> dict[str, dict[str, float]]:
    """By group, whose experts differ, and part. Every token is scored by all routers and looked up in all memories."""
    found, auxiliary = {}, 2.0 * sum(_auxiliary(model))
    for group in group_names(model):
        parts = dict.fromkeys(("projections", "scores", "feed_forward", "memory"), 0.0)
        for block in expand(model):
            for part, count in _layer(model, block, group, sequence_length).items():
                parts[part] += 2.0 * count
        found[group] = {**parts, "auxiliary": auxiliary, "head": 2.0 * model.dim * model.vocab_size}
    return found


def _layer(model: Model, block: Block, group: str, sequence_length: int) -> dict[str, float]:
    """Multiply-adds of one layer, a token's share."""
    num_heads, kv_heads, head_dim = heads(model)
    through = block.depth.capacity if block.depth else 1.0
    projections = model.dim * head_dim * (num_heads + 2 * kv_heads) + num_heads * head_dim * model.dim
    scores = 2 * num_heads * head_dim * through * sequence_length / 2
    owned = pools(model, block)
    active = next(pool.kind.active for pool in owned if pool.name in (group, "all"))
    experts = float(active) * 3 * model.dim * expert_dim(model, block)
    recalled = _memory(model.memory, model.dim) if has_memory(block) else 0
    scored = sum(pool.kind.experts for pool in owned if isinstance(pool.kind, ExpertChoice | TokenChoice | AverageKey))
    depth_router = model.dim if block.depth else 0
    return {
        "projections": through * projections,
        "scores": through * scores,
        "feed_forward": through * (experts + model.dim * scored) + depth_router,
        "memory": through * recalled,
    }


def _memory(memory: Memory, dim: int) -> int:
    """Multiply-adds of queries, scores of sub-keys, the weighted sum of what is read, the gate and its output."""
    width, keys = value_dim(memory, dim), key_dim(memory, dim)
    gated = 2 * dim * width if memory.gated else 0
    return memory.heads * keys * (dim + memory.num_keys) + memory.reads * width + gated


def _auxiliary(model: Model) -> tuple[float, float]:
    """Multiply-adds of all auxiliary routers' first and second products, a token's share.

    A router of a layer's depth sees every token, those of its experts the tokens that go through it, whosever they are:
    the routers of all pools are as wide as the widest.
    """
    inward, outward, hidden = 0.0, 0.0, model.dim // 2
    for block in expand(model) if model.auxiliary_routers else ():
        choosing = [pool.kind.experts for pool in pools(model, block) if isinstance(pool.kind, ExpertChoice)]
        through = block.depth.capacity if block.depth else 1.0
        depth = 1 if block.depth else 0
        inward += (depth + through * len(choosing)) * model.dim * hidden
        outward += (depth + through * len(choosing) * max(choosing, default=0)) * hidden
    return inward, outward


def train_flops_by_part(model: Model, sequence_length: int, only: str | None = None) -> dict[str, float]:
    """Of a token's forward and backward pass, by the parts of `forward_flops_by_part`; recomputation is not counted.

    The backward pass multiplies twice as much, for the gradients of what is multiplied and of the weights. What
    auxiliary routers read carries no gradient, so their first product has only that of its weights. With `only`
    (`Train.only`) they alone have a backward pass.
    """
    passes, (inward, outward) = 1.0 if only else 3.0, _auxiliary(model)
    parts = {part: passes * once for part, once in forward_flops_by_part(model, sequence_length).items()}
    return {**parts, "auxiliary": 2.0 * (2 * inward + 3 * outward)}


def train_flops_per_token(model: Model, sequence_length: int) -> float:
    """Forward and backward, with auxiliary routers where the model trains some along."""
    return sum(train_flops_by_part(model, sequence_length).values())


def run_flops_by_part(run: Run) -> dict[str, float]:
    """Of a token in a step of `run`, its model resolved."""
    return train_flops_by_part(run.model, run.data.sequence_length, run.train.only)


def run_flops_per_token(run: Run) -> float:
    """The same in all."""
    return sum(run_flops_by_part(run).values())


def training_flops(run: Run, steps: int) -> float:
    """Spent by the first `steps` steps of `run`, on full rows; what a run it began from had spent is not in it."""
    return run_flops_per_token(run) * steps * run.data.global_batch_size * run.data.sequence_length


def peak_flops(devices) -> float | None:
    """Operations per second of all devices together; None where a device kind is not in the table (CPUs)."""
    kinds = [device.device_kind for device in devices]
    peaks = [next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), None) for kind in kinds]
    return None if None in peaks else float(sum(peaks))
