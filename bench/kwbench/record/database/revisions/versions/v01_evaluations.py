"""Evaluations, their attack runs, and a row for each outcome."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table("schema_version", sa.Column("version", sa.Integer, primary_key=True))
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("identity", sa.String(64), nullable=False, unique=True),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("dataset", sa.String, nullable=False),
        sa.Column("suite", sa.String, nullable=False),
        sa.Column("norm", sa.String, nullable=False),
        sa.Column("eps", sa.String, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("stochastic", sa.Boolean, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("provenance", sa.Text, nullable=False),
        sa.Column("created", sa.String, nullable=False),
        sa.Column("asked", sa.String, nullable=False),
        sa.CheckConstraint("n > 0"),
    )
    op.create_table(
        "attack_runs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("identity", sa.String(64), nullable=False, unique=True),
        sa.Column("label", sa.String, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
    )
    op.create_table(
        "members",
        sa.Column("evaluation", sa.Integer, sa.ForeignKey("evaluations.id"), primary_key=True),
        sa.Column("attack_run", sa.Integer, sa.ForeignKey("attack_runs.id"), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
    )
    op.create_table(
        "outcomes",
        sa.Column("attack_run", sa.Integer, sa.ForeignKey("attack_runs.id"), primary_key=True),
        sa.Column("sample", sa.String(32), primary_key=True),
        sa.Column("index", sa.Integer, nullable=False),
        sa.Column("label", sa.Integer, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("clean_prediction", sa.Integer),
        sa.Column("prediction", sa.Integer),
        sa.Column("distance", sa.Float),
        sa.Column("other_status", sa.String),
        sa.Column("surrogate_prediction", sa.Integer),
        sa.Column("selection_correct", sa.Integer, nullable=False),
        sa.Column("selection_draws", sa.Integer, nullable=False),
        sa.Column("fresh_correct", sa.Integer, nullable=False),
        sa.Column("fresh_draws", sa.Integer, nullable=False),
        sa.Column("forwards", sa.Integer, nullable=False),
        sa.Column("backwards", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.CheckConstraint("status IN ('wrong', 'broken', 'held', 'invalid', 'error')"),
        sa.CheckConstraint("selection_correct BETWEEN 0 AND selection_draws"),
        sa.CheckConstraint("fresh_correct BETWEEN 0 AND fresh_draws"),
        sa.CheckConstraint("distance >= 0"),
        sa.CheckConstraint("forwards >= 0 AND backwards >= 0 AND seconds >= 0"),
        sqlite_with_rowid=False,
    )
