"""Text corpora: documents read one at a time, and the blocks of tokens that a model sees of them.

Nothing here holds a corpus in memory: a source lists its documents or streams them, and each is read when it is reached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import TaskError
from microtome.results.frozen import FrozenDict
from microtome.tasks.checks import quote
from microtome.tasks.rng import child

if TYPE_CHECKING:
    from microtome.model.tokens import Bos
    from microtome.tasks.blocks import Passages

Wanted = Callable[[str], bool]
CORPORA = {
    "mt.corpus()": "the running Python's standard library: docstrings, comments, code, topics of help()",
    "mt.corpus(FILE or FOLDER)": ".txt, .md, .rst and .py files; rows of .jsonl and .parquet",
    "mt.corpus([text, ...])": "texts of your own",
    'mt.corpus("hf:NAME")': "a Hugging Face dataset, streamed: from the local cache, a folder, or with MICROTOME_ONLINE=1 the hub",
}

__all__ = ["CORPORA", "Block", "Corpus", "Document", "corpus", "digest"]


@dataclass(frozen=True)
class Document:
    """One text. id: unique in its corpus; what stands before "#" is its file, which no split divides.

    kind: "docstrings", "comments", "code", "topic", or what the file's ending says.
    """

    id: str
    text: str
    kind: str

    @property
    def home(self) -> str:
        """The file it is from: documents of one file lie on one side of a split."""
        return self.id.partition("#")[0]


@dataclass(frozen=True)
class Block:
    """A stretch of one document as a model reads it.

    ids: token ids, with BOS first if `bos` of `Corpus.blocks` asked for it, or the tokenizer puts it there by itself.
    document, kind: its id and kind. start: its first character in the document. text: what it covers.
    cut: it begins or ends inside the document, whose text is longer than the context.
    """

    ids: tuple[int, ...]
    document: str
    kind: str
    start: int
    text: str
    cut: bool


@dataclass(frozen=True, repr=False)
class Corpus:
    """Documents in a fixed order.

    name: for titles. hash: of the content (of a stream: what is known of it, see provenance["hash_covers"]).
    read: (seed, wanted) -> the documents anew: in the fixed order for None, shuffled by a seed where the source can be;
        a source may leave out files that `wanted` refuses by their name, without opening them.
    provenance: where they are from, and what was left out.
    asked: what `corpus` was given, paths absolute ({} where nobody asked it): how to read the same again.
    """

    name: str
    hash: str
    read: Callable[[int | None, Wanted], Iterator[Document]] = field(compare=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)
    wanted: tuple[Wanted, ...] = field(default=(), compare=False)
    only: frozenset[str] = frozenset()
    asked: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", FrozenDict(self.provenance))

    def __repr__(self) -> str:
        return f"<Corpus {self.name}: hash {self.hash[:12]}>"

    def documents(self, seed: int | None = None) -> Iterator[Document]:
        """Every document that has text: in the fixed order, or shuffled by a seed (a stream keeps its order).

        Raises
        ------
        TaskError: there is none.
        """
        any_ = False
        for document in self.read(seed, self._wants):
            if (
                document.text.strip()
                and self._wants(document.home)
                and document.kind in (self.only or {document.kind})
            ):
                any_ = True
                yield document
        if not any_:
            raise TaskError(f"the corpus {self.name} has no text", why="every document is empty, or there is none",
                            instead="give files or texts with words in them")  # fmt: skip

    def kinds(self, *kinds: str) -> Corpus:
        """Only documents of these kinds.

        Raises
        ------
        TaskError: no kind was named.
        """
        if not kinds:
            raise TaskError(
                "no kind of document was named",
                why="nothing would be left",
                instead='for example kinds("docstrings")',
            )
        return self._part("+".join(kinds), only=frozenset(kinds))

    def _wants(self, home: str) -> bool:
        return all(w(home) for w in self.wanted)

    def split(self, held_out: float, seed: int) -> tuple[Corpus, Corpus]:
        """Two corpora without a common file: about 1 - held_out of the files, and held_out of them.

        Which side a file is on depends on its name and the seed alone, so the share is met on average, and a stream can be split
        that nobody has counted.

        Raises
        ------
        TaskError: held_out is not between 0 and 1, or one side is empty.
        """
        if not 0 < held_out < 1:
            raise TaskError(
                f"held_out is {held_out!r}",
                why="it is the share of files to hold out",
                instead="for example 0.2",
            )

        def out(home: str) -> bool:
            return child(seed, f"corpus/{home}") / 2**63 < held_out

        rest = self._part("rest", (seed, held_out), wanted=(*self.wanted, lambda home: not out(home)))
        held = self._part("held_out", (seed, held_out), wanted=(*self.wanted, out))
        for part in (rest, held):
            next(
                part.documents()
            )  # refuses a side without text, having read no further than to its first document
        return rest, held

    def _part(self, name: str, how: Sequence[object] = (), **change: Any) -> Corpus:
        told = {**self.provenance, "part": [*self.provenance.get("part", []), [name, *how]]}
        mark = digest([self.hash, name, *map(repr, how)])
        return replace(self, name=f"{self.name}/{name}", hash=mark, provenance=told, **change)

    def blocks(
        self, model: Any, context: int = 128, tokens: int = 20_000, seed: int = 0, *, bos: Bos = "model"
    ) -> Iterator[Block]:
        """Blocks of at most `context` tokens (BOS included) until `tokens` are given (BOS not counted), or the corpus ends.

        A document longer than a block gives several, marked `cut`; no block holds two documents. The order depends on the seed
        alone: documents in rounds, and in each round one passage of each (about 16 characters per token of context) from a place
        drawn within it, so that no long document fills the corpus. One document at a time is in memory.

        bos: as of `model.tokens`: "model" puts in front what the tokenizer does by itself, which of some is nothing.

        Raises
        ------
        TaskError: context under 2 or over what the model takes, tokens not positive, a corpus without text. ModelError: no tokenizer.
        """
        from microtome.tasks.blocks import blocks

        return blocks(self, model, context, tokens, seed, bos)

    def passages(self, model: Any, n: int, context: int = 64, seed: int = 0) -> Passages:
        """n blocks of at least half of `context` tokens, one per stretch of a document, as prompts.

        Raises
        ------
        TaskError: the corpus has fewer, or as `blocks`.
        """
        from microtome.tasks.blocks import passages

        return passages(self, model, n, context, seed)


def digest(parts: Sequence[str]) -> str:
    """Hex digest (blake2b, 128 bits) of texts in order."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        state.update(len(content).to_bytes(8, "big") + content)
    return state.hexdigest()


