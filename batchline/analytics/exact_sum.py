"""Sums of whole numbers that neither round nor overflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

HALF_BITS = 32


def to_int64(column: pd.Series[int]) -> np.ndarray:
    """The column as 64-bit integers, nothing as 0."""
    return column.astype("Int64").to_numpy("int64", na_value=0)


def exact_sums(groups: np.ndarray, values: np.ndarray, count: int) -> list[int]:
    """The sums of the values of each group from 0 to below `count`; exact for up to 2^31 values.

    They are added in halves of 32 bits, since servers may report as much as 2^53 tokens for a request.
    """
    import numpy as np  # noqa: PLC0415 - half a second that must not delay the first request

    low, high = np.zeros(count, "int64"), np.zeros(count, "int64")
    np.add.at(low, groups, values & (2**HALF_BITS - 1))
    np.add.at(high, groups, values >> HALF_BITS)
    return [
        (high_sum << HALF_BITS) + low_sum for low_sum, high_sum in zip(low.tolist(), high.tolist(), strict=True)
    ]
