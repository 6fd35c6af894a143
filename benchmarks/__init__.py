"""Measurements beside the peers, on the same work in one run. `python -m benchmarks` (see README.md)."""
