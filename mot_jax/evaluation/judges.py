"""Small classifiers that read what a model drew or said; trained in memory on real examples, in seconds."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float32, Int

BATCH = 128
HIDDEN = 256
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """One hidden layer with ReLU over standardised features. Deterministic: fitted twice it is the same."""

    params: Mapping[str, np.ndarray]
    mean: Float32[np.ndarray, "F"]
    scale: Float32[np.ndarray, "F"]

    def __call__(self, features: Float32[np.ndarray, "N F"]) -> Int[np.ndarray, "N"]:
        """The class of each row."""
        return _logits(self.params, (features - self.mean) / self.scale).argmax(-1)


def fit_judge(
    features: Float32[np.ndarray, "N F"], labels: Int[np.ndarray, "N"], *, classes: int, steps: int, seed: int = 0
) -> Judge:
    """Fits a judge by AdamW on the mean cross-entropy, `steps` batches of 128 drawn with replacement."""
    mean = features.mean(0)
    # One scale for all features: a pixel that is nearly always blank must not be blown up to unit variance.
    scale = np.full_like(mean, max(float(features.std()), 1e-6))
    draws = np.random.default_rng(seed).integers(len(features), size=(steps, BATCH), dtype=np.int32)
    params = _init(features.shape[1], classes, seed)
    params = _fit(params, jnp.asarray((features - mean) / scale), jnp.asarray(labels, jnp.int32), draws)
    return Judge(jax.tree.map(np.asarray, params), mean, scale)


def _init(width: int, classes: int, seed: int):
    rng = np.random.default_rng(seed + 1)
    return {
        "w1": rng.normal(0, (2 / width) ** 0.5, (width, HIDDEN)).astype(np.float32),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": rng.normal(0, HIDDEN**-0.5, (HIDDEN, classes)).astype(np.float32),
        "b2": np.zeros(classes, np.float32),
    }


def _logits(params, x):
    hidden = (x @ params["w1"] + params["b1"]).clip(0)
    return hidden @ params["w2"] + params["b2"]


@jax.jit
def _fit(params, features, labels, draws):
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, len(draws))
    tx = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)

    def loss(params, rows):
        logits = _logits(params, features[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def step(carry, rows):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), draws)
    return params


def image_features(images: np.ndarray) -> Float32[np.ndarray, "N F"]:
    """Decoded images [N, h, w] or [N, h, w, C] (0..255 or 0..1) -> flat pixels in 0..1."""
    pixels = np.asarray(images)
    scale = 255 if np.issubdtype(pixels.dtype, np.integer) else 1
    return pixels.reshape(len(pixels), -1).astype(np.float32) / scale


def unit_features(utterances: Sequence[np.ndarray], codes: int) -> Float32[np.ndarray, "N F"]:
    """Unit sequences -> square roots of the unit frequencies in each utterance's first and second half.

    The order of sounds survives only as far as the halves keep it, which is enough to tell ten words apart.
    """
    table = np.zeros((len(utterances), 2, codes), np.float32)
    for row, units in enumerate(utterances):
        middle = -(-len(units) // 2)
        for half, part in enumerate((units[:middle], units[middle:])):
            if len(part):
                table[row, half] = np.bincount(part, minlength=codes) / len(part)
    return np.sqrt(table).reshape(len(utterances), 2 * codes)
