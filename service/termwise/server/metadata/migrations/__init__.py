"""Alembic migrations of the metadata store, run when it is opened. A revision is never changed once released."""
