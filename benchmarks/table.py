"""The docs' page from benchmarks/results.json: ratios in one run, with spread, beside what was promised."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.rows import paired, table, took
from benchmarks.table_activations import sections

RESULTS = Path(__file__).with_name("results.json")
LOOPS = ("TransformerLens", "nnsight", "plain loop", "batched loop", "batched loop behind the prefix")
PROMISED = {("TransformerLens", True): 40, ("TransformerLens", False): 8, ("batched loop", True): 5, ("batched loop", False): 2}  # fmt: skip


def page() -> str:
    """Markdown."""
    data = json.loads(RESULTS.read_text(encoding="utf-8"))
    m = data["machine"]
    parts = [
        "# Speed and memory",
        f"Measured on {data['date']} by `make bench`, each case (a column of the sweeps, a table of the others) in one run, contestants turn by turn: {m['cpu']}, {m['cores']} cores, torch "
        f"{m['torch']}, transformers {m['transformers']}, peers {', '.join(m['peers'])}; SmolLM2-135M-Instruct in float32, {data['threads']} threads. "
        f"Medians of {data['repeats']} (captures: four times as many) after a warm-up, smallest to largest in brackets. The machine is shared and noisy: read ratios, not seconds.",
        "A forward per cell costs the same whichever cell it is, so contestants of that kind ran some cells of the map, drawn at random "
        "(or whole layers, for the batched loop), and their time is scaled to all.",
        "With controls: these prompts declare no variables, so identity, receipts, sign-flip and noise run and the donors that "
        "need variables do not; with one pair nothing but receipts does.",
    ]
    sweeps = data.get("sweeps", {})
    resid = [r for r in sweeps.values() if r["kind"] == "resid"]
    if resid:
        parts += ["## Residual sweep: 30 layers x all positions", _times(resid), "How many times faster than each, and what was promised:", _ratios(resid), *_limits(resid)]  # fmt: skip
    heads = [r for r in sweeps.values() if r["kind"] == "heads"]
    if heads:
        parts += ["## All 270 heads", _times(heads), _ratios(heads)]
    parts += _edges(data.get("edges"), data.get("edge_memory"))
    parts += sections(data)
    parts += _capture(data.get("capture")) + _memory(data.get("memory")) + _cold(data.get("cold"))
    parts += _record(data.get("record"))
    return "\n\n".join(parts) + "\n"


def _case(row: dict) -> str:
    where = ", last position" if row["last"] else ""
    start = f"share {row['same_tokens']} of {row['tokens']} tokens" if row["shared_prefix"] else f"differ from the first of {row['tokens']} tokens"  # fmt: skip
    return f"{row['pairs']} pair{'s' * (row['pairs'] > 1)}, {start}{where}"


def _times(rows: list[dict]) -> str:
    names = list(
        dict.fromkeys(n for r in rows for n, w in r["who"].items() if "seconds" in w or "failed" in w)
    )
    return table(["seconds", *map(_case, rows)], ([n, *(took(r["who"].get(n)) for r in rows)] for n in names))


def _ratios(rows: list[dict]) -> str:
    def lines() -> Iterable[list[str]]:
        for row in rows:
            own = row["who"]["microtome"]["seconds"]
            gaps = row["who"]["largest difference from the plain loop"]
            out = [_case(row)]
            for name in LOOPS:
                who = row["who"].get(name)
                promised = PROMISED.get((name, row["shared_prefix"])) if row["kind"] == "resid" else 15 if row["last"] and name == "plain loop" else None  # fmt: skip
                out.append("" if who is None or "seconds" not in who else f"{who['seconds'] / own:.1f}x" + (f" (>= {promised}x)" if promised else ""))  # fmt: skip
            yield [*out, f"{gaps['microtome']:.1e}"]

    return table(["", *LOOPS, "largest difference from the plain loop, logits"], lines())


def _limits(rows: list[dict]) -> list[str]:
    found = []
    for row in rows:
        for name in ("microtome", "microtome, nothing skipped"):
            who = row["who"].get(name, {})
            if "limit" in who:
                limit = who["limit"]
                found.append([_case(row), name, f"{limit['seconds']:.2f}", f"{limit['gflops_per_second']:.0f}", f"{paired(limit, who):.0%}", _against(row, name, limit)])  # fmt: skip
    head = [
        "",
        "",
        "matrix products alone, seconds",
        "GFLOP/s at its row counts",
        "share of the sweep's time",
        "TransformerLens against the products alone",
    ]
    text = "The arithmetic limit: the products with the layers' matrices alone, at the row counts that the sweep used, timed in turn with it (share: median over rounds; promised without skipping: 60 % at 4 pairs, 45 % at 1). The last column is the most that a sweep which computes exactly these rows could be faster than TransformerLens. It falls with the number of pairs: a single forward of 16 pairs has rows enough to run at the full matrix rate, so only work that is left out is gained."
    return [text + "".join(_beyond(row) for row in rows), table(head, found)] if found else []


def _beyond(row: dict) -> str:
    """A sentence where the promise lies beyond the arithmetic limit."""
    promised = PROMISED["TransformerLens", row["shared_prefix"]]
    limit, peer = row["who"]["microtome"].get("limit"), row["who"].get("TransformerLens", {})
    if limit is None or "seconds" not in peer or peer["seconds"] / limit["seconds"] >= promised:
        return ""
    return f" Beyond it: the {promised}x that was promised for {_case(row)}."


def _against(row: dict, name: str, limit: dict) -> str:
    peer = row["who"].get("TransformerLens", {})
    return f"{peer['seconds'] / limit['seconds']:.1f}x" if name == "microtome" and "seconds" in peer else ""


UNITS = {
    "scores": "one plain forward and backward",
    "circuits": "one plain forward",
    "exact": "one plain forward",
}
EDGES = {
    "gradient": "4",
    "integrated gradients, 8 steps": "12",
    "ten circuits": "12",
    "each further circuit": "1",
}


def _edges(found: dict | None, memory: dict | None) -> list[str]:
    """Everything about edges: multiples of one plain pass of the same prompts, in the same run."""
    if not found:
        return []
    rows = []
    for name, case in found.items():
        kind = name.partition(",")[0]
        if kind in UNITS:
            who = case["who"] if kind == "scores" else case
            rows += [
                [name, *_multiple(n, w, who[UNITS[kind]], case)] for n, w in who.items() if n != UNITS[kind]
            ]
            if kind == "circuits":
                rows.append([name, *_multiple("each further circuit", _further(who), who[UNITS[kind]], case)])
    out = [
        "## Edges: SmolLM2's graph of 70,651",
        "Scores and circuits of 32 pairs of 16 tokens, as multiples of one plain pass of the same prompts by transformers itself (a forward and backward to the "
        'embedding for scores, else a forward); recording of the base and donor runs is included. "By hand" is EAP-IG as it is published, a whole pass per step '
        "and nothing kept, measured once. The exact sweep patches single edges of one pair, every sixth (every 24th where the pair differs from the first token on), scaled to all; it is shown as edges per plain forward of that prompt.",
        table(["", "what", "seconds", "multiple of the plain pass", "promised"], rows),
    ]
    out += _walks(found.get("acdc")) + _beside(found.get("peer"))
    if memory:
        out.append(
            f"Peak memory of the scores of {memory['pairs']} pairs above the loaded model: {memory['extra'] / 1e6:,.0f} MB (promised: under 2,000)."
        )
    return out


def _multiple(name: str, who: dict, unit: dict, case: dict) -> list[str]:
    if name == "all edges, one at a time":
        return [
            name,
            took(who),
            f"{who['edges'] * unit['seconds'] / who['seconds']:.1f} edges per forward",
            ">= 15",
        ]
    more = (
        f" (largest difference {case['gap']:.1e} of the largest score)" if name == "the same by hand" else ""
    )
    return [
        name + more,
        took(who),
        f"{paired(who, unit):.1f}",
        f"<= {EDGES[name]}" if name in EDGES else "",
    ]


def _further(who: dict) -> dict:
    """What a circuit costs once base and donor are recorded: ten less one, by nine, round by round."""
    rounds = [
        (b - a) / 9 for a, b in zip(who["one circuit"]["rounds"], who["ten circuits"]["rounds"], strict=True)
    ]
    return {"seconds": statistics.median(rounds), "low": min(rounds), "high": max(rounds), "rounds": rounds}


def _walks(found: dict | None) -> list[str]:
    if not found:
        return []
    ahead, blocks = found["speculative"], found["groups"]
    plain = ahead["decisions with a run"] + 1
    rows = [
        ["plain, one edge per forward", plain, plain, ahead["kept"]],
        [
            "speculative, the same circuit",
            ahead["forward calls"],
            ahead["forwards (circuit x prompt)"] // found["pairs"],
            ahead["kept"],
        ],
        [
            "group testing",
            blocks["forward calls"],
            blocks["forwards (circuit x prompt)"] // found["pairs"],
            blocks["kept"],
        ],
    ]
    text = (
        f"ACDC on the edges into layers {found['from']} and later, {found['pairs']} pairs (the plain walk's count follows from the speculative one, which makes the same "
        f"decisions): speculative {plain / ahead['forward calls']:.1f}x fewer calls (promised 5x), group testing "
        f"{plain / max(1, blocks['forwards (circuit x prompt)'] // found['pairs']):.1f}x fewer forwards (promised 5x)."
    )
    return [text, table(["walk", "forward calls", "circuits run", "edges kept"], rows)]


def _beside(found: dict | None) -> list[str]:
    if not found:
        return []
    rows = []
    for of, who in found.items():
        own, peer = who["microtome"], who["TransformerLens"]
        ratio = f"{peer['seconds'] / own['seconds']:.1f}x" if "seconds" in peer and "seconds" in own else ""
        gap = f"{who['gap']:.1e} over {who['compared']:,}" if "gap" in who else ""
        rows.append([f"{of}s", took(own), took(peer), ratio, gap])
    text = "Attribution patching beside TransformerLens's (one gradient; it refuses SmolLM2's grouped keys) on a random model of GPT-2's shape, 4 pairs:"
    return [
        text,
        table(
            ["", "microtome", "TransformerLens", "faster", "largest difference, share of the largest score"],
            rows,
        ),
    ]


def _capture(found: dict | None) -> list[str]:
    if not found:
        return []
    base = {"every pattern": "plain forward, eager attention"}
    promised = {"nothing": "1.02x", "every residual": "1.05x", "every pattern": "1.1x"}
    rows = []
    for name, who in found.items():
        if "seconds" in who:
            against = base.get(name.rpartition(", ")[2], "plain forward")
            rows.append(
                [
                    name,
                    took(who),
                    f"{paired(who, found[against]):.2f}x",
                    promised.get(name, ""),
                ]
            )
        else:
            rows.append([name, took(who), "", ""])
    return ["## Capture: one forward of 16 prompts, all logits", table(["captured", "seconds", "against a plain forward (patterns: with eager attention)", "promised at most"], rows)]  # fmt: skip


def _memory(found: list | None) -> list[str]:
    if not found:
        return []
    rows = [[r["pairs"], f"{r['budget'] / 1e6:.0f}", f"{r['extra'] / 1e6:.0f}"] for r in found]
    return ["## Peak memory of a residual sweep", table(["pairs", "budget, MB", "peak above the loaded model, MB"], rows)]  # fmt: skip


def _cold(found: dict | None) -> list[str]:
    if not found:
        return []
    promised = {
        "import": "0.3 s",
        "help": "0.5 s",
        "own cold": f"{1.2 * found['plain cold']['seconds']:.1f} s (1.2x plain)",
    }
    words = {"python": "an empty interpreter", "import": "`import microtome`", "help": "`microtome --help`", "dissect --help": "`microtome dissect --help`", "plain cold": "plain transformers: load and first logits", "own cold": "`mt.load(folder)` and first logits", "default cold": "`mt.load()` of the embedded model and first logits"}  # fmt: skip
    rows = [[words[n], took(w), promised.get(n, "")] for n, w in found.items()]
    return ["## A cold process", table(["", "seconds", "promised at most"], rows)]


def _record(found: dict | None) -> list[str]:
    if not found:
        return []
    kept, asked, compared = found["recording"], found["asking"], found["comparing"]

    def row(name: str, who: dict, promised: str) -> list[str]:
        return [name, f"{who['ms']:.1f} ({who['low']:.1f} to {who['high']:.1f})", promised]

    rows = [
        row(
            f"recording a run of {kept['files per run']} files, above its bytes",
            kept["added, above its bytes"],
            "30",
        ),
        row(f"the newest 30 of {asked['stored runs']:,} runs", asked["newest 30"], "50"),
        row("the newest 30 of one method", asked["newest 30 of a method"], "50"),
        row("one run", asked["one run"], "50"),
        row(
            f"`microtome lab runs` in a record of {asked['stored runs']:,}, the whole process",
            asked["microtome lab runs"],
            "1,500",
        ),
        row(
            f"`microtome lab compare` of {compared['cells']:,} cells on 32 prompts, the whole process",
            compared["microtome lab compare"],
            "2,000",
        ),
    ]
    return ["## The record", table(["", "ms", "promised at most"], rows)]
