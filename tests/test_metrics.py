"""Metrics against plain arithmetic: single logits, sets of sequences over their prefix tree, distance from the base."""

from __future__ import annotations

import itertools

import pytest
import torch

import tiny
from microtome.errors import TaskError
from microtome.metrics import metric, scoring
from microtome.model.tokens import pack
from microtome.replay.sweep import Bench, measure
from microtome.trace.run import run

PROMPT = [3, 9, 4, 7]


def _by_forwards(binding, prompt, continuation) -> float:
    """log P of a continuation, one whole forward per token."""
    total, seen = 0.0, list(prompt)
    for token in continuation:
        logits = run(binding, pack([seen]), attention="sdpa").raw_logits[0, -1]
        total += float(torch.log_softmax(logits.double(), -1)[token])
        seen.append(token)
    return total


def _measured(name, answers, wrong) -> float:
    binding = tiny.bound("llama", None, torch.float64)
    return float(measure(Bench(binding, [PROMPT], scoring([answers], [wrong]), (metric(name),)))[0, 0])


def test_logit_diff_is_the_answers_logit_minus_the_wrong_ones() -> None:
    binding = tiny.bound("llama", None, torch.float64)
    logits = run(binding, pack([PROMPT])).raw_logits[0, -1]
    assert _measured("logit_diff", ((5,),), ((8,),)) == pytest.approx(float(logits[5] - logits[8]), abs=1e-9)
    assert _measured("logit_diff", ((8,),), ((5,),)) == pytest.approx(float(logits[8] - logits[5]), abs=1e-9)


def test_sets_of_sequences_are_summed_over_their_prefix_tree() -> None:
    binding = tiny.bound("llama", None, torch.float64)
    answers, wrong = ((5, 6), (5, 7, 2), (9,)), ((5, 8), (4, 4))
    right, other = (torch.logsumexp(torch.tensor([_by_forwards(binding, PROMPT, c) for c in side]), 0) for side in (answers, wrong))  # fmt: skip
    assert _measured("logprob_diff", answers, wrong) == pytest.approx(float(right - other), abs=1e-5)
    assert _measured("logprob", answers, wrong) == pytest.approx(float(right), abs=1e-5)
    assert _measured("prob_diff", answers, wrong) == pytest.approx(float(right.exp() - other.exp()), abs=1e-6)


def test_the_rows_of_a_prefix_tree_are_its_longest_prefixes() -> None:
    plan = scoring([((5, 6), (5, 7, 2), (9,))], [((5, 8), (4, 4))])
    assert sorted(plan.tails) == [(4,), (5, 7)] and plan.steps == 3 and not plan.single
    assert scoring([((5,),)], [((6,),)]).single


def test_all_sequences_of_two_tokens_have_probability_one() -> None:
    vocab = tiny.VOCAB
    binding = tiny.bound("gpt2", None, torch.float64)
    every = tuple((a, b) for a, b in itertools.product(range(vocab), repeat=2))
    half = len(every) // 2
    plan = scoring([every[:half]], [every[half:]])
    bench = Bench(binding, [PROMPT], plan, (metric("logprob"),))
    swapped = Bench(binding, [PROMPT], scoring([every[half:]], [every[:half]]), (metric("logprob"),))
    total = measure(bench)[0, 0].exp() + measure(swapped)[0, 0].exp()
    assert float(total) == pytest.approx(1.0, abs=1e-6)


def test_kl_is_zero_at_the_base_and_the_textbook_sum_elsewhere() -> None:
    plan = scoring([((1,),), ((2,),)], [((0,),), ((0,),)])
    generator = torch.Generator().manual_seed(0)
    base, other = (torch.randn(2, 1, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    assert float(metric("kl")(base, plan, None, base).abs().max()) < 1e-12
    p, q = base.softmax(-1), other.softmax(-1)
    torch.testing.assert_close(metric("kl")(other, plan, None, base), (p * (p / q).log()).sum(-1)[:, 0])


def test_selecting_prompts_keeps_each_ones_question() -> None:
    answers, wrong = [((5,), (7, 9)), ((6,),), ((5, 11),)], [((8,),), ((9, 13, 2),), ((4,),)]
    plan = scoring(answers, wrong)
    again = plan.select([2, 0, 2])
    assert [again.tails[r] for r in range(len(again.tails)) if again.prompt[r] == 0] == [(5,)]
    assert again.prompt.count(1) == plan.prompt.count(0) and again.answers[0] == ((((0, 0, 5), (0, 1, 11))),)


@pytest.mark.parametrize(
    ("answers", "wrong", "match"),
    [((), ((1,),), "empty"), (((1,),), ((1,),), "contained"), (((1,),), ((1, 2),), "contained"), (((),), ((1,),), "empty")],
)  # fmt: skip
def test_questions_that_count_something_twice_are_refused(answers, wrong, match) -> None:
    with pytest.raises(TaskError, match=match):
        scoring([answers], [wrong])


def test_a_single_token_metric_refuses_sets() -> None:
    with pytest.raises(TaskError, match="single-token"):
        _measured("logit_diff", ((5, 6),), ((8,),))
