"""Arguments that JSON can only stand for: a model is named, pairs and data are given by the handle that `task_make` and
`data_make` return, another run's result or circuit by the run's number; a grid of prompts, a question with its chain, pairs of
words and a measure are written out. Each has a schema, and is read here.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microtome.agents.desk import DEFAULT, labelled_of, task_of, texts_of

if TYPE_CHECKING:
    from microtome.agents.desk import Call

__all__ = ["KINDS", "STRINGS", "value"]

MODEL, TASK, DATA, MANY, RUN, CIRCUIT, TEXTS = "model", "task", "data", "data list", "run", "circuit", "texts"
MEASURE, GRID, THOUGHT, PAIRS, DESCRIPTION = "measure", "grid", "thought", "pairs", "description"
SAMPLING, PLAIN = "sampling", "plain"
Schema = dict[str, Any]
_STRING: Schema = {"type": "string"}
STRINGS: Schema = {"type": "array", "items": _STRING, "minItems": 1}
_TEXT_OR_TEXTS: Schema = {"anyOf": [_STRING, STRINGS]}
_ANSWERS: Schema = {"anyOf": [STRINGS, {"type": "object", "minProperties": 1, "additionalProperties": _TEXT_OR_TEXTS}],
                    "description": "texts, or name -> text or texts, each with the space in front that belongs there"}  # fmt: skip
_LEVEL: Schema = {"anyOf": [_STRING, {"type": "object", "additionalProperties": _STRING}]}
_NUMBER: Schema = {"type": "integer", "minimum": 1}
_NO_PATTERN: Schema = {"type": "string", "pattern": "^[^/]"}


def _object(description: str, required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties, "description": description}  # fmt: skip


KINDS: dict[str, Schema] = {
    MODEL: {"type": "string", "description": "name of a model"},
    TASK: {"type": "string", "description": "handle of pairs, from task_make"},
    DATA: {"type": "string", "description": "handle of labelled text, from data_make"},
    MANY: {"type": "array", "items": _STRING, "minItems": 2, "maxItems": 20,
           "description": "handles of labelled text, from data_make"},
    RUN: {**_NUMBER, "description": "number of the run whose result it is"},
    CIRCUIT: {**_NUMBER, "description": "number of the run of circuit_discovery that found it, on the same model"},
    TEXTS: {"anyOf": [STRINGS, _STRING], "description": "texts, or a handle from data_make"},
    MEASURE: _object("what is measured: log-odds of next words, log-probability of continuations, or share of words", ["kind", "up"],
                     kind={"enum": ["words", "continuations", "lexicon"]}, up=STRINGS, down=STRINGS),
    GRID: _object("prompts in which one thing changes at a time; {NAME} in the template stands for a level of that factor",
                  ["template", "factors", "answers"], template=_STRING, answers=_ANSWERS,
                  factors={"type": "object", "minProperties": 1, "additionalProperties": {"type": "array", "items": _LEVEL, "minItems": 2}},
                  paraphrases={**STRINGS, "description": "other wordings of the template"}, over=STRINGS, system=_STRING, prefill=_STRING,
                  chat={"type": "boolean"}, name=_STRING),
    THOUGHT: _object('a question with its reasoning; a chain of "" is written by the model', ["prompt", "answers"], prompt=_STRING,
                     answers=_ANSWERS, chain=_STRING, system=_STRING, chat={"type": "boolean"}, opening=_STRING, name=_STRING),
    SAMPLING: _object("how answers are sampled; the answer whose text comes first counts", [], n={**_NUMBER, "maximum": 1000},
                      temperature={"type": "number", "exclusiveMinimum": 0}, max_new_tokens={**_NUMBER, "maximum": 1000}),
    PAIRS: {"type": "array", "items": {"type": "array", "items": _STRING, "minItems": 2, "maxItems": 2}, "minItems": 22,
            "description": "pairs of a word and its answer"},
    DESCRIPTION: {"anyOf": [_NO_PATTERN, {"type": "array", "items": _NO_PATTERN, "minItems": 1}],
                  "description": "a sentence, or keywords; no regular expression from here"},
}  # fmt: skip


def value(call: Call, kind: str, given: Any, model: str) -> Any:
    """What a technique is given for a value of JSON. model: name of the model that it is run on.

    Raises what the handle, the run or the made value raises.
    """
    if given is None:
        return None
    if kind == MODEL:
        return call.desk.model(given)
    if kind == TASK:
        return task_of(call, given)
    if kind == DATA:
        return labelled_of(call, given)
    if kind == MANY:
        return [labelled_of(call, one) for one in given]
    if kind == TEXTS:
        return texts_of(call, given, None)
    if kind == RUN:
        with call.record() as record:
            return record.result(given)
    if kind == CIRCUIT:
        return _circuit(call, given, model)
    return _written(kind, given)


def _circuit(call: Call, run: int, model: str) -> Any:
    from microtome.circuits import circuit_of

    with call.record() as record:
        return circuit_of(record.result(run), call.desk.model(model or DEFAULT))


def _written(kind: str, given: Any) -> Any:
    """What is written out in JSON itself."""
    if kind == MEASURE:
        return _measure(given)
    if kind == GRID:
        from microtome.tasks.grid_files import of_mapping

        return of_mapping(given, "prompts")
    if kind == THOUGHT:
        from microtome.tasks.thought import thought

        return thought(**given)
    if kind == SAMPLING:
        from microtome.methods.prompting import Sampling

        return Sampling(**given)
    return [tuple(pair) for pair in given] if kind == PAIRS else given


def _measure(given: Mapping[str, Any]) -> Any:
    from microtome.methods.steer_measures import Continuations, Lexicon, Words

    kinds = {"words": Words, "continuations": Continuations, "lexicon": Lexicon}
    return kinds[given["kind"]](tuple(given["up"]), tuple(given.get("down", ())))
