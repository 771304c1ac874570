"""The objective is one sum over one count, weighted by the TARGET's modality."""

import jax
import numpy as np

from mot_jax.config import FrozenMapping
from mot_jax.nn import transformer
from mot_jax.objectives.next_token import loss_sum, target_count
from tests.batches import ALL, VOCABULARY, random_batch, small_model


def test_objective_and_metrics(rng):
    model = small_model(untied=ALL, num_layers=1)
    params = transformer.init(model, jax.random.key(0))
    batch = random_batch(rng, 3, 20)
    weights = FrozenMapping(image=3.0, text=0.5)
    total, metrics = jax.jit(lambda p, b: loss_sum(model, p, b, VOCABULARY, z_loss=0.1, modality_weights=weights)[:2])(
        params, batch
    )
    hidden, _ = jax.jit(lambda p, b: transformer.apply(model, p, b))(params, batch)
    logits = np.asarray(transformer.logits(model, params, hidden), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, batch.targets[..., None], -1)[..., 0]
    modality = VOCABULARY.token_modality[batch.targets]
    w = np.asarray([0.5, 3.0, 1.0])[modality]
    np.testing.assert_allclose(total, (w * batch.loss_weights * (nll + 0.1 * log_z**2)).sum(), rtol=1e-5)
    assert float(target_count(batch)) == (batch.loss_weights > 0).sum()
    for index, name in enumerate(VOCABULARY.names):
        mine = (batch.loss_weights > 0) & (modality == index)
        np.testing.assert_allclose(metrics[f"loss/{name}"][0], nll[mine].sum(), rtol=1e-4)
        assert metrics[f"loss/{name}"][1] == mine.sum()
        real = (batch.modality_ids == index) & (batch.segment_ids > 0)
        assert metrics[f"modality_tokens/{name}"][0] == real.sum()
