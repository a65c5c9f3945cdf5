"""Collects samples of failed requests by error code while files are written, and reads their messages later."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final

import msgspec

from batchline.models.lines import read_error_message
from batchline.models.manifest import Failure
from batchline.storage.objects.readers import RangeReader
from batchline.storage.objects.store import ObjectStore

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLES_PER_CODE: Final = 3

TAIL_BYTES: Final = 2**15
"""Bytes read from the end of an error line, where its short message follows a body of unknown length."""

_COLUMNS: Final = ("line", "custom_id", "error_code", "status_code", "offset", "length")


class Sample(msgspec.Struct, frozen=True):
    """A failed request with its error message."""

    failure: Failure
    message: str


class FirstFailures:
    """Collects the first three failures of each code."""

    def __init__(self) -> None:
        self._by_code: defaultdict[str, list[Failure]] = defaultdict(list)

    def add(self, table: pa.Table) -> None:
        """Add rows in input order, with offsets in the error file."""
        import numpy as np  # noqa: PLC0415 - half a second that must not delay the first request

        first = 0
        for codes in table["error_code"].chunks:
            # By dictionary index, as decoding every row's code would be slow.
            numbers = codes.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            for number, code in enumerate(codes.dictionary.to_pylist()):
                missing = SAMPLES_PER_CODE - len(self._by_code[code])
                rows = np.flatnonzero(numbers == number)[:missing] if missing else ()
                self._by_code[code] += [
                    Failure(**{name: table[name][first + int(row)].as_py() for name in _COLUMNS}) for row in rows
                ]
            first += len(codes)

    def as_list(self) -> list[Failure]:
        """Return the failures in the order of the error file."""
        return sorted(chain.from_iterable(self._by_code.values()), key=lambda failure: failure.offset)


def read_samples(store: ObjectStore, key: str, failures: Sequence[Failure]) -> dict[str, list[Sample]]:
    """Return the failures by code with their messages from the error file; raises as the store does.

    A message that is not in the last bytes of its line is empty.
    """
    samples: defaultdict[str, list[Sample]] = defaultdict(list)
    reader = RangeReader(store, key, read_ahead_bytes=2 * TAIL_BYTES) if failures else None
    for failure in failures:
        end = failure.offset + failure.length
        tail = reader.read(max(failure.offset, end - TAIL_BYTES), end) if reader else b""
        samples[failure.error_code].append(Sample(failure, read_error_message(tail)))
    return samples
