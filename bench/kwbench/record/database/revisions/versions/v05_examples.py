"""Adversarial examples for people to look at."""

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"


def upgrade() -> None:
    """Create their tables."""
    op.create_table(
        "clean_images",
        sa.Column("sample", sa.String(32), primary_key=True),
        sa.Column("channels", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("bytes", sa.Boolean, nullable=False),
        sa.Column("image", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "examples",
        sa.Column("attack_run", sa.Integer, primary_key=True),
        sa.Column("sample", sa.String(32), primary_key=True),
        sa.Column("scale", sa.Float),
        sa.Column("image", sa.LargeBinary, nullable=False),
        sa.Column("before", sa.Text, nullable=False),
        sa.Column("after", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["attack_run", "sample"], ["outcomes.attack_run", "outcomes.sample"]),
    )
