"""mot_jax's training step in PyTorch: its parameters, batch and optimizer for the models of pytorch_mot.py."""

from collections.abc import Callable

import jax
import numpy as np
import torch
from pytorch_mot import Inputs, Masks, Order, Transformer

from mot_jax import config
from mot_jax.batch import Batch
from mot_jax.config import Model, Run
from mot_jax.nn import rotary
from mot_jax.training.optimizer import make_schedule


def inputs(model: Model, batch: Batch, masks: bool = False) -> Inputs:
    """With `masks` modalities are told apart by boolean masks, else by one permutation."""
    segments = torch.from_numpy(batch.segment_ids)
    length = segments.shape[1]
    seen = (segments[:, None, :, None] == segments[:, None, None, :]) & torch.ones(length, length, dtype=bool).tril()
    rates = torch.from_numpy(rotary.frequencies(config.heads(model)[2], model.rope_theta, model.rope_scaling))
    phase = (torch.from_numpy(batch.positions).float() * rates)[:, :, None, None]
    return Inputs(
        tokens=torch.from_numpy(batch.tokens).long(),
        rows=_rows(model, torch.from_numpy(batch.modality_ids).reshape(-1), masks),
        cos=phase.cos(),
        sin=phase.sin(),
        mask=torch.zeros(seen.shape).masked_fill(~seen, -torch.inf),
        targets=torch.from_numpy(batch.targets).reshape(-1).long(),
        weights=torch.from_numpy(batch.loss_weights).reshape(-1),
    )


def _rows(model: Model, modality, masks: bool) -> Masks | Order:
    if not model.untied:
        return Order(None, None, ())
    count = len(model.modalities)
    if masks:
        return Masks(tuple(modality == i for i in range(count)))
    order = modality.argsort(stable=True)
    return Order(order, order.argsort(), tuple(modality.bincount(minlength=count).tolist()))


def arrays(model: Model, tree: dict) -> dict[str, np.ndarray]:
    """mot_jax's parameters, or gradients of them, by the names and in the shapes of `Transformer`'s."""
    tree = jax.tree.map(np.asarray, tree)
    found = {"embedding.weight": tree["embedding"]["table"], "head.weight": tree["head"]["table"]}
    for group in range(len(model.modalities) if model.untied else 1):
        own = jax.tree.map(lambda leaf, group=group: leaf[group], tree["layers"]) if model.untied else tree["layers"]
        gain = tree["final_norm"]["gain"]
        found[f"final_norms.{group}.weight"] = gain[group] if model.untied else gain
        for index, layer in own.items():
            attention = layer["attention"]
            qkv, output = attention["qkv"], attention["output"]  # [D, N, 3, H], [N, 1, H, D]
            parts = {
                "qkv.weight": qkv.transpose(2, 1, 3, 0).reshape(-1, qkv.shape[0]),
                "query_key_gain": np.stack([attention[name]["gain"] for name in ("query_norm", "key_norm")])[:, None],
                "output.weight": output.reshape(-1, output.shape[-1]).T,
                **{f"{name}.weight": layer["feed_forward"][name].T for name in ("gate", "up", "down")},
                **{f"{name}.weight": layer[name]["gain"] for name in ("attention_norm", "feed_forward_norm")},
            }
            found |= {f"layers.{index}.{group}.{name}": array for name, array in parts.items()}
    return found


def transformer(model: Model, params: dict) -> Transformer:
    """The same model with the same parameters."""
    made = Transformer(model)
    made.load_state_dict({name: torch.tensor(array) for name, array in arrays(model, params).items()})
    return made


def train_step(
    run: Run, peer: Transformer, forward: Callable, steps: int, masks: bool = False
) -> Callable[[Batch], float]:
    """A training step, optimizer included, that gives the loss; `forward` is the peer itself or the peer compiled."""
    o = run.optimizer
    gains = [p for name, p in peer.named_parameters() if "norm" in name or "gain" in name]
    matrices = [p for name, p in peer.named_parameters() if not ("norm" in name or "gain" in name)]
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=o.learning_rate, betas=(o.b1, o.b2), eps=o.epsilon, fused=True)
    rate = make_schedule(o, steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(rate(step)) / o.learning_rate)

    def step(batch: Batch) -> float:
        objective, loss = forward(inputs(run.model, batch, masks), run.train.z_loss)
        optimizer.zero_grad()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), o.clip_norm)
        optimizer.step()
        scheduler.step()
        return loss.item()

    return step
