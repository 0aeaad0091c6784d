"""The words of a report: what each figure means, and what to do about a collapse."""

from __future__ import annotations

REMEDY = (
    "Try: scaled features (data.scaling=minmax or standard); another neighbours.k; a lower train.learning_rate; "
    "and see whether most rows are duplicates or constant"
)

_HIGHER = "Higher is better; 1 is perfect."
# Key, name, what a value means, direction, whether it is a share of 1 that a bar can show.
QUALITY = (
    (
        "recall_at_k",
        "Neighbour recall",
        "Share of the true nearest neighbours that the neighbours stage found.",
        _HIGHER,
    ),
    (
        "trustworthiness",
        "Trustworthiness",
        "Rows that are neighbours in the embedding are neighbours in the features.",
        _HIGHER + " About 0.5 is chance.",
    ),
    (
        "continuity",
        "Continuity",
        "Rows that are neighbours in the features stay neighbours in the embedding.",
        _HIGHER + " About 0.5 is chance.",
    ),
    (
        "random_triplet_accuracy",
        "Random triplet accuracy",
        "Of three random rows, the nearer pair is still the nearer one: the global layout.",
        _HIGHER + " 0.5 is chance.",
    ),
    (
        "distance_correlation_pearson",
        "Distance correlation (Pearson)",
        "Distances of random pairs in the features and in the embedding grow together, in proportion.",
        _HIGHER + " 0 is chance.",
    ),
    (
        "distance_correlation_spearman",
        "Distance correlation (Spearman)",
        "The same for the order of the distances only.",
        _HIGHER + " 0 is chance.",
    ),
    (
        "knn_accuracy",
        "kNN accuracy",
        "Labels predicted by the nearest rows of the embedding, fitted on 75 % of the sample, right on the rest.",
        _HIGHER,
    ),
    (
        "centroid_correlation",
        "Centroid correlation",
        "Distances between the centres of the labels in the features and in the embedding (Mantel statistic).",
        _HIGHER + " 0 is chance.",
    ),
    ("final_loss", "Final loss", "Loss of the last epoch.", "Lower is better; only comparable between equal losses."),
)
CARDS = ("recall_at_k", "trustworthiness", "random_triplet_accuracy", "knn_accuracy", "final_loss")
