"""The first schema.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "models",
        sa.Column("model_id", sa.String, primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("source_uri", sa.String, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String, nullable=False),
        sa.Column("description", sa.String, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("fingerprint", sa.String, nullable=False),
        sa.Column("query_fingerprint", sa.String, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("architecture", sa.String, nullable=False),
        sa.Column("vocabulary_size", sa.BigInteger, nullable=False),
        sa.Column("error", sa.String, nullable=False),
    )
    op.create_table(
        "deployments",
        sa.Column("deployment_id", sa.String, primary_key=True),
        sa.Column("model_id", sa.String, nullable=False),
        sa.Column("number_of_allocations", sa.Integer, nullable=False),
        sa.Column("threads_per_allocation", sa.Integer, nullable=False),
        sa.Column("queue_capacity", sa.Integer, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "pipelines",
        sa.Column("pipeline_id", sa.String, primary_key=True),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "indices",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("storage_name", sa.String, nullable=False, unique=True),
        sa.Column("backend", sa.String, nullable=False),
        sa.Column("mapping", sa.JSON, nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "fingerprints",
        sa.Column(
            "storage_name", sa.String, sa.ForeignKey("indices.storage_name", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("field", sa.String, primary_key=True),
        sa.Column("fingerprint", sa.String, nullable=False),
    )
