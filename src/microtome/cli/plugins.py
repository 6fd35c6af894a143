"""What other packages add, read from their metadata alone: nothing of theirs is imported to list it."""

from __future__ import annotations

from collections.abc import Mapping

KINDS = ("families", "tasks", "datasets", "metrics", "techniques")


def plugins() -> Mapping[str, tuple[tuple[str, str], ...]]:
    """kind -> (name, distribution and version), sorted."""
    from importlib.metadata import entry_points

    found = {}
    for kind in KINDS:
        points = entry_points(group=f"microtome.{kind}")
        found[kind] = tuple(
            sorted((p.name, f"{p.dist.name} {p.dist.version}" if p.dist else "?") for p in points)
        )
    return found


def epilog() -> str:
    """One sentence for the end of `--help`: the plug-ins by kind, or that there are none."""
    said = [
        f"{kind}: " + ", ".join(f"{name} ({owner})" for name, owner in every)
        for kind, every in plugins().items()
        if every
    ]
    return "Plug-ins: " + ("; ".join(said) if said else "none installed") + "."
