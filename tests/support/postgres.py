"""A PostgreSQL server of a test's own, started and stopped by its programs; none is a mock."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

_USER = "kwbench"


class Server:
    """A server on a free port of this machine, run by an unprivileged user; its files are in a temporary folder."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        # Root may not run the server; Debian's package comes with a user for it.
        self._user = "postgres" if os.getuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="kwbench-postgres-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._data = self.folder / "data"
        if self._user:
            shutil.chown(self.folder, self._user)
        self._run("initdb", "--pgdata", self._data, "--username", _USER, "--auth", "trust", "--no-sync", "--encoding", "UTF8")
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "start", "--wait", "--pgdata", self._data, "--log", self.folder / "log", "--options", options)

    def stop(self) -> None:
        """Stop the server, and end all connections."""
        self._run("pg_ctl", "stop", "--wait", "--pgdata", self._data, "--mode", "immediate")

    def database(self, name: str) -> str:
        """Create an empty database, and return its URL."""
        where = ("--host", "127.0.0.1", "--port", str(self.port), "--username", _USER)
        self._run("createdb", *where, name)
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        """Stop the server and remove its files."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *words: object) -> None:
        identity = {}
        if self._user:
            entry = pwd.getpwnam(self._user)
            identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        subprocess.run(
            [self._programs / program, *map(str, words)],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=True,
            timeout=60,
            **identity,  # type: ignore[call-overload]
        )


def find_programs() -> Path:
    """Return the folder of the newest PostgreSQL; skip the test, with the reason, where there is none."""
    pytest.importorskip("psycopg", reason="the Python package psycopg is not installed")
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if on_path := shutil.which("initdb"):
        folders.append(Path(on_path).resolve().parent)
    if not folders:
        pytest.skip("PostgreSQL is not installed (no /usr/lib/postgresql/*/bin/initdb, no initdb on the PATH)")
    if os.getuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    return max(folders)
