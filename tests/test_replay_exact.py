"""Replay equals whole edited runs: random families, sites, positions, several changes at once, tails, batch sizes."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from microtome.metrics import metric, scoring
from microtome.model.binding import bind
from microtome.model.tokens import pack
from microtome.replay.base import make_base, possible
from microtome.replay.check import mode_of, probe_error
from microtome.replay.memo import Memo
from microtome.replay.plan import Cell, Change
from microtome.replay.sources import Prompts, Reference, Zero
from microtome.replay.sweep import Bench, Interrupted, Settings, estimate, groups_of, measure, sweep
from microtome.sites import At, parse
from microtome.trace.edits import Patch
from microtome.trace.run import run

POINTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "neurons", "head_out", "ln2_out", "q_pre", "mlp_raw", "ln1_out")  # fmt: skip
LETTER = {
    "z": "H",
    "q": "H",
    "pattern": "H",
    "k": "KV",
    "v": "KV",
    "neurons": "N",
    "head_out": "H",
    "q_pre": "H",
}
FAMILIES = (
    "llama",
    "gpt2",
    "gemma2",
    "gpt_neox",
    "bloom",
    "deepseek_v3",
    "olmo2",
    "cohere",
    "phi3",
    "opt",
    "gptj",
    "falcon",
    "gpt_oss",
    "qwen3",
)
LENGTH = 9
ANSWERS = [((5,), (7, 9)), ((6,),), ((5, 11),)]
WRONG = [((8,),), ((9, 13, 2),), ((4,),)]


def _prompts(shared: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    g = torch.Generator().manual_seed(seed)
    base = torch.randint(1, tiny.VOCAB, (3, LENGTH), generator=g).tolist()
    donor = [
        row[:shared] + torch.randint(1, tiny.VOCAB, (LENGTH - shared,), generator=g).tolist() for row in base
    ]
    return base, donor


def _bench(binding, ids, name="logprob_diff"):
    return Bench(binding, ids, scoring(ANSWERS, WRONG), (metric(name),))


@st.composite
def _cells(draw, binding):
    out = []
    for _ in range(draw(st.integers(1, 4))):
        changes = []
        for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
            layer = draw(st.integers(0, len(binding.slots) - 1))
            facts = binding.facts.layers[layer]
            point = draw(st.sampled_from([p for p in POINTS if p not in facts.lacks]))
            letter = LETTER.get(point, "")
            size = {"H": facts.n_heads, "KV": facts.n_kv_heads, "N": facts.d_mlp}.get(letter, 0)
            unit = f"{letter}{draw(st.integers(0, size - 1))}" if letter and draw(st.booleans()) else ""
            low = draw(st.integers(0, LENGTH - 1))
            high = draw(st.integers(low + 1, LENGTH))
            at = draw(st.sampled_from((None, At(low, high), At(low, single=True))))
            site = parse(f"L{layer}{unit}.{point}")
            if all(c.site.whole != site.whole for c in changes):
                changes.append(Change(site, at))
        out.append(Cell(tuple(changes)))
    return out


def _by_hand(binding, ids, donor, cell: Cell) -> torch.Tensor:
    """The metric of every prompt when the cell's patches are made in whole forwards."""
    plan = scoring(ANSWERS, WRONG)
    rows, donors = (
        [[*side[p], *tail] for p, tail in zip(plan.prompt, plan.tails, strict=True)] for side in (ids, donor)
    )
    width = max(map(len, rows))
    rows, donors = ([r + [0] * (width - len(r)) for r in side] for side in (rows, donors))
    edits = []
    if cell.changes:
        trace = run(
            binding, pack(donors), capture=[c.site for c in cell.changes], logits=None, attention="eager"
        )
        edits = [
            Patch(c.site.with_at(c.at if c.at is not None else At(0, LENGTH)), trace) for c in cell.changes
        ]
    logits = run(binding, pack(rows), edits=edits, attention="eager").raw_logits
    cols = [[min(LENGTH - 1 + s, LENGTH - 1 + len(t)) for s in range(plan.steps)] for t in plan.tails]
    return metric("logprob_diff")(torch.stack([logits[r, c] for r, c in enumerate(cols)]), plan)


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_equals_whole_edited_runs(family: str) -> None:
    mixture = family in ("gpt_oss", "deepseek_v3")
    binding = tiny.bound(family, "eager", torch.float32 if mixture else torch.float64)
    # log-probabilities are taken in float64 here, so only the model's own float32 parts leave a trace
    tolerance = 2e-3 if mixture else 1e-6 if family in ("gptj", "falcon", "llama", "gemma2", "phi3", "olmo2", "cohere", "gpt_neox", "qwen3") else 1e-8  # fmt: skip

    @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def check(data) -> None:
        ids, donor = _prompts(data.draw(st.integers(0, LENGTH - 1)))
        cells = data.draw(_cells(binding))
        out = sweep(
            _bench(binding, ids),
            cells,
            {"donor": Prompts(donor)},
            Settings(tokens=data.draw(st.sampled_from((20, 4000))), skip=data.draw(st.booleans())),
        )
        assert out.complete and out.fired == out.planned
        base = _by_hand(binding, ids, donor, Cell(()))
        assert torch.allclose(out.base[:, 0], base.double(), atol=tolerance)
        for c, cell in enumerate(cells):
            expected = _by_hand(binding, ids, donor, cell) - base
            assert torch.allclose(out.effects[c, :, 0], expected.double(), atol=tolerance), (
                cell,
                out.effects[c, :, 0],
                expected,
            )

    check()


