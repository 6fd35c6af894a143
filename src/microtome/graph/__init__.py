"""The residual computation as a graph: what writes to the stream, what reads from it, and runs with some edges patched."""
