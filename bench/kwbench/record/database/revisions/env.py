"""What alembic runs its commands with: the open connection that `migrations` hands over, in whose transaction it stays."""

from alembic import context

from kwbench.record.database import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    version_table=schema.schema_revision.name,
)
context.run_migrations()