@pytest.mark.parametrize("family", ("llama", "gpt2", "gemma2", "bloom"))
def test_every_mode_that_is_offered_is_exact(family: str) -> None:
    binding = tiny.bound(family, "eager", torch.float64)
    ids = torch.tensor(_prompts(4)[0])
    for mode in possible(binding):
        error, size = probe_error(make_base(binding, ids, [], mode=mode))
        assert error <= 1e-7 * size, mode


def test_a_wrong_prefix_would_be_seen() -> None:
    """The probe has teeth: keys of the wrong row, or one position off, are no longer the model."""
    binding = tiny.bound("llama", "eager", torch.float64)
    base = make_base(binding, torch.tensor(_prompts(4)[0]), [], mode="packed")
    for broken in (lambda t: t.flip(0), lambda t: t.roll(1, 2)):
        saved = [c.key for c in base.calls]
        for call in base.calls:
            call.key = broken(call.key)
        error, size = probe_error(base)
        assert error > 1e-3 * size
        for call, key in zip(base.calls, saved, strict=True):
            call.key = key
    error, size = probe_error(base)
    assert error <= 1e-7 * size


def test_skipped_cells_are_zeros_that_the_long_way_confirms() -> None:
    binding = tiny.bound("llama", "eager", torch.float64)
    ids, donor = _prompts(5)
    cells = [Cell((Change(parse(f"L{layer}.{p}"), At(at, single=True)),)) for layer in range(len(binding.slots)) for p in ("resid_pre", "mlp_out", "z") for at in range(LENGTH)]  # fmt: skip
    fast = sweep(_bench(binding, ids), cells, {"donor": Prompts(donor)})
    slow = sweep(_bench(binding, ids), cells, {"donor": Prompts(donor)}, Settings(skip=False))
    assert fast.zero.any() and not slow.zero.any()
    assert fast.tokens < 0.6 * slow.tokens
    assert bool((fast.effects[fast.zero] == 0).all())
    assert torch.allclose(fast.effects, slow.effects, atol=1e-9)
    assert float(slow.effects[~fast.zero].abs().max()) > 1e-3


