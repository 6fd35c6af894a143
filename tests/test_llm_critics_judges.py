"""Judges: planted faults are found in them, an honest one passes, and their error is in the interval of what they judged."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from chatty import Scripted, between
from microtome.errors import ChatError
from microtome.llm.judge_adapters import DescriptionJudge, as_measure
from microtome.llm.judge_error import corrected_mean, corrected_share, effective_n, judged_interval
from microtome.llm.judge_report import FILLER, HandLabels, calibrate_judge
from microtome.llm.judging import Judge, Scale, Scores

WORDS = "river stone lamp window garden paper engine coat bridge table winter letter".split()  # noqa: SIM905


def text(happy, i):
    rng = random.Random(i)
    return (
        " ".join(rng.choices(WORDS, k=rng.randint(5, 12))) + (" delighted" if happy else " gloomy") + f" {i}."
    )


LABELLED = HandLabels(
    tuple(text(i % 2, i) for i in range(60)),
    tuple(float(i % 2) for i in range(60)),
    tuple(i // 2 for i in range(60)),
)
POSITIVE, NEGATIVE = [text(1, 100 + i) for i in range(4)], [text(0, 200 + i) for i in range(4)]


def happy(words):
    return "delighted" in words


def answers(single, pair, numeric=False):
    """A chat from two rules: single(text, question) -> answer, pair(first, second) -> answer."""

    def answer(question):
        if "TEXT 1" in question:
            return f"ANSWER: {pair(between(question, 'TEXT 1'), between(question, 'TEXT 2'))}"
        return f"Well.\nANSWER: {single(between(question, 'TEXT'), question)}"

    return answer


def honest_single(words, question):
    return "yes" if happy(words) else "no"


def honest_pair(a, b):
    return "same" if happy(a) == happy(b) else ("1" if happy(a) else "2")


def report(single=honest_single, pair=honest_pair, **changed):
    judge = Judge(Scripted(answers(single, pair), "judge"), "The text is happy.")
    options = {"generator": "writer", "positive": POSITIVE, "negative": NEGATIVE} | changed
    return calibrate_judge(judge, LABELLED, **options)


def test_an_honest_judge_is_valid_and_no_bias_is_found_in_it():
    told = report(paraphrases=["Joy is expressed.", "It is cheerful."])
    assert told.valid and told.found() == () and all(b.found is False for b in told.biases)
    assert told.agreement.kappa == 1 and 0.7 < told.agreement.kappa_low < 0.9 and told.agreement.accuracy == 1
    assert (
        told.controls == 1
        and told.repeatability == 1
        and told.order_consistent == 1
        and told.rubrics == (0, 1)
    )
    assert told.n_asked == 60 * 6 + 8 and told.n_refused == told.n_unreadable == 0


def test_a_judge_that_prefers_the_first_text_is_found():
    told = report(pair=lambda a, b: "1")
    assert "order" in told.found() and told.order_consistent == 0
    order = next(b for b in told.biases if b.name == "order")
    assert order.value == 1 and order.low > 0.5 and order.null == 0.5


def test_a_judge_that_prefers_what_is_long_is_found_in_pairs_and_alone():
    told = report(pair=lambda a, b: "1" if len(a) > len(b) else "2")
    assert "length, two texts" in told.found() and "order" not in told.found()
    alone = report(single=lambda words, q: "yes" if happy(words) or FILLER[1:30] in words else "no")
    assert "length" in alone.found() and alone.valid
    with pytest.raises(ChatError, match="scores longer texts differently"):
        as_measure(alone, generator="writer")


def test_a_judge_that_always_says_yes_is_invalid_and_nothing_it_says_can_be_used():
    told = report(single=lambda words, q: "yes")
    assert (
        not told.valid
        and any("told apart" in r for r in told.invalid)
        and any("chance" in r for r in told.invalid)
    )
    with pytest.raises(ChatError, match="invalid"):
        judged_interval(told.judge.score(["a text"]), told, generator="writer")
    with pytest.raises(ChatError, match="invalid"):
        as_measure(told, generator="writer")


def test_a_judge_that_follows_the_order_of_the_options_is_found():
    told = report(
        single=lambda words, q: (
            ("yes" if "yes or no" in q else "no") if "river" in words else honest_single(words, q)
        )
    )
    assert "options" in told.found()


def test_a_judge_of_coins_is_invalid():
    coin = random.Random(3)
    told = report(single=lambda words, q: coin.choice(("yes", "no")))
    assert not told.valid


def test_a_judge_that_errs_at_random_has_no_bias():
    """A placebo with noise: 40 judges that err in a tenth of their answers; a bias is called in few of them."""
    called = 0
    for seed in range(40):
        coin = random.Random(seed)

        def noisy(words, q, coin=coin):
            return "yes" if happy(words) != (coin.random() < 0.1) else "no"

        called += bool(report(single=noisy).found())
    assert called <= 6  # P(more | .05) < .01


def test_rubrics_in_other_words_that_change_the_answers_are_shown():
    told = report(
        single=lambda words, q: "no" if "cheerful" in q else honest_single(words, q),
        paraphrases=["It is cheerful."],
    )
    assert told.rubrics == (0.5, 0.5)


def test_refusals_and_broken_answers_are_counted_and_never_become_scores():
    said = {
        "river": "I'm sorry, but I cannot judge this.",
        "lamp": '{"answer": yes',
        "stone": "ANSWER: yes\nANSWER: no",
    }

    def broken(question):
        words = between(question, "TEXT")
        return next((a for w, a in said.items() if w in words), f"ANSWER: {honest_single(words, question)}")

    judge = Judge(Scripted(broken, "judge"), "The text is happy.")
    scores = judge.score(["river", "lamp", "stone", "delighted", "gloomy"])
    assert scores.why == ("refused", "unreadable", "unreadable", "", "") and scores.values[3:] == (1, 0)
    assert (
        all(math.isnan(v) for v in scores.values[:3]) and scores.n_refused == 1 and scores.n_unreadable == 2
    )
    told = calibrate_judge(judge := replace(judge, chat=Scripted(lambda q: "no idea", "judge")), LABELLED, generator="w", positive=POSITIVE, negative=NEGATIVE)  # fmt: skip
    assert (
        not told.valid
        and told.n_unreadable == told.n_asked
        and any("not one answer" in r for r in told.invalid)
    )
    assert all(b.found is None for b in told.biases)


@pytest.mark.parametrize(
    "answer",
    [
        "ANSWER: 11",
        "ANSWER: -1",
        "ANSWER: nan",
        "ANSWER: 3 4\nANSWER: 5",
        "7",
        "ANSWER: seven",
        "ANSWER: 1e1",
    ],
)
def test_a_number_out_of_the_scale_is_no_score(answer):
    scores = Judge(Scripted([answer]), "Good.", Scale("numeric", 0, 10)).score(["text"])
    assert scores.why == ("unreadable",)


def test_an_answer_that_was_cut_off_is_no_score():
    """ "ANSWER: 1" may have been the beginning of 10."""
    judge = Judge(Scripted(["ANSWER: 1"], finish="length"), "Good.", Scale("numeric", 0, 10))
    assert judge.score(["text"]).why == ("unreadable",)
    assert math.isnan(replace(judge, chat=Scripted(["ANSWER: 1"], finish="length")).prefer("a", "b"))


def test_the_generator_is_never_the_judge():
    with pytest.raises(ChatError, match="judges what Judge wrote"):
        report(generator="Judge")
    served = Judge(Scripted(answers(honest_single, honest_pair), "endpoint", model="smol"), "Happy.")
    with pytest.raises(ChatError, match="smol judges what smol wrote"):
        calibrate_judge(served, LABELLED, generator="smol", positive=POSITIVE, negative=NEGATIVE)
    with pytest.raises(ChatError, match="generator's name"):
        report(generator="")
    with pytest.raises(ChatError, match="judges what"):
        judged_interval(Scores((1.0,), ("",), ("",)), report(), generator="judge")


@pytest.mark.parametrize(
    "changed, why",
    [
        ({"positive": POSITIVE[:2]}, "fewer than 3 positive"),
        ({"negative": [*NEGATIVE[:2], NEGATIVE[0]]}, "fewer than 3 negative"),
        ({"positive": NEGATIVE}, "stands twice"),
        ({"positive": list(LABELLED.texts[:3])}, "stands twice"),
    ],
)
def test_controls_must_be_there_and_be_their_own(changed, why):
    with pytest.raises(ChatError, match=why):
        report(**changed)


def test_labels_must_be_on_the_scale():
    judge = Judge(Scripted(lambda q: "ANSWER: yes"), "Happy.")
    for labels in ((1.0, 1.0), (0.0, 2.0)):
        with pytest.raises(ChatError, match="hand labels"):
            calibrate_judge(
                judge, HandLabels(("a", "b"), labels), generator="w", positive=POSITIVE, negative=NEGATIVE
            )
    with pytest.raises(ChatError, match="1 labels"):
        HandLabels(("a", "b"), (1.0,))
    with pytest.raises(ChatError, match="scale"):
        Scale("numeric", 5, 5)


# ------------------------------------------------------------------------------ the error in the interval


def rates(rng, p, n, se, sp, m, clusters):
    """A judged sample of prevalence p and labelled texts of either class; clusters of `clusters` texts share their truth often."""
    base = rng.random(n // clusters) < p
    truth = np.where(
        rng.random((n // clusters, clusters)) < 0.5, base[:, None], rng.random((n // clusters, clusters)) < p
    )
    truth = truth.ravel()
    said = np.where(truth, rng.random(n) < se, rng.random(n) > sp).astype(float)
    groups = np.repeat(np.arange(n // clusters), clusters)
    return (
        (said, groups),
        ((rng.random(m) < se).astype(float), range(m)),
        ((rng.random(m) > sp).astype(float), range(m)),
    )


@pytest.mark.parametrize(
    "p, se, sp, n, m, clusters",
    [(0.3, 0.8, 0.85, 200, 60, 1), (0.1, 0.9, 0.8, 240, 40, 6), (0.6, 0.75, 0.95, 120, 80, 4)],
)
def test_the_corrected_share_covers_the_truth_and_the_raw_share_does_not(p, se, sp, n, m, clusters):
    """240 simulated judgements: 95 % intervals cover between 92 and 99.5 %; the raw interval misses the truth mostly."""
    rng = np.random.default_rng(17)
    covered = raw = done = 0
    for seed in range(240):
        said, yes, no = rates(rng, p, n, se, sp, m, clusters)
        _, low, high = corrected_share(said, yes, no, seed=seed)
        covered += low <= p <= high
        effective = effective_n(*said)
        half = 1.96 * math.sqrt(max(said[0].mean() * (1 - said[0].mean()), 1e-9) / effective)
        raw += abs(said[0].mean() - p) <= half
        done += 1
    assert 0.92 <= covered / done <= 0.995, covered / done
    assert raw / done < 0.85, raw / done


def test_clusters_that_are_forgotten_cost_coverage():
    """The design effect is needed: with texts that follow their prompt, an interval without clusters is too narrow."""
    rng = np.random.default_rng(5)
    with_, without = [], []
    for seed in range(120):
        base = (rng.random(15) < 0.4).repeat(10)
        said = np.where(base, rng.random(150) < 0.9, rng.random(150) > 0.9).astype(float)
        yes, no = (
            ((rng.random(200) < 0.9).astype(float), range(200)),
            ((rng.random(200) > 0.9).astype(float), range(200)),
        )
        for groups, kept in ((np.repeat(np.arange(15), 10), with_), (np.arange(150), without)):
            _, low, high = corrected_share((said, groups), yes, no, seed=seed)
            kept.append(low <= 0.4 <= high)
    assert np.mean(with_) >= 0.92 and np.mean(without) < 0.75, (np.mean(with_), np.mean(without))


def test_the_corrected_mean_covers_and_the_raw_mean_does_not():
    rng = np.random.default_rng(2)
    covered = raw = 0
    for _ in range(400):
        truth, known = rng.normal(5, 1.5, 80), rng.normal(5, 1.5, 40)
        said = truth + rng.normal(0.8, 1.2, 80)
        errors = rng.normal(0.8, 1.2, 40)
        _, low, high = corrected_mean((said, range(80)), (errors, range(40)))
        covered += low <= 5 <= high
        _, low, high = corrected_mean((said, range(80)), (np.zeros(2), range(2)))
        raw += low <= 5 <= high
        assert len(known) == 40
    assert 0.92 <= covered / 400 <= 0.98 and raw / 400 < 0.3


def test_the_share_is_rogan_and_gladens():
    said = (np.r_[np.ones(40), np.zeros(60)], range(100))
    yes, no = (np.r_[np.ones(45), np.zeros(5)], range(50)), (np.r_[np.ones(10), np.zeros(40)], range(50))
    value, low, high = corrected_share(said, yes, no)
    assert value == pytest.approx((0.4 + 0.8 - 1) / (0.9 + 0.8 - 1)) and low < value < high
    perfect = (np.ones(4000), range(4000)), (np.zeros(4000), range(4000))
    assert corrected_share(said, *perfect)[0] == pytest.approx(0.4)


def test_a_judge_that_may_be_chance_gives_no_share():
    said = (np.ones(50), range(50))
    with pytest.raises(ChatError, match="not above chance"):
        corrected_share(
            said, (np.r_[np.ones(6), np.zeros(4)], range(10)), (np.r_[np.ones(4), np.zeros(6)], range(10))
        )


def test_unread_answers_widen_the_interval_and_are_no_answers():
    told = report()
    values = (1.0,) * 20 + (0.0,) * 20
    full = judged_interval(Scores(values, ("",) * 40, ("",) * 40), told, generator="writer")
    holes = Scores((*values, *([math.nan] * 20)), (*[""] * 40, *["unreadable"] * 20), ("",) * 60)
    part = judged_interval(holes, told, generator="writer")
    assert part.value == full.value == 0.5 and part.n == 40 and part.n_unread == 20
    assert part.low < full.low - 0.1 and part.high > full.high + 0.1
    assert full.raw == 0.5 and full.low < full.raw_low and full.high > full.raw_high


def test_effective_n_falls_to_the_clusters_and_never_above_the_texts():
    x = np.repeat([0.0, 1.0] * 10, 5)
    assert effective_n(x, np.repeat(np.arange(20), 5)) <= 20 and effective_n(x, range(100)) == 100
    assert effective_n(np.ones(100), np.repeat(np.arange(20), 5)) == 20
    shuffled = np.random.default_rng(0).permutation(x)
    assert 40 < effective_n(shuffled, np.repeat(np.arange(20), 5)) <= 100


def test_a_numeric_judge_with_a_shift_is_corrected():
    def single(words, question):
        return f"{min(10, (7 if happy(words) else 2) + len(words) % 2)}"

    labels = HandLabels(LABELLED.texts, tuple(6.0 if v else 1.0 for v in LABELLED.labels), LABELLED.clusters)
    judge = Judge(Scripted(answers(single, honest_pair), "judge"), "Happy.", Scale("numeric", 0, 10))
    told = calibrate_judge(judge, labels, generator="writer", positive=POSITIVE, negative=NEGATIVE)
    assert told.valid and math.isnan(told.agreement.accuracy) and 0.5 < told.agreement.kappa < 1
    assert 1 < told.agreement.error_mean < 2
    found = judged_interval(judge.score([text(1, 300 + i) for i in range(30)]), told, generator="writer")
    assert found.low <= 6 <= found.high and not found.raw_low <= 6 <= found.raw_high


# ------------------------------------------------------------------------------ where techniques take judges


def test_a_judge_is_a_measure_of_steered_text():
    from microtome.methods.steer_measures import name_of, of_text, score_texts

    measure = as_measure(report(), generator="steered")
    assert of_text(measure) and "judge" in name_of(measure)
    assert score_texts(None, measure, ["delighted", "gloomy"], [[1], [2]]).tolist() == [1, 0]
    broken = replace(measure, judge=Judge(Scripted(lambda q: "hm"), "Happy."))
    with pytest.raises(ChatError, match="2 of 2 answers"):
        score_texts(None, broken, ["a", "b"], [[1], [2]])


def test_a_chat_reads_descriptions():
    from microtome.methods.describing import _answer

    chat = Scripted(lambda q: f"ANSWER: {10 if '«dog»' in between(q, 'TEXT') else 0}")
    judge = DescriptionJudge(chat)
    assert _answer(judge("dogs", ["a «dog»", "a «cat»"]), 2).tolist() == [10, 0]
    assert "Description: dogs" in chat.asked[0][-1].content
    with pytest.raises(ChatError, match="1 of 1"):
        DescriptionJudge(Scripted(["none"]))("dogs", ["x"])


def test_a_record_says_who_judged_and_by_what_and_nothing_of_the_key():
    from microtome.results.stamp import describe

    measure = as_measure(report(), generator="steered")
    measure.judge.chat.api_key = "sk-very-secret"
    told = [describe(x, "measure") for x in (measure, measure.judge, DescriptionJudge(measure.judge.chat))]
    assert all(t["judge"] == "judge" and t["rubric"] and t["rerunnable"] is False for t in told)
    assert "secret" not in repr(told) + repr(measure) + repr(report())


def test_steering_takes_a_judge_as_its_measure():
    import steerable as st
    from microtome.directions.estimate import mean_difference
    from microtome.methods.steer import SteeringOptions, steering

    def single(words, question):
        return "yes" if any(w in words.split() for w in st.GLAD) else "no"

    model = st.model()
    plain = report()
    measure = replace(
        as_measure(plain, generator="tiny"),
        judge=replace(plain.judge, chat=Scripted(answers(single, honest_pair), "judge")),
    )
    found = mean_difference(model, st.texts(80), st.SITE)
    told = steering(model, found, site=st.SITE, coefficients=[-1, 3], prompts=st.prompts(6), measure=measure, neutral=None, when="generated",
                    options=SteeringOptions(tokens=4, draws=3, band=2, texts=2), seed=0)  # fmt: skip
    assert told.query.parameters["measure"]["judge"] == "judge"
    assert "judge" in str(told.effects.coords["metric"])
