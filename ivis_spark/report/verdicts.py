"""How good a metric is, judged by what principal components of the same sample reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ivis_spark.errors import DependencyError

Verdict = Literal["good", "doubtful", "poor"]

# A metric's value by chance; those of labels are the share of the commonest one.
_CHANCE = {"trustworthiness": 0.5, "continuity": 0.5, "random_triplet_accuracy": 0.5}
_OF_CLASSES = ("knn_accuracy", "linear_svm_accuracy")
JUDGED = (
    *_CHANCE,
    *("distance_correlation_pearson", "distance_correlation_spearman"),
    *(*_OF_CLASSES, "centroid_correlation"),
)
GOOD = 0.95  # of the way from chance to 1, whatever principal components reach
LEEWAY = 0.02  # differences within noise
_TARGET_RECALL = 0.95


def principal_components(X: NDArray[Any], dims: int, *, seed: int) -> NDArray[np.float64]:
    """Return the best linear embedding of rows, shape (n, d) -> (n, dims); dimensions that X has not are 0.

    Raises: DependencyError: if scikit-learn is missing.
    """
    try:
        from sklearn.decomposition import PCA
    except ImportError as err:
        raise DependencyError("the report needs scikit-learn: pip install 'ivis_spark[report]'") from err
    components = np.zeros((len(X), dims))
    most = min(dims, *X.shape)
    if X.size and np.ptp(X, axis=0).any():
        components[:, :most] = PCA(most, random_state=seed).fit_transform(X.astype(np.float64))
    return components


def judge(metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Verdict | None]:
    """Return the verdict on each metric by its name with `_verdict`; None where it is not measured or not judged.

    Good: as good as principal components within .02, or 95 % of the way from chance to 1. Poor: less than half the way
    from chance to principal components. Doubtful: between. Of the neighbours' recall: whether the target is met by the
    lower end of its interval, by its value, or not; where components were searched, the recall by all features is at
    worst doubtful. Accuracies of labels that training saw are not judged.

    Args:
        metrics: As in metrics.json; `pca_` and a metric's name is what principal components reach.
        settings: The run's configuration, nested.
    """
    verdicts: dict[str, Verdict | None] = {
        f"{name}_verdict": _judge(metrics, name) for name in (*JUDGED, *metrics.get("own_metrics", ()))
    }
    if metrics["labels"] == "trained on":
        verdicts |= {f"{name}_verdict": None for name in (*_OF_CLASSES, "centroid_correlation")}
    target = (settings.get("neighbours") or {}).get("target_recall", _TARGET_RECALL)
    for name in ("recall", "original_recall"):
        recall, low = metrics[f"{name}_at_k"], metrics[f"{name}_low"]
        verdict: Verdict | None = None
        if recall is not None:
            sure = recall if low is None else low
            missed: Verdict = "poor" if name == "recall" else "doubtful"  # the target is of the search
            verdict = "good" if sure >= target else "doubtful" if recall >= target else missed
        verdicts[f"{name}_at_k_verdict"] = verdict
    return verdicts


def _judge(metrics: Mapping[str, Any], name: str) -> Verdict | None:
    value, linear = metrics[name], metrics[f"pca_{name}"]
    if value is None or linear is None:
        return None
    chance = (metrics["commonest_label"] or 0.0) if name in _OF_CLASSES else _CHANCE.get(name, 0.0)
    if value >= linear - LEEWAY or value >= chance + GOOD * (1 - chance):
        return "good"
    return "poor" if value < (chance + linear) / 2 else "doubtful"
