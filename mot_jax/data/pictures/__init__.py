"""Colour pictures with names: OpenMoji's, drawn from its font, with captions of name, group and colours.

Beside the documents a prepared directory holds `evaluation/pictures.npz`, read with `evaluation_set.load(directory)`.
"""

from mot_jax.data.pictures.preparation import prepare

__all__ = ["prepare"]
