"""What X is, before its rows are read: data frames, whose columns are matched by name, and what is not rows."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.config import listed
from ivis_spark.data.labels import is_missing
from ivis_spark.errors import InputError

Names = NDArray[np.object_]


def check_kind(X: Any) -> None:
    """Refuse what is not rows but holds or names them.

    Raises: InputError: saying what to pass instead.
    """
    if X is None:
        raise InputError("X is None: pass rows of features, an array or a data frame of shape (n, d)")
    if isinstance(X, (str, os.PathLike)):
        raise InputError(f"X is text, {os.fspath(X)!r}: read the file first, for example with pandas.read_csv")
    if isinstance(X, Mapping) and not hasattr(X, "tocsr"):  # a sparse matrix may be a dict
        raise InputError(_of_mapping(X))
    if hasattr(X, "obsm") and hasattr(X, "X"):
        raise InputError("X is an AnnData: pass its rows, adata.obsm['X_pca'] or adata.X")
    if hasattr(X, "to_memory"):
        raise InputError(
            f"X is a {type(X).__name__}, the sparse rows of an AnnData on disk: pass adata.to_memory().X, or its "
            "components, adata.obsm['X_pca']"
        )
    if hasattr(X, "toPandas"):
        raise InputError("X is a Spark DataFrame: use ivis_spark.IvisEstimator, or pass X.toPandas() if it is small")


def names_of(X: Any) -> Names | None:
    """Return the column names of a data frame, object (d,); None if it is not a frame, or its columns are numbered.

    Raises: InputError: if columns hold text or dates (names them), names repeat, or some names are text and some are
        not, so that the columns go neither by name nor by place.
    """
    columns = getattr(X, "columns", None)
    if columns is None or callable(columns) or hasattr(X, "tocsr"):
        return None
    names = np.array(list(columns), dtype=object)
    others = [str(name) for place, name in enumerate(names) if _holds_text(X, place)]
    if others:
        raise InputError(
            f"{_listed(others)} of X {'hold' if len(others) > 1 else 'holds'} text or dates: drop columns that are "
            f"not features, as X.select_dtypes('number') does in pandas, and encode categories first"
        )
    texts = [isinstance(name, str) for name in names]
    if not any(texts):
        return None
    if not all(texts):
        kinds = ", ".join(sorted({type(name).__name__ for name in names}))
        raise InputError(f"the columns of X have names of several types ({kinds}); use strings for all names")
    if len(set(names)) < len(names):
        twice = [str(name) for name, count in Counter(names).items() if count > 1]
        raise InputError(
            f"X has duplicate columns, {_listed(twice)}: columns are matched by name, so drop or rename them, as "
            "X.loc[:, ~X.columns.duplicated()] does in pandas"
        )
    return names


def in_order(X: Any, fitted: Names | None) -> Any:
    """Return data with its columns in the order of the fit.

    Args:
        X: A data frame, or anything else, which is returned as it is.
        fitted: Names of the columns at `fit`; None if they had none.

    Raises: InputError: if a frame lacks a column or has others (names them).
    """
    names = names_of(X)
    if names is None or fitted is None:
        if fitted is not None:
            warnings.warn("X does not have valid feature names, but Ivis was fitted with feature names", stacklevel=3)
        elif names is not None:
            warnings.warn("X has feature names, but Ivis was fitted without feature names", stacklevel=3)
        return X
    missing, others = _without(fitted, names), _without(names, fitted)
    if missing or others:
        parts = [f"lacks {_listed(missing)}"] if missing else []
        parts += [f"has {_listed(others)}, not in the fit"] if others else []
        raise InputError(
            f"X {' and '.join(parts)}: columns are matched by name; pass those of the fit, listed in feature_names_in_"
        )
    return X if list(names) == list(fitted) else X[list(fitted)]


def _of_mapping(X: Mapping[Any, Any]) -> str:
    """Return what to pass instead of a dict, a group of an HDF5 file, or a file of several arrays."""
    if not hasattr(X, "visititems"):  # which groups of HDF5 have
        if hasattr(X, "files"):
            return f"X is a file of several arrays: pass one of them, X[{next(iter(X))!r}]; it holds {listed(list(X))}"
        return "X is a dict: pass pandas.DataFrame(X), or an array of shape (n, d)"
    if {"data", "indices", "indptr"} <= set(X):
        return (
            f"X is the group {X.name!r} of an HDF5 file, a sparse matrix in parts: read it with "  # type: ignore[attr-defined]
            "anndata.read_h5ad(path).X, or with scipy.sparse.csr_matrix((X['data'][:], X['indices'][:], "
            "X['indptr'][:]))"
        )
    names: list[str] = []
    X.visititems(lambda name, each: names.append(name) if hasattr(each, "shape") else None)
    held = f"it holds {listed(names)}" if names else "it holds none"
    return f"X is an HDF5 file or group: pass one of its datasets, X['name']; {held}"


def _holds_text(X: Any, place: int) -> bool:
    """Tell whether a column of a frame holds dates, or text that is not a number."""
    column = X.iloc[:, place] if hasattr(X, "iloc") else X[:, place]
    kind = getattr(getattr(column, "dtype", None), "kind", "O")
    if kind in "fiub":
        return False
    first = next((value for value in column if not is_missing(value)), 0.0)
    try:
        float(first)
    except (TypeError, ValueError):
        return isinstance(first, str) or kind in "Mm" or hasattr(first, "year")
    return kind in "Mm"


def _without(names: Names, others: Names) -> list[str]:
    known = set(others)
    return [str(name) for name in names if name not in known]


def _listed(names: list[str]) -> str:
    return ("columns " if len(names) > 1 else "column ") + listed([repr(name) for name in names], 5)
