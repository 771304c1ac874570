"""Kernels that stand alone: they import nothing from the models that use them."""
