"""Real facts about cities and countries, stated in several phrasings and asked for in another: closed-book recall.

Beside the documents a prepared directory holds `evaluation/facts.json`, read with `questions.load(directory)`.
"""

from mot_jax.data.facts.preparation import prepare

__all__ = ["prepare"]
