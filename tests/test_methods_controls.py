"""The controls of whole methods: a planted mechanism passes all of them, and each named fault fails its own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import planted
import tiny
from microtome import Ablate, methods
from microtome.dissect import dissect
from microtome.errors import ResultError, TaskError
from microtome.methods import ablating, donors, patching, patterns
from microtome.methods.setting import cell, setting, shares, sites_of
from microtome.replay.sources import Prompts, Reference
from microtome.replay.sweep import layer_tokens, sweep
from microtome.tasks.pairs import PairTask, Side

HEAD = f"L{planted.HEAD[0]}H{planted.HEAD[1]}.z"


@pytest.fixture(scope="module")
def model():
    return planted.copier()


@pytest.fixture(scope="module")
def task():
    return planted.copied(n=16)


def patch(model, task, **more):
    more = {"sites": ["L*H*.z"], "positions": "all", "held_out": planted.copied(n=24, seed=9), **more}
    return methods.activation_patching(model, task, seed=0, **more)


class Swapped:
    """Donors of one kind given out as those of another."""

    def __init__(self, kind: str, given: str) -> None:
        self.kind, self.given, self.real = kind, given, planted.Lookup()

    def donors(self, task, kind, seed):
        made = self.real.donors(task, self.given if kind == self.kind else kind, seed)
        return replace(made, kind=kind)

    reference = None


def donor_faults(task, kind: str, given: str) -> PairTask:
    """The task with a source whose `kind` donors are wrong; their variables are made to look right."""

    class Lying(Swapped):
        def donors(self, task, kind, seed):
            made = super().donors(task, kind, seed)
            if kind != self.kind:
                return made
            if kind == "wrong_value":
                right = planted.Lookup().donors(task, kind, seed)
                return replace(made, variables=right.variables, answers=right.answers, wrong=right.wrong)
            twin = task.clean if kind == "same_value" else task.corrupt
            return replace(made, variables=twin.variables, answers=(), wrong=())

    return replace(task, source=Lying(kind, given))


@pytest.mark.parametrize("mode", ["denoise", "noise"])
@pytest.mark.parametrize("how", [{}, {"sites": "L*.resid_pre", "positions": None}])
def test_a_planted_mechanism_passes_every_control(model, task, mode, how) -> None:
    r = patch(model, task, mode=mode, **how)
    assert r.verdict == "supported", r.verdict.reasons
    ran = {c.name: c.passed for c in r.controls}
    assert all(
        ran[n]
        for n in ("identity", "same_value", "irrelevant", "wrong_value", "value_matters", "noise", "held_out")
    )
    assert {"value_matters", "held_out"} <= set(r.verdict.mandatory)


def test_the_identity_control_patches_something(model, task) -> None:
    """Base and donor are one text here: with skipping, every cell would be an exact 0 whatever a patch does."""
    s = setting(model, task)
    chosen = donors.Chosen([(sites_of(model, HEAD)[0], None)], np.ones((1, task.n)), np.ones(task.n), [HEAD])
    assert donors.identity(s, chosen, 1e-4).passed and donors.identity(s, chosen, 1e-4).n == task.n
    real = donors.Prompts.build

    def stale(self, *args):
        source = real(self, *args)
        return replace(source, values=lambda *a: 1.5 * source.values(*a))

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(donors.Prompts, "build", stale)
        assert donors.identity(s, chosen, 1e-4).passed is False


FAULTS = [
    ("same_value", "wrong_value", "same_value"),
    ("irrelevant", "same_value", "irrelevant"),
    ("wrong_value", "same_value", "wrong_value"),
    ("wrong_value", "same_value", "value_matters"),
]


@pytest.mark.parametrize(("kind", "given", "control"), FAULTS)
def test_a_donor_of_another_kind_fails_its_control(model, task, kind, given, control) -> None:
    r = patch(model, donor_faults(task, kind, given))
    assert r.control(control).passed is False
    if control != "wrong_value":
        assert r.verdict == "not distinguishable from its null"


def test_a_task_that_cannot_give_a_third_value_is_not_blamed(model, task) -> None:
    class TwoValued(planted.Lookup):
        def donors(self, task, kind, seed):
            if kind == "wrong_value":
                raise TaskError("two values", why="both are taken", instead="report it")
            return super().donors(task, kind, seed)

    r = patch(model, replace(task, source=TwoValued()))
    assert r.verdict == "supported" and r.control("value_matters").passed is None
    assert "value_matters" not in r.verdict.mandatory


def test_held_out_pairs_must_be_held_out(model, task) -> None:
    part = task.subset(range(8))
    assert patch(model, part, held_out=task, alpha=0.05).verdict == "unchecked"
    assert "among those explored" in patch(model, part, held_out=part).control("held_out").detail
    other = planted.copied(n=24, seed=9)
    assert shares(part, other) == ""
    same = replace(other, groups={"entity": (task.groups["entity"][0], *other.groups["entity"][1:])})
    assert "on both sides" in shares(part, same)
    lost = planted.copied(n=24, seed=9)
    lost = replace(lost, clean=lost.corrupt, corrupt=lost.clean, source=None)  # the effect turns round
    assert patch(model, task, held_out=lost).verdict == "not distinguishable from its null"


def test_positions_are_not_looked_up_in_pairs_of_another_layout(model, task) -> None:
    """Position 3 of a longer prompt is another place: such held-out pairs test nothing, and nothing is lost."""
    other = planted.copied(n=12, seed=9)
    longer = [
        replace(side, ids=tuple((5, *row) for row in side.ids), strings=())
        for side in (other.clean, other.corrupt)
    ]
    spans = {name: tuple((a + 1, b + 1) for a, b in row) for name, row in other.clean.spans.items()}
    moved = replace(
        other, clean=replace(longer[0], spans=spans), corrupt=replace(longer[1], spans=spans), source=None
    )
    assert moved.aligned
    control = patch(
        model, task, sites="L1.resid_pre", positions=[3, 7], controls="none", held_out=moved
    ).control("held_out")
    assert control.passed is None and "another place" in control.detail
    chosen = patch(model, task, sites="L1.resid_pre", positions=None, controls="none", held_out=moved)
    assert (
        chosen.effects.coords["position"] == ("subject", "end", "rest")
        and chosen.control("held_out").passed is not None
    )
    named = patch(model, task, sites="L1.resid_pre", positions=["subject"], controls="none", held_out=other)
    assert named.control("held_out").passed


def test_controls_stay_within_their_share_and_a_sample_of_other_cells_is_among_them(model) -> None:
    task = planted.copied(n=6)
    s = setting(model, task)
    found, s = patching.columns(s, None)
    sites = sites_of(model, ["L*.resid_pre", "L*.attn_out", "L*.mlp_out", "L*H*.z"])
    cells = [(site, c) for site in sites for c in found]
    out = sweep(s.bench, [cell(*c) for c in cells], {"donor": Prompts(s.donor.ids)})
    zero = np.asarray(out.zero.numpy().all(1))
    names = [f"{site}@{c.label}" for site, c in cells]

    def choose(*strong, controls="default"):
        mark = np.array([name in strong for name in names])
        effects = np.repeat(mark[:, None], task.n, 1).astype(float)
        return patching._choose(
            s, cells, effects, zero, SimpleNamespace(significant=mark), np.ones(task.n), controls, 0
        )

    late = ("L2.resid_pre@7", "L2.attn_out@7", "L2.mlp_out@7")
    cheap = choose(*late)
    spent = donors.RUNS * layer_tokens(s.bench, [cell(*c) for c in cheap.cells])
    spent += donors.RUNS_ELSEWHERE * layer_tokens(s.bench, [cell(*c) for c in cheap.others])
    assert set(cheap.names) == set(late) and len(cheap.others) >= 4 and spent <= patching.SHARE * out.tokens
    assert not set(cheap.names) & set(cheap.other_names)
    dear = choose(
        "L0.resid_pre@3", "L0.attn_out@3", "L0.mlp_out@3", "L0H0.z@3"
    )  # one alone exceeds the share
    assert len(dear.cells) == 3 and len(dear.others) == 4
    assert (
        len(choose("L1H2.z@3").cells) == len(choose().cells) == 1
    )  # never a cell of chance beside a real one
    full = choose(*late, controls="full")
    assert len(full.cells) == 3 and len(full.cells) + len(full.others) == int((~zero).sum())


def test_the_chosen_cells_are_the_best_of_different_positions_first() -> None:
    columns = [patching.Column(i, (str(i),), "") for i in range(3)]
    cells = [(None, columns[i]) for i in (0, 0, 1, 2)]
    order = patching._order(
        cells, np.array([5, 4, 3, 9.0]), np.array([True, True, True, False]), np.arange(4)
    )
    assert order == [0, 2, 1, 3]


# behaviour


def test_a_model_that_says_the_same_on_either_side_does_not_do_the_task() -> None:
    """Where the corrupt side has no answer of its own, being right on clean prompts is not enough."""
    model = planted.nothing()
    plain = planted.pairs(model, n=16)
    ids = [list(r) for r in plain.clean.ids]
    logits = model.run(ids, logits="last").logits[:, -1]
    answers, wrong = (tuple(((int(t),),) for t in pick) for pick in (logits.argmax(-1), logits.argmin(-1)))
    task = replace(plain, answers=answers, wrong=wrong)
    r = methods.behaviour(model, task, seed=0)
    assert r.control("above_chance").passed and r.control("both_sides").passed is False
    assert r.verdict == "not distinguishable from its null"
    good = replace(planted.copied(n=16), provenance={})
    assert methods.behaviour(planted.copier(), good, seed=0).control("both_sides").passed


# results of another question


def test_a_ranking_or_an_exact_map_of_other_pairs_is_refused(model, task) -> None:
    single = patch(model, task, controls="none")
    other = planted.copied(n=16, seed=3)
    with pytest.raises(ResultError, match="another task"):
        methods.component_set(model, other, ranking=single, held_out=None, seed=0)
    with pytest.raises(ResultError, match="another task"):
        methods.attribution_patching(model, other, sites="L*H*.z", exact=single, seed=0)
    back = patch(model, task, controls="none", mode="noise")
    with pytest.raises(TaskError, match="another question"):
        methods.attribution_patching(model, task, sites="L*H*.z", exact=back, seed=0)
    leaked = methods.component_set(model, task, ranking=single, held_out=task, seed=0)
    assert leaked.control("held_out_faithfulness").passed is None and leaked.verdict == "unchecked"


# ablation


def test_a_mean_is_taken_over_aligned_prompts_only(model) -> None:
    """Two layouts of one length: by length alone their means would mix."""
    task = planted.copied(n=4)
    reference = planted.copied(n=6, seed=5).clean
    fits = [(0, 1, 2), (3, 4, 5), (0, 1, 2), (3, 4, 5)]
    s = setting(model, task, "noise")
    site = sites_of(model, HEAD)[0]
    got = sweep(
        s.bench, [cell(site, None, "mean")], {"mean": Reference(reference.ids, "mean", 0, fits)}
    ).effects[0, :, 0]
    for half in (slice(0, 3), slice(3, 6)):
        rows = [i for i, f in enumerate(fits) if f[0] == half.start]
        one = sweep(
            s.bench, [cell(site, None, "mean")], {"mean": Reference(reference.ids[half], "mean")}
        ).effects[0, :, 0]
        assert torch.allclose(got[rows], one[rows])


def test_ablation_matches_layouts_not_lengths(model) -> None:
    plain = planted.copied(n=6)
    spans = {"subject": ((3, 4),) * 3 + ((2, 3),) * 3, "end": plain.clean.spans["end"]}
    sides = [replace(side, spans=spans) for side in (plain.clean, plain.corrupt)]
    task = replace(plain, clean=sides[0], corrupt=sides[1], source=None)
    source = ablating._source(task, setting(model, task, "noise"), "mean", 12, 0)
    layout = {ids: sides[0].spans["subject"][i % 6] for i, ids in enumerate((*sides[0].ids, *sides[1].ids))}
    for i, fitting in enumerate(source.fits):
        assert fitting and {layout[source.ids[j]] for j in fitting} == {spans["subject"][i]}


def test_off_task_damage_is_compared_at_every_strong_site(model, task) -> None:
    off = Side(tuple(f"off {i}" for i in range(12)), task.clean.ids[:12])  # as much damage there as here
    sites = [HEAD, "L1.attn_out", "L0.mlp_out"]
    r = methods.ablation(model, task, sites=sites, by="zero", off_task=off, seed=0)
    control = r.control("off_task")
    assert set(control.observed) == {
        HEAD,
        "L1.attn_out",
    }  # the MLP writes nothing: a site of chance is not asked
    assert control.passed is False and r.verdict == "not distinguishable from its null"


# attention


def test_keys_drawn_at_random_reach_a_p_of_alpha_at_most_that_often() -> None:
    """Bernstein's bound holds for the very draw that it speaks of."""
    gen = torch.Generator().manual_seed(0)
    n = 24
    ids = list(range(12)) * 2
    mask = torch.stack([patterns._keys(ids, d) for d in ("previous", "induction")])
    below = []
    for _ in range(400):
        rows = torch.rand(3, n, n, generator=gen, dtype=torch.float64).pow(6).tril()
        pattern = rows / rows.sum(-1, keepdim=True)
        drawn = patterns._shuffle(mask, gen).double()
        moments = patterns._moments(pattern, mask.double())
        score = torch.einsum("hqk,dqk->hd", pattern, drawn * mask.any(-1)[..., None])
        below.append(patterns._bernstein(score - moments[0], moments[1]) <= np.log(0.05))
    assert float(torch.stack(below).double().mean()) <= 0.05


