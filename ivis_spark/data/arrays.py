"""Checks of arrays that users pass."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivis_spark.config import listed
from ivis_spark.core.scaling import FeatureStatistics
from ivis_spark.errors import InputError

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Dtype = type[np.float32] | type[np.float64]


_OUTWEIGHS = 100
# Far wider than features between 0 and 1, or of unit variance.
_WIDE_RANGE = 50.0
# Counts: of many things, some of them so many times as usual, and rows whose sums differ by such a factor.
_FEW_COLUMNS, _LARGE_COUNT, _TOTALS_DIFFER = 30, 20, 3


class _NotNumbers(InputError, TypeError):
    """Rows hold what no number can be made of; scikit-learn expects a TypeError."""


def check_rows(X: ArrayLike, dtype: Dtype = np.float32) -> Floats:
    """Return rows as float32 or float64, shape (n, ...).

    Raises: InputError: if they are not finite numbers, or no rows; it names the columns of a data frame.
    """
    names, rows = getattr(X, "columns", None), np.asarray(X)
    if rows.ndim < 2 or rows.shape[0] == 0 or rows.size == 0:
        raise InputError(shape_message(rows.shape))
    return finite_rows(to_numbers(rows, dtype), names=names)


def shape_message(shape: tuple[int, ...]) -> str:
    """Return what is wrong with a shape that is not one of rows of features, in scikit-learn's terms."""
    if len(shape) < 2:
        return (
            f"X has shape {shape}; it must be (n, d), rows of features. Reshape your data: X.reshape(1, -1) is one "
            "row, X.reshape(-1, 1) are rows of one feature"
        )
    empty = "sample" if shape[0] == 0 else "feature"
    return f"X has 0 {empty}(s) (shape={shape}) while a minimum of 1 is required: pass an array of shape (n, d)"


def warn_of_range(rows: Floats, names: NDArray[np.object_] | None = None, *, counts: bool = False) -> None:
    """Warn of columns whose values float32 is too coarse for, or that outweigh the others; refuse too large ones.

    Args:
        rows: Shape (n, ...); looked at if they are flat.
        names: Of the columns, if they have any.
        counts: Whether `warn_of_counts` warned, whose advice scales them: then too large ones are refused, no more.

    Raises: InputError: if distances between rows exceed float32.
    """
    if rows.ndim != 2:
        return

    def listed(columns: NDArray[Any]) -> list[Any]:
        return (columns[:5] if names is None else names[columns[:5]]).tolist()

    low, high, nothing = rows.min(axis=0).astype(float), rows.max(axis=0).astype(float), np.zeros(rows.shape[1])
    statistics = FeatureStatistics(len(rows), nothing, nothing, low, high)
    large, coarse = np.flatnonzero(statistics.overflow), np.flatnonzero(statistics.coarse)
    if len(large):
        raise InputError(
            f"distances between rows of X exceed float32, because of columns {listed(large)}: scale X, or check "
            f"for placeholders of missing values"
        )
    if counts:
        return
    if len(coarse):
        log.warning(
            "%d columns of X vary little around a large value and keep fewer than 1,000 distinct values in float32: "
            "%s. Scale X, for example with sklearn.preprocessing.MinMaxScaler",
            len(coarse),
            listed(coarse),
        )
    ranges = high - low
    varying = ranges[ranges > 0]
    outweighing = np.flatnonzero(ranges > _OUTWEIGHS * np.median(varying)) if len(varying) else varying
    if len(outweighing):
        log.warning(
            "the values of %d of %d columns of X range over %d times as much as those of a usual column, so that "
            "neighbours are decided by these alone: %s. Scale X, for example with sklearn.preprocessing.minmax_scale, "
            "unless that is meant",
            *(len(outweighing), len(ranges), _OUTWEIGHS, listed(outweighing)),
        )
    elif len(varying) and (usual := np.median(varying)) > _WIDE_RANGE:
        log.warning(
            "the values of a usual column of X range over %.3g; a network learns better from values of 0 to 1, or "
            "of unit variance: divide X by a number, or scale it with sklearn.preprocessing",
            usual,
        )