def test_identity_is_zero_and_the_donor_embedding_is_the_donor() -> None:
    binding = tiny.bound("gemma2", "eager", torch.float64)
    ids, donor = _prompts(3)
    same = sweep(
        _bench(binding, ids), [Cell((Change(parse("L1.z")),))], {"donor": Prompts(ids)}, Settings(skip=False)
    )
    assert float(same.effects.abs().max()) < 1e-9
    whole = sweep(_bench(binding, ids), [Cell((Change(parse("embed")),))], {"donor": Prompts(donor)})
    theirs = measure(_bench(binding, donor)) - measure(_bench(binding, ids))
    assert torch.allclose(whole.effects[0], theirs, atol=1e-8)


def test_zero_mean_and_resampled_sources() -> None:
    binding = tiny.bound("llama", "eager", torch.float64)
    ids, donor = _prompts(2)
    cells = [Cell((Change(parse("L1H1.z"), None, name),)) for name in ("zero", "mean", "draw")]
    sources = {"zero": Zero(), "mean": Reference(donor, "mean"), "draw": Reference([donor[1]], "resample", 0)}
    out = sweep(_bench(binding, ids), cells, sources)
    mean = run(binding, pack(donor), capture=["L1H1.z"], logits=None, attention="eager")["L1H1.z"]
    for c, value in enumerate(
        (torch.zeros_like(mean), mean.mean(0, keepdim=True).expand_as(mean), mean[1:2].expand_as(mean))
    ):
        plan = scoring(ANSWERS, WRONG)
        rows = [[*ids[p], *tail] for p, tail in zip(plan.prompt, plan.tails, strict=True)]
        width = max(map(len, rows))
        edit = Patch(parse(f"L1H1.z@0:{LENGTH}"), value[list(plan.prompt)].contiguous())
        logits = run(
            binding, pack([r + [0] * (width - len(r)) for r in rows]), edits=[edit], attention="eager"
        ).raw_logits
        cols = [[min(LENGTH - 1 + s, LENGTH - 1 + len(t)) for s in range(plan.steps)] for t in plan.tails]
        expected = (
            metric("logprob_diff")(torch.stack([logits[r, k] for r, k in enumerate(cols)]), plan)
            - out.base[:, 0]
        )
        assert torch.allclose(out.effects[c, :, 0], expected.double(), atol=1e-6)


def test_what_a_prompt_draws_does_not_depend_on_the_memory_that_groups_prompts() -> None:
    binding = tiny.bound("llama", "eager", torch.float64)
    ids, donor = _prompts(2)
    bench = _bench(binding, ids)
    sources = {"draw": Reference(donor, "resample", 3)}
    cells = [Cell((Change(parse("L1.z"), None, "draw"),))]
    kv = max(s.n_kv_heads * (s.d_head + s.d_value) for s in binding.facts.layers)
    two_rows = 2 * (LENGTH + 3) * binding.facts.n_layers * 4 * 3 * (binding.facts.d_model + kv)
    little = Settings(memory=3 * two_rows + 3)
    assert len(groups_of(bench, little.share)) > 1 == len(groups_of(bench, Settings().share))
    one, other = (sweep(bench, cells, sources, settings).effects for settings in (Settings(), little))
    assert torch.allclose(one, other, atol=1e-9) and float(one.abs().min()) > 1e-6


def test_interrupted_keeps_the_finished_part() -> None:
    binding = tiny.bound("llama")
    ids, donor = _prompts(0)
    cells = [
        Cell((Change(parse(f"L{layer}.resid_pre"), At(at, single=True)),))
        for layer in range(len(binding.slots))
        for at in range(LENGTH)
    ]
    calls = []

    def stop(done: float, total: float) -> None:
        calls.append(done)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        sweep(_bench(binding, ids), cells, {"donor": Prompts(donor)}, Settings(tokens=30, progress=stop))
    kept = stopped.value.outcome
    assert kept.done.any() and not kept.complete
    whole = sweep(_bench(binding, ids), cells, {"donor": Prompts(donor)})
    assert torch.allclose(kept.effects[kept.done], whole.effects[kept.done], atol=1e-5)
    assert bool(kept.effects[~(kept.done | kept.zero)].isnan().all())
    assert calls == sorted(calls) and calls[0] >= 0 and calls[-1] <= 1


