"""Antonyms: a short list that is always there, and those of a WordNet that the user has.

No package in the registry carries WordNet's data (they download it at run time), so it is read where it was installed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from microtome.errors import TaskError
from microtome.tasks.checks import quote

__all__ = ["LISTED", "from_wordnet", "listed", "wordnet_folder"]

# Written for this purpose: adjectives, adverbs and verbs of everyday use whose opposite few would dispute.
LISTED = [
    "hot:cold",
    "big:small",
    "tall:short",
    "fast:slow",
    "happy:sad",
    "rich:poor",
    "young:old",
    "light:dark",
    "heavy:light",
    "hard:soft",
    "strong:weak",
    "early:late",
    "high:low",
    "wide:narrow",
    "thick:thin",
    "deep:shallow",
    "clean:dirty",
    "dry:wet",
    "full:empty",
    "open:closed",
    "loud:quiet",
    "near:far",
    "good:bad",
    "true:false",
    "right:wrong",
    "brave:cowardly",
    "kind:cruel",
    "polite:rude",
    "honest:dishonest",
    "safe:dangerous",
    "cheap:expensive",
    "easy:difficult",
    "simple:complex",
    "smooth:rough",
    "sharp:blunt",
    "sweet:sour",
    "fresh:stale",
    "beautiful:ugly",
    "bright:dim",
    "straight:crooked",
    "tight:loose",
    "public:private",
    "ancient:modern",
    "alive:dead",
    "asleep:awake",
    "guilty:innocent",
    "friendly:hostile",
    "generous:stingy",
    "lazy:diligent",
    "wise:foolish",
    "proud:humble",
    "calm:agitated",
    "visible:invisible",
    "possible:impossible",
    "legal:illegal",
    "certain:uncertain",
    "equal:unequal",
    "perfect:imperfect",
    "patient:impatient",
    "mature:immature",
    "moral:immoral",
    "rational:irrational",
    "regular:irregular",
    "relevant:irrelevant",
    "normal:abnormal",
    "lucky:unlucky",
    "fair:unfair",
    "healthy:sick",
    "hungry:satiated",
    "success:failure",
    "victory:defeat",
    "love:hate",
    "peace:war",
    "life:death",
    "day:night",
    "summer:winter",
    "morning:evening",
    "friend:enemy",
    "truth:lie",
    "beginning:end",
    "entrance:exit",
    "question:answer",
    "profit:loss",
    "hope:despair",
    "joy:sorrow",
    "heaven:hell",
    "north:south",
    "east:west",
    "left:right",
    "up:down",
    "inside:outside",
    "above:below",
    "before:after",
    "always:never",
    "often:rarely",
    "everything:nothing",
    "everyone:nobody",
    "here:there",
    "buy:sell",
    "give:take",
    "push:pull",
    "win:lose",
    "begin:finish",
    "arrive:depart",
    "accept:reject",
    "allow:forbid",
    "attack:defend",
    "build:destroy",
    "borrow:lend",
    "climb:descend",
    "increase:decrease",
    "expand:contract",
    "rise:fall",
    "remember:forget",
    "laugh:cry",
    "float:sink",
    "freeze:melt",
    "import:export",
    "include:exclude",
    "succeed:fail",
    "whisper:shout",
    "praise:blame",
    "appear:vanish",
    "raise:lower",
    "tighten:loosen",
    "maximum:minimum",
    "major:minor",
    "upper:lower",
    "positive:negative",
    "active:passive",
    "male:female",
    "front:back",
    "top:bottom",
    "optimist:pessimist",
    "master:servant",
    "teacher:pupil",
    "husband:wife",
    "plus:minus",
    "single:married",
    "common:rare",
    "natural:artificial",
    "temporary:permanent",
    "internal:external",
    "superior:inferior",
    "senior:junior",
    "hero:villain",
    "giant:dwarf",
    "stranger:acquaintance",
    "sunrise:sunset",
    "ceiling:floor",
]

_PLACES = (
    "/usr/share/wordnet",
    "/usr/share/nltk_data/corpora/wordnet",
    "/usr/local/share/nltk_data/corpora/wordnet",
)
_WORD = re.compile(r"[a-z]{3,}")


def listed() -> list[tuple[str, str]]:
    """Pairs of the list, in its order."""
    return [(a, b) for a, _, b in (pair.partition(":") for pair in LISTED)]


def wordnet_folder() -> Path:
    """Where WordNet's files (data.adj, ...) are: $WNSEARCHDIR, $WNHOME/dict, Debian's wordnet-base, or NLTK's data.

    Raises
    ------
    TaskError: nowhere.
    """
    home = [
        Path(os.environ[v]) / sub for v, sub in (("WNSEARCHDIR", ""), ("WNHOME", "dict")) if os.environ.get(v)
    ]
    nltk = [Path(p) / "corpora" / "wordnet" for p in os.environ.get("NLTK_DATA", "").split(os.pathsep) if p]
    for folder in (*home, *nltk, Path.home() / "nltk_data" / "corpora" / "wordnet", *map(Path, _PLACES)):
        if (folder / "data.adj").is_file():
            return folder
    raise TaskError("there is no WordNet here", why="its data does not come with Microtome: looked at WNSEARCHDIR, WNHOME, NLTK_DATA and the usual folders",
                    instead='apt-get install wordnet-base, or set WNSEARCHDIR; word_pairs("antonyms") is a short list that is always there')  # fmt: skip


def from_wordnet(folder: Path) -> list[tuple[str, str]]:
    """Antonyms of WordNet's adjectives, verbs and nouns that its tagged texts use, each word once, the frequent ones first.

    Raises
    ------
    TaskError: files that are not WordNet's.
    """
    often = _counts(folder / "cntlist.rev")
    found: dict[frozenset[str], int] = {}
    for kind in ("adj", "verb", "noun"):
        for a, b in _antonyms(folder / f"data.{kind}"):
            count = min(often.get(a, 0), often.get(b, 0))
            if a != b and count and _WORD.fullmatch(a) and _WORD.fullmatch(b):
                found[frozenset((a, b))] = max(count, found.get(frozenset((a, b)), 0))
    taken: set[str] = set()
    out = []
    for pair in sorted(found, key=lambda p: (-found[p], sorted(p))):
        if taken.isdisjoint(pair):
            taken |= pair
            a, b = sorted(pair, key=lambda w: (-often[w], w))
            out.append((a, b))
    return out


def _antonyms(file: Path) -> Iterator[tuple[str, str]]:
    """Pointers "!" of a data file, from word to word (wndb(5))."""
    words: dict[str, list[str]] = {}
    pointers = []
    for line in _lines(file):
        if line.startswith(" "):
            continue  # the licence
        cells = line.partition(" | ")[0].split()
        try:
            n = int(cells[3], 16)
            # adjectives may carry a marker of syntax: "afraid(p)"
            words[cells[0]] = [w.partition("(")[0] for w in cells[4 : 4 + 2 * n : 2]]
            start = 5 + 2 * n
            for k in range(start, start + 4 * int(cells[start - 1]), 4):
                symbol, target, _, both = cells[k : k + 4]
                if symbol == "!":
                    pointers.append((cells[0], int(both[:2], 16), target, int(both[2:], 16)))
        except (ValueError, IndexError) as error:
            raise TaskError(
                f"{quote(str(file))} is not a file of WordNet",
                why=f"the line {quote(line.strip())}",
                instead="install it again",
            ) from error
    for source, i, target, j in pointers:
        if i and j and target in words:
            yield words[source][i - 1], words[target][j - 1]


def _counts(file: Path) -> Mapping[str, int]:
    """How often each word was tagged, in any sense."""
    out: dict[str, int] = {}
    for line in _lines(file):
        cells = line.split()
        if len(cells) == 3 and cells[2].isdecimal():
            word = cells[0].partition("%")[0]
            out[word] = out.get(word, 0) + int(cells[2])
    return out


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise TaskError(f"{quote(str(file))} cannot be read", why=error.strerror or type(error).__name__, instead="WordNet's folder has data.adj, data.verb, data.noun and cntlist.rev") from error  # fmt: skip
