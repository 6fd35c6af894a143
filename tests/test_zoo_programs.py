"""RASP programs: the interpreter equals plain Python, and the compiled weights equal the interpreter, on whole domains."""

from __future__ import annotations

import pytest
import torch

import microtome.zoo as zoo
from microtome.errors import ModelError
from microtome.zoo import specimen
from microtome.zoo.compile import compile_program
from microtome.zoo.programs import NAMES, NUMBER, Program, program
from microtome.zoo.rasp import INDICES, TOKENS, Aggregate, Linear, Map, Select, Width, Zip, evaluate, nodes
from microtome.zoo.spec import assemble

SIZES = {
    "reverse": 3**5,
    "frac_prevs": 4**5,
    "hist": 3**5,
    "shuffle_dyck2": 4**6,
    "sort_unique": 120,
    "count_less": 4**5,
}


def words_of(name: str) -> tuple[str, ...]:
    return compile_program(program(name)).words


@pytest.mark.parametrize("name", NAMES)
def test_the_interpreter_equals_plain_python_on_every_input(name: str) -> None:
    p = program(name)
    assert len(p.domain) == SIZES.get(name, len(p.domain)) and 64 <= len(p.domain) <= 5000
    for tokens, run in zip(p.domain, p.runs, strict=True):
        assert list(run[p.output.name]) == list(p.reference(tokens)), tokens


@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_model_equals_plain_python_on_every_input_at_every_position(name: str) -> None:
    """Against the reference in plain Python, which shares nothing with interpreter or weights."""
    p = program(name)
    made = compile_program(p)
    module = assemble(made.spec)
    ids = torch.tensor([[0, *(made.words.index(w) for w in t)] for t in p.domain])
    logits = module(ids).logits[:, 1:]
    expected = torch.zeros_like(logits)
    for i, tokens in enumerate(p.domain):
        for pos, value in enumerate(p.reference(tokens)):
            if made.output.kind == "numerical":
                expected[i, pos, made.words.index(NUMBER)] = float(value)
            else:
                expected[i, pos, made.words.index(str(value))] = 1
    assert float((logits - expected).abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("name", "other"),
    [("reverse", "sort"), ("sort", "reverse"), ("hist", "double_hist"), ("shift", "reverse")],
)
def test_another_programs_weights_are_noticed(name: str, other: str) -> None:
    made = compile_program(program(other))
    domain = specimen._domain(program(name), words_of(name))
    if len(made.words) == domain.logits.shape[-1]:
        assert specimen.worst_error(assemble(made.spec), domain) > 0.5
    else:
        assert set(words_of(name)) != set(made.words)


def test_one_wrong_weight_refuses_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import microtome.zoo.spec as spec

    def spoiled(*args: object) -> object:
        module = assemble(*args)  # type: ignore[arg-type]
        module.model.layers[0].self_attn.v_proj.weight[0] += 0.01
        return module

    monkeypatch.setattr(spec, "assemble", spoiled)
    with pytest.raises(ModelError, match="is off by"):
        zoo.build("reverse")


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ModelError, match="reverse"):
        zoo.build("revers")
    with pytest.raises(ModelError, match="hist"):
        program("histt")
    assert zoo.build("x_proportion").name == "frac_prevs"


def _program(output: object, causal: bool = False, length: int = 3) -> Program:
    return Program("test", "", output, ("a", "b"), length, causal, lambda t: t)  # type: ignore[arg-type]


def test_what_the_language_cannot_say_is_refused() -> None:
    number = Map("n", "", lambda t: 1, TOKENS, "numerical")
    with pytest.raises(ModelError, match="zips"):
        Zip("z", "", lambda a, b: a, TOKENS, number)
    with pytest.raises(ModelError, match="cannot be selected by"):
        Select(number, TOKENS)
    with pytest.raises(ModelError, match="categorical"):
        Linear("l", "", TOKENS, number)
    with pytest.raises(ModelError, match="needs keys"):
        Select(None, TOKENS)
    with pytest.raises(ModelError, match="two operators"):
        nodes(Zip("n", "", lambda a, b: a, TOKENS, Map("n", "", str, TOKENS)))
    with pytest.raises(ModelError, match="its own input"):
        compile_program(_program(TOKENS))


def test_what_an_input_cannot_give_is_refused() -> None:
    nothing = Aggregate("x", "", Select(TOKENS, TOKENS, lambda k, q: k != q), TOKENS)
    with pytest.raises(ModelError, match="selects nothing"):
        evaluate(nothing, "aaa", causal=False)
    mixed = Aggregate("x", "", Select(None, None), TOKENS)
    with pytest.raises(ModelError, match="averages categories"):
        evaluate(mixed, "ab", causal=False)


def test_what_stands_at_bos_is_taken_back_or_refused() -> None:
    """Counts of BOS itself are read as keys (double_hist); where BOS looks is open without a default, so it is refused."""
    made = compile_program(program("double_hist"))
    assert next(v for v in made.variables if v.name == "hist").at_bos == "same"
    open_ = Aggregate("there", "", Select(INDICES, INDICES, lambda k, q: k == 2 - q), TOKENS)
    again = Width("again", "", Select(open_, TOKENS, lambda k, q: k == q))
    with pytest.raises(ModelError, match="at BOS"):
        compile_program(_program(again))
    closed = Aggregate("there", "", Select(INDICES, INDICES, lambda k, q: k == 2 - q), TOKENS, "none")
    fixed = _program(Width("again", "", Select(closed, TOKENS, lambda k, q: k == q)))
    module, made = assemble(compile_program(fixed).spec), compile_program(fixed)
    assert specimen.worst_error(module, specimen._domain(fixed, made.words)) < 1e-6


def test_a_default_that_is_a_number_and_a_value_with_a_constant_at_bos() -> None:
    """Mean of a number that is 1 at BOS too, over the tokens before, 0.5 where there are none."""
    from fractions import Fraction

    share = Aggregate(
        "share", "", Select(None, None), Map("is_a", "", lambda t: int(t == "a"), TOKENS, "numerical")
    )
    above = Map("above", "", lambda v: int(v < Fraction(1, 2)), share, "numerical")
    before = Aggregate("before", "", Select(INDICES, INDICES, lambda k, q: k < q), above, Fraction(1, 2))
    p = _program(before, causal=True, length=5)
    made = compile_program(p)
    assert specimen.worst_error(assemble(made.spec), specimen._domain(p, made.words)) < 1e-6
