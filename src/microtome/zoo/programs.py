"""The RASP programs of the zoo, each with its domain and a plain-Python reference that shares nothing with it.

reverse, frac_prevs (x-proportion), hist, double_hist, sort, sort_by_freq, mode, shuffle_dyck and pair_balance follow the
programs of Tracr's library (Lindner et al. 2023) and RASP's paper (Weiss et al. 2021) by what they compute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from itertools import product

from microtome.errors import ModelError
from microtome.zoo.rasp import (
    INDICES,
    TOKENS,
    Aggregate,
    Linear,
    Map,
    Select,
    SOp,
    Value,
    Width,
    Zip,
    evaluate,
)

NUMBER = "#"
"""The output token whose logit is the number of a numerical program."""
NONE = "none"
"""The output token for "there is none"."""


@dataclass(frozen=True)
class Program:
    """A RASP program with its domain.

    output: the operator whose values the logits show. vocab, length: inputs are all sequences of that length over the
    vocabulary for which `legal` holds. causal: whether it runs under a causal mask. reference: the same function written
    in plain Python, tokens -> values. donors: whether the output at the last position is all that a donor prompt has to
    keep (see `tasks.PairTask.donors`).
    """

    name: str
    summary: str
    output: SOp
    vocab: tuple[str, ...]
    length: int
    causal: bool
    reference: Callable[[Sequence[str]], Sequence[Value]]
    legal: Callable[[Sequence[str]], bool] = lambda tokens: True
    donors: bool = False

    @cached_property
    def domain(self) -> tuple[tuple[str, ...], ...]:
        """Every legal input, in the order of the vocabulary."""
        return tuple(t for t in product(self.vocab, repeat=self.length) if self.legal(t))

    @cached_property
    def runs(self) -> tuple[dict[str, tuple[Value, ...]], ...]:
        """Every operator's values on every input, by the interpreter."""
        return tuple(evaluate(self.output, t, causal=self.causal) for t in self.domain)


_ABC = ("a", "b", "c")
ALL = Select(None, None)


def _same(key: Value, query: Value) -> bool:
    return bool(key == query)


def _flag(name: str, meaning: str, of: SOp, test: Callable[[Value], bool]) -> Map:
    return Map(name, meaning, lambda v: int(test(v)), of, "numerical")


def _yes(name: str, meaning: str, of: SOp, test: Callable[[Value], bool]) -> Map:
    return Map(name, meaning, lambda v: "yes" if test(v) else "no", of)


def _at_opposite(values: SOp, name: str) -> Aggregate:
    """The value at the mirrored position, as in Tracr's reverse: its place is the length minus one's own minus 1."""
    length = Width("length", "number of tokens", ALL)
    opposite = Zip(
        "opposite", "the mirrored position", lambda n, i: n - 1 - i if i < n else None, length, INDICES
    )
    return Aggregate(name, "the value at the mirrored position", Select(INDICES, opposite, _same), values)


def _reverse() -> Program:
    return Program("reverse", "the input backwards", _at_opposite(TOKENS, "reversed"), _ABC, 5, False,
                   lambda t: list(t)[::-1], donors=True)  # fmt: skip


def _frac_prevs() -> Program:
    is_x = _flag("is_x", "1 at the token x, else 0", TOKENS, lambda t: t == "x")
    before = Select(INDICES, INDICES, lambda k, q: k <= q)
    return Program("frac_prevs", "the share of x among the tokens so far (Tracr's x-proportion)",
                   Aggregate("share_of_x", "mean of is_x up to here", before, is_x), ("w", "x", "y", "z"), 5, False,
                   lambda t: [Fraction(t[: i + 1].count("x"), i + 1) for i in range(len(t))])  # fmt: skip


def _hist_of(of: SOp = TOKENS, name: str = "hist") -> Width:
    return Width(name, f"positions with the same value of {of.name}", Select(of, of, _same))


def _hist() -> Program:
    return Program("hist", "how often the token occurs", _hist_of(), _ABC, 5, False,
                   lambda t: [t.count(x) for x in t])  # fmt: skip


def _double_hist() -> Program:
    def reference(t: Sequence[str]) -> list[int]:
        often = [t.count(x) for x in t]
        return [often.count(n) for n in often]

    return Program("double_hist", "how many positions hold a token as frequent as this one",
                   _hist_of(_hist_of(), "double_hist"), _ABC, 5, False, reference)  # fmt: skip


def _place_by(keys: SOp) -> Aggregate:
    """Tokens in the order of keys that all differ: a key's place is the number of smaller ones."""
    place = Width("place", "number of smaller keys", Select(keys, keys, lambda k, q: k < q))
    return Aggregate(
        "sorted", "the token whose place is this position", Select(place, INDICES, _same), TOKENS
    )


def _sort_unique() -> Program:
    return Program("sort_unique", "tokens in order, none twice", _place_by(TOKENS), ("a", "b", "c", "d", "e"), 4, False,
                   lambda t: sorted(t), lambda t: len(set(t)) == len(t))  # fmt: skip


