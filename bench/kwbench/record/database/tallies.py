"""Reading tallies: what summaries need of attack runs, without the rest of their outcomes."""

import hashlib
from collections.abc import Sequence

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from kwbench.record.database.checksums import damaged_run, select_run_checksums
from kwbench.record.database.samples import LISTS, SampleReader
from kwbench.record.database.shards import Shard, select_shards, select_stored, total
from kwbench.record.tally import Tally, shares

_Order = tuple[NDArray[np.intp], NDArray[np.int64]]


class TallyReader:
    """Reads tallies, and keeps lists of samples in memory. Several threads may share one, each with its connection.

    Attack runs on the same samples share one `index` array: comparing it with itself costs nothing.
    """

    def __init__(self) -> None:
        self._samples = SampleReader()
        self._orders: dict[tuple[bytes, ...], _Order] = {}

    def read(self, connection: sa.Connection, attack_runs: Sequence[int]) -> dict[int, Tally]:
        """Return the tallies of at most `IDS_PER_QUERY` attack runs; runs without outcomes are left out.

        Raises DamagedData if one is not what was written.
        """
        shards, checksums = self.shards(connection, attack_runs)
        return {run: self._tally(own, guarded=run in checksums) for run, own in shards.items()}

    def shards(
        self, connection: sa.Connection, attack_runs: Sequence[int]
    ) -> tuple[dict[int, list[Shard]], dict[int, tuple[str, str]]]:
        """Return the shards behind the tallies, and the checksums of `select_run_checksums`; see `read`."""
        shards = select_shards(connection, self._samples, attack_runs)
        checksums = select_run_checksums(connection, attack_runs)
        for run, (_, recorded) in checksums.items():
            if recorded != str(total(shard.checksum for shard in shards.get(run, ()))):
                raise damaged_run(connection, run)
        for run in shards.keys() - checksums.keys():
            if not all(shard.possible for shard in shards[run]):
                raise damaged_run(connection, run)
        return shards, checksums

    def fingerprints(self, connection: sa.Connection, attack_runs: Sequence[int]) -> dict[int, bytes]:
        """Return digests of what is stored of at most `IDS_PER_QUERY` attack runs; see `Store.fingerprints`."""
        checksums = select_run_checksums(connection, attack_runs)
        digests = {run: hashlib.blake2b(ascii(checksums.get(run)).encode(), digest_size=16) for run in attack_runs}
        for run, samples, n, tally in select_stored(connection, self._samples, attack_runs):
            if run not in checksums:
                digests.pop(run, None)
            else:
                digests[run].update(samples + n.to_bytes(8, "big") + tally)
        return {run: digest.digest() for run, digest in digests.items()}

    def _tally(self, shards: Sequence[Shard], *, guarded: bool) -> Tally:
        index, (status, *draws) = shards[0].samples.index, shards[0].columns
        if len(shards) > 1:
            order, index = self._order(shards)
            status, *draws = (np.concatenate(parts)[order] for parts in zip(*(shard.columns for shard in shards), strict=True))
        forwards, backwards, other_rows, other_held, surrogate_rows, surrogate_right, seconds = (
            sum(values) for values in zip(*(shard.sums for shard in shards), strict=True)
        )
        selection_correct, selection_draws, fresh_correct, fresh_draws = draws
        drawn = _has_any(selection_draws) or _has_any(fresh_draws)
        none = np.empty(0)
        return Tally(
            index=index,
            status=status,
            selection=shares(selection_correct, selection_draws) if drawn else none,
            fresh=shares(fresh_correct, fresh_draws) if drawn else none,
            forwards=forwards,
            backwards=backwards,
            seconds=seconds,
            other_rows=other_rows,
            other_held=other_held,
            surrogate_rows=surrogate_rows,
            surrogate_right=surrogate_right,
            guarded=guarded,
        )

    def _order(self, shards: Sequence[Shard]) -> _Order:
        """Return the order that sorts the outcomes of several shards, and the sorted positions."""
        key = tuple(shard.samples.digest for shard in shards)
        if (known := self._orders.get(key)) is not None:
            return known
        index = np.concatenate([shard.samples.index for shard in shards])
        order = np.argsort(index, kind="stable")
        if len(self._orders) >= LISTS:
            self._orders.clear()
        # If another thread was faster, its array is the one that tallies share.
        return self._orders.setdefault(key, (order, index[order]))


def _has_any(values: NDArray[np.int64]) -> bool:
    """Return whether a value is not 0. Equal values are stored once; see `packing`."""
    return bool((values if values.strides[0] else values[:1]).any())
