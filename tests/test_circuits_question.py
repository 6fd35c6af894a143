"""A task asked of circuits: ends, faithfulness, choices, spans, components, scores that point the right way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from microtome.circuits import Choices, Circuit, ask, graph
from microtome.circuits.question import Question
from microtome.errors import ControlError, SiteError, TaskError
from microtome.graph.scores import edge_scores
from microtome.tasks.files import pairs
from microtome.trace.edits import Patch


def task_of(model, n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, tiny.VOCAB, (n, 8), generator=g).tolist()
    corrupt = [row[:4] + torch.randint(3, tiny.VOCAB, (4,), generator=g).tolist() for row in clean]
    answers = torch.randint(3, tiny.VOCAB, (n, 2), generator=g)
    answers[:, 1] = torch.where(answers[:, 1] == answers[:, 0], answers[:, 0] - 1, answers[:, 1])
    return pairs(
        model, clean=clean, corrupt=corrupt, answer=answers[:, 0].tolist(), wrong=answers[:, 1].tolist()
    )


@pytest.fixture(scope="module")
def model():
    return tiny.loaded("llama")


def test_ends_are_the_clean_and_the_corrupt_run_in_both_directions(model):
    task = task_of(model)
    noise, denoise = (ask(model, task, Choices(direction=d)) for d in ("noise", "denoise"))
    full, empty = noise.ends
    again, nothing = denoise.ends
    np.testing.assert_allclose(full, again, atol=1e-5)
    np.testing.assert_allclose(empty, nothing, atol=1e-5)
    every = torch.ones(2, noise.edges, dtype=torch.bool)
    every[1] = False
    np.testing.assert_allclose(noise.faithfulness(noise.measure(every)), [1, 0], atol=1e-4)


def test_importance_points_the_same_way_in_both_directions(model):
    task = task_of(model)
    for direction in ("noise", "denoise"):
        q = ask(model, task, Choices(direction=direction))
        importance, _ = q.importance("gradient")
        some = np.argsort(-np.abs(importance.mean(1)))[:60]
        mask = torch.full((60, q.edges), direction == "noise")
        mask[torch.arange(60), torch.tensor(some)] = direction != "noise"
        end = q.ends[0 if direction == "noise" else 1]
        moved = (q.measure(mask) - end).mean(1)[:, 0] * (-1 if direction == "noise" else 1)
        assert np.corrcoef(moved, importance.mean(1)[some])[0, 1] > 0.3  # the wrong sign would be below -0.3


def test_components_that_stay_in_stay_in(model):
    task = task_of(model)
    q = ask(model, task, Choices(component="heads"))
    nothing = torch.zeros(1, q.edges, dtype=torch.bool)
    kept = q.fixed[None]
    np.testing.assert_allclose(q.measure(nothing), q.measure(kept), atol=0)
    assert 0 < int(kept.sum()) < q.edges


def test_spans_are_parts_of_the_whole(model):
    task = mt_ioi_like(model)
    whole, parts = ask(model, task), ask(model, task, Choices(positions="spans"))
    assert parts.edges == whole.edges * len(parts.runs.spans)
    scores, split = (edge_scores(q.runs).values for q in (whole, parts))
    torch.testing.assert_close(
        split.view(len(parts.runs.spans), -1, task.n).sum(0), scores, atol=1e-4, rtol=1e-3
    )
    number = parts.runs.spans.index("subject")
    mask = torch.zeros(len(parts.runs.spans), whole.edges, dtype=torch.bool)
    mask[number] = torch.tensor(whole.graph.writer_of) == whole.graph.writer_number["L1H2.z"]
    found = parts.runs.measure(mask.view(1, -1))[0, :, 0]
    trace = model.run(task.corrupt.ids, ["L1H2.z"])
    edit = Patch("L1H2.z@2", trace)
    logits = model.run(task.clean.ids, edits=[edit]).logits[:, -1].double()
    rows = torch.arange(task.n)
    answers, wrong = (torch.tensor([c[0][0] for c in side]) for side in (task.answers, task.wrong))
    torch.testing.assert_close(found, logits[rows, answers] - logits[rows, wrong], atol=1e-4, rtol=1e-4)


def mt_ioi_like(model, n=4):
    from dataclasses import replace

    task = task_of(model, n)
    spans = {"subject": tuple((2, 3) for _ in range(n)), "end": tuple((7, 8) for _ in range(n))}
    corrupt = tuple(
        (*row[:2], (row[2] + 1) % 90 + 3, *other[3:])
        for row, other in zip(task.clean.ids, task.corrupt.ids, strict=True)
    )
    return replace(
        task, clean=replace(task.clean, spans=spans), corrupt=replace(task.corrupt, spans=spans, ids=corrupt)
    )


def test_all_positions_can_be_scored_against_the_unedited_run(model):
    task = task_of(model)
    q = ask(model, task, metrics=("l2", "kl"), scored="all")
    full, empty = q.ends
    np.testing.assert_allclose(full, 0, atol=1e-6)
    clean, corrupt = (model.run(list(side.ids)).logits for side in (task.clean, task.corrupt))
    expected = (clean - corrupt).square().sum(-1).mean(-1)
    np.testing.assert_allclose(empty[:, 0], expected.numpy(), rtol=1e-4)
    p, r = torch.log_softmax(clean, -1), torch.log_softmax(corrupt, -1)
    np.testing.assert_allclose(empty[:, 1], (p.exp() * (p - r)).sum(-1).mean(-1).numpy(), rtol=1e-4)
    with pytest.raises(TaskError, match="all positions"):
        ask(model, task, scored="all")


def test_circuits_as_values(model):
    g = graph(model)
    q: Question = ask(model, task_of(model))
    kept = np.zeros(q.edges, dtype=bool)
    kept[[3, 50, len(g.edges) - 1]] = True
    circuit = q.circuit(kept, "by hand", np.arange(q.edges, dtype=float))
    assert circuit.edges == (g.edges[3], g.edges[50], g.edges[-1])
    assert circuit.scores[g.edges[50]] == 50
    assert torch.equal(circuit.mask(g), torch.tensor(kept))
    assert g.edges[3] not in circuit.without([g.edges[3]])
    with pytest.raises(SiteError, match="layer 0: key/value heads: 2 in the circuit, 4"):
        circuit.mask(graph(tiny.loaded("llama-mha")))
    with pytest.raises(SiteError, match="no edge of this graph"):
        Circuit(("embed->nowhere",), g.shape).mask(g)
    with pytest.raises(SiteError, match="no choice"):
        Choices(ablation="random")
    with pytest.raises(SiteError, match="denoise"):
        Choices(direction="denoise", ablation="zero")


def test_nothing_to_be_faithful_to(model):
    q = ask(model, task_of(model))
    q.ends = (q.ends[1], q.ends[1])
    with pytest.raises(ControlError, match="score the same"):
        q.faithfulness(q.ends[0])
