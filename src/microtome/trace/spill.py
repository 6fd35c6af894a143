"""Captures beyond a memory budget go to safetensors files and come back as memory maps."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from pathlib import Path

from torch import Tensor

from microtome.errors import ResourceError
from microtome.model.checkpoint import available_memory
from microtome.model.paths import is_disk_full, require_space

_log = logging.getLogger("microtome.trace")

SHARE = 0.5
"""Part of the free memory that captures may hold when no budget is given."""


class Spill:
    """Where the captures of one run are kept.

    budget: bytes held in memory; None takes half of what is free when the run begins. folder: for the files; None
    makes a temporary one, which goes when the run's captures go. A captured tensor that would exceed the budget is
    written at once and replaced by a map of its file, on the CPU; the first one is told through the logger
    "microtome.trace" (shown on stderr unless logging is set up otherwise), and the trace says it when it is shown.
    """

    def __init__(self, budget: int | None = None, folder: str | Path | None = None) -> None:
        free = available_memory() if budget is None else None
        self.budget = int(free * SHARE) if free is not None else budget
        self.given = None if folder is None else Path(folder)
        self.made: Path | None = None
        self.held = 0
        self.files: list[Path] = []

    @property
    def folder(self) -> Path:
        """The folder, made when it is first needed."""
        if self.made is None:
            if self.given is None:
                self.made = Path(tempfile.mkdtemp(prefix="microtome-captures-"))
                weakref.finalize(self, shutil.rmtree, self.made, ignore_errors=True)
            else:
                self.given.mkdir(parents=True, exist_ok=True)
                self.made = self.given
        return self.made

    def keep(self, name: str, value: Tensor) -> Tensor:
        """The tensor itself within the budget, else the same values from a file.

        Raises
        ------
        ResourceError: the disk is full, or the folder holds a file of this name already.
        """
        size = value.numel() * value.element_size()
        if self.budget is None or self.held + size <= self.budget:
            self.held += size
            return value
        return self._written(name, value, size)

    def _written(self, name: str, value: Tensor, size: int) -> Tensor:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save_file

        path = self.folder / f"{name}.safetensors"
        if path.exists():
            raise ResourceError(f"{path} is there already", why="captures never overwrite an earlier run's",
                                instead="give each run a folder of its own")  # fmt: skip
        require_space(self.folder, size + (1 << 20), f"keeping {name} on disk")
        try:
            save_file({name: value.detach().cpu().contiguous()}, path)
        except (OSError, SafetensorError) as error:
            path.unlink(missing_ok=True)
            why = "the disk is full" if is_disk_full(error) else str(error)
            raise ResourceError(
                f"{path} cannot be written", why=why, instead="free some space, or name another folder"
            ) from error
        if not self.files:
            _log.warning("captures pass the memory budget of %.2f GB: from %s on they are kept in %s and read from there",
                         (self.budget or 0) / 1e9, name, self.folder)  # fmt: skip
        self.files.append(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            mapped: Tensor = file.get_tensor(name)
        return mapped