def corpus(
    source: str | Path | Sequence[str] | None = None,
    *,
    column: str = "text",
    split: str = "train",
    undecodable: str = "refuse",
    name: str = "",
) -> Corpus:
    """A corpus of text.

    source: one of
        - None: the standard library of the running Python: of each module its docstrings, its comments and its code, and the
          topics of `help()`. It is there offline; what it holds depends on the Python version, which provenance states;
        - a file or a folder (searched through): .txt, .md, .rst and .py are documents, the rows of .jsonl and .parquet too;
        - a list of texts;
        - "hf:NAME", "hf:NAME:CONFIG" or "hf:FOLDER": a dataset of the library `datasets`, streamed; from the local cache only, unless
          MICROTOME_ONLINE=1.
    column: which column of .jsonl, .parquet and datasets holds the text. split: of a Hugging Face dataset.
    undecodable: "refuse" (default) or "skip": files that are not UTF-8; those skipped are listed in provenance["skipped"].

    Files are read once here, to hash them and to find those that are not text; afterwards one document at a time.

    Raises
    ------
    TaskError: no text in it, no such file, files that are not UTF-8, a column that is missing (the nearest is suggested).
    ResourceError: a Hugging Face dataset that is not here, or no `datasets` library.
    """
    from microtome.tasks import corpus_sources as sources

    if undecodable not in ("refuse", "skip"):
        raise TaskError(
            f"undecodable={undecodable!r}",
            why="it says what to do with files that are not UTF-8",
            instead='"refuse" or "skip"',
        )
    if source is None:
        found = sources.standard_library()
    elif isinstance(source, str) and source.startswith("hf:"):
        found = sources.dataset(source, split, column)
    elif isinstance(source, str | Path):
        path = Path(source)
        if not path.exists():
            raise TaskError(f"there is no file or folder {quote(str(source))}", why="a corpus is read from files, a list of texts, or hf:NAME",
                            instead="check the path; mt.corpus() is Python's own documentation and code")  # fmt: skip
        found = sources.files(path, column, undecodable == "skip")
    else:
        found = sources.texts(source)
    asked = {"source": _address(source), "column": column, "split": split, "undecodable": undecodable}
    return replace(found, name=name or found.name, asked=asked)


def _address(source: str | Path | Sequence[str] | None) -> str | list[str] | None:
    """The source as it can be asked for from any folder; texts stay texts."""
    if isinstance(source, str) and source.startswith("hf:"):
        folder = Path(source.removeprefix("hf:"))
        return f"hf:{folder.absolute()}" if folder.is_dir() else source
    if source is None or not isinstance(source, str | Path):
        return source if source is None else list(source)
    return str(Path(source).absolute())
