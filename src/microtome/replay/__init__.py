"""Exact partial recomputation: the staircase sweep."""