def _sort() -> Program:
    keys = Zip("key", "the token, ties by position", lambda t, i: (t, i), TOKENS, INDICES)
    return Program("sort", "tokens in order", _place_by(keys), _ABC, 5, False, lambda t: sorted(t))


def _sort_by_freq() -> Program:
    keys = Zip("key", "rare after frequent, ties by position", lambda n, i: (-n, i), _hist_of(), INDICES)
    return Program("sort_by_freq", "tokens by falling frequency, ties by position", _place_by(keys), _ABC, 5, False,
                   lambda t: sorted(t, key=lambda x: -list(t).count(x)))  # fmt: skip


def _mode() -> Program:
    key = Zip("key", "the token's count, then the token", lambda n, t: (n, t), _hist_of(), TOKENS)
    above = Width("above", "positions with a greater key", Select(key, key, lambda k, q: k > q))
    best = Aggregate("mode", "the token that nothing is above", Select(above, None, lambda n: n == 0), TOKENS)

    def reference(t: Sequence[str]) -> list[str]:
        often = Counter(t)
        return [max(often, key=lambda x: (often[x], x))] * len(t)

    return Program(
        "mode", "the most frequent token, of ties the last in the alphabet", best, _ABC, 5, False, reference
    )


def _share_of(token: str, name: str) -> Aggregate:
    flag = _flag(f"is_{name}", f"1 at the token {token}, else 0", TOKENS, lambda t: t == token)
    return Aggregate(f"share_{name}", f"share of {token} so far", ALL, flag)


def _balance(left: str, right: str, tag: str = "") -> Linear:
    opened, closed = _share_of(left, f"open{tag}"), _share_of(right, f"close{tag}")
    return Linear(f"balance{tag}", f"share of {left} minus share of {right}", opened, closed, 1, -1)


def _dyck(kinds: int, length: int) -> Program:
    brackets = [("(", ")"), ("[", "]")][:kinds]
    below: list[SOp] = []
    level: list[SOp] = []
    for k, (left, right) in enumerate(brackets, 1):
        balance = _balance(left, right, f"_{k}")
        below.append(_flag(f"below_{k}", "1 where more were closed than opened", balance, lambda v: v < 0))
        level.append(_yes(f"level_{k}", "as many closed as opened", balance, lambda v: v == 0))
    ever = [
        _yes(f"never_below_{k}", "closed no more than opened at every position so far",
             Aggregate(f"share_below_{k}", "share of positions below so far", ALL, b), lambda v: v == 0)
        for k, b in enumerate(below, 1)
    ]  # fmt: skip
    good = _all([*level, *ever], "balanced", "a balanced word so far")
    name = f"shuffle_dyck{kinds}"

    def reference(t: Sequence[str]) -> list[str]:
        out = []
        depth = dict.fromkeys(brackets, 0)
        fine = True
        for token in t:
            pair = next(b for b in brackets if token in b)
            depth[pair] += 1 if token == pair[0] else -1
            fine = fine and depth[pair] >= 0
            out.append("yes" if fine and not any(depth.values()) else "no")
        return out

    return Program(name, f"whether the brackets so far are balanced ({kinds} kind{'s' * (kinds > 1)}, each by itself)",
                   good, tuple(b for pair in brackets for b in pair), length, True, reference)  # fmt: skip


def _all(parts: list[SOp], name: str, meaning: str) -> SOp:
    whole = parts[0]
    for k, part in enumerate(parts[1:], 1):
        last = k == len(parts) - 1
        whole = Zip(name if last else f"{name}_{k}", meaning if last else "all of the parts so far",
                    lambda a, b: "yes" if a == b == "yes" else "no", whole, part)  # fmt: skip
    return whole


def _pair_balance() -> Program:
    return Program("pair_balance", "share of ( minus share of ) so far", _balance("(", ")"), ("(", ")", "x"), 6, True,
                   lambda t: [Fraction(t[: i + 1].count("(") - t[: i + 1].count(")"), i + 1) for i in range(len(t))])  # fmt: skip


def _previous(of: SOp = TOKENS, name: str = "previous", back: int = 1) -> Aggregate:
    return Aggregate(name, f"{of.name} {back} position{'s' * (back > 1)} before",
                     Select(INDICES, INDICES, lambda k, q: k == q - back), of, NONE)  # fmt: skip


def _shift() -> Program:
    return Program("shift", "the token before this one", _previous(), _ABC, 5, True,
                   lambda t: [NONE, *t[:-1]], donors=True)  # fmt: skip


def _induction() -> Program:
    found = Aggregate("after", "what followed the earlier occurrence of this token",
                      Select(_previous(), TOKENS, _same), TOKENS, NONE)  # fmt: skip

    def reference(t: Sequence[str]) -> list[str]:
        places = [[j for j in range(i) if t[j] == x] for i, x in enumerate(t)]
        return [t[p[0] + 1] if p else NONE for p in places]

    return Program("induction", "what followed the earlier occurrence of this token (A B .. A -> B)", found,
                   ("a", "b", "c", "d"), 5, True, reference, lambda t: max(Counter(t).values()) <= 2)  # fmt: skip


