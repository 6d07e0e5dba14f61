"""Alembic's entry: runs migrations on the connection that `metadata.store` hands over."""

from __future__ import annotations

from alembic import context

# The caller has begun a transaction around all of it, so that a kill leaves the old schema or the new one.
context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
context.run_migrations()
