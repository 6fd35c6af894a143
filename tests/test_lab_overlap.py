"""Whether two sets of addresses speak of the same part: against a naive count of parts in a small model, and by its laws."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import SiteError
from microtome.lab.overlap import addresses, overlap, parts
from microtome.model.facts import Facts, LayerFacts
from microtome.points import LAYER, POINTS
from microtome.sites import At, Several, Site, expand

LAYERS, HEADS, KV, NEURONS = 4, 6, 3, 5
FACTS = Facts(
    family="toy", model_type="toy", n_layers=LAYERS, d_model=8, d_vocab=11, n_ctx=64,
    layers=tuple(
        LayerFacts(index=i, kind="attention", n_heads=HEADS, n_kv_heads=KV, d_head=4, d_value=4, d_mlp=NEURONS, mlp="gated",
                   window=None, parallel=False, lacks={})
        for i in range(LAYERS)
    ),
    lacks={}, n_params=0, tied=False, softcap=None, logit_scale=1.0, positions="rotary", additive=True, not_additive="", known_family=True,
)  # fmt: skip
SIZE = {"H": HEADS, "KV": KV, "N": NEURONS}


def _choices(size: int) -> st.SearchStrategy[int | Several]:
    inside = st.integers(0, size - 1)
    return st.one_of(
        inside,
        st.just(Several("all")),
        st.tuples(inside, inside).map(lambda p: Several("range", (min(p), max(p) + 1))),
        st.lists(inside, min_size=2, max_size=3, unique=True).map(lambda v: Several("list", tuple(v))),
    )


@st.composite
def _sites(draw: Callable[..., object]) -> Site:
    row = POINTS[draw(st.sampled_from(sorted(POINTS)))]  # type: ignore[index]
    layer, unit, index = None, "", None
    if row.scope == LAYER:
        layer = draw(_choices(LAYERS))
        if row.letters and draw(st.booleans()):
            unit = row.letters[0]
            index = draw(_choices(SIZE[unit]))
    return Site(row.name, layer, unit, index)  # type: ignore[arg-type]


_many = st.lists(_sites(), min_size=1, max_size=4)


def _naive(site: Site) -> set[tuple[object, ...]]:
    """The parts of one tensor, counted out: heads, neurons, boundaries of the stream."""
    row, layer = POINTS[site.point], site.layer
    heads = {("head", layer, h) for h in range(HEADS)}
    neurons = {("neuron", layer, n) for n in range(NEURONS)}
    if layer is None:
        name = site.point
        return {("logits",)} if name == "logits" else {("before", LAYERS if name.startswith("final") else 0)}
    assert isinstance(layer, int)
    if site.unit == "H":
        return {("head", layer, site.index)}
    if site.unit == "KV":
        assert isinstance(site.index, int)
        return {("head", layer, site.index * 2), ("head", layer, site.index * 2 + 1)}
    if site.unit == "N":
        return {("neuron", layer, site.index)}
    before, mid = ("before", layer), ("mid", layer)
    special: dict[str, set[tuple[object, ...]]] = {
        "resid_pre": {before}, "resid_mid": {mid}, "resid_post": {("before", layer + 1)}, "ln1_out": {before, *heads}, "ln1_scale": {before, *heads},
        "ln2_out": {before, mid, *neurons}, "ln2_scale": {before, mid, *neurons}, "ln2_post_scale": neurons,
    }  # fmt: skip
    return special.get(site.point, neurons if row.group == "MLP" else heads)


@settings(max_examples=200, deadline=None)
@given(_many, _many)
def test_in_a_model_that_is_known_it_is_what_counting_parts_gives(one: list[Site], other: list[Site]) -> None:
    known = [parts(sites, n_layers=LAYERS, heads_per_kv=HEADS // KV) for sites in (one, other)]
    counted = [set().union(*(_naive(s) for site in sites for s in expand(site, FACTS))) for sites in (one, other)]  # fmt: skip
    assert bool(overlap(*known)) == bool(counted[0] & counted[1])
    if known[0] == known[1]:
        assert counted[0] == counted[1]


@settings(max_examples=300, deadline=None)
@given(_many, _many, _sites())
def test_its_laws(one: list[Site], other: list[Site], more: Site) -> None:
    a, b = parts(one), parts(other)
    assert overlap(a, b) == overlap(b, a)
    assert overlap(a, a) and a.words
    assert parts([*one, *one[::-1]]) == a
    if overlap(a, b):
        assert overlap(parts([*one, more]), b), "a further address never takes an overlap away"
    elif overlap(*(parts(sites, n_layers=LAYERS, heads_per_kv=2) for sites in (one, other))):
        pytest.fail("knowing the model never adds an overlap")
    texts = [str(site) for site in one]
    placed = [str(site.with_at(At(start=-1, single=True))) for site in one]
    assert parts(texts) == a == parts(placed), "the position does not count"


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("L9H6.z", "L9H6.pattern@-1", ("L9H6",)),
        ("L9H6.z", "L9H5.z", ()),
        ("L9H6.z", "L8H6.z", ()),
        ("L*H*.z", "L9H6.q", ("L9H6",)),
        ("L9.attn_out", "L9H6.q", ("L9H6",)),
        ("L9.z", "L8:10.pattern", ("L9H*",)),
        ("L9KV2.k", "L9H6.z", ("L9H6 and L9KV2",)),
        ("L9KV2.k", "L9KV1.v", ()),
        ("L9KV2.k", "L8H6.z", ()),
        ("L9KV2.k", "L9KV2.v", ("L9KV2",)),
        ("L3N1021.neurons", "L3.mlp_out", ("L3N1021",)),
        ("L3N1021.neurons", "L3N1021.mlp_pre", ("L3N1021",)),
        ("L3N1021.neurons", "L3N1020.neurons", ()),
        ("L3N*.neurons", "L3.mlp_out", ("L3 MLP",)),
        ("L3.mlp_out", "L3.attn_out", ()),
        ("L5.resid_post", "L6.resid_pre", ("L5.resid_post",)),
        ("L5.resid_post", "L5.resid_pre", ()),
        ("L5.resid_mid", "L5.resid_post", ()),
        ("L5.resid_mid", "L*.resid_mid", ("L5.resid_mid",)),
        ("L5.resid_post", "L5H3.z", ()),
        ("embed", "L0.resid_pre", ("embed",)),
        ("tok_embed", "embed", ("embed",)),
        ("final_resid", "L5.resid_post", ("L5.resid_post and final_resid",)),
        ("final_resid", "embed", ()),
        ("final_resid", "final_scale", ("final_resid",)),
        ("logits", "final_resid", ()),
        ("logits", "logits@-1", ("logits",)),
        ("L5F77.my_sae", "L5F77.my_sae@3", ("L5F77.my_sae",)),
        ("L5F77.my_sae", "L5F78.my_sae", ()),
        ("L5F77.my_sae", "L5F78.other", ("L5F77.my_sae and L5F78.other",)),
        ("L5F77.my_sae", "L5H3.z", ("L5H3 and L5F77.my_sae",)),
        ("L5F77.my_sae", "L6H3.z", ()),
        ("L5F77.my_sae", "L6.resid_pre", ("L5.resid_post and L5F77.my_sae",)),
        ("L5H3.z->L9KV2.k", "L9H1.z", ("L9H1 and L9KV2",)),
        ("L5H3.z->L9KV2.k", "L5H3.z", ("L5H3",)),
        ("L5H3.z->L9KV2.k", "L9H6.q->logits", ("L9H6 and L9KV2",)),
        ("L5H3.z->L7.mlp_out", "L9H6.q->logits", ()),
        ("L5.attn_bias", "L5H0.z", ("L5H0",)),
        ("final_bias", "final_resid", ("final_resid",)),
        ("blocks.9.attn.hook_z", "L9H1.z", ("L9H1",)),
        ("L1,3,4H0:2.z", "L*H1,5.z", ("L1H1", "L3:5H1")),
    ],
)
def test_the_table(one: str, other: str, shared: tuple[str, ...]) -> None:
    assert overlap(parts(one), parts(other)) == overlap(parts(other), parts(one)) == shared


def test_what_the_model_says_takes_away_what_was_only_possible() -> None:
    assert not overlap(parts("L9KV2.k", heads_per_kv=3), parts("L9H5.z"))
    served = [h for h in range(12) if overlap(parts("L9KV2.k", heads_per_kv=3), parts(f"L9H{h}.z"))]
    assert served == [6, 7, 8]
    assert not overlap(parts("final_resid", n_layers=30), parts("L5.resid_post", n_layers=30))
    assert overlap(parts("final_resid", n_layers=30), parts("L29.resid_post")) == ("L29.resid_post",)
    assert not overlap(parts("final_resid", n_layers=30), parts("L*.resid_pre", n_layers=30))
    with pytest.raises(SiteError, match="there is no layer 30"):
        parts("L30.resid_post", n_layers=30)


@pytest.mark.parametrize("other", ["L9H6.z", "logits", "L5F7.sae", []])
def test_no_addresses_are_not_known_and_overlap_everything(other: str | list[str]) -> None:
    assert overlap(parts([]), parts(other)) == overlap(parts(other), parts(())) != ()
    assert parts(()).unknown and parts(()).words == ("not known",)


def test_many_addresses_are_said_in_few_words_and_do_not_take_long() -> None:
    listed = parts([f"L{i}H{h}.z" for i in range(30) for h in range(9)])
    assert listed.words == ("L0:30H0:9",) and listed == parts("L0:30H0:9.z")
    assert overlap(listed, parts("L*.attn_out")) == ("L0:30H0:9",)
    huge = parts([f"L{i}N{n}.neurons" for i in range(30) for n in range(0, 1536, 3)])
    assert overlap(huge, parts("L3N6:12.neurons")) == ("L3N6", "L3N9")
    assert overlap(parts("L0:4000000000H0:4000000000.z"), parts("L7H2.z")) == ("L7H2",)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("L9H6.zz", "no point called"),
        ("set of 5", "no point called"),
        ("L5N3.z", "z has no N axis"),
        ("L5H3.mlp_out", "mlp_out has no H axis"),
        ("L3.router", "reserved"),
        ("L5H3.z->nothing", "no point called"),
        (["L9H6.z", ""], "is not an address"),
        ([None], "is not an address"),
    ],
)
def test_what_is_no_address_is_refused(bad: object, said: str) -> None:
    with pytest.raises(SiteError, match=said):
        parts(bad)  # type: ignore[arg-type]


def test_of_a_results_labels_those_that_are_addresses() -> None:
    labels = [
        "L9H6.z",
        "set of 5",
        "L0.attn_bias",
        None,
        "tone: polite - rude",
        "L9H6.z",
        "L5H3.z->L9KV2.k",
        3,
    ]
    assert addresses(labels) == ("L9H6.z", "L0.attn_bias", "L5H3.z->L9KV2.k")


def test_the_pure_modules_import_nothing_heavy() -> None:
    code = (
        "import sys, microtome.lab.overlap, microtome.lab.questions, microtome.lab.expecting, microtome.lab.scoring;"
        "print([m for m in ('torch', 'numpy', 'pandas', 'plotly', 'scipy', 'sqlalchemy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"  # fmt: skip
