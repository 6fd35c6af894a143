"""The tables of a record, column by column. docs/reference/record.md is generated from the comments here.

Times are seconds since 1970 (UTC). JSON is text. Numbers of runs, predictions and claims count up in one record and
are never used twice.
"""  # fmt: skip

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

__all__ = [
    "REVISION",
    "claim",
    "claim_text",
    "control",
    "evidence",
    "material",
    "meta",
    "metadata",
    "model",
    "page",
    "person",
    "prediction",
    "process",
    "run",
    "run_file",
    "run_site",
    "study",
]  # fmt: skip

REVISION = "0001"
"""The Alembic revision that these tables are at."""

metadata = MetaData(
    naming_convention={"ix": "ix_%(column_0_label)s", "fk": "fk_%(table_name)s_%(column_0_name)s", "pk": "pk_%(table_name)s",
                       "uq": "uq_%(table_name)s_%(column_0_name)s"}
)  # fmt: skip


def _number(comment: str) -> Column[int]:
    return Column("number", Integer, primary_key=True, autoincrement=True, comment=comment)


def _text(name: str, comment: str, *, null: bool = False, default: str | None = None) -> Column[str]:
    return Column(name, Text, nullable=null, default=default, comment=comment)


def _at(name: str, comment: str, *, null: bool = False) -> Column[float]:
    return Column(name, Float(53), nullable=null, comment=comment)


meta = Table(
    "meta", metadata,
    Column("key", String(64), primary_key=True, comment="what is said: id (of this record), made_at, made_by"),
    _text("value", "what it is"),
    comment="What the record says of itself.",
)  # fmt: skip

person = Table(
    "person", metadata,
    Column("name", String(200), primary_key=True, comment="the person's or agent's name"),
    Column("kind", String(16), nullable=False, comment="person or agent"),
    _at("since", "when first seen"),
    comment="Who works in this record. Agents are kept apart from people.",
)  # fmt: skip

process = Table(
    "process", metadata,
    Column("id", String(32), primary_key=True, comment="random, one per process that records"),
    _text("host", "name of the machine"),
    _text("boot", "id of the machine's boot: a number of a process means nothing after another one"),
    Column("pid", BigInteger, nullable=False, comment="number of the process"),
    _at("started", "when the process started, as the operating system says"),
    _at("heard_at", "when the process last wrote; of other machines it is all that is known"),
    _text("command", "its command line, shortened"),
    _text("versions", "JSON: python, platform, microtome and the packages that decide numbers, with their versions"),
    _text("commit", "git commit of the project's folder, empty without one", default=""),
    Column("diff", String(64), nullable=True, comment="key of the file with what differed from that commit"),
    comment="Processes that recorded: with them, what code and packages a run had.",
)  # fmt: skip

study = Table(
    "study", metadata,
    _number("the study's number"),
    Column("key", String(16), nullable=False, unique=True, comment="random name, the same in an archive"),
    _text("title", "what it is about"),
    Column("person", String(200), ForeignKey("person.name"), nullable=False, comment="who opened it"),
    _at("opened_at", "when it was first opened"),
    _at("closed_at", "when it was last closed; null while it is open or was cut off", null=True),
    comment="A line of work: what was asked under one title, over days and processes.",
)  # fmt: skip

