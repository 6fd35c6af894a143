"""The page of the zoo: what is compiled, what is trained, and how the trained ones compare with what was published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

Table = Callable[[Sequence[str], Iterable[Sequence[object]]], str]
POINTS = 9

INTRO = """# The zoo

Models whose mechanism is known. Tier A is true by construction: its edges follow from how it was made. Tier B was trained,
and its mechanism is the published one, which these weights may follow or not; what was measured is said.

```python
import microtome as mt

z = mt.zoo.build("reverse", seed=0)  # z.model, z.mechanism, z.task
z = mt.zoo.build("induction_heads")  # shipped weights; train=True trains them again
mt.zoo.dynamics(z, "induction")  # progress measures over its checkpoints
```

A training that does not reach its accuracy raises an error with the curve and gives no model; trainings that are expected
to fail are listed with theirs. The weights that ship are read only if their hash is that of the file that was made.
Small models: what a method finds here is not a bound for what it finds elsewhere.
"""


def page(table: Table) -> str:
    """The text."""
    return "\n".join(
        (
            INTRO,
            compiled(table),
            written(table),
            strict(table),
            trained(table),
            published(table),
            curves(table),
        )
    )


def compiled(table: Table) -> str:
    """Tier A."""
    from microtome.zoo.compile import compile_program
    from microtome.zoo.programs import NAMES, program
    from microtome.zoo.spec import true_edges

    rows = []
    for name in NAMES:
        source = program(name)
        spec = compile_program(source).spec
        neurons = sum(n.n for block in spec.blocks for n in block.neurons)
        inputs = len(source.domain)
        rows.append((f"`{name}`", source.summary, f"{len(spec.blocks)} x {spec.n_heads}", spec.d_model, neurons,
                     len(true_edges(spec)), f"{inputs:,}", "causal" if source.causal else "both ways"))  # fmt: skip
    head = (
        "name",
        "what it computes",
        "layers x heads",
        "d_model",
        "neurons",
        "true edges",
        "inputs",
        "attention",
    )
    return f"""## Compiled (tier A)

Without a seed and without training: each equals its program on every input. `decoys=` adds parts that are busy and do not
matter.

{table(head, rows)}"""


def written(table: Table) -> str:
    """Weights that are written down; of the toy model of superposition W and b are trained."""
    from microtome.zoo.catalog import WRITTEN, build

    rows = []
    for name, (module, tier, said) in WRITTEN.items():
        if module != "interchanged":
            z = build(name, seed=0)
            config, m = z.model.hf.config, z.mechanism
            rows.append((f"`{name}`", tier, said, f"{m.n_layers} x {m.n_heads}", config.hidden_size, config.intermediate_size,
                         f"{len(m.edges)} of {len(m.all_edges)}", f"`{z.task.clean.texts[0]}` -> {z.words[z.task.answers[0][0][0]]}"))  # fmt: skip
    head = ("name", "tier", "what it is", "layers x heads", "d_model", "neurons", "true edges", "a prompt")
    return f"""## Written down

Their variables have directions (`z.directions(name)`). Pairs differ in one variable only; `decoys=` as above.

{table(head, rows)}"""


def strict(table: Table) -> str:
    """Tier A by training and by test."""
    from microtome.zoo import interchange, shipped

    rows = []
    for program in interchange.NAMES:
        note = shipped.read(f"interchange_{program}")
        told, found = note.mechanism, note.measured
        nodes = [v for k, v in found.items() if k.startswith("L")]
        rows.append((f"`{note.name}`", f"{told['n_layers']} x {told['n_heads']}", note.recipe.config["hidden_size"],
                     f"{int(note.curve[-1]['step']):,}", f"{note.seconds:.0f} s", len(told["edges"]), f"{min(nodes):.2%}",
                     f"{found['empty']:.2%}", f"{found['edges']:.2%}", f"{found['moved']:.3f}"))  # fmt: skip
    head = ("name", "layers x heads", "d_model", "steps", "trained in", "true edges", "interchange accuracy", "other nodes change nothing",
            "other edges change nothing", "most that another edge moves logits")  # fmt: skip
    return f"""## Trained to a mechanism (tier A)

Strict interchange training in the manner of InterpBench (Gupta et al. 2024), with edges beside nodes. On held-out inputs: how
often an exchanged node gives what the program says (the worst node), and how often answers stay when a node or edge that
holds nothing carries another input's value, the mean or zero (the worst of all); the last column is a mean over logits, of which
the right one is 1 and all others are 0.

{table(head, rows)}"""


def trained(table: Table) -> str:
    """Tier B."""
    from microtome.zoo import shipped
    from microtome.zoo.catalog import subjects

    rows = []
    for subject in subjects():
        if subject.name not in shipped.names():
            continue
        note = shipped.read(subject.name)
        config, told = note.recipe.config, note.mechanism
        size = sum(file["bytes"] for file in note.files.values())
        shape = f"{config['num_hidden_layers']} x {config['num_attention_heads']}"
        rows.append((f"`{subject.name}`", subject.summary, shape, config["hidden_size"], config.get("intermediate_size", 0),
                     note.recipe.seed, f"{int(note.curve[-1]['step']):,}", f"{note.seconds:.0f} s", f"{note.accuracy:.2%}",
                     f"{len(told['confirmed'])} of {len(told['edges'])}", f"{told['whole']:.1%}", f"{size / 1e3:.0f} kB, {note.dtype}"))  # fmt: skip
    head = ("name", "what it computes", "layers x heads", "d_model", "neurons", "seed", "steps", "trained in", "accuracy", "edges confirmed",
            "claimed edges alone", "ships as")  # fmt: skip
    return f"""## Trained (tier B)

Accuracy is on held-out or all inputs, of the weights as stored. An edge is confirmed when cutting it alone (zero ablation)
costs more than 5 % of the answers; "claimed edges alone" is the accuracy when every other edge carries its mean. Both are
measured again by `build` and are in `z.mechanism` (`lost`, `whole`, `unconfirmed`).

{table(head, rows)}"""


def published(table: Table) -> str:
    """Expectations beside outcomes."""
    from microtome.zoo.expectations import expectations

    rows = [(f"`{e.model}`" if "_" in e.model else e.model, e.published, e.source, e.ours, "as published" if e.agrees else "**differs**")
            for e in expectations()]  # fmt: skip
    return f"""## Published, and here

{table(("model", "published", "source", "here", ""), rows)}"""


def curves(table: Table) -> str:
    """Accuracy over steps, failed trainings included."""
    from microtome.zoo import shipped

    rows = []
    for name in shipped.names():
        note = shipped.read(name)
        last = len(note.curve) - 1
        picked = sorted({round(i * last / (POINTS - 1)) for i in range(POINTS)})
        told = ", ".join(f"{int(note.curve[i]['step'])}: {note.curve[i]['accuracy']:.3f}" for i in picked)
        rows.append((f"`{name}`", note.recipe.seed, note.outcome, told))
    return f"""## Curves

{table(("training", "seed", "outcome", "step: accuracy"), rows)}"""