LENGTHS = (5, 9, 6, 9)


def _ragged_bench(binding, ids, which):
    answers, wrong = (
        [((5,), (7, 9)), ((6,),), ((5, 11),), ((3, 2, 8),)],
        [((8,),), ((9, 13, 2),), ((4,),), ((6,),)],
    )
    plan = scoring([answers[i] for i in which], [wrong[i] for i in which])
    return Bench(binding, [ids[i] for i in which], plan, (metric("logprob_diff"),))


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3"])
def test_prompts_of_different_lengths_share_a_sweep_and_change_nothing(family) -> None:
    """Each prompt alone gives the numbers that it has among longer and shorter ones."""
    mixture = family in ("gpt_oss", "deepseek_v3")
    binding = tiny.bound(family, "eager", torch.float32 if mixture else torch.float64)
    ids, donor = tiny.ragged(list(LENGTHS)), tiny.ragged(list(LENGTHS), seed=1)
    reference = [*tiny.ragged(list(LENGTHS), seed=2), *tiny.ragged(list(LENGTHS), seed=3)]
    points = ["L1.attn_out", "L0.resid_pre", "L1.mlp_out", *(["L1.pattern"] if "pattern" not in binding.facts.layers[1].lacks else [])]  # fmt: skip
    cells = [Cell((Change(parse(p), at, source),)) for p in points for at in (None, At(-2, single=True)) for source in ("donor", "mean")]  # fmt: skip

    def outcome(which):
        sources = {"donor": Prompts([donor[i] for i in which]), "mean": Reference(reference, "mean")}
        return sweep(_ragged_bench(binding, ids, which), cells, sources)

    together = outcome(range(4))
    assert together.effects.abs().max() > 0
    for i in range(4):
        alone = outcome([i])
        torch.testing.assert_close(together.effects[:, i], alone.effects[:, 0], rtol=0, atol=2e-3 if mixture else 1e-6)  # fmt: skip


def test_padding_costs_no_tokens_and_lengths_far_apart_are_not_padded() -> None:
    binding = tiny.bound("llama", "eager", torch.float64)
    ids, donor = tiny.ragged(list(LENGTHS)), tiny.ragged(list(LENGTHS), seed=1)
    cells = [Cell((Change(parse("L0.resid_pre"), At(-1, single=True)),))]
    tokens = [sweep(_ragged_bench(binding, ids, w), cells, {"donor": Prompts([donor[i] for i in w])}).tokens for w in ([0], [1], [2], [3], range(4))]  # fmt: skip
    assert tokens[-1] == sum(tokens[:-1])
    far = Bench(
        binding, tiny.ragged([3, 4, 9]), scoring([((5,),)] * 3, [((6,),)] * 3), (metric("logit_diff"),)
    )
    assert [g.lengths for g in groups_of(far, 1 << 30)] == [(3, 4), (9,)]
    near = Bench(binding, tiny.ragged([7, 9, 9]), far.scoring, far.metrics)
    facts = binding.facts
    kv = facts.layers[0].n_kv_heads * 2 * facts.layers[0].d_head
    two_rows = 2 * (9 + 1) * facts.n_layers * 4 * 3 * (facts.d_model + kv)
    assert [g.lengths for g in groups_of(near, 1 << 30)] == [(7, 9, 9)]
    assert [g.lengths for g in groups_of(near, two_rows)] == [(7, 9), (9,)]


def test_lengths_stay_apart_where_angles_depend_on_them_or_replay_is_not_causal(monkeypatch) -> None:
    binding = tiny.bound("llama", "eager", torch.float64)
    bench = _ragged_bench(binding, tiny.ragged(list(LENGTHS)), range(4))
    apart = [(5,), (6,), (9, 9)]
    with monkeypatch.context() as patched:
        patched.setattr(binding.config, "rope_parameters", {"rope_type": "dynamic"})
        assert [g.lengths for g in groups_of(bench, 1 << 30)] == apart
    monkeypatch.setattr("microtome.replay.bench.mode_of", lambda *a, **k: "layers")
    assert [g.lengths for g in groups_of(bench, 1 << 30)] == apart


