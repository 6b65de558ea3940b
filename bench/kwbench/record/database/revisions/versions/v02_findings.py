"""Findings of checks, and adversarial images that were kept."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Create their tables."""
    op.create_table(
        "findings",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("evaluation", sa.Integer, sa.ForeignKey("evaluations.id"), nullable=False, index=True),
        sa.Column("check", sa.String, nullable=False),
        sa.Column("finding", sa.Text, nullable=False),
    )
    op.create_table(
        "adversarials",
        sa.Column("attack_run", sa.Integer, primary_key=True),
        sa.Column("sample", sa.String(32), primary_key=True),
        sa.Column("channels", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("image", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(["attack_run", "sample"], ["outcomes.attack_run", "outcomes.sample"]),
    )