def warn_of_counts(values: NDArray[Any], totals: NDArray[Any], largest: NDArray[Any]) -> bool:
    """Warn of raw counts, as of genes or words, whose totals and few large values decide the distances.

    Flags, pixels and grades are whole numbers too, but have no values far above most others, or in few columns.

    Args:
        values: Those of some rows that are not 0.
        totals: The sum of each of these rows.
        largest: The largest value of each column.

    Returns:
        Whether there was a warning.
    """
    if len(largest) < _FEW_COLUMNS or not len(values) or values.min() < 0 or (values != np.floor(values)).any():
        return False
    usual, (low, high) = np.median(values), np.percentile(totals, [5, 95])
    in_columns = np.median(largest[largest > 0])
    if in_columns <= usual or largest.max() < _LARGE_COUNT * usual or high < _TOTALS_DIFFER * max(low, 1):
        return False
    log.warning(
        "X looks like raw counts: whole numbers up to %d, and the sums of rows differ by a factor of %.0f. Normalise: "
        "divide each row by its sum, and take np.log1p of 1e4 times that, as the tutorial on single-cell data does",
        *(largest.max(), high / max(low, 1)),
    )
    return True


def warn_of_other_order(rows: Any, others: Any, name: str) -> None:
    """Warn of a series or frame with the row names of the rows in another order: they are matched by place.

    Args:
        rows: The rows, of any type.
        others: One value a row, of any type.
        name: What the values are, for the message.
    """
    ours: Any = getattr(rows, "index", None)
    theirs: Any = getattr(others, "index", None)
    if not (hasattr(ours, "symmetric_difference") and hasattr(theirs, "symmetric_difference")):
        return
    if len(ours) == len(theirs) and not ours.equals(theirs) and len(ours.symmetric_difference(theirs, sort=False)) == 0:
        warnings.warn(
            f"the rows and their {name} have the same index in another order, and are matched by place, not by "
            f"index: pass {name}.loc[rows.index] if they belong together by index",
            UserWarning,
            stacklevel=4,
        )


def to_numbers(rows: NDArray[Any], dtype: Dtype = np.float32) -> Floats:
    """Return an array of any numeric type, or of objects that are numbers, as contiguous float32 or float64.

    Raises: InputError: if it holds anything else.
    """
    if rows.dtype.kind == "c":
        raise InputError(
            f"Complex data not supported: X is of type {rows.dtype}; use the real and imaginary parts as columns"
        )
    if rows.dtype.kind not in "fiubO":
        raise InputError(f"X has type {rows.dtype}; X must hold numbers: encode text and categories first")
    pandas = sys.modules.get("pandas")
    if rows.dtype.kind == "O" and pandas is not None:  # its NA is no float; as NaN it is refused with its row
        rows = np.where(pandas.isna(rows), np.nan, rows)
    try:
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as that
            return np.ascontiguousarray(rows, dtype=dtype)
    except (ValueError, TypeError) as err:
        kind = _NotNumbers if isinstance(err, TypeError) else InputError
        raise kind(f"X does not hold numbers ({err}); encode text and categories first") from err


def finite_rows(rows: Floats, numbers: Ints | None = None, *, names: Any = None) -> Floats:
    """Return the rows as they are.

    Args:
        rows: Shape (b, ...).
        numbers: What the rows are called in the message, shape (b,); from 0 when None.
        names: What the columns are called, (d,); from 0 when None.

    Raises:
        InputError: if a row holds NaN or infinity.
    """
    bad = ~np.isfinite(rows.reshape(len(rows), -1))
    wrong = bad.any(axis=1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise InputError(
            f"X has NaN, infinity or a number too large for float32 in {wrong.sum()} of {len(rows)} rows, the first is "
            f"row {first if numbers is None else numbers[first]}{_bad_columns(bad, names) if rows.ndim == 2 else ''}; "
            f"drop or fill them"
        )
    return rows


def _bad_columns(bad: NDArray[np.bool_], names: Any) -> str:
    """Return the columns with most values that are not finite, and how many they have."""
    counts = bad.sum(axis=0)
    found = np.argsort(-counts, kind="stable")[: (counts > 0).sum()]
    named = len(names) == len(counts) if names is not None else False
    shown = [f"{names[place] if named else place!r}: {counts[place]}" for place in found.tolist()]
    return f" (columns {listed(shown, 5)})"


def check_neighbours(neighbours: NDArray[Any], n_rows: int) -> Ints:
    """Return a neighbour matrix as int64, shape (n_rows, k).

    Raises: InputError: if it has another shape, or numbers that are not rows.
    """
    if neighbours.ndim != 2 or len(neighbours) != n_rows or neighbours.dtype.kind not in "iu" or neighbours.size == 0:
        raise InputError(
            f"neighbour_matrix has shape {neighbours.shape} and type {neighbours.dtype}; it must hold integers of "
            f"shape ({n_rows}, k): row numbers, for each row of X"
        )
    if neighbours.min() < 0 or neighbours.max() >= n_rows:
        raise InputError(
            f"neighbour_matrix holds row numbers from {neighbours.min()} to {neighbours.max()}; X has rows 0 to "
            f"{n_rows - 1}: number the rows from 0 in the order of X"
        )
    return neighbours.astype(np.int64)
