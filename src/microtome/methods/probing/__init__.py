"""Probes: is a label readable from activations, by whom else, and does the model use it."""
