"""The record: evaluations, the attack runs they consist of, and one outcome for each sample of an attack run.

Robust accuracy is never stored; `standing` derives it from outcomes. An attack run is shared by every evaluation that asks
for the same thing, so `--attack pgd` after `--attack all` has nothing to do. Everything is idempotent: the same rows may be
registered and appended twice, also by two processes at once.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.outcome import Outcome, Status
from kwbench.threat import ThreatModel

SCHEMA_VERSION = 1
# "kwbn" in SQLite's header tells our databases from other people's.
APPLICATION_ID = 0x6B77626E

_metadata = sa.MetaData()

_schema = sa.Table("schema_version", _metadata, sa.Column("version", sa.Integer, primary_key=True))

_evaluations = sa.Table(
    "evaluations",
    _metadata,
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
    sa.CheckConstraint("n > 0"),
)

_attack_runs = sa.Table(
    "attack_runs",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("identity", sa.String(64), nullable=False, unique=True),
    sa.Column("label", sa.String, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
)

_members = sa.Table(
    "members",
    _metadata,
    sa.Column("evaluation", sa.ForeignKey("evaluations.id"), primary_key=True),
    sa.Column("attack_run", sa.ForeignKey("attack_runs.id"), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
)

_STATUSES = ", ".join(f"'{status}'" for status in Status)

_outcomes = sa.Table(
    "outcomes",
    _metadata,
    sa.Column("attack_run", sa.ForeignKey("attack_runs.id"), primary_key=True),
    sa.Column("sample", sa.String(32), primary_key=True),
    # "position in the split"; INDEX is a word of SQL's own.
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
    sa.CheckConstraint(f"status IN ({_STATUSES})"),
    sa.CheckConstraint("selection_correct BETWEEN 0 AND selection_draws"),
    sa.CheckConstraint("fresh_correct BETWEEN 0 AND fresh_draws"),
    sa.CheckConstraint("distance >= 0"),
)

OUTCOME_COLUMNS = [field.name for field in fields(Outcome)]


@dataclass(frozen=True, slots=True)
class AttackSpec:
    """One attack of an evaluation: its label in the suite, the digest of all that can change its rows, and that in words."""

    label: str
    identity: str
    spec: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EvaluationSpec:
    """What is to be evaluated. `attacks` begins with the clean images, under the label `clean`.

    `spec` holds all that identifies the evaluation; `provenance` what is worth knowing besides (versions, device, command).
    """

    identity: str
    model: str
    dataset: str
    suite: str
    threat: ThreatModel
    n: int
    stochastic: bool
    attacks: tuple[AttackSpec, ...]
    spec: Mapping[str, Any]
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation on record: its spec, its number, when it began, and the number of each attack run by label."""

    id: int
    created: str
    spec: EvaluationSpec
    attack_runs: Mapping[str, int]


