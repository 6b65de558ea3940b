"""The record: evaluations, the attack runs they consist of, one outcome for each sample of an attack run, and experiments.

Robust accuracy is never stored; `standing` derives it from outcomes. An attack run is shared by every evaluation that asks
for the same thing, so `--attack pgd` after `--attack all` has nothing to do. Everything is idempotent: the same rows may be
registered and appended twice, also by two processes at once.
"""

import json
import math
import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql, sqlite

from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.finding import Finding
from kwbench.outcome import Outcome, Status
from kwbench.record.measurement import Array, Measurement
from kwbench.threat import ThreatModel

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 3
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
    # When it was last asked for: after a return to an older checkpoint, the older evaluation is the newest again.
    sa.Column("asked", sa.String, nullable=False),
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
    sa.CheckConstraint("forwards >= 0 AND backwards >= 0 AND seconds >= 0"),
    # Clustered by attack run: a report reads the whole table in this order.
    sqlite_with_rowid=False,
)

_findings = sa.Table(
    "findings",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("evaluation", sa.ForeignKey("evaluations.id"), nullable=False, index=True),
    sa.Column("check", sa.String, nullable=False),
    # The fields of Finding, as JSON.
    sa.Column("finding", sa.Text, nullable=False),
)

_adversarials = sa.Table(
    "adversarials",
    _metadata,
    sa.Column("attack_run", sa.Integer, primary_key=True),
    sa.Column("sample", sa.String(32), primary_key=True),
    sa.Column("channels", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    # Little-endian float32, row by row, compressed by zlib.
    sa.Column("image", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(["attack_run", "sample"], ["outcomes.attack_run", "outcomes.sample"]),
)

_experiments = sa.Table(
    "experiments",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("identity", sa.String(64), nullable=False, unique=True),
    sa.Column("experiment", sa.String, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("dataset", sa.String, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("provenance", sa.Text, nullable=False),
    # When it was last asked for, as for evaluations.
    sa.Column("asked", sa.String, nullable=False),
)

_arrays = sa.Table(
    "arrays",
    _metadata,
    sa.Column("experiment", sa.ForeignKey("experiments.id"), primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    # The lengths of its dimensions, as a JSON list.
    sa.Column("shape", sa.String, nullable=False),
    # Little-endian float64, row by row, compressed by zlib.
    sa.Column("numbers", sa.LargeBinary, nullable=False),
)

# What version 2 added, and version 3.
_SINCE_1 = [_findings, _adversarials, _experiments, _arrays]

_COUNTS = ("selection_correct", "selection_draws", "fresh_correct", "fresh_draws")

# Attack runs in one query: SQLite limits the parameters.
_PART = 500

# SQLite reads on one core a connection.
_READERS = min(4, os.cpu_count() or 1)

# In a text of statuses without spaces, w, b, h and v stand once in each wrong, broken, held and invalid, and nowhere else.
_INITIALS = bytes.maketrans(b"v!", b"ie")
_OTHERS = bytes(set(b"abcdefghijklmnopqrstuvwxyz") - set(b"wbhv"))

# An image has a table of its own.
OUTCOME_COLUMNS = [field.name for field in fields(Outcome) if field.name != "image"]


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
    """An evaluation on record: its spec, its number, when it began and was last asked for (UTC), its attack runs by label."""

    id: int
    created: str
    asked: str
    spec: EvaluationSpec
    attack_runs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Tally:
    """The outcomes of one attack run, packed: one entry a sample, ordered by `index`, the position in the split.

    `status` holds the first letters of the statuses. The p-hats (NaN where a row has no draws) are empty for deterministic
    models. Costs are sums over the samples.
    """

    index: NDArray[np.int64]
    status: NDArray[np.bytes_]
    selection: NDArray[np.float64]
    fresh: NDArray[np.float64]
    forwards: int
    backwards: int
    seconds: float
    # Rows with a verdict under the other judging rule, and how many of them held under it.
    other_rows: int
    other_held: int
    # Rows with a prediction of the surrogate, and how many of these are right.
    surrogate_rows: int
    surrogate_right: int

    def __len__(self) -> int:
        return len(self.index)


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
        now = datetime.now(UTC)
        with self._naming(self._name), self._engine.begin() as connection:
            _insert(
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
                        "created": now.isoformat(timespec="seconds"),
                        "asked": now.isoformat(timespec="microseconds"),
                    }
                ],
            )
            connection.execute(
                sa.update(_evaluations)
                .where(_evaluations.c.identity == spec.identity)
                .values(asked=now.isoformat(timespec="microseconds"))
            )
            evaluation = connection.execute(
                sa.select(_evaluations.c.id).where(_evaluations.c.identity == spec.identity)
            ).scalar_one()
            _insert(
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
            _insert(
                connection,
                _members,
                [
                    {"evaluation": evaluation, "attack_run": numbers[each.identity], "position": position}
                    for position, each in enumerate(spec.attacks)
                ],
            )
        return next(iter(self.evaluations(spec.identity)))

    def append(self, attack_run: int, outcomes: Sequence[Outcome]) -> None:
        """Add outcomes, and the images of those that carry one, in one transaction. What is already there stays as it is.

        Raises CannotEvaluate if they cannot be written, or a value is impossible; what was committed before stays.
        """
        for outcome in outcomes:
            # SQLite would store NaN as NULL, which reads as "there is nothing to measure".
            if not math.isfinite(outcome.seconds) or not math.isfinite(outcome.distance or 0.0):
                raise CannotEvaluate(f"{self._name}: sample {outcome.sample}: distance and seconds must be finite")
        with self._naming(self._name), self._engine.begin() as connection:
            _insert(connection, _outcomes, [{"attack_run": attack_run, **_columns(outcome)} for outcome in outcomes])
            _insert(
                connection,
                _adversarials,
                [
                    {
                        "attack_run": attack_run,
                        "sample": outcome.sample,
                        **dict(zip(("channels", "height", "width"), outcome.image.shape, strict=True)),
                        "image": zlib.compress(outcome.image.astype("<f4").tobytes()),
                    }
                    for outcome in outcomes
                    if outcome.image is not None
                ],
            )

    def outcomes(self, attack_run: int) -> list[Outcome]:
        """What is on record for an attack run, by position in the split."""
        query = sa.select(_outcomes).where(_outcomes.c.attack_run == attack_run).order_by(_outcomes.c.index)
        with self._naming(self._name), self._engine.connect() as connection:
            return [_outcome(row) for row in connection.execute(query)]

    def adversarials(self, attack_run: int) -> dict[str, NDArray[np.float32]]:
        """The adversarial images (c, h, w) that were kept, by sample. Raises DamagedData for bytes that are no such image."""
        table = _adversarials.c
        query = sa.select(table.sample, table.channels, table.height, table.width, table.image)
        with self._naming(self._name), self._engine.connect() as connection:
            rows = connection.execute(query.where(table.attack_run == attack_run).order_by(table.sample)).all()
        return {sample: self._image(sample, (c, h, w), packed) for sample, c, h, w, packed in rows}

    def with_adversarials(self, attack_run: int) -> set[str]:
        """The samples whose adversarial images were kept."""
        query = sa.select(_adversarials.c.sample).where(_adversarials.c.attack_run == attack_run)
        with self._naming(self._name), self._engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def record_findings(self, evaluation: int, findings: Sequence[Finding], *, instead_of: Sequence[str] = ()) -> None:
        """Put what checks found on record; it replaces what the same checks found before, and those of `instead_of`.

        Raises CannotEvaluate for a figure that is not finite, and if it cannot be written.
        """
        for finding in findings:
            if not math.isfinite(finding.threshold) or not math.isfinite(finding.figure or 0.0):
                raise CannotEvaluate(f"{self._name}: check {finding.check}: figure and threshold must be finite")
        with self._naming(self._name), self._engine.begin() as connection:
            connection.execute(
                sa.delete(_findings).where(
                    _findings.c.evaluation == evaluation,
                    _findings.c.check.in_([*instead_of, *(each.check for each in findings)]),
                )
            )
            _insert(
                connection,
                _findings,
                [{"evaluation": evaluation, "check": each.check, "finding": _to_json(asdict(each))} for each in findings],
            )

    def findings(self, evaluation: int) -> list[Finding]:
        """What checks found on an evaluation, in the order in which it was recorded."""
        return self.findings_by_evaluation(_findings.c.evaluation == evaluation).get(evaluation, [])

    def findings_by_evaluation(self, which: sa.ColumnElement[bool] | None = None) -> dict[int, list[Finding]]:
        """What checks found, by evaluation: on all of them, or those that a condition chooses."""
        query = sa.select(_findings.c.evaluation, _findings.c.finding).order_by(_findings.c.id)
        found: dict[int, list[Finding]] = {}
        with self._naming(self._name), self._engine.connect() as connection:
            for evaluation, text in connection.execute(query.where(sa.true() if which is None else which)):
                each = json.loads(text)
                found.setdefault(evaluation, []).append(Finding(**{**each, "samples": tuple(each["samples"])}))
        return found

    def record_experiment(self, measured: Measurement) -> None:
        """Put what an experiment measured on record; what is there already stays, and becomes the newest again.

        Raises CannotEvaluate if it cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        with self._naming(self._name), self._engine.begin() as connection:
            _insert(
                connection,
                _experiments,
                [
                    {
                        "identity": measured.identity,
                        "experiment": measured.experiment,
                        "model": measured.model,
                        "dataset": measured.dataset,
                        "spec": _to_json(measured.spec),
                        "provenance": _to_json(measured.provenance),
                        "asked": now,
                    }
                ],
            )
            mine = _experiments.c.identity == measured.identity
            connection.execute(sa.update(_experiments).where(mine).values(asked=now))
            number = connection.execute(sa.select(_experiments.c.id).where(mine)).scalar_one()
            _insert(
                connection,
                _arrays,
                [
                    {
                        "experiment": number,
                        "name": name,
                        "shape": json.dumps(array.shape),
                        "numbers": zlib.compress(array.astype("<f8").tobytes()),
                    }
                    for name, array in measured.arrays.items()
                ],
            )

    def experiments(self, identity: str | None = None) -> list[Measurement]:
        """What experiments measured, the newest last; or the one of this identity, if it is there.

        Raises DamagedData for bytes that are no such array.
        """
        which = sa.true() if identity is None else _experiments.c.identity == identity
        arrays: dict[int, dict[str, Array]] = {}
        with self._naming(self._name), self._engine.connect() as connection:
            query = sa.select(_arrays).join(_experiments, _experiments.c.id == _arrays.c.experiment)
            for row in connection.execute(query.where(which).order_by(_arrays.c.experiment, _arrays.c.name)):
                arrays.setdefault(row.experiment, {})[row.name] = self._array(row.name, row.shape, row.numbers)
            query = sa.select(_experiments).where(which)
            found = connection.execute(query.order_by(_experiments.c.asked, _experiments.c.id)).all()
        return [
            Measurement(
                identity=row.identity,
                experiment=row.experiment,
                model=row.model,
                dataset=row.dataset,
                spec=json.loads(row.spec),
                provenance=json.loads(row.provenance),
                arrays=arrays.get(row.id, {}),
            )
            for row in found
        ]

    def evaluations(self, identity: str | None = None) -> list[Evaluation]:
        """Everything on record, oldest first; or the one evaluation of this identity, if it is there."""
        which = sa.true() if identity is None else _evaluations.c.identity == identity
        # An attack's parameters are the same text in nearly all evaluations.
        parsed: dict[str, Mapping[str, Any]] = {}
        members: dict[int, tuple[list[AttackSpec], dict[str, int]]] = {}
        with self._naming(self._name), self._engine.connect() as connection:
            for evaluation, run, run_identity, label, text in connection.execute(
                sa.select(_members.c.evaluation, *(_attack_runs.c[name] for name in ("id", "identity", "label", "spec")))
                .join(_attack_runs, _attack_runs.c.id == _members.c.attack_run)
                .join(_evaluations, _evaluations.c.id == _members.c.evaluation)
                .where(which)
                .order_by(_members.c.evaluation, _members.c.position)
            ):
                if text not in parsed:
                    parsed[text] = json.loads(text)
                attacks, runs = members.setdefault(evaluation, ([], {}))
                attacks.append(AttackSpec(label, run_identity, parsed[text]))
                runs[label] = run
            found = connection.execute(sa.select(_evaluations).where(which).order_by(_evaluations.c.id)).all()
        return [
            Evaluation(
                id=row.id,
                created=row.created,
                asked=row.asked,
                spec=EvaluationSpec(
                    identity=row.identity,
                    model=row.model,
                    dataset=row.dataset,
                    suite=row.suite,
                    threat=ThreatModel.of(row.norm, row.eps),
                    n=row.n,
                    stochastic=row.stochastic,
                    attacks=tuple(attacks),
                    spec=json.loads(row.spec),
                    provenance=json.loads(row.provenance),
                ),
                attack_runs=runs,
            )
            for row in found
            for attacks, runs in [members.get(row.id, ([], {}))]
        ]

    def frame(self, attack_runs: Sequence[int]) -> "pd.DataFrame":
        """The outcomes of attack runs as a data frame: column `attack_run`, then the fields of `Outcome`."""
        import pandas as pd

        rows: list[sa.Row[Any]] = []
        with self._naming(self._name), self._engine.connect() as connection:
            for part in _parts(sorted(set(attack_runs))):
                query = sa.select(_outcomes).where(_outcomes.c.attack_run.in_(part))
                rows += connection.execute(query.order_by(_outcomes.c.attack_run, _outcomes.c.index)).all()
        return pd.DataFrame([tuple(row) for row in rows], columns=["attack_run", *OUTCOME_COLUMNS])

    def tallies(self, attack_runs: Collection[int] | None = None) -> dict[int, Tally]:
        """The outcomes of attack runs, packed by the database: about 2 million rows a second and core. None: of all of them.

        Where there are many, several connections read side by side: an attack run is read whole, but one of them may have
        rows that came after another was read.
        """
        if attack_runs is None:
            with self._naming(self._name), self._engine.connect() as connection:
                attack_runs = connection.execute(sa.select(_attack_runs.c.id)).scalars().all()
        parts = list(_parts(attack_runs))
        parsed: dict[str, tuple[NDArray[np.intp], NDArray[np.int64]]] = {}
        if len(parts) == 1:
            return self._tallies(parts[0], parsed)
        tallies: dict[int, Tally] = {}
        with ThreadPoolExecutor(_READERS) as readers:
            for some in readers.map(lambda part: self._tallies(part, parsed), parts):
                tallies |= some
        return tallies

    def _tallies(
        self, attack_runs: list[int], parsed: dict[str, tuple[NDArray[np.intp], NDArray[np.int64]]]
    ) -> dict[int, Tally]:
        text, table = sa.func.aggregate_strings, _outcomes.c
        index = text(sa.cast(table.index, sa.String), ",")

        def grouped(runs: Sequence[int], *columns: sa.ColumnElement[Any]) -> list[Any]:
            query = sa.select(table.attack_run, *columns).where(table.attack_run.in_(runs)).group_by(table.attack_run)
            return list(connection.execute(query)) if runs else []

        with self._naming(self._name), self._engine.connect() as connection:
            rows = grouped(
                attack_runs,
                index,
                text(table.status, ""),
                sa.func.sum(table.forwards),
                sa.func.sum(table.backwards),
                sa.func.sum(table.seconds),
                sa.func.count(sa.case((table.other_status.is_not(None) | table.surrogate_prediction.is_not(None), 1))),
                sa.func.max(table.selection_draws + table.fresh_draws),
            )
            # What few attack runs have is asked of these alone.
            more = grouped(
                [row[0] for row in rows if row[6]],
                sa.func.count(table.other_status),
                sa.func.count(sa.case((table.other_status == Status.HELD.value, 1))),
                sa.func.count(table.surrogate_prediction),
                sa.func.count(sa.case((table.surrogate_prediction == table.label, 1))),
            )
            others = {run: counts for run, *counts in more}
            counts = [text(sa.cast(table[name], sa.String), ",") for name in _COUNTS]
            draws: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
            for run, positions, *texts in grouped([row[0] for row in rows if row[7]], index, *counts):
                order, _ = _positions(positions, parsed)
                selected, of, scored, scored_of = (_integers(each)[order] for each in texts)
                draws[run] = (_shares(selected, of), _shares(scored, scored_of))
        tallies = {}
        none = np.empty(0)
        for run, positions, statuses, forwards, backwards, seconds, *_ in rows:
            other_rows, other_held, surrogate_rows, surrogate_right = others.get(run, (0, 0, 0, 0))
            order, sorted_positions = _positions(positions, parsed)
            selection, fresh = draws.get(run, (none, none))
            tallies[run] = Tally(
                index=sorted_positions,
                status=np.frombuffer(_letters(statuses), dtype="S1")[order],
                selection=selection,
                fresh=fresh,
                forwards=int(forwards),
                backwards=int(backwards),
                seconds=float(seconds),
                other_rows=other_rows,
                other_held=other_held,
                surrogate_rows=surrogate_rows,
                surrogate_right=surrogate_right,
            )
        return tallies

    def _prepare(self, create: bool) -> None:
        # A new SQLite file comes with its tables.
        if create and self._engine.dialect.name != "sqlite":
            with self._engine.begin() as connection:
                _create(connection)
        with self._engine.connect() as connection:
            if not sa.inspect(connection).has_table(_schema.name):
                raise DamagedData(f"{self._name}: not a kwbench database, its tables are not there")
            version = connection.execute(sa.select(_schema.c.version)).scalar()
        if version in (1, 2):
            with self._engine.begin() as connection:
                version = _migrate(connection)
        if version != SCHEMA_VERSION:
            advice = "update kwbench" if isinstance(version, int) and version > SCHEMA_VERSION else "use another file with --db"
            raise DamagedData(f"{self._name}: schema version {version}, this kwbench reads {SCHEMA_VERSION}; {advice}")

    def _image(self, sample: str, shape: tuple[int, int, int], packed: bytes) -> NDArray[np.float32]:
        try:
            return np.frombuffer(zlib.decompress(packed), dtype="<f4").astype(np.float32).reshape(shape)
        except (zlib.error, ValueError) as failure:
            raise DamagedData(f"{self._name}: the adversarial image of sample {sample} is damaged ({failure})") from None

    def _array(self, name: str, shape: str, packed: bytes) -> Array:
        try:
            return np.frombuffer(zlib.decompress(packed), dtype="<f8").astype(np.float64).reshape(json.loads(shape))
        except (zlib.error, ValueError, TypeError) as failure:
            raise DamagedData(f"{self._name}: the array {name!r} of an experiment is damaged ({failure})") from None

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        try:
            yield
        except sa.exc.OperationalError as failure:
            raise CannotEvaluate(f"{name}: the database cannot be used ({failure.orig})") from None
        except sa.exc.IntegrityError as failure:
            raise CannotEvaluate(f"{name}: a row that cannot be true was refused ({failure.orig})") from None
        except sa.exc.DatabaseError as failure:
            raise DamagedData(f"{name}: not a kwbench database ({failure.orig})") from None


def _insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(table).on_conflict_do_nothing(), rows)


def _create(connection: sa.Connection) -> None:
    _metadata.create_all(connection)
    _insert(connection, _schema, [{"version": SCHEMA_VERSION}])


def _migrate(connection: sa.Connection) -> int:
    """Bring a database of version 1 or 2 to this version, in the transaction at hand; what is on record stays as it is."""
    # The update comes first: it takes the lock for writing, so of two processes one waits here and then finds nothing to do.
    older = _schema.c.version.in_([1, 2])
    updated = connection.execute(sa.update(_schema).where(older).values(version=SCHEMA_VERSION))
    if updated.rowcount:
        # Those that version 2 has already are left as they are.
        _metadata.create_all(connection, _SINCE_1)
    return int(connection.execute(sa.select(_schema.c.version)).scalar_one())


def _make_file(path: Path) -> None:
    """A new database appears under its name whole or not at all, so that a kill cannot leave an empty file there."""
    if not path.parent.is_dir():
        raise CannotEvaluate(f"{path}: the folder {path.parent} does not exist")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    engine = sa.create_engine(f"sqlite:///{draft}", poolclass=sa.NullPool)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
            _create(connection)
        _place(draft, path)
    except (OSError, sa.exc.OperationalError) as failure:
        reason = failure.orig if isinstance(failure, sa.exc.OperationalError) else failure
        raise CannotEvaluate(f"{path}: the database cannot be written ({reason})") from None
    finally:
        with suppress(OSError):
            draft.unlink()


def _place(draft: Path, path: Path) -> None:
    """Give the draft its name unless another process was first; its file serves as well."""
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            draft.replace(path)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise CannotEvaluate(f"{path}: no such database; `kwbench evaluate` makes one")
    if path.is_dir():
        raise CannotEvaluate(f"{path}: a folder, not a database file")
    head = path.read_bytes()[:100] if path.stat().st_size < 100 else _head(path)
    if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
        # An empty file is a valid empty SQLite database; taking it would hide that the record was lost.
        size = path.stat().st_size
        raise DamagedData(f"{path}: not a kwbench database ({size} bytes); move it away or name another with --db")
    if int.from_bytes(head[68:72], "big") != APPLICATION_ID:
        raise DamagedData(f"{path}: a SQLite database of some other program; name another with --db")
    _check_length(path, head)


def _check_length(path: Path, head: bytes) -> None:
    """SQLite notices that a file was cut only when it misses a page, and counts rows without a word until then."""
    journal = Path(f"{path}-journal")
    page = int.from_bytes(head[16:18], "big") or 1
    expected = (65536 if page == 1 else page) * int.from_bytes(head[28:32], "big")
    # The header tells the length unless an old SQLite wrote last; a journal means that a transaction is under way.
    if head[24:28] == head[92:96] and not journal.exists() and path.stat().st_size < expected and not journal.exists():
        raise DamagedData(
            f"{path}: cut short, {path.stat().st_size} of {expected} bytes; restore it from a backup or name another with --db"
        )


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


def _columns(outcome: Outcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in OUTCOME_COLUMNS}


def _outcome(row: Any) -> Outcome:
    values = {name: getattr(row, name) for name in OUTCOME_COLUMNS if name != "index"}
    values["status"] = Status(values["status"])
    values["other_status"] = Status(values["other_status"]) if values["other_status"] else None
    return Outcome(index=row._mapping["index"], **values)


def pack(frame: "pd.DataFrame") -> dict[int, Tally]:
    """The same as `Store.tallies`, from a data frame of `Store.frame`: the tally of each attack run in it."""
    tallies = {}
    for attack_run, group in frame.groupby("attack_run", sort=False):
        rows = group.sort_values("index")
        stochastic = bool((rows["selection_draws"] + rows["fresh_draws"] > 0).any())
        others, surrogates = rows["other_status"].notna(), rows["surrogate_prediction"].notna()
        tallies[int(str(attack_run))] = Tally(
            index=rows["index"].to_numpy(dtype=np.int64),
            status=rows["status"].astype(str).str[:1].to_numpy(dtype="S1"),
            selection=_shares(*(rows[name].to_numpy(dtype=float) for name in _COUNTS[:2])) if stochastic else np.empty(0),
            fresh=_shares(*(rows[name].to_numpy(dtype=float) for name in _COUNTS[2:])) if stochastic else np.empty(0),
            forwards=int(rows["forwards"].sum()),
            backwards=int(rows["backwards"].sum()),
            seconds=float(rows["seconds"].sum()),
            other_rows=int(others.sum()),
            other_held=int((rows["other_status"] == Status.HELD).sum()),
            surrogate_rows=int(surrogates.sum()),
            surrogate_right=int((surrogates & (rows["surrogate_prediction"] == rows["label"])).sum()),
        )
    return tallies


def _parts(numbers: Collection[int]) -> Iterator[list[int]]:
    """Lists short enough for one query."""
    ordered = sorted(numbers)
    for start in range(0, len(ordered), _PART):
        yield ordered[start : start + _PART]


def _letters(statuses: str) -> bytes:
    """The first letters of statuses that stand side by side without spaces."""
    return statuses.encode().replace(b"error", b"!").translate(_INITIALS, _OTHERS)


def _integers(text: str) -> NDArray[np.int64]:
    return np.fromstring(text, dtype=np.int64, sep=",")


def _positions(
    text: str, parsed: dict[str, tuple[NDArray[np.intp], NDArray[np.int64]]]
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """The order that sorts the rows, and the sorted positions. Nearly all attack runs share one text."""
    if text not in parsed:
        index = _integers(text)
        order = np.argsort(index, kind="stable")
        # Whoever was first: other readers compare by identity what they have of it.
        return parsed.setdefault(text, (order, index[order]))
    return parsed[text]


def _shares(right: NDArray[Any], draws: NDArray[Any]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.divide(right, draws, out=np.full(right.shape, np.nan), where=draws > 0)
    return shares


def _to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
