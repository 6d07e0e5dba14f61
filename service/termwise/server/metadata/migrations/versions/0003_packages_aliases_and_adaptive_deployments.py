"""Models may be packages and have aliases; deployments have a priority and may adapt to their load.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table; what there is has normal priority and a fixed number of allocations."""
    op.add_column("models", sa.Column("layout", sa.String, nullable=False, server_default=""))
    op.add_column("models", sa.Column("facts", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("models", sa.Column("package", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("deployments", sa.Column("priority", sa.String, nullable=False, server_default="normal"))
    op.add_column("deployments", sa.Column("adaptive", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("deployments", sa.Column("min_number_of_allocations", sa.Integer, nullable=False, server_default="0"))
    op.add_column("deployments", sa.Column("max_number_of_allocations", sa.Integer, nullable=True))
    op.create_table(
        "aliases",
        sa.Column("alias", sa.String, primary_key=True),
        sa.Column("model_id", sa.String, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