def test_moments_are_those_of_the_draw() -> None:
    gen = torch.Generator().manual_seed(1)
    pattern = torch.rand(1, 8, 8, generator=gen, dtype=torch.float64).tril()
    pattern = pattern / pattern.sum(-1, keepdim=True)
    mask = torch.stack([patterns._keys([0, 1, 0, 1, 0, 1, 0, 1], "duplicate")])
    draws = torch.stack(
        [torch.einsum("hqk,dqk->hd", pattern, patterns._shuffle(mask, gen).double()) for _ in range(4000)]
    )
    mean, variance = patterns._moments(pattern, mask.double())
    assert torch.allclose(draws.mean(0), mean, rtol=0.02) and torch.allclose(draws.var(0), variance, rtol=0.1)


def test_labels_that_do_not_exist_are_not_said_to_hold_elsewhere() -> None:
    model = planted.nothing()
    r = methods.attention_patterns(model, planted.pairs(model, n=4), seed=0)
    table = r.tables["detectors"]
    if not (table[table.distribution == "task"].score > 0.4).any():
        assert r.control("other_texts").passed is None
    assert r.control("rows_sum").passed and (table.p <= 1).all()


def test_a_row_that_sums_to_less_than_one_fails_without_a_sink(monkeypatch) -> None:
    model = tiny.loaded("llama")
    task = planted.pairs(model, n=2)
    real = patterns._Scores

    def short(score, null, tail, off, most):
        return real(score, null, tail, 0.5, most)

    monkeypatch.setattr(patterns, "_Scores", short)
    assert methods.attention_patterns(model, task, seed=0).verdict == "invalid"