run = Table(
    "run", metadata,
    _number("the run's number, by which people name it"),
    Column("id", String(16), nullable=False, unique=True, comment="the id that its events carry"),
    Column("parent", Integer, ForeignKey("run.number"), nullable=True, comment="the run that called it, null for none"),
    Column("study", Integer, ForeignKey("study.number"), nullable=False, comment="the study it was made in"),
    Column("process", String(32), ForeignKey("process.id"), nullable=False, comment="the process it ran in"),
    Column("person", String(200), ForeignKey("person.name"), nullable=False, comment="who ran it"),
    Column("method", String(80), nullable=False, comment="the technique; 'look' for a raw model.run"),
    Column("version", String(40), nullable=False, comment="the technique's version"),
    Column("code", String(32), nullable=False, comment="hash of the technique's code and of what decides its numbers"),
    Column("state", String(12), nullable=False, comment="running, finished, failed or interrupted"),
    _at("begun_at", "when it began"),
    _at("ended_at", "when it ended, null while it runs and when it was cut off", null=True),
    _at("seconds", "how long it took", null=True),
    Column("memory", BigInteger, nullable=True, comment="peak memory of its process so far, bytes"),
    Column("times", Integer, nullable=False, default=1, comment="of a look: how often the same was looked at in a row"),
    _text("question", "JSON: the query: method, version, hashes, parameters, seed, numerics"),
    Column("query", String(32), nullable=False, comment="id of the query, the same whoever asks it"),
    Column("model", String(64), nullable=False, comment="hash of the model, '' for none"),
    Column("task", String(64), nullable=False, comment="hash of the task, '' for none"),
    Column("data", String(64), nullable=False, comment="hash of the data, '' for none"),
    Column("family", String(200), nullable=False, comment="name of the task or data, whatever its seed; '' unknown"),
    Column("seed", BigInteger, nullable=True, comment="the seed, null for what draws nothing"),
    Column("arguments", String(64), nullable=True, comment="key of the file with the call's arguments"),
    _text("not_again", "why it cannot be run again from here, a line each; '' when it can", default=""),
    _text("called_from", "the user's file and line, or cell, that called it", default=""),
    Column("result", String(64), nullable=True, comment="key of result.json, null while there is none"),
    Column("verdict", String(40), nullable=True, comment="the result's verdict"),
    _at("p", "the p of the verdict", null=True),
    _text("error", "type and message when it failed or was interrupted", default=""),
    Index("ix_run_study_parent", "study", "parent", "number"),
    Index("ix_run_parent", "parent"),
    Index("ix_run_model_family", "model", "family"),
    Index("ix_run_query", "query"),
    Index("ix_run_state", "state"),
    comment="One call of a technique, or one raw look at a model.",
    sqlite_autoincrement=True,
)  # fmt: skip

run_site = Table(
    "run_site", metadata,
    Column("run", Integer, ForeignKey("run.number"), primary_key=True, comment="the run"),
    Column("site", String(200), primary_key=True, comment="an address that it read or changed"),
    comment="What a run saw of the model. A run without rows here may have seen anything.",
)  # fmt: skip

run_file = Table(
    "run_file", metadata,
    Column("run", Integer, ForeignKey("run.number"), primary_key=True, comment="the run"),
    Column("role", String(16), primary_key=True, comment="result, argument, figure or report"),
    Column("name", String(300), primary_key=True, comment="the file's name within its role, as in a saved result"),
    Column("key", String(64), nullable=False, comment="key in the folder of files"),
    Column("bytes", BigInteger, nullable=False, comment="size"),
    Index("ix_run_file_key", "key"),
    comment="Files of a run. A file with a row here is never collected.",
)  # fmt: skip

control = Table(
    "control", metadata,
    Column("run", Integer, ForeignKey("run.number"), primary_key=True, comment="the run"),
    Column("name", String(80), primary_key=True, comment="the control"),
    Column("mandatory", Boolean, nullable=False, comment="whether the verdict depends on it"),
    Column("passed", Boolean, nullable=True, comment="whether it passed, null when it did not run"),
    Column("gates", Boolean, nullable=False, comment="whether its failure makes the numbers invalid"),
    _text("rules_out", "what it rules out"),
    _text("detail", "anything more in words", default=""),
    _text("expected", "JSON: what was expected"),
    _text("observed", "JSON: what was seen"),
    Column("n", Integer, nullable=True, comment="on how many"),
    comment="The controls of a run's result.",
)  # fmt: skip

model = Table(
    "model", metadata,
    Column("hash", String(64), primary_key=True, comment="hash of weights and config"),
    _text("name", "what it is called"),
    _text("family", "its architecture"),
    _text("card", "licence, and what was done to the weights"),
    _text("recipe", "JSON: how to load it again, null for a module that was held in memory", null=True),
    _text("certificate", "JSON: the certificate, null while none was asked for", null=True),
    _at("seen_at", "when first seen"),
    comment="Models that runs used.",
)  # fmt: skip

material = Table(
    "material", metadata,
    Column("hash", String(64), primary_key=True, comment="hash of the content"),
    Column("kind", String(40), nullable=False, comment="its type: PairTask, LabelledText, Corpus, ..."),
    _text("name", "what it is called; the family of a task"),
    _text("recipe", "JSON: where it came from, null when unknown", null=True),
    _at("seen_at", "when first seen"),
    comment="Tasks and data that runs used.",
)  # fmt: skip

