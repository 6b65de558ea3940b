"""A command closes the databases that it opened."""

import pytest
import sqlalchemy as sa

from support.command_line import Kwbench
from support.postgres import Server


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("status",), 0),
        (("db", "upgrade"), 0),
        (("compare", "small", "other"), 2),
        (("evaluate", "small", "--attack", "fgsm", "--n", "8", "--tile", "8", "--threads", "1"), 0),
    ],
)
def test_a_command_leaves_no_connection_to_a_server_open(
    kwb: Kwbench, postgres: Server, words: tuple[str, ...], code: int
) -> None:
    db = postgres.database(f"closed_{words[0]}")
    assert kwb("evaluate", "small", "--attack", "noop", "--n", "8", "--tile", "8", "--threads", "1", "--db", db).code == 0
    assert kwb(*words, "--db", db).code == code
    engine = sa.create_engine(db, poolclass=sa.NullPool)
    with engine.connect() as connection:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"
        assert connection.scalar(sa.text(others)) == 0
