"""Vectors in Arrow columns: lists and packed binaries seen as one float32 matrix, without a Python object a row.

Inside the pipeline a vector is a `binary` of d little-endian float32: Spark moves it as one value, where a list costs a
call an element. Before it is scaled it is float64, unless its source has no more digits than float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ivis_spark.errors import InputError

Numbers = NDArray[np.float32] | NDArray[np.float64]
Faults = dict[str, NDArray[np.bool_]]

INDICES_FAULT = "indices that repeat, are out of range or do not match its values"

BATCH_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"
_LARGEST = np.finfo(np.float32).max
_NARROW = (pa.float16(), pa.float32(), pa.int8(), pa.int16(), pa.uint8(), pa.uint16(), pa.bool_())


def pack(matrix: NDArray[Any], dtype: str = "<f4") -> pa.Array:
    """Return rows of shape (n, d) as a binary column of n packed vectors; zero-copy if they are of the dtype."""
    rows = np.ascontiguousarray(matrix, dtype=dtype)
    width = rows.itemsize * rows.shape[1]
    if rows.nbytes >= 2**31:
        raise _too_large(f"{len(rows)} x {rows.shape[1]} {rows.dtype}")
    offsets = (
        np.arange(0, (len(rows) + 1) * width, width, dtype=np.int32) if width else np.zeros(len(rows) + 1, np.int32)
    )
    return pa.Array.from_buffers(pa.binary(), len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(rows)])


def _too_large(rows: str) -> InputError:
    return InputError(f"an Arrow batch of {rows} exceeds 2 GiB; lower embed.batch_rows, or {BATCH_ROWS} elsewhere")


def unpack(column: pa.Array, dtype: str = "<f4") -> NDArray[Any]:
    """Return a binary column of equally long packed vectors, shape (n, d). A view; do not write to it."""
    if len(column) == 0:
        return np.empty((0, 0), dtype)
    offsets = np.frombuffer(column.buffers()[1], dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    values = np.frombuffer(column.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]]
    return values.view(dtype).reshape(len(column), -1)


def to_list(matrix: NDArray[Any]) -> pa.Array:
    """Return rows of shape (n, e) as an array<float> column, without a Python object a row."""
    values = np.ascontiguousarray(matrix, dtype=np.float32)
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def to_packed_halves(matrix: NDArray[Any]) -> pa.Array:
    """Return rows of shape (n, e) as a binary column of e little-endian float16 each: Spark has no such number."""
    halves = np.ascontiguousarray(matrix, dtype="<f2")
    width = 2 * halves.shape[1]
    offsets = np.arange(0, (len(halves) + 1) * width, width, dtype=np.int32)
    return pa.Array.from_buffers(pa.binary(), len(halves), [None, pa.py_buffer(offsets), pa.py_buffer(halves)])


def list_values(column: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Return the lengths, shape (n,), and the flat values of a list column; a null list has length 0."""
    lengths = np.diff(
        np.frombuffer(column.buffers()[1], dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    )
    return lengths.astype(np.int64), column.flatten()


def exact_dtype(*kinds: pa.DataType) -> type[np.float32] | type[np.float64]:
    """Return float32 if it holds every number of these types exactly, else float64."""
    return np.float32 if all(kind in _NARROW for kind in kinds) else np.float64


def not_finite(matrix: NDArray[Any]) -> Faults:
    """Return for each fault which rows of shape (n, d) have it: `nan`, and `infinite` if not finite in float32."""
    with np.errstate(invalid="ignore"):
        if matrix.size == 0 or np.abs(matrix).max() <= _LARGEST:  # one pass for clean data, which is nearly all data
            return dict.fromkeys(("nan", "infinite"), np.zeros(len(matrix), bool))
        return {"nan": np.isnan(matrix).any(axis=1), "infinite": (np.abs(matrix) > _LARGEST).any(axis=1)}


def count_bad_values(column: pa.Array) -> dict[tuple[str, int], int]:
    """Count in a list column the elements that are `null`, `nan` or `infinite`, by fault and place in the list."""
    lengths, values = list_values(column)
    places = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    null = values.is_null().to_numpy(zero_copy_only=False)
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False).reshape(-1, 1)
    counts = {}
    for fault, mask in {"null": null, **not_finite(numbers)}.items():
        for place, count in zip(*np.unique(places[mask], return_counts=True), strict=True):
            counts[fault, int(place)] = int(count)
    return counts


