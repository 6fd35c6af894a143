"""Evaluation on compiled programs: the true circuit passes, random circuits of its shape do not."""

from __future__ import annotations

import numpy as np
import pytest

import microtome.zoo as zoo
from microtome import circuits
from microtome.circuits import Choices, Circuit
from microtome.circuits.case import case_of
from microtome.circuits.circuit import named_edges
from microtome.circuits.nulls import of_shape

FEW = {"draws": 40, "inflated": 20, "permutations": 99, "subsets": 4}


@pytest.fixture(scope="module")
def specimen():
    return zoo.build("frac_prevs", seed=0)


def compiled(z):
    return Circuit(
        tuple(z.mechanism.edges), circuits.graph(z.model).shape, z.model.hash, Choices(ablation="zero")
    )


def test_the_program_is_supported(specimen):
    z = specimen
    result = circuits.evaluate(z.model, compiled(z), z.task, truth=z.mechanism.edges, options=FEW)
    measured = result.tables["measures"].set_index("quantity")["value"]
    assert measured["faithfulness"] == pytest.approx(1, abs=1e-4)
    assert measured["KL, worst prompt"] == pytest.approx(0, abs=1e-4)
    assert 0 < measured["ROC area against the truth"] <= 1
    assert result.verdict.word == "supported", result.verdict.reasons
    assert result.control("minimality").passed is True and result.control("second").passed is True


def test_random_circuits_of_its_shape_are_not(specimen):
    z = specimen
    case = case_of(z.model, compiled(z), z.task)
    drawn = of_shape(case, 20, 0.05).sets
    for number in (0, 7):
        names = named_edges(case.question.graph, case.mask(drawn[number]))
        other = Circuit(names, circuits.graph(z.model).shape, z.model.hash, Choices(ablation="zero"))
        result = circuits.evaluate(z.model, other, z.task, options={**FEW, "shuffles": 19, "second": False})
        assert result.verdict.word != "supported"
        share = float(result.tables["measures"]["value"].iloc[0])
        # one of them has all but one of the true edges, and keeps five sixths: faithful enough, and beaten by others
        assert abs(1 - share) > 0.1 and result.control("random_circuits").passed is False
        assert np.isfinite(result.tables["sizes"]["value"]).all()


def test_a_found_circuit_is_tested_with_the_same_choices(specimen):
    z = specimen
    part, rest = z.task.subset(range(0, z.task.n, 2)), z.task.subset(range(1, z.task.n, 2))
    found = circuits.discover(
        z.model, part, "acdc", threshold=1e-3, choices=Choices(ablation="zero"), metric="l2", scored="all"
    )
    result = circuits.evaluate(z.model, found, part, held_out=rest, options=FEW)
    assert result.control("held_out").passed is True and result.verdict.word == "supported", (
        result.verdict.reasons
    )
    assert set(result.tables["measures"]["ablation"]) == {"zero"}