prediction = Table(
    "prediction", metadata,
    _number("the prediction's number"),
    Column("key", String(16), nullable=False, unique=True, comment="random name, the same in an archive"),
    Column("study", Integer, ForeignKey("study.number"), nullable=False, comment="the study"),
    Column("person", String(200), ForeignKey("person.name"), nullable=False, comment="who predicts"),
    _text("statement", "what is predicted"),
    Column("probability", Float(53), nullable=False, comment="between 0 and 1, neither"),
    _text("about", "JSON: the question it is about"),
    _text("holds", "JSON: what the result must show, null when a person decides", null=True),
    _at("made_at", "when it was made"),
    Column("after_run", Integer, nullable=False, comment="the highest number of a run when it was made"),
    Column("post_hoc", Boolean, nullable=False, comment="whether something earlier here had seen it"),
    _text("why_post_hoc", "which run, and what it shares", default=""),
    Column("state", String(12), nullable=False, comment="open, true, false or void (could not be told)"),
    Column("run", Integer, ForeignKey("run.number"), nullable=True, comment="the run that decided it"),
    _text("observed", "JSON: what was observed", null=True),
    _text("reason", "why it was decided so", default=""),
    Column("resolved_by", String(200), nullable=True, comment="who decided; null: the result did"),
    _at("resolved_at", "when", null=True),
    Column("claim", Integer, ForeignKey("claim.number"), nullable=True, comment="the claim it was made from"),
    Column("seal", String(32), nullable=False, comment="hash of what was predicted and of the seal before: an edit shows"),
    Index("ix_prediction_state", "state"),
    comment="Predictions, made before a run and scored after it.",
    sqlite_autoincrement=True,
)  # fmt: skip

claim = Table(
    "claim", metadata,
    _number("the claim's number"),
    Column("key", String(16), nullable=False, unique=True, comment="random name, the same in an archive"),
    Column("study", Integer, ForeignKey("study.number"), nullable=False, comment="the study"),
    Column("person", String(200), ForeignKey("person.name"), nullable=False, comment="who claims it"),
    _text("statement", "what is claimed"),
    _text("about", "JSON: the question that it answers"),
    _at("made_at", "when it was made"),
    Column("after_run", Integer, nullable=False, comment="the highest number of a run then: later runs are not post hoc"),
    _at("withdrawn_at", "when it was withdrawn, null while it stands", null=True),
    _text("why_withdrawn", "why", default=""),
    comment="Claims. Their rung is never stored: it is computed from the evidence.",
    sqlite_autoincrement=True,
)  # fmt: skip

claim_text = Table(
    "claim_text", metadata,
    Column("claim", Integer, ForeignKey("claim.number"), primary_key=True, comment="the claim"),
    Column("role", String(16), primary_key=True, comment="alternative, falsifier or limitation"),
    Column("place", Integer, primary_key=True, comment="order"),
    _text("text", "what it says"),
    _at("at", "when it was written"),
    comment="What else could explain it, and what would show it wrong.",
)  # fmt: skip

evidence = Table(
    "evidence", metadata,
    _number("the piece's number"),
    Column("claim", Integer, ForeignKey("claim.number"), nullable=False, comment="the claim"),
    Column("run", Integer, ForeignKey("run.number"), nullable=True, comment="the run it is, null for a prediction"),
    Column("prediction", Integer, ForeignKey("prediction.number"), nullable=True, comment="the prediction it is"),
    Column("weight", String(16), nullable=False, comment="strong, big_if_true, sanity or weak"),
    Column("supports", Boolean, nullable=False, comment="false: it speaks against the claim"),
    Column("post_hoc", Boolean, nullable=False, comment="whether the run began before the claim was made"),
    Column("person", String(200), ForeignKey("person.name"), nullable=False, comment="who linked it"),
    _text("note", "why it bears on the claim", default=""),
    _at("at", "when it was linked"),
    Index("ix_evidence_claim", "claim"),
    comment="What a claim rests on.",
    sqlite_autoincrement=True,
)  # fmt: skip

page = Table(
    "page", metadata,
    Column("path", String(500), primary_key=True, comment="path within the project"),
    Column("kind", String(40), nullable=False, comment="log, highlight, belief, decision, idea, ..."),
    _text("title", "its title"),
    _at("dated", "the day it is about, null when it says none", null=True),
    Column("digest", String(32), nullable=False, comment="hash of its content when it was indexed"),
    _text("fields", "JSON: what its head says"),
    _text("problems", "JSON: what could not be read"),
    _at("indexed_at", "when"),
    comment="Pages of the notebook, as last indexed. The files are what counts.",
)  # fmt: skip
