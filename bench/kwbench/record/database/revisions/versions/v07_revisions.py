"""The schema version is kept by alembic."""

from alembic import op

revision = "7"
down_revision = "6"


def upgrade() -> None:
    """Leave the number where earlier versions of kwbench look for it, which then ask for an update of kwbench."""
    op.execute("UPDATE schema_version SET version = 7")
