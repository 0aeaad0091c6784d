"""Labels as users have them: missing ones, text that was meant as missing, and text as bytes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MISSING_WORDS = ("nan", "none", "null", "na", "n/a", "<na>", "nat", "")


def is_missing(label: Any) -> bool:
    """Tell whether a value is None, NaN, NA or NaT."""
    return label is None or type(label).__name__ in ("NAType", "NaTType") or label != label


def with_plain_text(labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels with bytes, as HDF5 has text, and NumPy's strings as str."""
    if labels.dtype.kind not in "SO":
        return labels
    plain = np.empty(labels.shape, object)
    for place, label in np.ndenumerate(labels):
        plain[place] = label.decode(errors="replace") if isinstance(label, bytes) else label
        if isinstance(label, np.str_):
            plain[place] = str(label)
    return plain


def warn_of_words(names: Iterable[Any], *, stacklevel: int) -> None:
    """Warn of text like "nan" that is taken as a class."""
    words = [str(name) for name in names if isinstance(name, str) and name.strip().lower() in _MISSING_WORDS]
    if words:
        warnings.warn(
            f"the text {words[0]!r} is a class of its own; a missing label is None or NaN: replace it, as "
            f"y.replace({words[0]!r}, None) does in pandas",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
