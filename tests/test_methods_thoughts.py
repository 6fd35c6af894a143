"""Chains of thought: a planted sentence is found and others are not; sampling noise, edits, faults, refusals."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import worded
from microtome import methods
from microtome.controls.distributions import compare, counts, divergence, shuffled_p, total_variation
from microtome.errors import ControlError, TaskError
from microtome.figures import pictures_of, static_svg
from microtome.methods import prompting, rollouts, thought_checks
from microtome.methods.prompting import Samples, Sampling
from microtome.tasks.thought import Thought, thought

CHAIN = " w6 w40\nw7 w8\nw5 w6"
"""The copier says the word at place 3: after the prompt of two words that is the second word of sentence 0."""
SAID = {"forty": "w40", "forty-one": "w41"}


def most_common(text):
    """What a text of eight words or more says most often."""
    words = text.split()
    return Counter(words).most_common(1)[0][0] if len(words) >= 8 else None


HOW = Sampling(n=20, temperature=0.25, max_new_tokens=8, extract=most_common)


@pytest.fixture(scope="module")
def model():
    return worded.copier()


@pytest.fixture(scope="module")
def found(model):
    edits = {"kinds": {"seven": r"\bw7\b"}, "force": [(0, "w6 w41"), (2, "w5 w9")]}
    return methods.chain_of_thought(model, thought("w4 w5", SAID, CHAIN), sampling=HOW, seed=0, **edits)


def test_the_planted_sentence_is_found_and_the_others_are_not(found):
    table = found.tables["sentences"]
    assert table["p"][0] <= 0.001 and table["value"][0] > 0.6
    assert (table["p"][1:] > 0.05).all() and table["before_answer"].all()
    assert found.verdict == "supported", found.verdict.reasons


def test_deleting_and_forcing_do_what_the_mechanism_says(found):
    cells = found.tables["cells"].set_index("site")
    hit = {s for s in cells.index if cells.loc[s, "p"] <= 0.001}
    assert hit == {"resample 0: w6 w40", "delete 0: w6 w40", "force 0: w6 w41"}
    answers = found.tables["answers"].set_index("where")
    assert answers.loc["force 0: w6 w41", "share_forty-one"] > 0.6
    assert answers.loc["before the answer", "share_forty"] > 0.6
    assert "delete 1 of kind seven" in cells.index
    frame = found.frame().set_index(["site", "metric"])
    assert frame.loc[("resample 0: w6 w40", "kl"), "value"] > 1


def test_a_cut_sampled_twice_is_the_null(found):
    control = found.control("same_cut")
    assert control.passed and control.n == 2 and max(control.observed.values()) < 0.5
    edits = found.tables["edits"]
    assert len(edits) == 3 + 1 + 2 and edits["rank"].notna().any()


def test_the_same_seed_gives_the_same_samples_and_another_does_not(model):
    one, same, other = (
        methods.chain_of_thought(model, thought("w4 w5", SAID, CHAIN), sampling=HOW, delete=False, seed=s)
        for s in (0, 0, 1)
    )
    assert one.effects == same.effects and one.raw_examples == same.raw_examples
    assert one.tables["answers"].to_dict() != other.tables["answers"].to_dict()


def test_a_sampler_that_drifts_between_calls_fails_the_control(model, monkeypatch):
    true = rollouts.Rollouts.at

    def drifting(self, body, again=""):
        got = true(self, body, again)
        return rollouts.Rolled(got.texts, ("forty-one",) * len(got.names)) if again else got

    monkeypatch.setattr(rollouts.Rollouts, "at", drifting)
    result = methods.chain_of_thought(model, thought("w4 w5", SAID, CHAIN), sampling=HOW, delete=False, seed=0)  # fmt: skip
    assert result.control("same_cut").passed is False and result.verdict == "not distinguishable from its null"  # fmt: skip


def test_few_samples_are_underpowered(model):
    few = Sampling(n=4, temperature=0.25, max_new_tokens=8, extract=most_common)
    result = methods.chain_of_thought(model, thought("w4 w5", SAID, CHAIN), sampling=few, seed=0)
    assert result.verdict == "underpowered" and result.control("shuffled_samples").passed is False


def test_answers_that_cannot_be_read_are_not_believed(model):
    deaf = Sampling(n=5, max_new_tokens=4, extract=r"answer is (\w+)")
    result = methods.chain_of_thought(model, thought("w4 w5", SAID, CHAIN), sampling=deaf, seed=0)
    assert result.control("readable").passed is False and result.verdict != "supported"


def fake(shares, n_names=("a", "b")):
    """A sampler whose answer depends on how many sentences stand there."""

    def sample(model, ids, how, read, *, seed, prefix=()):
        k = len([s for s in prefix[0].split("\n") if s.strip()])
        rng = np.random.default_rng(seed + len(prefix[0]))
        names = tuple(rng.choice(n_names, p=[shares[k], 1 - shares[k]]) for _ in range(how.n))
        return Samples((("w5 w6",) * how.n,), (names,), ((2,) * how.n,))

    return sample


FIVE = "w6 w40\nw7 w8\nw5 w6\nw7 w7\nw9 w9\nw5 w5"


def test_a_sentence_that_its_place_and_length_explain_fails_the_control(model, monkeypatch):
    monkeypatch.setattr(prompting, "sample", fake([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]))
    flat = methods.chain_of_thought(model, thought("w4 w5", ["a", "b"], FIVE), sampling=Sampling(n=40), delete=False, seed=0)  # fmt: skip
    assert flat.verdict == "not distinguishable from its null"
    monkeypatch.setattr(prompting, "sample", fake([0.02, 0.02, 0.98, 0.98, 0.98, 0.98, 0.98]))
    peak = methods.chain_of_thought(model, thought("w4 w5", ["a", "b"], FIVE), sampling=Sampling(n=40), delete=False, seed=0)  # fmt: skip
    assert peak.control("length_position").passed and peak.tables["sentences"]["value"].idxmax() == 1
    rising = thought_checks.length_position(model, tuple(FIVE.splitlines()), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert rising.passed is False
    few = thought_checks.length_position(model, ("w5", "w6"), [0.1, 0.9])
    assert few.passed is None


def test_a_flat_chain_is_called_at_the_stated_rate():
    """2,000 chains of three sentences that do nothing: family-wise false alarms at .05 within the exact binomial limit."""
    from scipy.stats import binom

    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        cuts = rng.multinomial(20, [0.5, 0.3, 0.2], size=4)
        p = [shuffled_p(a, b, rng, 199)[0] for a, b in zip(cuts, cuts[1:], strict=False)]
        hits += min(p) * len(p) <= 0.05  # the first step of Holm
    assert hits <= binom.ppf(0.999, 2000, 0.05)


def test_a_text_that_the_model_would_not_write_is_called_off_its_distribution(model):
    # after sentence 0 the copier says w40 at nearly every place; a sentence of other words is unlike it
    result = methods.chain_of_thought(model, thought("w4 w5", SAID, CHAIN), sampling=HOW, delete=False, force=[(1, "w70 w71 w72")], seed=0)  # fmt: skip
    row = result.tables["edits"].iloc[0]
    assert row["off_distribution"] and row["logprob"] < row["own_logprob"]
    assert result.control("off_distribution").passed is False
    like = methods.chain_of_thought(model, thought("w4 w5", SAID, CHAIN), sampling=HOW, delete=False, force=[(1, "w40 w40")], seed=0)  # fmt: skip
    assert like.control("off_distribution").passed


def test_log_probabilities_of_sentences_are_those_of_a_forward(model):
    rolls = rollouts.Rollouts(model, thought("w4 w5", SAID, CHAIN), HOW, 0)
    got = thought_checks.mean_log_probabilities(rolls, (" w6 w40",), ["\nw7 w8", " w9"])
    steps = model.run("w4 w5 w6 w40 w7 w8").logits[0].double().log_softmax(-1)
    n = len(model.tokens("w4 w5 w6 w40").rows()[0])
    assert got[0] == pytest.approx(float(steps[n - 1, 7] + steps[n, 8]) / 2, abs=1e-5)
    assert got[1] == pytest.approx(float(steps[n - 1, 9]), abs=1e-5)


def test_a_model_that_takes_an_edit_back_fails_the_control(model, monkeypatch):
    true = rollouts.Rollouts.at

    def stubborn(self, body, again=""):
        got = true(self, body, again)
        back = tuple("\nw6 w40\nw5" for _ in got.texts) if "w41" in "".join(body) else got.texts
        return rollouts.Rolled(back, got.names)

    monkeypatch.setattr(rollouts.Rollouts, "at", stubborn)
    result = methods.chain_of_thought(model, thought("w4 w5", SAID, CHAIN), sampling=HOW, delete=False, force=[(0, "w6 w41")], seed=0)  # fmt: skip
    assert (
        result.control("self_correction").passed is False and result.tables["edits"]["corrects"].iloc[0] == 1
    )
    assert thought_checks.takes_back("Wait, that is not right. So", "x y")
    assert thought_checks.takes_back(" So the sum is 7. Done.", "So the sum is 7.")
    assert not thought_checks.takes_back(" Then we add two. Done.", "So the sum is 7.")


def test_sentences_from_the_answer_on_are_no_part_of_the_chain():
    t = thought("q", {"y": "yes", "n": "no"}, "First this. Then that. The answer is yes. It is so.")
    read = prompting.extractor(r"answer is (\w+)", list(t.answers.items()))
    assert rollouts.body_of(t, read) == ("First this.", " Then that.")
    with pytest.raises(TaskError, match="no reasoning before"):
        rollouts.body_of(t.with_chain("The answer is yes."), read)


def test_a_chain_that_the_model_writes_itself(model):
    result = methods.chain_of_thought(model, thought("w4 w5 w6 w40 w8", SAID, opening=" w9"), sampling=Sampling(n=3, max_new_tokens=6, extract=r"answer is (\w+)"), delete=False, seed=0)  # fmt: skip
    assert result.raw_examples[0]["chain"].split()[0] == "w40"


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"force": [(7, "w9")]}, "no sentence 7"),
        ({"force": [(-1, "w9")]}, "no sentence -1"),
        ({"force": [("0", "w9")]}, "no sentence '0'"),
        ({"force": [(1, " ")]}, "to force is"),
        ({"force": [(1, "w7 w8")]}, "forced to be what it is"),
        ({"force": [(1, "w9 w9 w9 w40 w40 w40 w40")]}, "says an answer"),
        ({"force": ["w9"]}, "a number and a text"),
        ({"force": [(0,)]}, "a number and a text"),
        ({"kinds": {"none": "xyz"}}, "finds nothing"),
        ({"kinds": {"bad": "("}}, "no regular expression"),
    ],
)
def test_edits_that_mean_nothing_are_refused(model, arguments, says):
    with pytest.raises(TaskError, match=says):
        methods.chain_of_thought(model, thought("w4 w5", SAID, CHAIN), sampling=HOW, seed=0, **arguments)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("", ["a"]), "prompt is empty"),
        (("q", []), "no answers"),
        (("q", ["a", "a"]), "twice"),
        (("q", ["a", " A"]), "twice"),
        (("q", {"x": []}), "no text"),
        (("q", {"x": " "}), "no text"),
        (("q", "ab"), "a list"),
        ((3, ["a"]), "not text"),
    ],
)
def test_questions_that_ask_nothing_are_refused(arguments, says):
    with pytest.raises(TaskError, match=says):
        thought(*arguments)


def test_other_things_and_long_chains_are_refused(model):
    with pytest.raises(TaskError, match="a question with its reasoning"):
        methods.chain_of_thought(model, "a text", seed=0)
    with pytest.raises(TaskError, match="context"):
        long = Sampling(n=2, max_new_tokens=8, extract=r"answer (\w+)")
        methods.chain_of_thought(model, thought("w4 w5", SAID, " w6 w7\n" * 40), sampling=long, seed=0)
    with pytest.raises(TaskError, match="system"):
        thought("q", ["a"], system="s", chat=False)
    one, other = thought("q", ["a", "b"], "xx. yy"), thought("q", ["a", "b"], "xx. yy")
    assert one == other and one.hash == other.hash != one.with_chain("xx. z").hash
    assert isinstance(one, Thought) and one.sentences == ("xx.", " yy")


def test_distances_of_distributions():
    assert total_variation([10, 0], [0, 10]) == 1 and total_variation([5, 5], [50, 50]) == 0
    assert divergence([5, 5], [5, 5]) == 0 and divergence([10, 0], [0, 10]) > 1
    shift = compare([20, 0], [0, 20], seed=0, name="x")
    assert shift.tv == 1 and shift.p == shift.smallest_p == 1e-4 and shift.low == shift.high == 1
    assert list(counts(["a", "b", "a"], ["a", "b", "c"])) == [2, 1, 0]
    with pytest.raises(ControlError, match="no name"):
        counts(["z"], ["a"])
    for bad in (([0, 0], [1, 1]), ([1, 1], [1, 1, 1]), ([-1, 2], [1, 1])):
        with pytest.raises(ControlError):
            compare(*bad, seed=0, name="x")


def test_pictures(found):
    for picture in pictures_of(found):
        assert len(static_svg(picture.draw())) > 1000
