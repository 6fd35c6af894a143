"""Scores: by hand on small cases, by their identities, and on planted forecasters who know, know nothing, or exaggerate."""

from __future__ import annotations

import html
import json
import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import ControlError, LabError
from microtome.figures import forecasts as picture
from microtome.figures import static_svg
from microtome.lab.scoring import Forecast, Score, by, check_probability, score, smallest_difference
from microtome.results.frozen import dumps, loads


def many(said, came) -> list[Forecast]:
    return [Forecast(float(p), bool(o)) for p, o in zip(said, came, strict=True)]


def scored(said, came, **options) -> Score:
    return score(many(said, came), **{"seed": 0, "draws": 1000, **options})


def test_three_forecasts_by_hand() -> None:
    made = scored([0.9, 0.8, 0.3], [True, False, False])
    assert made.n == 3 and made.came_true == 1 and made.base_rate == pytest.approx(1 / 3)
    assert made.brier == pytest.approx((0.01 + 0.64 + 0.09) / 3)
    assert made.log == pytest.approx(-(math.log(0.9) + math.log(0.2) + math.log(0.7)) / 3)
    # of the others 0 of 2, 1 of 2, 1 of 2 came true; Laplace: 1/4, 2/4, 2/4
    assert made.base_brier == pytest.approx((0.75**2 + 0.5**2 + 0.5**2) / 3)
    assert made.base_log == pytest.approx(-(math.log(0.25) + 2 * math.log(0.5)) / 3)
    assert made.skill == pytest.approx(1 - made.brier / made.base_brier)
    assert made.difference == pytest.approx(made.brier - made.base_brier)
    assert math.isnan(made.low) and math.isnan(made.high) and "are too few" in made.said
    assert "once in 3 times" in made.said


