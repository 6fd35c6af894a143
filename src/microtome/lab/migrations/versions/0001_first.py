"""The tables as they were first released. Frozen: what changes later is a revision after this one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "material",
        sa.Column("hash", sa.String(length=64), nullable=False, comment="hash of the content"),
        sa.Column(
            "kind",
            sa.String(length=40),
            nullable=False,
            comment="its type: PairTask, LabelledText, Corpus, ...",
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="what it is called; the family of a task"),
        sa.Column("recipe", sa.Text(), nullable=True, comment="JSON: where it came from, null when unknown"),
        sa.Column("seen_at", sa.Float(precision=53), nullable=False, comment="when first seen"),
        sa.PrimaryKeyConstraint("hash", name="pk_material"),
        comment="Tasks and data that runs used.",
    )
    op.create_table(
        "meta",
        sa.Column(
            "key",
            sa.String(length=64),
            nullable=False,
            comment="what is said: id (of this record), made_at, made_by",
        ),
        sa.Column("value", sa.Text(), nullable=False, comment="what it is"),
        sa.PrimaryKeyConstraint("key", name="pk_meta"),
        comment="What the record says of itself.",
    )
    op.create_table(
        "model",
        sa.Column("hash", sa.String(length=64), nullable=False, comment="hash of weights and config"),
        sa.Column("name", sa.Text(), nullable=False, comment="what it is called"),
        sa.Column("family", sa.Text(), nullable=False, comment="its architecture"),
        sa.Column("card", sa.Text(), nullable=False, comment="licence, and what was done to the weights"),
        sa.Column(
            "recipe",
            sa.Text(),
            nullable=True,
            comment="JSON: how to load it again, null for a module that was held in memory",
        ),
        sa.Column(
            "certificate",
            sa.Text(),
            nullable=True,
            comment="JSON: the certificate, null while none was asked for",
        ),
        sa.Column("seen_at", sa.Float(precision=53), nullable=False, comment="when first seen"),
        sa.PrimaryKeyConstraint("hash", name="pk_model"),
        comment="Models that runs used.",
    )
    op.create_table(
        "page",
        sa.Column("path", sa.String(length=500), nullable=False, comment="path within the project"),
        sa.Column(
            "kind",
            sa.String(length=40),
            nullable=False,
            comment="log, highlight, belief, decision, idea, ...",
        ),
        sa.Column("title", sa.Text(), nullable=False, comment="its title"),
        sa.Column(
            "dated",
            sa.Float(precision=53),
            nullable=True,
            comment="the day it is about, null when it says none",
        ),
        sa.Column(
            "digest", sa.String(length=32), nullable=False, comment="hash of its content when it was indexed"
        ),
        sa.Column("fields", sa.Text(), nullable=False, comment="JSON: what its head says"),
        sa.Column("problems", sa.Text(), nullable=False, comment="JSON: what could not be read"),
        sa.Column("indexed_at", sa.Float(precision=53), nullable=False, comment="when"),
        sa.PrimaryKeyConstraint("path", name="pk_page"),
        comment="Pages of the notebook, as last indexed. The files are what counts.",
    )
    op.create_table(
        "person",
        sa.Column("name", sa.String(length=200), nullable=False, comment="the person's or agent's name"),
        sa.Column("kind", sa.String(length=16), nullable=False, comment="person or agent"),
        sa.Column("since", sa.Float(precision=53), nullable=False, comment="when first seen"),
        sa.PrimaryKeyConstraint("name", name="pk_person"),
        comment="Who works in this record. Agents are kept apart from people.",
    )
    op.create_table(
        "process",
        sa.Column("id", sa.String(length=32), nullable=False, comment="random, one per process that records"),
        sa.Column("host", sa.Text(), nullable=False, comment="name of the machine"),
        sa.Column(
            "boot",
            sa.Text(),
            nullable=False,
            comment="id of the machine's boot: a number of a process means nothing after another one",
        ),
        sa.Column("pid", sa.BigInteger(), nullable=False, comment="number of the process"),
        sa.Column(
            "started",
            sa.Float(precision=53),
            nullable=False,
            comment="when the process started, as the operating system says",
        ),
        sa.Column(
            "heard_at",
            sa.Float(precision=53),
            nullable=False,
            comment="when the process last wrote; of other machines it is all that is known",
        ),
        sa.Column("command", sa.Text(), nullable=False, comment="its command line, shortened"),
        sa.Column(
            "versions",
            sa.Text(),
            nullable=False,
            comment="JSON: python, platform, microtome and the packages that decide numbers, with their versions",
        ),
        sa.Column(
            "commit",
            sa.Text(),
            nullable=False,
            comment="git commit of the project's folder, empty without one",
        ),
        sa.Column(
            "diff",
            sa.String(length=64),
            nullable=True,
            comment="key of the file with what differed from that commit",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_process"),
        comment="Processes that recorded: with them, what code and packages a run had.",
    )
    op.create_table(
        "study",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False, comment="the study's number"),
        sa.Column("key", sa.String(length=16), nullable=False, comment="random name, the same in an archive"),
        sa.Column("title", sa.Text(), nullable=False, comment="what it is about"),
        sa.Column("person", sa.String(length=200), nullable=False, comment="who opened it"),
        sa.Column("opened_at", sa.Float(precision=53), nullable=False, comment="when it was first opened"),
        sa.Column(
            "closed_at",
            sa.Float(precision=53),
            nullable=True,
            comment="when it was last closed; null while it is open or was cut off",
        ),
        sa.ForeignKeyConstraint(["person"], ["person.name"], name="fk_study_person"),
        sa.PrimaryKeyConstraint("number", name="pk_study"),
        sa.UniqueConstraint("key", name="uq_study_key"),
        comment="A line of work: what was asked under one title, over days and processes.",
    )
    op.create_table(
        "claim",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False, comment="the claim's number"),
        sa.Column("key", sa.String(length=16), nullable=False, comment="random name, the same in an archive"),
        sa.Column("study", sa.Integer(), nullable=False, comment="the study"),
        sa.Column("person", sa.String(length=200), nullable=False, comment="who claims it"),
        sa.Column("statement", sa.Text(), nullable=False, comment="what is claimed"),
        sa.Column("about", sa.Text(), nullable=False, comment="JSON: the question that it answers"),
        sa.Column("made_at", sa.Float(precision=53), nullable=False, comment="when it was made"),
        sa.Column(
            "after_run",
            sa.Integer(),
            nullable=False,
            comment="the highest number of a run then: later runs are not post hoc",
        ),
        sa.Column(
            "withdrawn_at",
            sa.Float(precision=53),
            nullable=True,
            comment="when it was withdrawn, null while it stands",
        ),
        sa.Column("why_withdrawn", sa.Text(), nullable=False, comment="why"),
        sa.ForeignKeyConstraint(["person"], ["person.name"], name="fk_claim_person"),
        sa.ForeignKeyConstraint(["study"], ["study.number"], name="fk_claim_study"),
        sa.PrimaryKeyConstraint("number", name="pk_claim"),
        sa.UniqueConstraint("key", name="uq_claim_key"),
        comment="Claims. Their rung is never stored: it is computed from the evidence.",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "run",
        sa.Column(
            "number",
            sa.Integer(),
            autoincrement=True,
            nullable=False,
            comment="the run's number, by which people name it",
        ),
        sa.Column("id", sa.String(length=16), nullable=False, comment="the id that its events carry"),
        sa.Column("parent", sa.Integer(), nullable=True, comment="the run that called it, null for none"),
        sa.Column("study", sa.Integer(), nullable=False, comment="the study it was made in"),
        sa.Column("process", sa.String(length=32), nullable=False, comment="the process it ran in"),
        sa.Column("person", sa.String(length=200), nullable=False, comment="who ran it"),
        sa.Column(
            "method",
            sa.String(length=80),
            nullable=False,
            comment="the technique; 'look' for a raw model.run",
        ),
        sa.Column("version", sa.String(length=40), nullable=False, comment="the technique's version"),
        sa.Column(
            "code",
            sa.String(length=32),
            nullable=False,
            comment="hash of the technique's code and of what decides its numbers",
        ),
        sa.Column(
            "state", sa.String(length=12), nullable=False, comment="running, finished, failed or interrupted"
        ),
        sa.Column("begun_at", sa.Float(precision=53), nullable=False, comment="when it began"),
        sa.Column(
            "ended_at",
            sa.Float(precision=53),
            nullable=True,
            comment="when it ended, null while it runs and when it was cut off",
        ),
        sa.Column("seconds", sa.Float(precision=53), nullable=True, comment="how long it took"),
        sa.Column(
            "memory", sa.BigInteger(), nullable=True, comment="peak memory of its process so far, bytes"
        ),
        sa.Column(
            "times",
            sa.Integer(),
            nullable=False,
            comment="of a look: how often the same was looked at in a row",
        ),
        sa.Column(
            "question",
            sa.Text(),
            nullable=False,
            comment="JSON: the query: method, version, hashes, parameters, seed, numerics",
        ),
        sa.Column(
            "query", sa.String(length=32), nullable=False, comment="id of the query, the same whoever asks it"
        ),
        sa.Column("model", sa.String(length=64), nullable=False, comment="hash of the model, '' for none"),
        sa.Column("task", sa.String(length=64), nullable=False, comment="hash of the task, '' for none"),
        sa.Column("data", sa.String(length=64), nullable=False, comment="hash of the data, '' for none"),
        sa.Column(
            "family",
            sa.String(length=200),
            nullable=False,
            comment="name of the task or data, whatever its seed; '' unknown",
        ),
        sa.Column("seed", sa.BigInteger(), nullable=True, comment="the seed, null for what draws nothing"),
        sa.Column(
            "arguments",
            sa.String(length=64),
            nullable=True,
            comment="key of the file with the call's arguments",
        ),
        sa.Column(
            "not_again",
            sa.Text(),
            nullable=False,
            comment="why it cannot be run again from here, a line each; '' when it can",
        ),
        sa.Column(
            "called_from",
            sa.Text(),
            nullable=False,
            comment="the user's file and line, or cell, that called it",
        ),
        sa.Column(
            "result",
            sa.String(length=64),
            nullable=True,
            comment="key of result.json, null while there is none",
        ),
        sa.Column("verdict", sa.String(length=40), nullable=True, comment="the result's verdict"),
        sa.Column("p", sa.Float(precision=53), nullable=True, comment="the p of the verdict"),
        sa.Column(
            "error", sa.Text(), nullable=False, comment="type and message when it failed or was interrupted"
        ),
        sa.ForeignKeyConstraint(["parent"], ["run.number"], name="fk_run_parent"),
        sa.ForeignKeyConstraint(["person"], ["person.name"], name="fk_run_person"),
        sa.ForeignKeyConstraint(["process"], ["process.id"], name="fk_run_process"),
        sa.ForeignKeyConstraint(["study"], ["study.number"], name="fk_run_study"),
        sa.PrimaryKeyConstraint("number", name="pk_run"),
        sa.UniqueConstraint("id", name="uq_run_id"),
        comment="One call of a technique, or one raw look at a model.",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_run_model_family", "run", ["model", "family"], unique=False)
    op.create_index("ix_run_parent", "run", ["parent"], unique=False)
    op.create_index("ix_run_query", "run", ["query"], unique=False)
    op.create_index("ix_run_state", "run", ["state"], unique=False)
    op.create_index("ix_run_study_parent", "run", ["study", "parent", "number"], unique=False)
    op.create_table(
        "claim_text",
        sa.Column("claim", sa.Integer(), nullable=False, comment="the claim"),
        sa.Column(
            "role", sa.String(length=16), nullable=False, comment="alternative, falsifier or limitation"
        ),
        sa.Column("place", sa.Integer(), nullable=False, comment="order"),
        sa.Column("text", sa.Text(), nullable=False, comment="what it says"),
        sa.Column("at", sa.Float(precision=53), nullable=False, comment="when it was written"),
        sa.ForeignKeyConstraint(["claim"], ["claim.number"], name="fk_claim_text_claim"),
        sa.PrimaryKeyConstraint("claim", "role", "place", name="pk_claim_text"),
        comment="What else could explain it, and what would show it wrong.",
    )
    op.create_table(
        "control",
        sa.Column("run", sa.Integer(), nullable=False, comment="the run"),
        sa.Column("name", sa.String(length=80), nullable=False, comment="the control"),
        sa.Column("mandatory", sa.Boolean(), nullable=False, comment="whether the verdict depends on it"),
        sa.Column(
            "passed", sa.Boolean(), nullable=True, comment="whether it passed, null when it did not run"
        ),
        sa.Column(
            "gates", sa.Boolean(), nullable=False, comment="whether its failure makes the numbers invalid"
        ),
        sa.Column("rules_out", sa.Text(), nullable=False, comment="what it rules out"),
        sa.Column("detail", sa.Text(), nullable=False, comment="anything more in words"),
        sa.Column("expected", sa.Text(), nullable=False, comment="JSON: what was expected"),
        sa.Column("observed", sa.Text(), nullable=False, comment="JSON: what was seen"),
        sa.Column("n", sa.Integer(), nullable=True, comment="on how many"),
        sa.ForeignKeyConstraint(["run"], ["run.number"], name="fk_control_run"),
        sa.PrimaryKeyConstraint("run", "name", name="pk_control"),
        comment="The controls of a run's result.",
    )
    op.create_table(
        "prediction",
        sa.Column(
            "number", sa.Integer(), autoincrement=True, nullable=False, comment="the prediction's number"
        ),
        sa.Column("key", sa.String(length=16), nullable=False, comment="random name, the same in an archive"),
        sa.Column("study", sa.Integer(), nullable=False, comment="the study"),
        sa.Column("person", sa.String(length=200), nullable=False, comment="who predicts"),
        sa.Column("statement", sa.Text(), nullable=False, comment="what is predicted"),
        sa.Column("probability", sa.Float(precision=53), nullable=False, comment="between 0 and 1, neither"),
        sa.Column("about", sa.Text(), nullable=False, comment="JSON: the question it is about"),
        sa.Column(
            "holds",
            sa.Text(),
            nullable=True,
            comment="JSON: what the result must show, null when a person decides",
        ),
        sa.Column("made_at", sa.Float(precision=53), nullable=False, comment="when it was made"),
        sa.Column(
            "after_run", sa.Integer(), nullable=False, comment="the highest number of a run when it was made"
        ),
        sa.Column(
            "post_hoc", sa.Boolean(), nullable=False, comment="whether something earlier here had seen it"
        ),
        sa.Column("why_post_hoc", sa.Text(), nullable=False, comment="which run, and what it shares"),
        sa.Column(
            "state",
            sa.String(length=12),
            nullable=False,
            comment="open, true, false or void (could not be told)",
        ),
        sa.Column("run", sa.Integer(), nullable=True, comment="the run that decided it"),
        sa.Column("observed", sa.Text(), nullable=True, comment="JSON: what was observed"),
        sa.Column("reason", sa.Text(), nullable=False, comment="why it was decided so"),
        sa.Column(
            "resolved_by", sa.String(length=200), nullable=True, comment="who decided; null: the result did"
        ),
        sa.Column("resolved_at", sa.Float(precision=53), nullable=True, comment="when"),
        sa.Column("claim", sa.Integer(), nullable=True, comment="the claim it was made from"),
        sa.Column(
            "seal",
            sa.String(length=32),
            nullable=False,
            comment="hash of what was predicted and of the seal before: an edit shows",
        ),
        sa.ForeignKeyConstraint(["claim"], ["claim.number"], name="fk_prediction_claim"),
        sa.ForeignKeyConstraint(["person"], ["person.name"], name="fk_prediction_person"),
        sa.ForeignKeyConstraint(["run"], ["run.number"], name="fk_prediction_run"),
        sa.ForeignKeyConstraint(["study"], ["study.number"], name="fk_prediction_study"),
        sa.PrimaryKeyConstraint("number", name="pk_prediction"),
        sa.UniqueConstraint("key", name="uq_prediction_key"),
        comment="Predictions, made before a run and scored after it.",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_prediction_state", "prediction", ["state"], unique=False)
    op.create_table(
        "run_file",
        sa.Column("run", sa.Integer(), nullable=False, comment="the run"),
        sa.Column("role", sa.String(length=16), nullable=False, comment="result, argument, figure or report"),
        sa.Column(
            "name",
            sa.String(length=300),
            nullable=False,
            comment="the file's name within its role, as in a saved result",
        ),
        sa.Column("key", sa.String(length=64), nullable=False, comment="key in the folder of files"),
        sa.Column("bytes", sa.BigInteger(), nullable=False, comment="size"),
        sa.ForeignKeyConstraint(["run"], ["run.number"], name="fk_run_file_run"),
        sa.PrimaryKeyConstraint("run", "role", "name", name="pk_run_file"),
        comment="Files of a run. A file with a row here is never collected.",
    )
    op.create_index("ix_run_file_key", "run_file", ["key"], unique=False)
    op.create_table(
        "run_site",
        sa.Column("run", sa.Integer(), nullable=False, comment="the run"),
        sa.Column(
            "site", sa.String(length=200), nullable=False, comment="an address that it read or changed"
        ),
        sa.ForeignKeyConstraint(["run"], ["run.number"], name="fk_run_site_run"),
        sa.PrimaryKeyConstraint("run", "site", name="pk_run_site"),
        comment="What a run saw of the model. A run without rows here may have seen anything.",
    )
    op.create_table(
        "evidence",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False, comment="the piece's number"),
        sa.Column("claim", sa.Integer(), nullable=False, comment="the claim"),
        sa.Column("run", sa.Integer(), nullable=True, comment="the run it is, null for a prediction"),
        sa.Column("prediction", sa.Integer(), nullable=True, comment="the prediction it is"),
        sa.Column(
            "weight", sa.String(length=16), nullable=False, comment="strong, big_if_true, sanity or weak"
        ),
        sa.Column("supports", sa.Boolean(), nullable=False, comment="false: it speaks against the claim"),
        sa.Column(
            "post_hoc",
            sa.Boolean(),
            nullable=False,
            comment="whether the run began before the claim was made",
        ),
        sa.Column("person", sa.String(length=200), nullable=False, comment="who linked it"),
        sa.Column("note", sa.Text(), nullable=False, comment="why it bears on the claim"),
        sa.Column("at", sa.Float(precision=53), nullable=False, comment="when it was linked"),
        sa.ForeignKeyConstraint(["claim"], ["claim.number"], name="fk_evidence_claim"),
        sa.ForeignKeyConstraint(["person"], ["person.name"], name="fk_evidence_person"),
        sa.ForeignKeyConstraint(["prediction"], ["prediction.number"], name="fk_evidence_prediction"),
        sa.ForeignKeyConstraint(["run"], ["run.number"], name="fk_evidence_run"),
        sa.PrimaryKeyConstraint("number", name="pk_evidence"),
        comment="What a claim rests on.",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_evidence_claim", "evidence", ["claim"], unique=False)
