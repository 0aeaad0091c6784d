"""How well an embedding preserves the structure of the features: metrics on arrays, accumulated in float64.

All distances are Euclidean. Every function returns finite numbers, also on constant data; each docstring gives them.
"""

from ivis_spark.core.metrics.classes import centroid_correlation, knn_accuracy, knn_predictions, linear_svm_accuracy
from ivis_spark.core.metrics.structure import (
    PairDistances,
    continuity,
    distance_correlation,
    draw_pairs,
    is_collapsed,
    knn_recall,
    random_triplet_accuracies,
    random_triplet_accuracy,
    trust_and_continuity,
    trustworthiness,
)

__all__ = [
    "PairDistances",
    "centroid_correlation",
    "continuity",
    "distance_correlation",
    "draw_pairs",
    "is_collapsed",
    "knn_accuracy",
    "knn_predictions",
    "knn_recall",
    "linear_svm_accuracy",
    "random_triplet_accuracies",
    "random_triplet_accuracy",
    "trust_and_continuity",
    "trustworthiness",
]
