"""Held-out losses against a float64 recomputation from logits."""

import dataclasses
import math

import jax
import numpy as np

from mot_jax.config import Parallel
from mot_jax.data.pipeline import evaluation_batches
from mot_jax.evaluation.losses import HeldOutLoss, evaluation_mesh, heldout_losses
from mot_jax.nn import transformer


def test_losses_are_the_means_over_the_whole_split(dataset, small_run, params):
    losses = heldout_losses(
        small_run,
        dataset.vocabulary,
        params,
        evaluation_batches(dataset, small_run.data),
        evaluation_mesh(small_run),
    )
    modality = dataset.vocabulary.token_modality
    values, owners = [], []
    for batch in evaluation_batches(dataset, small_run.data):
        hidden, _ = jax.jit(transformer.apply, static_argnums=0)(small_run.model, params, batch)
        logits = np.asarray(transformer.logits(small_run.model, params, hidden), np.float64)
        shifted = logits - logits.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        nll = -np.take_along_axis(log_p, batch.targets[..., None], -1)[..., 0]
        values.append(nll[batch.loss_weights > 0])
        owners.append(modality[batch.targets[batch.loss_weights > 0]])
    values, owners = np.concatenate(values), np.concatenate(owners)
    assert set(losses) == {"all", "text", "image", "speech"}
    assert losses["all"].tokens == len(values) == sum(losses[m].tokens for m in dataset.vocabulary.names)
    np.testing.assert_allclose(losses["all"].loss, values.mean(), rtol=1e-5)
    for index, name in enumerate(dataset.vocabulary.names):
        assert losses[name].tokens == (owners == index).sum() > 0
        np.testing.assert_allclose(losses[name].loss, values[owners == index].mean(), rtol=1e-5)


def test_every_held_out_document_is_counted(dataset, small_run, params):
    """Documents of n tokens have n - 1 targets, so a batch left out or read twice shows in the count."""
    batches = evaluation_batches(dataset, small_run.data)
    losses = heldout_losses(small_run, dataset.vocabulary, params, batches, evaluation_mesh(small_run))
    marks = {"text": 0, "image": 2, "speech": 2}
    targets = sum(
        1 + sum(len(s.codes) + marks[s.modality] for s in document) for document in dataset.split("validation")
    )
    assert losses["all"].tokens == targets  # BOS is no target, EOS is one


def test_perplexity_is_the_exponential_of_the_loss():
    assert HeldOutLoss(loss=0.0, tokens=1).perplexity == 1
    np.testing.assert_allclose(HeldOutLoss(loss=math.log(37), tokens=1).perplexity, 37)


def test_a_modality_that_is_never_a_target_has_no_loss(dataset, small_run, params):
    batches = [
        dataclasses.replace(
            batch, loss_weights=batch.loss_weights * (dataset.vocabulary.token_modality[batch.targets] != 1)
        )
        for batch in evaluation_batches(dataset, small_run.data)
    ]
    losses = heldout_losses(small_run, dataset.vocabulary, params, batches, evaluation_mesh(small_run))
    assert losses["image"].tokens == 0 and math.isnan(losses["image"].loss)
    assert np.isfinite(losses["all"].loss)


def test_the_mesh_does_without_devices_that_the_rows_cannot_fill(small_run):
    """Eight devices here, four rows: the run's own mesh does not fit, one device does."""
    assert evaluation_mesh(small_run).size == 1
    wide = dataclasses.replace(small_run, data=dataclasses.replace(small_run.data, global_batch_size=8))
    assert evaluation_mesh(wide).size == 8
    elsewhere = dataclasses.replace(small_run, parallel=Parallel(data=64))
    assert evaluation_mesh(elsewhere).size == 1
