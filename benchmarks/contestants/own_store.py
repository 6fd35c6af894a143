"""Microtome's store and its max-activating examples."""

from __future__ import annotations

import tempfile
import time

import microtome as mt


class Contestant:
    """The model as Microtome loads it."""

    def __init__(self, folder: str) -> None:
        self.model = mt.load(folder)
        self.model.hash  # noqa: B018  once per model, not per capture

    def capture(self, work: dict) -> dict:
        """All sites of all rows to disk, digests and fsync included."""
        with tempfile.TemporaryDirectory() as folder:
            return self._store(work, f"{folder}/store")

    def in_memory(self, work: dict) -> dict:
        """All sites of all rows, kept in memory."""
        return self._store(work, None)

    def _store(self, work: dict, folder: str | None) -> dict:
        begun = time.perf_counter()
        store = mt.store(self.model, work["rows"], work["sites"], folder, batch=work["batch"])
        seconds = time.perf_counter() - begun
        said = {"seconds": seconds, "sites": len(store.sites), "bytes": sum(store.raw(s).nbytes for s in store.sites)}  # fmt: skip
        if "alike" in work:
            said["values"] = [float(v) for s in store.sites for v in store[s].mean(0)[:4]]
        return said

    def neurons(self, work: dict) -> dict:
        """The pass that finds the examples of every neuron of a layer, with the random directions of its null."""
        from microtome.methods.example_search import blocks_of, search
        from microtome.methods.units import units_of

        begun = time.perf_counter()
        units = units_of(self.model, f"L{work['layer']}.neurons")
        items = blocks_of(self.model, work["rows"], 128, 1 << 30, 0)
        search(
            self.model,
            items,
            units,
            units.null(199, 0),
            k=work["k"],
            sample=4096,
            first=False,
            batch=work["batch"],
            seed=0,
        )
        return {"seconds": time.perf_counter() - begun, "units": len(units.names)}