_forecasts = st.lists(st.tuples(st.floats(0.001, 0.999), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=80, deadline=None)
@given(_forecasts, st.sampled_from(["tenths", "equal count"]))
def test_identities_of_any_forecasts(given_: list[tuple[float, bool]], bins: str) -> None:
    said, came = (np.array(column, dtype=float) for column in zip(*given_, strict=True))
    made = scored(said, came, bins=bins, draws=400)
    m = made.murphy
    assert made.brier == pytest.approx(np.mean((said - came) ** 2))
    assert m.reliability - m.resolution + m.uncertainty + m.within == pytest.approx(made.brier)
    assert sum(b.n for b in made.curve) == made.n
    assert sum(b.n * b.rate for b in made.curve) == pytest.approx(made.came_true)
    assert sum(b.n * b.forecast for b in made.curve) == pytest.approx(said.sum())
    assert all(0 <= b.low <= b.rate <= b.high <= 1 for b in made.curve)
    assert [b.forecast for b in made.curve] == sorted(b.forecast for b in made.curve)
    others = [(came.sum() - o + 1) / (made.n + 1) for o in came]
    assert made.base_brier == pytest.approx(np.mean((others - came) ** 2))
    assert made.base_log == pytest.approx(-np.mean(np.log(np.where(came == 1, others, 1 - np.array(others)))))
    mirrored = scored(1 - said, 1 - came, draws=400)
    assert (mirrored.brier, mirrored.log, mirrored.base_brier) == pytest.approx((made.brier, made.log, made.base_brier))  # fmt: skip
    assert 0 < made.p <= 1 and made.said


@settings(max_examples=60, deadline=None)
@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_both_scores_are_proper(truth: float, other: float) -> None:
    def expected(said: float) -> tuple[float, float]:
        true, false = (scored([said], [o], draws=400) for o in (True, False))
        return (truth * true.brier + (1 - truth) * false.brier, truth * true.log + (1 - truth) * false.log)

    honest, dishonest = expected(truth), expected(other)
    assert honest[0] <= dishonest[0] + 1e-12 and honest[1] <= dishonest[1] + 1e-12


def drawn(n: int, seed: int):
    """Probabilities, and what truly happens with them."""
    rng = np.random.default_rng(seed)
    said = rng.choice([0.1, 0.3, 0.5, 0.7, 0.9], n)
    return said, rng.random(n) < said


def test_a_calibrated_forecaster_has_no_reliability_term_and_an_overconfident_one_has() -> None:
    said, came = drawn(4000, 1)
    good = scored(said, came)
    assert good.murphy.reliability < 0.002 and good.murphy.reliability < good.murphy.reliability_null
    assert good.murphy.resolution == pytest.approx(0.08, abs=0.012), "the variance of what was said"
    assert good.murphy.resolution > 20 * good.murphy.resolution_null and good.murphy.within == pytest.approx(0)  # fmt: skip
    assert sum(b.low <= b.forecast <= b.high for b in good.curve) >= 4
    exaggerated = np.where(said > 0.5, 0.98, np.where(said < 0.5, 0.02, 0.5))
    loud = scored(exaggerated, came)
    assert loud.murphy.reliability > 0.02 > 5 * loud.murphy.reliability_null
    assert loud.brier > good.brier and loud.log > good.log
    assert good.high < 0 and good.said.startswith("Better than the base rate")


def test_with_few_forecasts_the_reliability_of_a_calibrated_one_is_not_zero_and_its_null_says_so() -> None:
    above = []
    for seed in range(60):
        made = scored(*drawn(15, seed), draws=400)
        assert made.murphy.reliability_null > 0.02
        above.append(made.murphy.reliability > made.murphy.reliability_null)
    assert sum(above) <= 9, "about 3 of 60 lie above their 95 % limit"


@pytest.mark.parametrize("n", [10, 40, 200])
def test_who_knows_nothing_is_not_called_better_than_the_base_rate(n: int) -> None:
    better, small = 0, 0
    for seed in range(60):
        rng = np.random.default_rng([n, seed])
        came = rng.random(n) < 0.5
        constant = scored(np.full(n, 0.5), came)
        assert not constant.high < 0 and constant.p == 1, "one half, always"
        guessed = scored(rng.uniform(0.3, 0.7, n), came)
        better += guessed.high < 0
        small += guessed.p <= 0.05
    assert better <= 1 and small <= 9  # 60 x 5 % = 3 of p, more than 9 once in 900


def test_who_knows_is() -> None:
    told = [scored(*drawn(150, seed)) for seed in range(20)]
    assert sum(made.high < 0 for made in told) >= 18 and sum(made.p <= 0.05 for made in told) >= 18
    backwards = scored(1 - drawn(150, 1)[0], drawn(150, 1)[1])
    assert backwards.low > 0 and backwards.said.startswith("Worse") and backwards.p > 0.99 and backwards.skill < 0  # fmt: skip


def test_the_p_is_that_of_all_orders_of_the_outcomes() -> None:
    said, came = [0.9, 0.6, 0.7, 0.2, 0.4, 0.3], [True, True, False, False, True, False]
    observed = np.mean((np.array(said) - came) ** 2)
    exact = np.mean([np.mean((np.array(said) - order) ** 2) <= observed + 1e-12 for order in permutations(came)])  # fmt: skip
    assert scored(said, came, draws=20000).p == pytest.approx(exact, abs=0.012)


def test_the_smallest_difference_is_what_half_of_such_forecasters_show() -> None:
    n, spread = 60, math.sqrt(smallest_difference(60))
    told = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        said = rng.permutation(np.repeat([0.5 - spread, 0.5 + spread], n // 2))
        told += scored(said, rng.random(n) < said, draws=600).high < 0
    assert 0.3 < told / 120 < 0.7
    sizes = [smallest_difference(n) for n in (1, 5, 20, 100, 10_000)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 0.25 and sizes[-1] < 0.001
    assert smallest_difference(20, 0.1) == pytest.approx(smallest_difference(20) * 0.09 / 0.25)
    assert smallest_difference(20, level=0.99) > smallest_difference(20)


def test_few_forecasts_say_that_they_are_few() -> None:
    none_told = scored(*drawn(12, 3))
    assert none_told.low < 0 < none_told.high
    assert "Not told from the base rate" in none_told.said and f"{none_told.smallest:.3f}" in none_told.said
    for outcome, word in ((True, "came true"), (False, "failed")):
        alike = scored([0.9, 0.8, 0.7, 0.9, 0.6], [outcome] * 5)
        assert f"5 forecasts, which all {word}" in alike.said and math.isnan(alike.low) and math.isnan(alike.skill)  # fmt: skip
        assert alike.p == 1 and math.isfinite(alike.base_log)
    assert scored([0.6], [True]).said.startswith("1 forecast, which all")


def test_it_is_the_same_again_with_the_seed_and_the_order_does_not_move_the_scores() -> None:
    said, came = drawn(80, 5)
    assert scored(said, came) == scored(said, came)
    assert (scored(said, came).low, scored(said, came).p) != (scored(said, came, seed=1).low, scored(said, came, seed=1).p)  # fmt: skip
    turned = scored(said[::-1], came[::-1])
    assert turned.brier == pytest.approx(scored(said, came).brier)
    assert [(b.n, b.rate) for b in turned.curve] == [(b.n, b.rate) for b in scored(said, came).curve]
    assert loads(dumps(scored(said, came).as_json()))["n"] == 80
    json.dumps(scored(said, came).as_json(), allow_nan=False)


def test_bins_of_equal_count_keep_equal_forecasts_together() -> None:
    rng = np.random.default_rng(2)
    said = np.round(rng.uniform(0.01, 0.99, 200), 2)
    equal = scored(said, rng.random(200) < said, bins="equal count")
    assert 8 <= len(equal.curve) <= 10 and min(b.n for b in equal.curve) >= 15
    tied = scored([0.5] * 30 + [0.6], [True, False] * 15 + [True], bins="equal count")
    assert [b.n for b in tied.curve] == [30, 1]
    few = scored([0.1, 0.2, 0.3, 0.4], [False, True, False, True], bins="equal count")
    assert [b.n for b in few.curve] == [4]
    edges = scored([0.1, 0.2, 0.3, 0.6, 0.7, 0.9], [False, False, True, True, True, True])
    assert [b.n for b in edges.curve] == [1] * 6, "a forecast on an edge goes up"
    assert [b.n for b in scored([0.05, 1 - 0.9, 0.15], [True, False, True]).curve] == [1, 2], "in binary, too"


def test_by_person_and_kind() -> None:
    said, came = drawn(90, 4)
    made = [Forecast(float(p), bool(o), person=("ana", "bo", "")[i % 3], kind=("patching", "probe")[i % 2]) for i, (p, o) in enumerate(zip(said, came, strict=True))]  # fmt: skip
    people = by(made, "person", seed=0, draws=400)
    assert list(people) == ["", "ana", "bo"] and all(s.n == 30 for s in people.values())
    assert people["bo"] == scored(said[1::3], came[1::3], draws=400)
    assert list(by(made, "kind", seed=0, draws=400)) == ["patching", "probe"]
    with pytest.raises(LabError, match="did you mean 'person'"):
        by(made, "persons", seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0 and 1 cannot be wrong by a finite log score"),
        (1, "say .01 or .99"),
        (1.0, "0 and 1 cannot be wrong"),
        (70, "probability=0.7 for 70 %"),
        (1.2, "between 0 and 1"),
        (-0.1, "between 0 and 1"),
        (math.nan, "between 0 and 1"),
        (math.inf, "between 0 and 1"),
        ("0.7", "words are not scored"),
        ("likely", "words are not scored"),
        (True, "a probability is a number"),
        (None, "a probability is a number"),
        (np.bool_(True), "a probability is a number"),
    ],
)
def test_what_is_no_probability_is_refused(value: object, said: str) -> None:
    for call in (check_probability, lambda v: Forecast(v, True)):
        with pytest.raises(LabError) as caught:
            call(value)
        assert said in str(caught.value) and caught.value.instead


def test_other_refusals() -> None:
    assert check_probability(np.float32(0.5)) == 0.5 and Forecast(0.5, np.bool_(True)).outcome is True
    for outcome in (None, "yes", 1, 0.0):
        with pytest.raises(LabError, match="it happened or it did not"):
            Forecast(0.5, outcome)  # type: ignore[arg-type]
    with pytest.raises(LabError, match="nothing to score"):
        score([], seed=0)
    with pytest.raises(LabError, match="did you mean 'tenths'"):
        scored([0.5], [True], bins="tenth")
    with pytest.raises(ControlError, match="too few for a 0.95 interval"):
        scored([0.5], [True], draws=100)


def _words(figure) -> str:
    notes = [note.text for note in figure.layout.annotations]
    return html.unescape(" | ".join([figure.layout.title.text, *notes]).replace("<br>", " "))


def test_the_picture_has_the_diagonal_the_base_rate_and_every_bin() -> None:
    made = scored(*drawn(120, 7))
    figure = picture.draw(made, "ana")
    diagonal, curve, counts = figure.data
    assert list(diagonal.x) == list(diagonal.y) == [0, 1] and diagonal.line.dash == "dash"
    assert list(curve.x) == [b.forecast for b in made.curve] and list(curve.y) == [b.rate for b in made.curve]
    assert [y + e for y, e in zip(curve.y, curve.error_y.array, strict=True)] == pytest.approx([b.high for b in made.curve])  # fmt: skip
    assert list(counts.y) == [b.n for b in made.curve]
    assert any(s.type == "line" and s.y0 == s.y1 == made.base_rate for s in figure.layout.shapes)
    titles = [figure.layout[k].title.text for k in figure.layout.to_plotly_json() if k[1:5] == "axis"]
    assert sorted(titles) == sorted(["probability that was said", "share that came true", "probability that was said", "forecasts"])  # fmt: skip
    words = _words(figure)
    assert made.said in words and "perfectly calibrated" in words and "base rate" in words and "ana" in words
    assert "Verdict" not in words and "Calibration: " not in words.replace("Calibration of forecasts: ", "")
    assert len(static_svg(figure)) > 3000


def test_a_hostile_name_is_shown_as_text() -> None:
    figure = picture.draw(scored([0.5], [True]), "<b>x</b><script>")
    assert "<script>" not in figure.to_json() and "<script>" not in static_svg(figure)
    assert "<b>x</b><script>" in _words(figure)