# what mutants are caught by


@pytest.mark.parametrize(("mode", "sign"), [("denoise", 1), ("noise", -1)])
def test_clean_activations_raise_the_answer_and_corrupt_ones_lower_it(model, task, mode, sign) -> None:
    r = patch(model, task, mode=mode, controls="none", sites=HEAD)
    assert sign * r.effects.values[..., 0].mean() > 1 and sign * r.tensors["total"].mean() > 1


def test_a_normalised_effect_is_the_ratio_of_two_means(model, task) -> None:
    r = patch(model, task, controls="none", sites="L1.resid_pre", positions=["subject"])
    total, effect = r.tensors["total"][:, 0].astype(float), r.effects.values[0, 0, :, 0].astype(float)
    assert r.tables["normalised"]["value"][0] == pytest.approx(effect.mean() / total.mean(), rel=1e-5)
    weak = task.subset(range(2))
    turned = replace(
        weak, answers=(weak.answers[0], weak.wrong[1]), wrong=(weak.wrong[0], weak.answers[1]), source=None
    )
    assert "normalised" not in patch(model, turned, controls="none", sites=HEAD, held_out=None).tables


def test_unequal_totals_do_not_make_a_ratio_of_each_prompt() -> None:
    total = np.array([1.0, 2.0, 4.0, 8.0, 1.0, 9.0, 3.0])
    effect = total**2
    table = patching._normalised(
        [(sites_of(planted.copier(), HEAD)[0], None)], effect[None], total, _clustered(7)
    )
    assert table["value"][0] == pytest.approx(effect.mean() / total.mean())


