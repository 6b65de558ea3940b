"""One module for each schema version, named by its number: the step from the version before. Only alembic imports them."""
