"""The steps from each schema version to the next, which alembic runs; `migrations` calls it."""
