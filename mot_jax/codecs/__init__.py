"""The built-in codecs; importing this registers their kinds."""

from mot_jax.codecs.byte_pair import BytePairText
from mot_jax.codecs.image_patches import ImagePatches
from mot_jax.codecs.protocol import Codec, codec_class
from mot_jax.codecs.speech_units import SpeechUnits

__all__ = ["BytePairText", "Codec", "ImagePatches", "SpeechUnits", "codec_class"]