class Store:
    """A database of results. Make one with `Store.open`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> "Store":
        """The store at a SQLAlchemy URL, or a path to a SQLite file, which is made if `create` and nothing is there.

        Raises CannotEvaluate if it is missing or cannot be written, DamagedData if it is not a kwbench database, UsageError
        for a malformed URL.
        """
        if "://" not in url:
            url = f"sqlite:///{url}"
        try:
            parsed = sa.make_url(url)
        except sa.exc.ArgumentError:
            raise UsageError(f"--db {url}: neither a path nor a database URL such as sqlite:///results.db") from None
        path = Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None
        if path is not None and not path.exists() and create:
            _make_file(path)
        if path is not None:
            _check_file(path)
        try:
            engine = sa.create_engine(parsed)
        except (ImportError, sa.exc.ArgumentError) as failure:
            raise UsageError(f"--db {parsed.render_as_string(hide_password=True)}: {failure}") from None
        if path is not None:
            sa.event.listen(engine, "connect", _configure_sqlite)
            sa.event.listen(engine, "begin", _begin)
        store = cls(engine)
        with store._naming(store._name):
            store._prepare(create)
        return store

    @property
    def _name(self) -> str:
        url = self._engine.url
        return url.database if url.get_backend_name() == "sqlite" and url.database else url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def register(self, spec: EvaluationSpec) -> Evaluation:
        """Put an evaluation and its attacks on record, or find them there. Raises CannotEvaluate if it cannot be written."""
        with self._naming(self._name), self._engine.begin() as connection:
            self._insert(
                connection,
                _evaluations,
                [
                    {
                        "identity": spec.identity,
                        "model": spec.model,
                        "dataset": spec.dataset,
                        "suite": spec.suite,
                        "norm": spec.threat.norm,
                        "eps": str(spec.threat.eps),
                        "n": spec.n,
                        "stochastic": spec.stochastic,
                        "spec": _to_json(spec.spec),
                        "provenance": _to_json(spec.provenance),
                        "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    }
                ],
            )
            evaluation = connection.execute(
                sa.select(_evaluations.c.id).where(_evaluations.c.identity == spec.identity)
            ).scalar_one()
            self._insert(
                connection,
                _attack_runs,
                [{"identity": each.identity, "label": each.label, "spec": _to_json(each.spec)} for each in spec.attacks],
            )
            numbers = {
                row.identity: row.id
                for row in connection.execute(
                    sa.select(_attack_runs.c.id, _attack_runs.c.identity).where(
                        _attack_runs.c.identity.in_([each.identity for each in spec.attacks])
                    )
                )
            }
            self._insert(
                connection,
                _members,
                [
                    {"evaluation": evaluation, "attack_run": numbers[each.identity], "position": position}
                    for position, each in enumerate(spec.attacks)
                ],
            )
        return next(found for found in self.evaluations() if found.id == evaluation)

    def append(self, attack_run: int, outcomes: Sequence[Outcome]) -> None:
        """Add outcomes in one transaction. Rows that are already there stay as they are.

        Raises CannotEvaluate if they cannot be written; what was committed before stays.
        """
        with self._naming(self._name), self._engine.begin() as connection:
            self._insert(connection, _outcomes, [{"attack_run": attack_run, **asdict(outcome)} for outcome in outcomes])

    def outcomes(self, attack_run: int) -> list[Outcome]:
        """What is on record for an attack run, by position in the split."""
        query = sa.select(_outcomes).where(_outcomes.c.attack_run == attack_run).order_by(_outcomes.c.index)
        with self._engine.connect() as connection:
            return [_outcome(row) for row in connection.execute(query)]

    def evaluations(self) -> list[Evaluation]:
        """Everything on record, oldest first."""
        with self._engine.connect() as connection:
            members: dict[int, list[Any]] = {}
            for member in connection.execute(
                sa.select(_members.c.evaluation, _attack_runs)
                .join(_attack_runs, _attack_runs.c.id == _members.c.attack_run)
                .order_by(_members.c.evaluation, _members.c.position)
            ):
                members.setdefault(member.evaluation, []).append(member)
            found = connection.execute(sa.select(_evaluations).order_by(_evaluations.c.id)).all()
        return [
            Evaluation(
                id=row.id,
                created=row.created,
                spec=EvaluationSpec(
                    identity=row.identity,
                    model=row.model,
                    dataset=row.dataset,
                    suite=row.suite,
                    threat=ThreatModel.of(row.norm, row.eps),
                    n=row.n,
                    stochastic=row.stochastic,
                    attacks=tuple(
                        AttackSpec(member.label, member.identity, json.loads(member.spec)) for member in members.get(row.id, [])
                    ),
                    spec=json.loads(row.spec),
                    provenance=json.loads(row.provenance),
                ),
                attack_runs={member.label: member.id for member in members.get(row.id, [])},
            )
            for row in found
        ]

    def frame(self, attack_runs: Sequence[int]) -> pd.DataFrame:
        """The outcomes of attack runs as a data frame: column `attack_run`, then the fields of `Outcome`."""
        query = (
            sa.select(_outcomes)
            .where(_outcomes.c.attack_run.in_(list(attack_runs)))
            .order_by(_outcomes.c.attack_run, _outcomes.c.index)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return pd.DataFrame([tuple(row) for row in rows], columns=["attack_run", *OUTCOME_COLUMNS])

    def _prepare(self, create: bool) -> None:
        if create:
            with self._engine.begin() as connection:
                _metadata.create_all(connection)
                self._insert(connection, _schema, [{"version": SCHEMA_VERSION}])
        with self._engine.connect() as connection:
            version = connection.execute(sa.select(_schema.c.version)).scalar()
        if version != SCHEMA_VERSION:
            raise DamagedData(
                f"{self._name}: schema version {version}, "
                f"this kwbench reads {SCHEMA_VERSION}; use another file with --db"
            )

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        try:
            yield
        except sa.exc.OperationalError as failure:
            raise CannotEvaluate(f"{name}: the database cannot be used ({failure.orig})") from None
        except sa.exc.DatabaseError as failure:
            raise DamagedData(f"{name}: not a kwbench database ({failure.orig})") from None

    def _insert(self, connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        connection.execute(dialect.insert(table).on_conflict_do_nothing(), rows)


def _make_file(path: Path) -> None:
    """A new database appears under its name whole or not at all, so that a kill cannot leave an empty file there."""
    if not path.parent.is_dir():
        raise CannotEvaluate(f"{path}: the folder {path.parent} does not exist")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with closing(sqlite3.connect(draft)) as connection:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        with suppress(FileExistsError):  # another process was first; its file serves as well
            os.link(draft, path)
    except (OSError, sqlite3.OperationalError) as failure:
        raise CannotEvaluate(f"{path}: the database cannot be written ({failure})") from None
    finally:
        draft.unlink(missing_ok=True)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise CannotEvaluate(f"{path}: no such database; `kwbench evaluate` makes one")
    if path.is_dir():
        raise CannotEvaluate(f"{path}: a folder, not a database file")
    head = path.read_bytes()[:100] if path.stat().st_size < 100 else _head(path)
    if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
        # An empty file is a valid empty SQLite database; taking it would hide that the record was lost.
        raise DamagedData(f"{path}: not a kwbench database ({path.stat().st_size} bytes); move it away or name another with --db")
    if int.from_bytes(head[68:72], "big") != APPLICATION_ID:
        raise DamagedData(f"{path}: a SQLite database of some other program; name another with --db")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(100)


def _configure_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin when SQLAlchemy says so
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 60000")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_mode = DELETE")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _outcome(row: Any) -> Outcome:
    values = {name: getattr(row, name) for name in OUTCOME_COLUMNS if name != "index"}
    values["status"] = Status(values["status"])
    values["other_status"] = Status(values["other_status"]) if values["other_status"] else None
    return Outcome(index=row._mapping["index"], **values)


def _to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
