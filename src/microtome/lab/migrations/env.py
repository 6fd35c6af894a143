"""Alembic runs this; the connection and its transaction come from `microtome.lab.migrations`."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