def from_list(column: pa.Array, width: int) -> tuple[Numbers, Faults]:
    """Return a list column as rows, and what is wrong with them.

    Args:
        column: array of any numeric type with n lists.
        width: Length that every list should have.

    Returns:
        float32 or float64, see `exact_dtype`, shape (n, width), zeros where a list cannot be read; and for each fault
        a mask of shape (n,): `null` (the list or an element of it), `width` (another length), `nan`, `infinite` (in
        float32).
    """
    lengths, values = list_values(column)
    null_list = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else np.zeros(len(column), bool)
    wrong = (lengths != width) & ~null_list
    null_values = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
    flat = (values.fill_null(0) if values.null_count else values).to_numpy(zero_copy_only=False)
    flat = flat.astype(exact_dtype(values.type), copy=False)
    if not wrong.any() and not null_list.any():
        matrix = flat.reshape(len(column), width)
        null = null_values.reshape(len(column), width).any(axis=1) if null_values is not None else null_list
    else:
        readable = ~wrong & ~null_list
        of_readable = np.repeat(readable, lengths)
        matrix = np.zeros((len(column), width), flat.dtype)
        matrix[readable] = flat[of_readable].reshape(-1, width)
        null = null_list.copy()
        if null_values is not None:
            null[readable] = null_values[of_readable].reshape(-1, width).any(axis=1)
    return matrix, {"null": null, "width": wrong, **not_finite(matrix)}


def sparse_rows(column: pa.Array, width: int) -> tuple[Any, Faults]:
    """Return Spark ML vectors, dense and sparse, or indices and values, as a SciPy matrix and what is wrong with them.

    Nothing of the size n x width is made.

    Args:
        column: What Spark makes of a vector: struct<type, size, indices, values>, type 1 being dense; size may be null
            if it is not known.
        width: Size that every vector should have.

    Returns:
        CSR matrix of float64, shape (n, width), its indices sorted, and without elements in rows that cannot be read;
        and for each fault of `from_list`, and for `indices` (repeated, outside of the row, or not one for each value),
        a mask of shape (n,).
    """
    from scipy.sparse import csr_matrix

    n = len(column)
    null = column.is_null().to_numpy(zero_copy_only=False)
    dense = column.field("type").fill_null(1).to_numpy(zero_copy_only=False) == 1
    lengths, values = list_values(column.field("values"))
    index_lengths, indices = list_values(column.field("indices"))
    for name in ("values", "indices"):
        missing = column.field(name).is_null().to_numpy(zero_copy_only=False)
        null = null | (missing & ~dense if name == "indices" else missing)
    data = values.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64)
    sizes = np.where(dense, lengths, column.field("size").fill_null(width).to_numpy(zero_copy_only=False))
    wrong = (sizes != width) & ~null
    unpaired = ~dense & (index_lengths != lengths) & ~null
    readable = ~wrong & ~null & ~unpaired
    places = indices.fill_null(-1).to_numpy(zero_copy_only=False)[np.repeat(readable & ~dense, index_lengths)]
    kept = np.repeat(readable, lengths)
    of_row = np.repeat(np.arange(n), np.where(readable, lengths, 0))
    columns = np.empty(len(of_row), np.int64)
    columns[~dense[of_row]] = places
    columns[dense[of_row]] = np.tile(np.arange(width), int((readable & dense).sum()))
    nulls = values.is_null().to_numpy(zero_copy_only=False)[kept] if values.null_count else None
    inside = (columns >= 0) & (columns < width)
    data = data[kept]
    if not inside.all():
        unpaired |= _rows_with(of_row[~inside], n)
        of_row, columns, data = of_row[inside], columns[inside], data[inside]
        nulls = None if nulls is None else nulls[inside]
    order = np.lexsort((columns, of_row))
    repeated = (np.diff(of_row[order]) == 0) & (np.diff(columns[order]) == 0)
    unpaired |= _rows_with(of_row[order][1:][repeated], n)
    with np.errstate(invalid="ignore"):
        faults = {
            "null": null if nulls is None else null | _rows_with(of_row[nulls], n),
            "width": wrong,
            "indices": unpaired,
            "nan": _rows_with(of_row[np.isnan(data)], n),
            "infinite": _rows_with(of_row[np.abs(data) > _LARGEST], n),
        }
    ends = np.concatenate([[0], np.cumsum(np.bincount(of_row, minlength=n))])
    return csr_matrix((data[order], columns[order], ends), (n, width)), faults


