"""The words of a report: what each figure means, and what to do about a collapse."""

from __future__ import annotations

REMEDY = (
    "Try: scaled features (data.scaling=minmax or standard); another neighbours.k; a lower train.learning_rate; "
    "and see whether most rows are duplicates or constant"
)

# Key, name, what a value means, what it is by chance.
METRICS = (
    (
        "recall_at_k",
        "Neighbour recall",
        "Share of the true nearest neighbours that the neighbours stage found.",
        "",
    ),
    (
        "trustworthiness",
        "Trustworthiness",
        "Rows that are neighbours in the embedding are neighbours in the features.",
        "About 0.5 is chance.",
    ),
    (
        "continuity",
        "Continuity",
        "Rows that are neighbours in the features stay neighbours in the embedding.",
        "About 0.5 is chance.",
    ),
    (
        "random_triplet_accuracy",
        "Random triplet accuracy",
        "Of three random rows, the nearer pair is still the nearer one: the global layout.",
        "0.5 is chance.",
    ),
    (
        "distance_correlation_pearson",
        "Distance correlation (Pearson)",
        "Distances of random pairs in the features and in the embedding grow together, in proportion.",
        "0 is chance.",
    ),
    (
        "distance_correlation_spearman",
        "Distance correlation (Spearman)",
        "The same for the order of the distances only.",
        "0 is chance.",
    ),
    (
        "knn_accuracy",
        "kNN accuracy",
        "Labels predicted by the nearest rows of the embedding, right on rows that were not fitted on.",
        "",
    ),
    (
        "linear_svm_accuracy",
        "Linear SVM accuracy",
        "Labels predicted by straight cuts through the embedding, fitted and tested on the same rows as kNN.",
        "",
    ),
    (
        "centroid_correlation",
        "Centroid correlation",
        "Distances between the centres of the labels in the features and in the embedding (Mantel statistic).",
        "0 is chance.",
    ),
    ("final_loss", "Final loss", "Loss of the last epoch.", "Lower is better; only comparable between equal losses."),
)
NAMES = {key: name for key, name, *_ in METRICS}
VERDICTS = {"good": "Good", "doubtful": "Doubtful", "poor": "Poor"}
VERDICTS_HINT = (
    "1 is perfect in every metric but the loss. The yardstick (PCA, the dark mark on a bar) is what principal "
    "components of the same rows reach in as many dimensions: good is at least as good, or close to perfect; poor is "
    "less than half the way to it from chance."
)

EXPLORER_HINT = (
    "Point at a row to read it. Choose rows with a box or lasso, or a colour by its name: its rows stand out here and "
    "in the distances below, and are counted beside. Clear a tick to hide a colour."
)
DISTANCE_HINT = (
    "Random pairs of rows by their distance in the features; each box holds the middle half of their distances in the "
    "embedding, its line the median, its whiskers the rest but for outliers. Boxes that rise steadily keep distances; "
    "flat ones tell near from far no more. With rows chosen above, pairs with a chosen row have boxes beside."
)
# Element and text of the buttons above the picture.
TOOLS = (
    ("move", "Move"),
    ("box", "Box"),
    ("lasso", "Lasso"),
    ("zoom-in", "Zoom in"),
    ("zoom-out", "Zoom out"),
    ("whole", "Show all"),
    ("picture", "Save picture"),
)
