"""Sets of runs, trained one after the other or several at once, then compared: `python -m mot_jax.experiments`."""
