"""Queries on outcomes and the adversarial images that were kept."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.outcome import Outcome, Status
from kwbench.record.arrays import MISSING, OutcomeArrays, concatenated
from kwbench.record.database import schema
from kwbench.record.database.checksums import damaged_run
from kwbench.record.database.examples import insert_examples
from kwbench.record.database.samples import SampleWriter
from kwbench.record.database.shards import LARGEST, Checksum, Shard, select_arrays, total, write_shards
from kwbench.record.database.statements import in_parts, insert, lock, pack_array, unpack_array, upsert
from kwbench.record.database.tallies import TallyReader

# Number of samples by label and prediction.
Predictions = Mapping[tuple[int, int], int]

_ERROR = Status.ERROR[:1].encode()
_FAILED = (_ERROR, Status.INVALID[:1].encode())


def insert_outcomes(
    connection: sa.Connection, reader: TallyReader, attack_run: int, outcomes: OutcomeArrays, samples: SampleWriter
) -> None:
    """Insert outcomes where they are missing or errors. Raises DamagedData if those on record are not what was written."""
    lock(connection, schema.attack_runs, schema.attack_runs.c.id == attack_run)
    run = _Run(connection, reader, attack_run)
    outcomes = outcomes.first_of_each()
    if run.shards:
        recorded = run.statuses()
        fresh = [recorded.get(sample, _ERROR) == _ERROR for sample in outcomes.sample.tolist()]
        outcomes = outcomes.take(np.array(fresh, dtype=np.bool_))
        replaced = {sample for sample in outcomes.sample.tolist() if sample in recorded}
        if replaced:
            run.remove(replaced)
            _delete_images(connection, attack_run, replaced)
    if len(outcomes):
        run.add(outcomes, samples.write(outcomes))
    run.finish()


def insert_images(connection: sa.Connection, attack_run: int, outcomes: Sequence[Outcome]) -> None:
    """Insert the images and the examples of those outcomes that carry one, where they are missing."""
    images = [
        {
            "attack_run": attack_run,
            "sample": outcome.sample,
            **dict(zip(("channels", "height", "width"), outcome.image.shape, strict=True)),
            "image": pack_array(outcome.image, "<f4", outcome.sample),
        }
        for outcome in outcomes
        if outcome.image is not None
    ]
    insert(connection, schema.adversarials, images)
    insert_examples(connection, attack_run, outcomes)


def delete_outcomes(connection: sa.Connection, reader: TallyReader, attack_run: int, samples: Collection[str] | None) -> None:
    """Delete the outcomes of these samples, by default of all, and their images."""
    lock(connection, schema.attack_runs, schema.attack_runs.c.id == attack_run)
    run = _Run(connection, reader, attack_run)
    recorded = run.statuses().keys()
    deleted = set(recorded) if samples is None else recorded & {sample.encode() for sample in samples}
    run.remove(deleted)
    _delete_images(connection, attack_run, deleted)
    run.finish()


class _Run:
    """The shards of an attack run within a transaction that changes them, and their checksums."""

    def __init__(self, connection: sa.Connection, reader: TallyReader, attack_run: int) -> None:
        """Raises DamagedData if what is on record is not what was written."""
        self._connection, self._attack_run = connection, attack_run
        shards, checksums = reader.shards(connection, [attack_run])
        self.shards: list[Shard] = shards.get(attack_run, [])
        recorded = checksums.get(attack_run)
        # Outcomes from before the record had checksums, and those added to them, stay without.
        self._guarded = recorded is not None or not self.shards
        try:
            self._tally, self._details = (Checksum.of(text) for text in reversed(recorded or ("0 0", "0 0")))
        except ValueError:
            raise damaged_run(connection, attack_run) from None

    def statuses(self) -> dict[bytes, bytes]:
        """Return the first letter of each sample's status."""
        letters: dict[bytes, bytes] = {}
        for shard in self.shards:
            letters |= zip(shard.samples.sample.tolist(), shard.columns[0].tolist(), strict=True)
        return letters

    def add(self, outcomes: OutcomeArrays, ids: NDArray[np.int64]) -> None:
        """Add outcomes of samples that have these ids and are not in the run.

        They take in the shards that were written last, as long as these are not larger. A run written in n batches thus has
        at most about log2(n) shards at any moment, and each outcome is written as often.
        """
        parts, all_ids, n = [outcomes], [ids], len(outcomes)
        while self.shards and (before := len(self.shards[-1].samples.ids)) <= n and before + n <= LARGEST:
            shard = self.shards.pop()
            parts.append(self._take_out(shard))
            all_ids.append(shard.samples.ids)
            n += before
        self._write(concatenated(parts), np.concatenate(all_ids))

    def remove(self, samples: Collection[bytes]) -> None:
        """Remove the outcomes of these samples."""
        for shard in tuple(self.shards):
            kept = np.array([sample not in samples for sample in shard.samples.sample.tolist()], dtype=np.bool_)
            if not kept.all():
                self.shards.remove(shard)
                outcomes = self._take_out(shard)
                if kept.any():
                    self._write(outcomes.take(kept), shard.samples.ids[kept])

    def finish(self) -> None:
        """Bring the checksums on record up to date."""
        table = schema.attack_run_checksums
        if not self._guarded:
            return
        if self._details.count:
            row = {"attack_run": self._attack_run, "outcomes": str(self._details), "tally": str(self._tally)}
            upsert(self._connection, table, row)
        else:
            self._connection.execute(sa.delete(table).where(table.c.attack_run == self._attack_run))

    def _take_out(self, shard: Shard) -> OutcomeArrays:
        outcomes, details = select_arrays(self._connection, self._attack_run, shard)
        self._connection.execute(sa.delete(schema.shards).where(schema.shards.c.id == shard.id))
        self._tally -= shard.checksum
        self._details -= details
        return outcomes

    def _write(self, outcomes: OutcomeArrays, ids: NDArray[np.int64]) -> None:
        tally, details = write_shards(self._connection, self._attack_run, outcomes, ids)
        self._tally += tally
        self._details += details