def _clustered(n):
    return replace(setting(planted.copier(), planted.copied(n=n)), clusters=tuple(map(str, range(n))))


def test_cells_that_cannot_differ_are_not_in_the_family(model, task) -> None:
    r = patch(model, task, controls="none", sites="L*.resid_pre", positions=None)
    live = int((~r.tensors["structurally_zero"]).sum())
    assert r.control("sign_flip").n == live < r.tensors["structurally_zero"].size
    assert int(r.tables["cells"]["p"].notna().sum()) == live


def test_prompts_of_one_template_are_one_cluster(model) -> None:
    plain = planted.copied(n=16)
    task = replace(plain, groups={"template": tuple(f"t{i // 2}" for i in range(16))}, source=None)
    r = patch(model, task, controls="none", held_out=None)
    assert r.verdict.smallest_p == 2.0**-7


def test_the_null_sets_are_not_the_chosen_one(model, task) -> None:
    single = patch(model, task, sites=["L*H*.z", "L*.mlp_out"], controls="none")
    r = methods.component_set(
        model, task, ranking=single, held_out=planted.copied(n=16, seed=9), nulls=3, seed=0
    )
    assert list(r.tables["components"]["site"]) == [HEAD] and len(r.tables["nulls"]) >= 3
    assert r.tables["nulls"].query("family == 'matched'")["value"].max() < 0.1


