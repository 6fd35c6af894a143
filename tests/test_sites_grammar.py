"""The grammar of addresses: every address prints as it parses, and every refusal says what to do instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from microtome.errors import MicrotomeError, SiteError
from microtome.model.facts import Facts
from microtome.points import LAYER, POINTS, RESERVED
from microtome.sites import At, Edge, Several, Site, expand, expand_all, parse, parse_edge

_number = st.integers(0, 99)
_range = st.tuples(_number, _number).filter(lambda p: p[0] < p[1])
_several = st.one_of(
    st.just(Several("all")),
    _range.map(lambda p: Several("range", p)),
    st.lists(_number, min_size=2, max_size=4, unique=True).map(lambda v: Several("list", tuple(v))),
)
_choice = st.one_of(_number, _several)
_name = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)


def _bounds(pair: tuple[int | None, int | None]) -> bool:
    low, high = pair
    return low is None or high is None or (low < 0) != (high < 0) or low < high


_end = st.one_of(st.none(), st.integers(-20, 20))
_numbers = st.one_of(
    st.integers(-20, 20).map(lambda i: At(start=i, single=True)),
    st.tuples(_end, _end).filter(_bounds).map(lambda p: At(*p)),
)
_position = st.one_of(_numbers, _name.map(lambda n: At(span=n)), st.tuples(_name, _numbers).map(lambda p: At(p[1].start, p[1].stop, p[1].single, p[0])))  # fmt: skip


@st.composite
def _sites(draw: Callable[..., object]) -> Site:
    row = POINTS[draw(st.sampled_from(sorted(POINTS)))]  # type: ignore[index, arg-type]
    layer, unit, index = None, "", None
    if row.scope == LAYER:
        layer = draw(_choice)
        if row.letters and draw(st.booleans()):
            unit, index = draw(st.sampled_from(["H", "KV", "N"])), draw(_choice)
    at = draw(st.one_of(st.none(), _position))
    source = draw(_position) if row.square and at is not None and draw(st.booleans()) else None
    return Site(row.name, layer, unit, index, draw(st.booleans()), at, source)  # type: ignore[arg-type]


@settings(max_examples=400, deadline=None)
@given(_sites())
def test_parse_of_str_is_the_site(site: Site) -> None:
    text = str(site)
    assert parse(text) == site and str(parse(text)) == text
    assert parse(site) is site and hash(parse(text)) == hash(site)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="L0123456789HKVN.*:,@<->![]zqk_pattern ", max_size=18))
def test_any_other_text_is_refused_or_reads_back(text: str) -> None:
    try:
        site = parse(text)
    except SiteError as error:
        assert error.why and error.instead
    else:
        assert parse(str(site)) == site


@settings(max_examples=200, deadline=None)
@given(_sites(), _sites())
def test_edges_read_back(one: Site, other: Site) -> None:
    ends = (one.bare, other.bare)
    edge = Edge(*ends)
    assert parse_edge(str(edge)) == edge


@settings(max_examples=300, deadline=None)
@given(_position, st.integers(1, 12), st.integers(0, 11), st.integers(1, 12))
def test_a_resolved_position_is_what_a_list_would_give(at: At, length: int, low: int, size: int) -> None:
    """Integers and slices as in Python, except that nothing is clipped and nothing may be empty."""
    if at.span:
        high = min(length, low + size)
        if low >= high:
            return
        spans = {at.span: (low, high)}
        own = list(range(low, high))
    else:
        spans, own = {}, list(range(length))
    try:
        start, stop = at.resolve(length, spans)
    except SiteError:
        if at.single:
            assert at.start is not None and not -len(own) <= at.start < len(own)
        else:
            ends = [e for e in (at.start, at.stop) if e is not None]
            assert any(not -len(own) <= e <= len(own) for e in ends) or not own[at.start : at.stop]
    else:
        expected = [own[at.start]] if at.single and at.start is not None else own[at.start : at.stop]
        assert list(range(start, stop)) == expected


@pytest.mark.parametrize(
    ("text", "point", "layer", "unit"),
    [
        ("embed", "embed", None, ""), ("L5.resid_pre", "resid_pre", 5, ""), ("L9H6.z@-1", "z", 9, "H"), ("L9KV2.k", "k", 9, "KV"),
        ("L3N1021.neurons", "neurons", 3, "N"), ("L5F77.my_sae", "my_sae", 5, "F"), ("L*.attn_out", "attn_out", Several("all"), ""),
        ("L0:12.mlp_out", "mlp_out", Several("range", (0, 12)), ""), ("L0,3,7.z", "z", Several("list", (0, 3, 7)), ""), ("L*H*.z", "z", Several("all"), "H"),
    ],
)  # fmt: skip
def test_the_ways_people_say_it(text: str, point: str, layer: object, unit: str) -> None:
    site = parse(text)
    assert (site.point, site.layer, site.unit) == (point, layer, unit) and str(site) == text


@pytest.mark.parametrize(
    ("text", "at", "source"),
    [
        ("L1.z@3", At(3, single=True), None), ("L1.z@-1", At(-1, single=True), None), ("L1.z@3:8", At(3, 8), None), ("L1.z@:8", At(None, 8), None), ("L1.z@-3:", At(-3), None),
        ("L1.z@subject", At(span="subject"), None), ("L1.z@subject[-1]", At(-1, single=True, span="subject"), None), ("L1.z@subject[0:2]", At(0, 2, span="subject"), None),
        ("L9H6.pattern@-1<-subject", At(-1, single=True), At(span="subject")), ("L9.scores@a[0]<-b[1:]", At(0, single=True, span="a"), At(1, span="b")), ("L1.z@-3:4", At(-3, 4), None),
    ],
)  # fmt: skip
def test_positions(text: str, at: At, source: At | None) -> None:
    site = parse(text)
    assert (site.at, site.source) == (at, source)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not an address"), ("   ", "not an address"), ("L9H6", "no point called"), ("z", "point of a layer"), ("L1.embed", "belongs to no layer"), ("L1.ressid_pre", "resid_pre"),
        ("L1.patern", "pattern"), ("L5.mlp_outt", "mlp_out"), ("l5.z", "does not say where"), ("L.z", "does not say where"), ("L-1.z", "does not say where"), ("L1H.z", "does not say where"),
        ("L1X3.z", "does not say where"), ("L12:3.z", "reversed or empty"), ("L3:3.z", "reversed or empty"), ("L1,1.z", "twice"), ("L1,.z", "not a choice"), ("L1:.z", "not a choice"),
        ("L1.z@", "not a position"), ("L1.z@5:3", "reversed or empty"), ("L1.z@-1:-3", "reversed or empty"), ("L1.z@3:3", "reversed or empty"), ("L1.z@1.5", "not a position"), ("L1.z@a b", "not a position"),
        ("L1.z@subject[", "not a position"), ("L1.z@subject[x]", "does not count tokens"), ("L1.z@-1<-0", "one position axis"), ("L1.pattern@-1<-", "not a position"), ("L1.z!after", "not a flag"), ("L1.z!", "not a flag"),
        ("L5H3.z->L9KV2.k", "is an edge"), ("enc.L3.z", "reserved"), ("L3E5N10.neurons", "reserved"), ("L3.router", "reserved"), ("L3.ssm_state", "reserved"), ("L5F7.z", "dictionary"),
        ("hook_z", "no exact counterpart"), ("blocks.5.attn.hook_zz", "no exact counterpart"), ("blocks.5.attn.z", "does not say where"),
    ],
)  # fmt: skip
def test_what_is_no_address(text: str, match: str) -> None:
    with pytest.raises(SiteError, match=match) as caught:
        parse(text)
    assert caught.value.why and caught.value.instead and len(str(caught.value).splitlines()) <= 4


@pytest.mark.parametrize("value", [None, 5, ["L1.z"], b"L1.z"])
def test_what_is_no_string(value: object) -> None:
    with pytest.raises(SiteError, match="not an address"):
        parse(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["L5H3.z", "L5H3.z->", "->L5.z", "L5H3.z@-1->L9KV2.k", "L5H3.z->L9KV2.k!before", "L5H3.zz->L9KV2.k"],
)
def test_what_is_no_edge(text: str) -> None:
    with pytest.raises(SiteError):
        parse_edge(text)


def _facts(name: str) -> Facts:
    return tiny.bound(name).facts


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("L*.z", ["L0.z", "L1.z", "L2.z"]), ("L0:2.z", ["L0.z", "L1.z"]), ("L2,0.z", ["L2.z", "L0.z"]), ("L1H*.z", ["L1H0.z", "L1H1.z", "L1H2.z", "L1H3.z"]),
        ("L*KV1.k@-1", ["L0KV1.k@-1", "L1KV1.k@-1", "L2KV1.k@-1"]), ("L1H1:3.pattern@-1<-0", ["L1H1.pattern@-1<-0", "L1H2.pattern@-1<-0"]), ("embed", ["embed"]),
        ("L0H0,2.z!before", ["L0H0.z!before", "L0H2.z!before"]),
    ],
)  # fmt: skip
def test_several_expand_in_order(site: str, expected: list[str]) -> None:
    assert [str(s) for s in expand(site, _facts("llama"))] == expected


def test_expansion_of_lists_keeps_order_and_drops_repeats() -> None:
    facts = _facts("llama")
    assert [str(s) for s in expand_all(["L1.z", "L*.z", "L0.z"], facts)] == ["L1.z", "L0.z", "L2.z"]
    with pytest.raises(SiteError, match="no sites"):
        expand_all([], facts)


def test_stars_list_only_layers_that_have_the_point() -> None:
    assert [str(s) for s in expand("L*.neurons", _facts("qwen3_moe"))] == ["L1.neurons"]
    assert [str(s) for s in expand("L*H0.z", _facts("jamba"))] == ["L1H0.z", "L3H0.z"]
    with pytest.raises(SiteError, match="no layer of this model has neurons") as caught:
        expand("L*.neurons", _facts("mixtral"))
    assert "router" in caught.value.why
    with pytest.raises(SiteError, match=r"no L0\.z") as caught:  # by number, a lacking layer is refused
        expand("L0:2.z", _facts("jamba"))
    assert "mamba" in caught.value.why


def test_query_heads_asked_of_grouped_keys() -> None:
    facts = _facts("llama")
    with pytest.raises(SiteError, match="H3 reads KV1, shared with H2") as caught:
        expand("L1H3.k", facts)
    assert caught.value.instead == "say L1KV1.k"
    with pytest.raises(SiteError, match="per query head") as caught:
        expand("L1KV1.z", facts)
    assert caught.value.instead == "say L1H2,3.z"
    parse(caught.value.instead.removeprefix("say "))
    shared = pytest.raises(SiteError, match="H1 reads KV0, shared with H0 and H2 and H3")
    with shared:
        expand("L1H1.v", _facts("llama-mqa"))
    for one, other in (("L1H3.k", "L1KV3.k"), ("L1KV3.z", "L1H3.z")):  # without groups both are accepted
        assert [str(s) for s in expand(one, _facts("gpt2"))] == [other]


@pytest.mark.parametrize(
    ("site", "match"),
    [
        ("L3.z", "no layer 3"), ("L0:4.z", "no layer 3"), ("L0,9.z", "no layer 9"), ("L1H4.z", "no head 4"), ("L1KV2.k", "no key/value head 2"), ("L1N40.neurons", "no neuron 40"),
        ("L1H0:9.z", "no head 4"), ("L1N3.z", "no N axis"), ("L1H1.mlp_out", "no H axis"), ("L1N3.resid_post", "no N axis"), ("L1KV0.neurons", "no KV axis"), ("pos_embed", "no pos_embed"),
        ("L1.q_scale", "no L1.q_scale"), ("L1.ln1_post_scale", "no L1.ln1_post_scale"),
    ],
)  # fmt: skip
def test_what_this_model_does_not_have(site: str, match: str) -> None:
    with pytest.raises(SiteError, match=match) as caught:
        expand(site, _facts("llama"))
    assert caught.value.why and caught.value.instead


def test_dictionaries_are_not_points_of_the_model() -> None:
    with pytest.raises(MicrotomeError, match="my_sae"):
        expand("L1F7.my_sae", _facts("llama"))


def test_the_table_of_points_is_whole() -> None:
    assert not set(POINTS) & set(RESERVED)
    for row in POINTS.values():
        assert row.meaning and row.unit and row.axes[0] == "prompt"
        assert row.square == ("key" in row.axes)
        assert (row.scope == LAYER) == str(
            parse(f"L0.{row.name}" if row.scope == LAYER else row.name)
        ).startswith("L0")


def test_sites_start_without_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, microtome.sites, microtome.points, microtome.errors; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
