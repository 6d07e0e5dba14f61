"""Deployments have a precision and a cache.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; what there is runs as the server's setting says, with a cache of the model's size."""
    op.add_column("deployments", sa.Column("precision", sa.String, nullable=False, server_default=""))
    op.add_column("deployments", sa.Column("cache_size_bytes", sa.BigInteger, nullable=True))