def _delete_images(connection: sa.Connection, attack_run: int, samples: Iterable[bytes]) -> None:
    names = [sample.decode() for sample in samples]
    for table in (schema.examples, schema.adversarials):
        for part in in_parts(names):
            connection.execute(sa.delete(table).where(table.c.attack_run == attack_run, table.c.sample.in_(part)))


def select_outcomes(connection: sa.Connection, reader: TallyReader, attack_run: int) -> OutcomeArrays:
    """Return the outcomes of an attack run, by position in the split. Raises DamagedData if they are not what was written."""
    shards, checksums = reader.shards(connection, [attack_run])
    parts = [select_arrays(connection, attack_run, shard) for shard in shards.get(attack_run, [])]
    recorded = checksums.get(attack_run)
    if recorded is not None and recorded[0] != str(total(checksum for _, checksum in parts)):
        raise damaged_run(connection, attack_run)
    outcomes = concatenated([arrays for arrays, _ in parts])
    if recorded is None:
        try:
            outcomes.require_possible()
        except CannotEvaluate:
            raise damaged_run(connection, attack_run) from None
    return outcomes.sorted()


def select_predictions(connection: sa.Connection, reader: TallyReader, attack_runs: Collection[int]) -> dict[int, Predictions]:
    """Return the predictions on clean images, by attack run."""
    predictions: dict[int, Predictions] = {}
    for run in sorted(set(attack_runs)):
        outcomes = select_outcomes(connection, reader, run)
        known = outcomes.take(outcomes.clean_prediction != MISSING)
        if len(known):
            predictions[run] = Counter(zip(known.label.tolist(), known.clean_prediction.tolist(), strict=True))
    return predictions


def select_reasons(connection: sa.Connection, reader: TallyReader, attack_runs: Collection[int]) -> dict[int, dict[str, int]]:
    """Return the notes of rows that are invalid or errors, with the number of rows, by attack run."""
    reasons: dict[int, dict[str, int]] = {}
    for run in sorted(set(attack_runs)):
        outcomes = select_outcomes(connection, reader, run)
        failed = np.isin(outcomes.status, _FAILED)
        if failed.any():
            reasons[run] = Counter(outcomes.note[failed].tolist())
    return reasons


def select_images(connection: sa.Connection, attack_run: int) -> dict[str, NDArray[np.float32]]:
    """Return the adversarial images (c, h, w) that were kept, by sample. Raises DamagedData for damaged ones."""
    table = schema.adversarials.c
    query = sa.select(table.sample, table.channels, table.height, table.width, table.image)
    rows = connection.execute(query.where(table.attack_run == attack_run).order_by(table.sample))
    return {sample: _image(sample, (c, h, w), packed) for sample, c, h, w, packed in rows}


def select_samples_with_images(connection: sa.Connection, attack_run: int) -> set[str]:
    """Return the samples whose adversarial images were kept."""
    table = schema.adversarials.c
    return set(connection.execute(sa.select(table.sample).where(table.attack_run == attack_run)).scalars())


def _image(sample: str, shape: tuple[int, int, int], packed: bytes) -> NDArray[np.float32]:
    try:
        return unpack_array(packed, "<f4", shape, sample).astype(np.float32)
    except (ValueError, TypeError) as failure:
        raise DamagedData(f"the adversarial image of sample {sample} is damaged ({failure})") from None