def _rows_with(rows: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    mask = np.zeros(n, bool)
    mask[rows] = True
    return mask


def pack_sparse(matrix: Any) -> pa.Array:
    """Return a CSR matrix of n rows as a column of structs: `indices`, packed int32, and `values`, packed float64."""
    ends = matrix.indptr.astype(np.int64)
    parts = {"indices": matrix.indices.astype("<i4"), "values": matrix.data.astype("<f8")}
    fields = []
    for numbers in parts.values():
        if numbers.nbytes >= 2**31:
            raise _too_large(f"{len(ends) - 1} sparse rows")
        offsets = pa.py_buffer((ends * numbers.itemsize).astype(np.int32))
        fields.append(pa.Array.from_buffers(pa.binary(), len(ends) - 1, [None, offsets, pa.py_buffer(numbers)]))
    return pa.StructArray.from_arrays(fields, list(parts))


def unpack_sparse(column: pa.Array, width: int) -> Any:
    """Return what `pack_sparse` packed as a CSR matrix of shape (n, width)."""
    from scipy.sparse import csr_matrix

    parts = []
    for name, dtype in (("indices", "<i4"), ("values", "<f8")):
        field = column.field(name)
        offsets = np.frombuffer(field.buffers()[1], np.int32)[field.offset : field.offset + len(field) + 1]
        content = b"" if field.buffers()[2] is None else field.buffers()[2]
        parts.append(np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]].view(dtype))
    ends = (offsets.astype(np.int64) - offsets[0]) // 8
    return csr_matrix((parts[1], parts[0], ends), (len(column), width))


def from_vectors(column: pa.Array, width: int) -> tuple[Numbers, Faults]:
    """Return a column of Spark ML vectors, dense and sparse, as rows and what is wrong with them; see `from_list`.

    Args:
        column: As for `sparse_rows`.
        width: Size that every vector should have.
    """
    if are_dense(column):
        return from_list(column.field("values"), width)
    matrix, faults = sparse_rows(column, width)
    return matrix.toarray(), faults


def are_dense(column: pa.Array) -> bool:
    """Tell whether all of a column of Spark ML vectors are dense, and none is null."""
    return not column.null_count and bool((column.field("type").to_numpy(zero_copy_only=False) == 1).all())


def from_columns(columns: list[pa.Array]) -> tuple[Numbers, Faults]:
    """Return numeric columns side by side as rows, and what is wrong with them; see `from_list`."""
    matrix: NDArray[Any] = np.empty((len(columns[0]), len(columns)), exact_dtype(*(column.type for column in columns)))
    null = np.zeros(len(matrix), bool)
    for place, column in enumerate(columns):
        if column.null_count:
            null |= column.is_null().to_numpy(zero_copy_only=False)
            column = column.fill_null(0)
        matrix[:, place] = column.to_numpy(zero_copy_only=False)
    return matrix, {"null": null, "width": np.zeros(len(matrix), bool), **not_finite(matrix)}


def read_rows(columns: list[pa.Array], width: int, *, what: str, sparse: bool = False) -> tuple[Any, Faults]:
    """Return the features of a batch as rows of shape (n, width), and a mask of shape (n,) for each fault.

    Args:
        columns: One column of packed vectors, lists or Spark ML vectors; or several of numbers.
        width: Features that every row must have.
        what: How an error names the columns.
        sparse: Whether rows that come as sparse vectors are returned as a SciPy CSR matrix, not as an array.

    Raises:
        InputError: if a row has another width, naming both and the column.
    """
    first = columns[0]
    if len(columns) > 1 or not (pa.types.is_nested(first.type) or pa.types.is_binary(first.type)):
        matrix, faults = from_columns(columns)
        n_features = matrix.shape[1] if len(matrix) else width
    elif pa.types.is_binary(first.type):
        matrix = unpack(first)
        n_features = matrix.shape[1] if len(matrix) else width
        finite = np.isfinite(matrix).all(axis=1)
        faults = {"nan": ~finite} if not finite.all() else {}
    else:
        read: Any = from_list
        if pa.types.is_struct(first.type):
            read = sparse_rows if sparse and not are_dense(first) else from_vectors
        matrix, faults = read(first, width)
        n_features = width
        if faults["width"].any():
            row = first[int(faults["width"].argmax())].as_py()
            n_features = len(row) if isinstance(row, list) else row["size"] or len(row["values"])
    if n_features != width:
        raise InputError(f"a row has {n_features} features in {what}; the model was trained on {width}")
    return matrix, faults


def name_faults(faults: Faults) -> str:
    """Return how a message names the faults that rows have."""
    return ", ".join(INDICES_FAULT if fault == "indices" else fault for fault, mask in faults.items() if mask.any())


def describe(features: Sequence[str]) -> str:
    """Return how a message names feature columns."""
    shown = ", ".join(features[:5]) + (", ..." if len(features) > 5 else "")
    return f"column {shown!r}" if len(features) == 1 else f"columns {shown}"


def describe_invalid(features: Sequence[str], columns: Sequence[pa.Array]) -> str:
    """Return how a message names those feature columns of a batch that hold null, NaN or infinity; all if none does."""
    if len(features) == 1:
        return describe(features)
    faults = {name: from_columns([column])[1] for name, column in zip(features, columns, strict=True)}
    return describe([name for name, masks in faults.items() if any(mask.any() for mask in masks.values())] or features)
