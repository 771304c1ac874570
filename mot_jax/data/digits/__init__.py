"""The embedded default: handwritten digits, their captions, spoken digits, and plain English, from installed packages.

Beside the documents a prepared directory holds `evaluation/digits.npz`, read with `evaluation_set.load(directory)`:
labelled image and speech codes of training and held-out examples, captions and prompts (see `EvaluationSet`).
"""

from mot_jax.data.digits.preparation import prepare

__all__ = ["prepare"]