def test_estimate_counts_what_is_computed() -> None:
    binding = tiny.bound("llama")
    ids, _ = _prompts(0)
    cells = [Cell((Change(parse("L1.resid_pre"), At(at, single=True)),)) for at in range(LENGTH)]
    few, many = estimate(_bench(binding, ids), cells[-1:]), estimate(_bench(binding, ids), cells)
    assert 0 < few < many
    assert mode_of(binding, torch.tensor(ids)) == "packed"


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_rows_of_one_token_do_not_decide_a_mode_by_what_they_cannot_show(name) -> None:
    """One token has no prefix: the mode is tried on longer rows, and is the one that these give."""
    ids = torch.tensor(tiny.prompts(2, 8))
    from_many = mode_of(bind(tiny.build(name)), ids)
    assert mode_of(bind(tiny.build(name)), ids[:, :1]) == from_many


def test_a_patch_of_all_positions_starts_where_the_prompts_part() -> None:
    """Only what follows the first differing token is computed, and the numbers are those of the whole."""
    binding = tiny.bound("llama", "eager", torch.float64)
    ids, donor = _prompts(5)
    cells = [Cell((Change(parse("L1.mlp_out")),)), Cell((Change(parse("L0H1.z")), Change(parse("L1H0.z"))))]
    short, whole = (sweep(_bench(binding, ids), cells, {"donor": Prompts(donor)}, Settings(skip=skip)) for skip in (True, False))  # fmt: skip
    torch.testing.assert_close(short.effects, whole.effects, rtol=0, atol=1e-9)
    assert short.tokens < whole.tokens
    assert short.effects.abs().max() > 0
    assert short.fired == short.planned


def test_a_value_equal_to_the_base_still_undoes_another_change() -> None:
    """Patching L1 from a donor that agrees there is no empty change once an earlier layer was ablated."""
    binding = tiny.bound("llama", "eager", torch.float64)
    ids, donor = _prompts(5)
    both = [Cell((Change(parse("L0.mlp_out"), source="zero"), Change(parse("L1.resid_pre"))))]
    sources = {"donor": Prompts(donor), "zero": Zero()}
    short, whole = (sweep(_bench(binding, ids), both, sources, Settings(skip=skip)) for skip in (True, False))
    torch.testing.assert_close(short.effects, whole.effects, rtol=0, atol=1e-9)
    alone = sweep(_bench(binding, ids), [Cell((Change(parse("L1.resid_pre")),))], sources)
    torch.testing.assert_close(short.effects, alone.effects, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2"])
def test_a_recorded_run_is_freed_when_it_is_dropped(family) -> None:
    """No cycle keeps it until the next collection: memory would grow with the number of prompts."""
    binding = tiny.bound(family)
    ids = torch.tensor(_prompts(0)[0])
    gc.collect()
    gc.disable()
    try:
        base = make_base(binding, ids, [], mode=mode_of(binding, ids))
        kept = [weakref.ref(base.calls[0]), weakref.ref(base.resid[1])]
        del base
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


def test_runs_kept_for_later_sweeps_stay_within_their_budget() -> None:
    binding = tiny.bound("llama")
    ids = torch.tensor(_prompts(0)[0])
    made = []

    def make():
        made.append(make_base(binding, ids, [], mode=mode_of(binding, ids)))
        return made[-1]

    memo = Memo()
    first = memo.base("a", make, 1 << 30)
    assert memo.base("a", make, 1 << 30) is first and len(made) == 1
    memo.base("b", make, int(1.5 * first.nbytes()))
    assert memo.base("a", make, 1 << 30) is not first and len(made) == 3
    memo.base("c", make, 0)
    assert memo.base("c", make, 0) is not made[3]
