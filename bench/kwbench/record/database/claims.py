"""Claims on work: of several programs that evaluate the same model into one PostgreSQL record, each takes other parts.

A claim is an advisory lock of a connection. The server gives it back when the connection ends, also if its program was killed.
"""

from contextlib import suppress

import sqlalchemy as sa


class Claims:
    """Claims on the numbered parts of an attack run."""

    def __init__(self, connection: sa.Connection, attack_run: int) -> None:
        self._connection, self._attack_run = connection, attack_run
        self._held: set[int] = set()

    def claim(self, part: int) -> bool:
        """Claim a part; return False if another program holds it."""
        claimed = bool(self._connection.execute(sa.select(sa.func.pg_try_advisory_lock(self._attack_run, part))).scalar())
        if claimed:
            self._held.add(part)
        return claimed

    def give_back(self, part: int) -> None:
        """Let others claim a part again."""
        self._connection.execute(sa.select(sa.func.pg_advisory_unlock(self._attack_run, part)))
        self._held.discard(part)

    def give_back_all(self) -> None:
        """Let others claim everything again; a connection that is lost holds nothing."""
        with suppress(sa.exc.DBAPIError):
            for part in tuple(self._held):
                self.give_back(part)