def test_damage_off_the_task_is_measured_off_the_task(model, task) -> None:
    """The same ablation on the off-task text, by hand."""
    off = Side(tuple(f"off {i}" for i in range(6)), tuple(tuple(range(i + 5, i + 13)) for i in range(6)))
    r = methods.ablation(model, task, sites=[HEAD], by="zero", off_task=off, seed=0)
    ids = [list(row) for row in off.ids]
    logits = [
        model.run(ids, edits=e, logits="last").logits[:, -1].log_softmax(-1)
        for e in ([], [Ablate(HEAD, by="zero")])
    ]
    by_hand = (logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean()
    assert r.tables["off_task"]["off"][0] == pytest.approx(float(by_hand), rel=1e-4)


def test_other_answers_are_other_peoples(model, task) -> None:
    r = methods.logit_lens(model, task, seed=0)
    assert r.control("other_answers").passed and r.control("last_layer").passed


def test_copies_of_prompts_do_not_narrow_a_bootstrap() -> None:
    from microtome.controls.intervals import bootstrap_interval, mean_interval

    y = np.random.default_rng(0).standard_normal((1, 12))
    once, codes = np.arange(12), np.repeat(np.arange(12), 5)
    for interval in (mean_interval, lambda *a: bootstrap_interval(*a, seed=0)):
        one, many = interval(y, once), interval(np.repeat(y, 5, axis=1), codes)
        assert np.allclose(one.high - one.low, many.high - many.low)


def test_few_pairs_all_of_them_right_are_dissected_and_one_wrong_answer_ends_it():
    """Four pairs cannot reach .001: a quick look goes on where all are right, and says that it is underpowered."""
    model, task = planted.copier(), planted.copied(n=4)
    looked = dissect(model, task, pairs=4, seed=0)
    assert len(looked.children) > 5 and looked.verdict != "supported"
    turned = (task.wrong[0], *task.answers[1:]), (task.answers[0], *task.wrong[1:])
    ended = dissect(model, replace(task, answers=turned[0], wrong=turned[1]), pairs=4, seed=0)
    assert [c.kind for c in ended.children] == ["behaviour"]
    assert "nothing to dissect" in str(ended.control("stages").observed)


def test_a_dissection_asks_all_pairs_whether_the_model_does_the_task():
    model, task, other = planted.copier(), planted.copied(n=4), planted.copied(n=9, seed=5)
    result = dissect(model, task, held_out=other, seed=0)
    assert result.tables["stages"].set_index("stage")["n"]["behaviour"] == 13
    assert task.union(other).union(task).n == 13 and task.union(task) is task
    assert task.union(other).groups["entity"] == task.groups["entity"] + other.groups["entity"]


def test_held_out_pairs_that_declare_nothing_are_no_pairs_of_the_task():
    """They can be patched; the question whether the model does the task is asked of the declared ones."""
    model, task, other = planted.copier(), planted.copied(n=4), planted.copied(n=9, seed=5)
    bare = replace(
        other,
        clean=replace(other.clean, variables=()),
        corrupt=replace(other.corrupt, variables=()),
        differs=frozenset(),
        source=None,
    )
    result = dissect(model, task, held_out=bare, seed=0)
    assert result.tables["stages"].set_index("stage")["n"]["behaviour"] == 4
