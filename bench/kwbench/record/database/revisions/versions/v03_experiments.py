"""Measurements that are no evaluations, such as loss landscapes."""

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Create their tables."""
    op.create_table(
        "experiments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("identity", sa.String(64), nullable=False, unique=True),
        sa.Column("experiment", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("dataset", sa.String, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("provenance", sa.Text, nullable=False),
        sa.Column("asked", sa.String, nullable=False),
    )
    op.create_table(
        "arrays",
        sa.Column("experiment", sa.Integer, sa.ForeignKey("experiments.id"), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("shape", sa.String, nullable=False),
        sa.Column("numbers", sa.LargeBinary, nullable=False),
    )
