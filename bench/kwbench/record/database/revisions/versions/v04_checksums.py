"""Checksums, and the order of writing. What is on record by then has none."""

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Create their tables."""
    op.create_table(
        "evaluation_checksums",
        sa.Column("evaluation", sa.Integer, sa.ForeignKey("evaluations.id"), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("position_checksum", sa.String(64), nullable=False),
        sa.Column("checksum", sa.String(64)),
        sa.Column("findings", sa.String(64)),
    )
    op.create_table(
        "attack_run_checksums",
        sa.Column("attack_run", sa.Integer, sa.ForeignKey("attack_runs.id"), primary_key=True),
        sa.Column("outcomes", sa.String(64), nullable=False),
        sa.Column("tally", sa.String(64), nullable=False),
    )
    op.create_table(
        "experiment_checksums",
        sa.Column("experiment", sa.Integer, sa.ForeignKey("experiments.id"), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("position_checksum", sa.String(64), nullable=False),
        sa.Column("checksum", sa.String(64)),
    )
