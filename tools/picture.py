"""Write the pictures of docs/images from a saved dissection, drawn in headless Chromium: ioi.png (README), circuit.png (tutorial).

    python tools/picture.py runs/ioi-.../result

Run by hand when the figures change; the dissection is that of `make dissect`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import microtome as mt
from microtome.figures import patching, pictures_of

IMAGES = Path(__file__).parents[1] / "docs" / "images"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--force-device-scale-factor=1.5", "--virtual-time-budget=8000"]  # fmt: skip


def main() -> None:
    """Draw and photograph."""
    result = mt.open(sys.argv[1])
    stages = [c for c in result.children if c.kind == "activation_patching"]
    single = next(c for c in stages if "position" not in c.effects.coords)
    photograph(IMAGES / "ioi.png", [patching.draw(stages[0]), patching.strongest(single, most=22)])
    kinds = {c.kind: c for c in result.children}
    both = [kinds[kind] for kind in ("circuit_discovery", "circuit_evaluation")]
    photograph(IMAGES / "circuit.png", [pictures_of(c)[0].draw() for c in both])


def photograph(out: Path, figures: list) -> None:
    """Two figures side by side."""
    config = {"displayModeBar": False}
    drawn = [
        f.to_html(full_html=False, include_plotlyjs=i == 0, config=config) for i, f in enumerate(figures)
    ]
    columns = "".join(f'<div style="width:560px;padding:8px">{text}</div>' for text in drawn)
    height = max(int(f.layout.height) for f in figures) + 40
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(
            f'<meta charset="utf-8"><body style="margin:0;background:#fff;display:flex">{columns}</body>'
        )
        window = [f"--window-size=1152,{height}", f"--screenshot={out}", f"--user-data-dir={folder}/profile"]
        subprocess.run(["chromium", *FLAGS, *window, page.as_uri()], check=True, capture_output=True)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
