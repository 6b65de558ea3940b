"""The record: a database of evaluations, their attack runs, one outcome per sample and attack run, and experiments.

Robust accuracy is never stored; `summary` derives it from the outcomes. Evaluations that ask for the same attack run share it,
so `--attack pgd` after `--attack all` has nothing to compute. Every write is idempotent: the same rows may be registered and
appended twice, also by two processes at once.
"""

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.finding import Finding
from kwbench.formatting import plain
from kwbench.outcome import Example, Outcome
from kwbench.record.arrays import OutcomeArrays
from kwbench.record.database import drivers, evaluations, examples, experiments, outcomes, schema
from kwbench.record.database.checksums import REMEDY
from kwbench.record.database.claims import Claims
from kwbench.record.database.drivers import Driver
from kwbench.record.database.migrations import create_tables, schema_version, upgrade
from kwbench.record.database.outcomes import Predictions
from kwbench.record.database.samples import LISTS, SampleWriter
from kwbench.record.database.sqlite_file import (
    IN_MEMORY,
    check_all_pages,
    check_file,
    check_integrity,
    check_schema,
    configure,
    create_file,
    create_file_on_first_connection,
    is_damage,
)
from kwbench.record.database.statements import IDS_PER_QUERY, in_parts
from kwbench.record.database.tallies import TallyReader
from kwbench.record.evaluation import Evaluation, EvaluationSpec
from kwbench.record.measurement import Measurement
from kwbench.record.tally import Tally

# A SQLite connection reads on one core.
_READERS = min(4, os.cpu_count() or 1)


_T = TypeVar("_T")


