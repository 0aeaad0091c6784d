"""A metric of a user's own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def kept_order(X: NDArray[np.float32], Z: NDArray[np.float64]) -> float:
    """Whether rows that follow each other in the first feature do in the embedding.

    Not shown.
    """
    return float(np.mean(np.sign(np.diff(X[:, 0])) == np.sign(np.diff(Z[:, 0]))))