def _majority() -> Program:
    return Program("majority", "whether more than half of the tokens so far are x",
                   _yes("majority", "share_x above one half", _share_of("x", "x"), lambda v: v > Fraction(1, 2)),
                   ("x", "y", "z"), 6, True,
                   lambda t: ["yes" if 2 * t[: i + 1].count("x") > i + 1 else "no" for i in range(len(t))])  # fmt: skip


def _count_less() -> Program:
    less = Width("count_less", "positions with a smaller token", Select(TOKENS, TOKENS, lambda k, q: k < q))
    return Program("count_less", "how many tokens are smaller than this one", less, ("a", "b", "c", "d"), 5, False,
                   lambda t: [sum(y < x for y in t) for x in t])  # fmt: skip


def _palindrome() -> Program:
    mirrored = _at_opposite(TOKENS, "mirrored")
    equal = Zip(
        "equal",
        "1 where the mirrored token is the same",
        lambda a, b: int(a == b),
        TOKENS,
        mirrored,
        "numerical",
    )
    share = Aggregate("share_equal", "share of positions that are equal", ALL, equal)
    return Program("palindrome", "whether the input reads the same backwards",
                   _yes("palindrome", "all positions are equal", share, lambda v: v == 1), ("a", "b"), 6, False,
                   lambda t: ["yes" if list(t) == list(t)[::-1] else "no"] * len(t))  # fmt: skip


def _first_occurrence() -> Program:
    seen = _hist_of(name="seen")
    return Program("first_occurrence", "whether this token has not occurred before",
                   _yes("first", "seen once", seen, lambda n: n == 1), _ABC, 5, True,
                   lambda t: ["yes" if x not in t[:i] else "no" for i, x in enumerate(t)])  # fmt: skip


def _detect_abc() -> Program:
    one, two = _previous(), _previous(name="before_previous", back=2)
    pair = Zip(
        "ends_ab",
        "the two tokens before are a b",
        lambda x, y: "yes" if (x, y) == ("a", "b") else "no",
        two,
        one,
    )
    found = Zip("ends_abc", "the last three tokens are a b c", lambda p, t: "yes" if p == "yes" and t == "c" else "no",
                pair, TOKENS)  # fmt: skip
    return Program("detect_abc", "whether the last three tokens are a b c", found, _ABC, 5, True,
                   lambda t: ["yes" if list(t[max(i - 2, 0) : i + 1]) == ["a", "b", "c"] else "no" for i in range(len(t))])  # fmt: skip


def _increment() -> Program:
    digits = tuple("01234")
    plus = Map("plus_one", "the digit plus 1, modulo 5", lambda d: str((int(d) + 1) % 5), TOKENS)
    return Program("increment", "each digit plus 1, modulo 5", plus, digits, 4, True,
                   lambda t: [str((int(d) + 1) % 5) for d in t], donors=True)  # fmt: skip


def _parity() -> Program:
    ones = Width("ones", "number of 1 so far", Select(TOKENS, None, lambda t: t == "1"))
    return Program("parity", "whether the number of 1 so far is odd",
                   Map("parity", "ones modulo 2", lambda n: str(n % 2), ones), ("0", "1"), 8, True,
                   lambda t: [str(t[: i + 1].count("1") % 2) for i in range(len(t))])  # fmt: skip


_MAKERS: dict[str, Callable[[], Program]] = {
    "reverse": _reverse, "frac_prevs": _frac_prevs, "hist": _hist, "double_hist": _double_hist, "sort_unique": _sort_unique,
    "sort": _sort, "sort_by_freq": _sort_by_freq, "mode": _mode, "shuffle_dyck1": lambda: _dyck(1, 8),
    "shuffle_dyck2": lambda: _dyck(2, 6), "pair_balance": _pair_balance, "shift": _shift, "induction": _induction,
    "majority": _majority, "count_less": _count_less, "palindrome": _palindrome, "first_occurrence": _first_occurrence,
    "detect_abc": _detect_abc, "increment": _increment, "parity": _parity,
}  # fmt: skip
NAMES: tuple[str, ...] = tuple(_MAKERS)
ALIASES = {"x_proportion": "frac_prevs"}


def program(name: str) -> Program:
    """One of the zoo's programs by its name ("x_proportion" is "frac_prevs").

    Raises
    ------
    ModelError: no such program.
    """
    import difflib

    name = ALIASES.get(name, name)
    if name not in _MAKERS:
        near = difflib.get_close_matches(name, (*NAMES, *ALIASES), n=1)
        raise ModelError(
            f"the zoo has no program {name!r}",
            why=f"programs: {', '.join(NAMES)}",
            instead=f"did you mean {near[0]!r}?" if near else "choose one of them",
        )
    return _made(name)


@cache
def _made(name: str) -> Program:
    return _MAKERS[name]()
