"""Directions in activation space: the value, and what estimates it."""
