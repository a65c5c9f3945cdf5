"""Sums integers by group without rounding or overflow."""

from __future__ import annotations

import numpy as np
import pandas as pd

HALF_BITS = 32


def to_int64(column: pd.Series[int]) -> np.ndarray:
    """Return the column as 64-bit integers, missing values as 0."""
    return column.astype("Int64").to_numpy("int64", na_value=0)


def exact_sums(groups: np.ndarray, values: np.ndarray, count: int) -> list[int]:
    """Return the sum of the values of each group from 0 to `count` - 1; exact for up to 2^31 values."""
    # Servers may report up to 2^53 tokens for a request; halves of 32 bits cannot overflow when summed.
    low, high = np.zeros(count, "int64"), np.zeros(count, "int64")
    np.add.at(low, groups, values & (2**HALF_BITS - 1))
    np.add.at(high, groups, values >> HALF_BITS)
    return [
        (high_sum << HALF_BITS) + low_sum for low_sum, high_sum in zip(low.tolist(), high.tolist(), strict=True)
    ]
