"""Activations of a whole dataset on disk: captured once, read by everything that needs them."""