class Store:
    """A database of results; `Store.open` opens one.

    Every method raises CannotEvaluate if the database cannot be used, and DamagedData if it is not a kwbench database.

    Attributes:
        name: the path of the database, or its address without a password.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reader = TallyReader()
        self._sample_ids: dict[bytes, NDArray[np.int64]] = {}
        url = engine.url
        sqlite = url.get_backend_name() == "sqlite"
        self.name = url.database if sqlite and url.database else url.render_as_string(hide_password=True)

    @classmethod
    def open(cls, url: str, *, create: bool = False, deferred: bool = False, upgraded: bool = True) -> "Store":
        """Open the database at a SQLAlchemy URL or a path to a SQLite file.

        Args:
            url: the URL or path; `sqlite://` is a record in memory, which ends with the store.
            create: create the tables, and the file, where they are missing.
            deferred: create a missing file only when it is first used, so that a command that fails before leaves none behind.
            upgraded: bring a database of an earlier schema version up to date.

        Raises:
            CannotEvaluate: it does not exist or cannot be written.
            DamagedData: it is not a kwbench database.
            UsageError: the URL is malformed, or its driver is not installed.
        """
        try:
            # A path may hold what has a meaning in a URL, such as ? and %.
            parsed = sa.make_url(url) if "://" in url else sa.URL.create("sqlite", database=url)
        except sa.exc.ArgumentError:
            raise UsageError(f"--db {url}: neither a path nor a database URL such as sqlite:///results.db") from None
        is_sqlite = parsed.get_backend_name() == "sqlite"
        in_memory = is_sqlite and parsed.database in (None, "", ":memory:")
        path = Path(parsed.database) if is_sqlite and parsed.database and not in_memory else None
        if path is not None and "\0" in str(path):
            raise UsageError(f"--db {url!r}: a path holds no NUL")
        missing = path is not None and create and not path.exists()
        if path is not None and missing and not deferred:
            create_file(path, create_tables)
        if path is not None and not (missing and deferred):
            check_file(path)
        try:
            engine = sa.create_engine(parsed, **(IN_MEMORY if in_memory else {}))
        except (ImportError, sa.exc.ArgumentError) as failure:
            raise UsageError(f"--db {parsed.render_as_string(hide_password=True)}: {failure}") from None
        if is_sqlite:
            configure(engine)
        store = cls(engine)
        if path is not None and missing and deferred:
            create_file_on_first_connection(engine, path, create_tables)
            return store
        try:
            store._prepare(path, create=create, upgraded=upgraded)
        except BaseException:
            store.close()
            raise
        return store

    def _prepare(self, path: Path | None, *, create: bool, upgraded: bool) -> None:
        """Create the tables if they are missing, and check an existing database; see `open`."""
        engine = self._engine
        with self._translated_errors():
            # A new SQLite file comes with its tables.
            if create and path is None:
                with engine.begin() as connection:
                    create_tables(connection)
            if path is not None:
                with engine.connect() as connection:
                    check_schema(connection, path)
            if upgraded:
                upgrade(engine)
            if path is not None:
                with engine.connect() as connection:
                    check_integrity(connection, path)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def register(self, spec: EvaluationSpec) -> Evaluation:
        """Put an evaluation and its attack runs on record where they are missing, and return it as the newest one."""
        with self._writing() as connection:
            evaluations.insert_evaluation(connection, spec)
        return next(iter(self.evaluations(spec.identity)))

    def adopt(self, evaluation: Evaluation) -> Evaluation:
        """Put an evaluation of another record on record, with its dates; return it as it is here."""
        with self._writing() as connection:
            evaluations.adopt_evaluation(connection, evaluation)
        return next(iter(self.evaluations(evaluation.spec.identity)))

    def schema_version(self) -> int | None:
        """Return the schema version of the database; None if it states none."""
        with self._translated_errors():
            return schema_version(self._engine)

    def verify_storage(self) -> None:
        """Have the database check its own files, where it can. Raises DamagedData."""
        if self._engine.dialect.name == "sqlite":
            with self._reading() as connection:
                check_all_pages(connection)

    def evaluations(
        self, identity: str | None = None, *, model: str | None = None, containing: str | None = None
    ) -> list[Evaluation]:
        """Return all evaluations, oldest first, or the one with this identity; empty if there is none.

        `model`: only those of this model. `containing`: only those whose specification contains this text, such as the hash
        of a model. The others are not checked for damage.
        """
        with self._reading() as connection:
            return evaluations.select_evaluations(connection, identity, model, containing)

    @property
    def shared(self) -> bool:
        """Whether programs on several machines may write to it, which then share work by `claims`."""
        return self._engine.dialect.name == "postgresql"

    @contextmanager
    def claims(self, attack_run: int) -> Iterator[Claims]:
        """Yield claims on parts of an attack run, of a record that is `shared`; all are given back when the block ends."""
        with self._translated_errors(), self._engine.connect() as connection:
            claims = Claims(connection.execution_options(isolation_level="AUTOCOMMIT"), attack_run)
            try:
                yield claims
            finally:
                claims.give_back_all()

    def append(self, attack_run: int, rows: Sequence[Outcome] | OutcomeArrays) -> None:
        """Add outcomes, and the images of those that carry one, in one transaction.

        Rows on record stay as they are, except errors: they may have passed, so another outcome of the sample replaces them.

        Raises CannotEvaluate if a value is impossible; earlier transactions stay.
        """
        try:
            arrays = rows if isinstance(rows, OutcomeArrays) else OutcomeArrays.of(rows)
            arrays.require_possible()
        except CannotEvaluate as failure:
            raise CannotEvaluate(f"{self.name}: {failure}") from None
        with self._writing() as connection:
            writer = SampleWriter(connection, self._sample_ids)
            outcomes.insert_outcomes(connection, self._reader, attack_run, arrays, writer)
            if not isinstance(rows, OutcomeArrays):
                outcomes.insert_images(connection, attack_run, rows)
        self._sample_ids |= writer.written
        while len(self._sample_ids) > LISTS:
            del self._sample_ids[next(iter(self._sample_ids))]

    def discard(self, attack_run: int, samples: Collection[str] | None = None) -> None:
        """Delete the outcomes of these samples, by default of all, and their images."""
        with self._writing() as connection:
            outcomes.delete_outcomes(connection, self._reader, attack_run, samples)

    def outcomes(self, attack_run: int) -> list[Outcome]:
        """Return the outcomes of an attack run, by position in the split, without images."""
        return self.outcome_arrays(attack_run).outcomes()

    def outcome_arrays(self, attack_run: int) -> OutcomeArrays:
        """Return the outcomes of an attack run as arrays, by position in the split."""
        with self._reading() as connection:
            return outcomes.select_outcomes(connection, self._reader, attack_run)

    def predictions(self, attack_runs: Collection[int]) -> dict[int, Predictions]:
        """Return the number of samples by label and by prediction of the clean image, for each attack run."""
        with self._reading() as connection:
            return outcomes.select_predictions(connection, self._reader, attack_runs)

    def reasons(self, attack_runs: Collection[int]) -> dict[int, dict[str, int]]:
        """Return the notes of the rows that are invalid or errors, each with its count, for each attack run that has some."""
        with self._reading() as connection:
            return outcomes.select_reasons(connection, self._reader, attack_runs)

    def tallies(self, attack_runs: Collection[int] | None = None) -> dict[int, Tally]:
        """Return the tallies of attack runs, by default of all; runs without rows are left out.

        Where there are many, several connections read concurrently. Each attack run is read at one moment, but different runs
        may be read at different moments.
        """
        if attack_runs is None:
            with self._reading() as connection:
                attack_runs = connection.execute(sa.select(schema.attack_runs.c.id)).scalars().all()

        def read(part: list[int]) -> dict[int, Tally]:
            with self._reading() as connection:
                return self._reader.read(connection, part)

        return self._in_parallel(read, attack_runs)

    def fingerprints(self, attack_runs: Collection[int]) -> dict[int, bytes]:
        """Return a digest of the stored bytes behind the tally of each attack run, without unpacking them.

        They are equal only if the tallies are. Runs without rows have one, too; those without checksums have none.
        """

        def read(part: list[int]) -> dict[int, bytes]:
            with self._reading() as connection:
                return self._reader.fingerprints(connection, part)

        return self._in_parallel(read, attack_runs)

    def adversarials(self, attack_run: int) -> dict[str, NDArray[np.float32]]:
        """Return the adversarial images (c, h, w) that were kept, by sample. Raises DamagedData if one is damaged."""
        with self._reading() as connection:
            return outcomes.select_images(connection, attack_run)

    def examples(self, attack_run: int) -> dict[str, Example]:
        """Return the adversarial examples kept for people to look at, by sample. Raises DamagedData for damaged ones."""
        with self._reading() as connection:
            return examples.select_examples(connection, attack_run)

    def with_adversarials(self, attack_run: int) -> set[str]:
        """Return the samples whose adversarial images were kept."""
        with self._reading() as connection:
            return outcomes.select_samples_with_images(connection, attack_run)

    def record_findings(self, evaluation: int, findings: Sequence[Finding], *, instead_of: Sequence[str] = ()) -> None:
        """Replace the findings of the same checks, and those of the checks `instead_of`, on an evaluation.

        Raises CannotEvaluate for a figure or threshold that is not finite.
        """
        for finding in findings:
            if not math.isfinite(finding.threshold) or not math.isfinite(finding.figure or 0.0):
                raise CannotEvaluate(f"{self.name}: check {finding.check}: figure and threshold must be finite")
        with self._writing() as connection:
            evaluations.replace_findings(connection, evaluation, findings, instead_of)

    def findings(self, evaluation: int) -> list[Finding]:
        """Return the findings on an evaluation, in the order of their recording."""
        with self._reading() as connection:
            return evaluations.select_findings(connection, [evaluation]).get(evaluation, [])

    def findings_by_evaluation(self, chosen: Collection[int] | None = None) -> dict[int, list[Finding]]:
        """Return the findings on the evaluations with these ids, by default on all, by id."""
        with self._reading() as connection:
            if chosen is None or len(chosen) > IDS_PER_QUERY:
                return evaluations.select_findings(connection)
            return evaluations.select_findings(connection, chosen)

    def record_experiment(self, measurement: Measurement) -> None:
        """Put a measurement on record if it is missing; it becomes the newest one."""
        with self._writing() as connection:
            experiments.insert_measurement(connection, measurement)

    def experiments(self, identity: str | None = None, *, of: str | None = None) -> list[Measurement]:
        """Return all measurements, the newest last, or those with this identity, or `of` an experiment.

        Raises DamagedData for damaged arrays.
        """
        with self._reading() as connection:
            return experiments.select_measurements(connection, identity, of)

    def write_driver(self, driver: Driver) -> None:
        """Put what a program is doing into the database, until `delete_driver`."""
        with self._writing() as connection:
            drivers.write_driver(connection, driver)

    def delete_driver(self, identity: str) -> None:
        """Remove a program that has ended from those at work."""
        with self._writing() as connection:
            drivers.delete_driver(connection, identity)

    def drivers(self) -> list[Driver]:
        """Return the programs that evaluate into the database, also those that were killed lately."""
        with self._reading() as connection:
            return drivers.select_drivers(connection)

    def _in_parallel(self, read: Callable[[list[int]], dict[int, _T]], attack_runs: Collection[int]) -> dict[int, _T]:
        """Return what `read` returns for the parts of many attack runs, on several connections at once."""
        parts = list(in_parts(attack_runs))
        if len(parts) == 1:
            return read(parts[0])
        by_run: dict[int, _T] = {}
        with ThreadPoolExecutor(_READERS) as threads:
            for of_part in threads.map(read, parts):
                by_run |= of_part
        return by_run

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        # All queries must see one state, or rows and checksums would differ while another process writes.
        with self._translated_errors(), self._engine.connect() as connection:
            if connection.dialect.name != "sqlite":
                connection.execution_options(isolation_level="REPEATABLE READ")
            try:
                yield connection
            except (ValueError, TypeError, KeyError, OverflowError) as failure:
                raise DamagedData(f"damaged: a value cannot be read ({failure}); {REMEDY}") from None

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._translated_errors(), self._engine.execution_options(writes=True).begin() as connection:
            yield connection

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise errors of the database as our own, with the name of the database."""
        try:
            yield
        except DamagedData as failure:
            raise DamagedData(f"{self.name}: {failure}") from None
        except sa.exc.OperationalError as failure:
            if self._engine.dialect.name == "sqlite" and is_damage(failure.orig):
                raise DamagedData(f"{self.name}: damaged ({plain(failure.orig)}); {REMEDY}") from None
            raise CannotEvaluate(f"{self.name}: the database cannot be used ({failure.orig})") from None
        except UnicodeDecodeError:
            raise DamagedData(f"{self.name}: damaged, a text in it is none; {REMEDY}") from None
        except sa.exc.IntegrityError as failure:
            raise CannotEvaluate(f"{self.name}: an impossible row was refused ({failure.orig})") from None
        except sa.exc.DatabaseError as failure:
            raise DamagedData(f"{self.name}: not a kwbench database ({failure.orig})") from None
