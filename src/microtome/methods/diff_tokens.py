"""Whether two models can be compared, how far, and what stands in the way: tokenizers, sizes, numerics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from microtome.errors import ModelError
from microtome.methods.diff_weights import different_tensors
from microtome.model.copies import tensors_of

if TYPE_CHECKING:
    from microtome.facade import Model

Level = Literal["sites", "outputs", "words", "text"]
ABLE = {
    "sites": "activations, weights and output distributions, token by token",
    "outputs": "output distributions token by token (the tokens are the same; layers and directions are not)",
    "words": "activations at the ends of words (both have the same layers and width)",
    "text": "how well each predicts the same text (loss per character), and what each writes after it",
}
_ORDER: tuple[Level, ...] = ("sites", "outputs", "words", "text")
_LOCAL = {"_name_or_path", "name_or_path", "transformers_version", "_attn_implementation", "attn_implementation",
          "use_cache", "dtype", "torch_dtype"}  # fmt: skip


@dataclass(frozen=True)
class TokenizerDiff:
    """How two tokenizers differ, over some texts.

    same: vocabularies agree and every text has the same ids; same_here: only the latter. sizes: of the two vocabularies;
    only_first, only_second: how many tokens one has alone, with a few of them; moved: tokens with another id; specials: those that
    differ; differing: texts with other ids; first: the first text that is cut into other pieces, and both ways.
    """

    same: bool
    same_here: bool
    sizes: tuple[int, int]
    only_first: tuple[int, tuple[str, ...]] = (0, ())
    only_second: tuple[int, tuple[str, ...]] = (0, ())
    moved: int = 0
    specials: tuple[str, ...] = ()
    first: tuple[str, tuple[str, ...], tuple[str, ...]] | None = None
    differing: int = 0

    @property
    def sentence(self) -> str:
        """What differs, in words."""
        said = []
        if self.sizes[0] != self.sizes[1]:
            said.append(f"vocabularies of {self.sizes[0]:,} and {self.sizes[1]:,} tokens")
        for (n, some), where in ((self.only_first, "first"), (self.only_second, "second")):
            if n:
                said.append(f"{n:,} tokens only in the {where} ({', '.join(map(repr, some))})")
        if self.moved:
            said.append(f"{self.moved:,} tokens with another id")
        said += self.specials
        if self.differing:
            said.append(f"{self.differing} of the texts have other ids")
        if self.first is not None:
            text, one, other = self.first
            said.append(f"the first that is cut otherwise is {text!r}: {list(one)} against {list(other)}")
        return "; ".join(said) or "the tokenizers are the same"


def tokenizer_diff(a: Any, b: Any, texts: Sequence[str]) -> TokenizerDiff:
    """Compare two tokenizers (of transformers), over texts too. None against None is the same."""
    if a is None or b is None:
        same = a is b
        said = () if same else (f"the {'first' if a is None else 'second'} model has no tokenizer",)
        return TokenizerDiff(same, same, (0, 0), specials=said)
    one, other = a.get_vocab(), b.get_vocab()
    alone = [
        sorted((t for t in x if t not in y), key=lambda t: x[t]) for x, y in ((one, other), (other, one))
    ]
    moved = sum(other[t] != i for t, i in one.items() if t in other)
    specials = tuple(
        f"{name} is {getattr(a, name, None)!r} against {getattr(b, name, None)!r}"
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if getattr(a, name, None) != getattr(b, name, None)
    )
    first, differing = None, 0
    for text in texts:
        ids = [list(t(text).input_ids) for t in (a, b)]
        if ids[0] != ids[1]:
            differing += 1
            first = first or _parting(text, *(t.convert_ids_to_tokens(i) for t, i in zip((a, b), ids, strict=True)))  # fmt: skip
    clean = not (alone[0] or alone[1] or moved)
    return TokenizerDiff(
        clean and not differing, not differing, (len(one), len(other)), (len(alone[0]), tuple(alone[0][:3])),
        (len(alone[1]), tuple(alone[1][:3])), moved, specials, first, differing,
    )  # fmt: skip


def _parting(
    text: str, one: Sequence[str], other: Sequence[str]
) -> tuple[str, tuple[str, ...], tuple[str, ...]] | None:
    """Both tokenisations around the first piece in which they part; None where only the ids differ."""
    if list(one) == list(other):
        return None
    shorter = min(len(one), len(other))
    at = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    window = slice(max(0, at - 1), at + 3)
    return text[:60], tuple(one[window]), tuple(other[window])


def config_diff(a: Model, b: Model) -> tuple[str, ...]:
    """Entries of the two configs that differ and are not about where a copy lies."""
    one, other = a.hf.config.to_dict(), b.hf.config.to_dict()  # type: ignore[union-attr, operator]
    names = sorted({*one, *other} - _LOCAL)
    return tuple(f"{n} {one.get(n)!r} against {other.get(n)!r}" for n in names if one.get(n) != other.get(n))


@dataclass(frozen=True)
class Comparable:
    """How far two models can be compared. level: the deepest that works; why: what stands in the way of a deeper one;
    no_words: why their activations cannot be compared at the ends of words, "" where they can.
    """

    level: Level
    why: str
    tokenizers: TokenizerDiff
    configs: tuple[str, ...]
    no_words: str = ""


def comparable(a: Model, b: Model, texts: Sequence[str]) -> Comparable:
    """The deepest level at which two models can be compared on these texts.

    Raises
    ------
    ModelError: other numerics (dtype, attention or device): their difference would be mixed with that of the weights.
    """
    for name, mine in a.numerics.items():
        if b.numerics[name] != mine:
            raise ModelError(f"the models run with {name} {mine} and {b.numerics[name]}",
                             why="rounding of another kind would be counted as a difference of the weights",
                             instead=f"load both alike: mt.load(..., {'attn_implementation' if name == 'attention' else name}=...)")  # fmt: skip
    no_words = without_words(a, b)
    tokens, configs = tokenizer_diff(a.tokenizer, b.tokenizer, texts), config_diff(a, b)
    if not tokens.same_here or a.facts.d_vocab != b.facts.d_vocab:
        rows = "" if a.facts.d_vocab == b.facts.d_vocab else f"{a.facts.d_vocab:,} against {b.facts.d_vocab:,} logits; "  # fmt: skip
        deepest: Level = "text" if no_words else "words"
        return Comparable(deepest, f"their tokens differ: {rows}{tokens.sentence}", tokens, configs, no_words)
    tensors = different_tensors(*(tensors_of(m.hf) for m in (a, b)))
    if tensors or a.facts.family != b.facts.family:
        kind = "" if a.facts.family == b.facts.family else f"{a.facts.family} against {b.facts.family}; "
        return Comparable(
            "outputs", f"their architectures differ: {kind}{tensors}", tokens, configs, no_words
        )
    return Comparable("sites", "", tokens, configs, no_words)


def without_words(a: Model, b: Model) -> str:
    """Why two models have no common places at the ends of words; "" where they have."""
    one, other = ((m.facts.n_layers, m.facts.d_model) for m in (a, b))
    if one != other:
        return f"{one[0]} layers of width {one[1]} against {other[0]} of {other[1]}"
    slow = [m.name for m in (a, b) if not getattr(m.tokenizer, "is_fast", False)]
    return f"the tokenizer of {slow[0]} does not say where its tokens stand" if slow else ""


def check_level(found: Comparable, asked: Level) -> None:
    """Refuse a comparison that these two models do not allow.

    Raises
    ------
    ModelError: what differs, and what can still be compared.
    """
    if asked == "words" and found.no_words:
        raise ModelError("these models have no common places at the ends of words", why=found.no_words, instead='level="text"')  # fmt: skip
    if asked not in _ORDER:
        raise ModelError(f"level={asked!r} is no level", why="models are compared at one of four", instead='"sites", "outputs", "words" or "text"')  # fmt: skip
    if _ORDER.index(asked) < _ORDER.index(found.level):
        left = [
            level for level in _ORDER[_ORDER.index(found.level) :] if level != "words" or not found.no_words
        ]
        raise ModelError(
            f"these models cannot be compared at level {asked!r}",
            why=found.why,
            instead="what can still be compared: "
            + "; ".join(f"{ABLE[level]}: level={level!r}" for level in left),
        )
