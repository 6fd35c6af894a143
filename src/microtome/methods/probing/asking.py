"""Just ask the model: log P(positive word) - log P(negative word) as the answer to a question about the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.controls.clusters import FloatArray
from microtome.errors import MicrotomeError, TaskError
from microtome.methods.probing.design import Design
from microtome.methods.probing.options import Ask
from microtome.results import seeds
from microtome.results.technique import progress
from microtome.tasks.encode import Encoder, Prompt

if TYPE_CHECKING:
    from microtome.facade import Model

TEMPLATES = (
    "Text: {text}\nDecide {about}. Answer with {negative} or {positive}.\nAnswer:",
    "Decide {about}: {positive} or {negative}?\nText: {text}\nLabel:",
)
SHOT = "Text: {text}\nLabel:"


@dataclass(frozen=True)
class Asked:
    """One wording for all texts.

    ids [item][pos]; ends [item]: position of each text's last token within its prompt; answer, wrong: the tokens by which
    the two words first differ.
    """

    name: str
    template: str
    ids: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    answer: int
    wrong: int


def default_ask(d: Design, given: Ask | None) -> Ask | None:
    """What was given, else the names of the classes; None where these are no words."""
    if given is not None:
        return given
    if all(any(c.isalpha() for c in name) for name in d.names):
        return Ask((d.names[0], d.names[1]))
    return None


def wordings(model: Model, d: Design, ask: Ask, seed: int) -> list[Asked]:
    """Every wording that this model's tokenizer and context allow.

    Raises
    ------
    TaskError: none does; the reason of the last one.
    """
    asked, reason = [], ""
    for name, template in _templates(model, d, ask, seed):
        try:
            asked.append(_asked(model, d, ask, name, template))
        except MicrotomeError as error:  # this wording does not fit; another may
            reason = error.what
    if not asked:
        raise TaskError("no wording can be put to this model", why=reason, instead="give ask=Ask(words, templates)")  # fmt: skip
    return asked


def _templates(model: Model, d: Design, ask: Ask, seed: int) -> list[tuple[str, str]]:
    about = d.data.about.strip().rstrip(".") or "which label fits"
    fill = {"about": about, "negative": ask.words[0].strip(), "positive": ask.words[1].strip()}
    found = []
    for k, template in enumerate(ask.templates or TEMPLATES):
        text = template
        for name, value in fill.items():
            text = text.replace("{" + name + "}", value)
        found.append((f"wording {k + 1}", text))
        if ask.chat and not ask.templates and getattr(model.tokenizer, "chat_template", None):
            inner = text.rsplit("\n", 1)[0] + "\nAnswer with one word."
            rendered = model.tokenizer.apply_chat_template(
                [{"role": "user", "content": inner}], tokenize=False, add_generation_prompt=True
            )
            found.append((f"wording {k + 1}, chat", str(rendered)))
    if ask.shots and not ask.templates:
        rows = _shots(d, ask.shots, seed)
        shown = "\n\n".join(
            f"{SHOT.replace('{text}', d.data.texts[i])} {ask.words[int(d.truth[i])].strip()}" for i in rows
        )
        found.append((f"{len(rows)} examples", f"{shown}\n\n{SHOT}"))
    return [(n, t.replace("{text}", "\0")) for n, t in found]


def _shots(d: Design, n: int, seed: int) -> list[int]:
    """Training texts, as many of each class as possible, in random order."""
    rng = seeds.rng(seed, "examples in the prompt")
    rows = [d.train[d.truth[d.train] == side] for side in (False, True)]
    taken = [rng.permutation(part)[: max(1, n // 2)] for part in rows]
    return [int(i) for i in rng.permutation(np.concatenate(taken))]


def _asked(model: Model, d: Design, ask: Ask, name: str, template: str) -> Asked:
    if template.count("\0") != 1:
        raise TaskError(
            "a template names {text} once",
            why="the text is what is asked about",
            instead='for example "{text}\\nLabel:"',
        )
    before, after = template.split("\0")
    encoder = Encoder(model)
    chat = name.endswith("chat")
    ids, ends = [], []
    for text in d.data.texts:
        prompt = before + text + after
        if chat:  # the rendered template brings its own special tokens
            told = model.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
            ids.append(tuple(told.input_ids))
            ends.append(_end(told.offset_mapping, len(before) + len(text)))
        else:
            made = encoder.encode(Prompt(prompt, {"text": (len(before), len(before) + len(text))}))
            ids.append(made.ids)
            ends.append(made.slots["text"][1] - 1)
        encoder.fits(name, len(ids[-1]))
    pair = [_word(encoder, before + d.data.texts[0] + after, w, after) for w in ask.words]
    common = next((k for k, (a, b) in enumerate(zip(*pair, strict=False)) if a != b), None)
    if common is None:
        raise TaskError(
            f"{ask.words} do not differ in any token",
            why="one continues the other",
            instead="other words for the classes",
        )
    shared = tuple(pair[0][:common])
    return Asked(
        name,
        template.replace("\0", "{text}"),
        tuple((*row, *shared) for row in ids),
        tuple(ends),
        pair[1][common],
        pair[0][common],
    )


def _end(offsets: Sequence[tuple[int, int]], stop: int) -> int:
    return max(k for k, (low, high) in enumerate(offsets) if low < stop and high > low)


def _word(encoder: Encoder, prompt: str, word: str, after: str) -> tuple[int, ...]:
    tail = word.strip() if after.endswith(("\n", " ")) else " " + word.strip()
    return encoder.continuation(prompt, tail)


def readings(model: Model, asked: Asked, rows: Sequence[int], *, batch: int = 16) -> FloatArray:
    """log P(positive) - log P(negative) at the end of each prompt, nats, [row]."""
    order = sorted(range(len(rows)), key=lambda k: len(asked.ids[rows[k]]))
    out = np.empty(len(rows))
    for start in range(0, len(rows), batch):
        here = order[start : start + batch]
        trace = model.run([list(asked.ids[rows[k]]) for k in here], (), logits="last")
        last = trace.logits[:, -1]
        out[here] = (last[:, asked.answer] - last[:, asked.wrong]).double().cpu().numpy()
        progress(min(start + batch, len(rows)), len(rows), "prompts", "asking")
    return out
