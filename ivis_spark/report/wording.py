"""The words of a report: what each figure means, and what to do about a collapse."""

from __future__ import annotations

from ivis_spark.report.verdicts import GOOD, LEEWAY

REMEDY = (
    "Try scaled features (data.scaling=minmax or standard), another neighbours.k or a lower train.learning_rate, and "
    "check whether most rows are duplicates or constant"
)

# Key, name, what a value means, what it is by chance.
METRIC_TEXTS = (
    ("recall_at_k", "Neighbour recall", "Share of the true nearest neighbours found by the search.", ""),
    (
        "original_recall_at_k",
        "Neighbour recall, all features",
        "Share of the nearest neighbours by all features that were found: what search and projection together miss.",
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
        "Share of random triples of rows whose order of distances is preserved: the global structure.",
        "0.5 is chance.",
    ),
    (
        "distance_correlation_pearson",
        "Distance correlation (Pearson)",
        "Correlation of the distances of random pairs in the features and in the embedding.",
        "0 is chance.",
    ),
    (
        "distance_correlation_spearman",
        "Distance correlation (Spearman)",
        "The same for the ranks of the distances.",
        "0 is chance.",
    ),
    (
        "knn_accuracy",
        "kNN accuracy",
        "Accuracy of labels predicted by the nearest rows in the embedding, on rows left out of the fit.",
        "",
    ),
    (
        "linear_svm_accuracy",
        "Linear SVM accuracy",
        "Accuracy of a linear classifier on the embedding, fitted and tested on the same rows as kNN.",
        "",
    ),
    (
        "centroid_correlation",
        "Centroid correlation",
        "Correlation of the distances between class centroids in the features and in the embedding (Mantel statistic).",
        "0 is chance.",
    ),
    (
        "final_loss",
        "Final loss",
        "Loss of the last epoch.",
        "Lower is better; comparable only for the same loss function.",
    ),
)
NAMES = {key: name for key, name, *_ in METRIC_TEXTS}
VERDICTS = {"good": "Good", "doubtful": "Doubtful", "poor": "Poor"}
VERDICTS_HINT = (
    "For every metric except the loss, 1 is perfect. The baseline (PCA, the dark mark on a bar) is what principal "
    f"components of the same rows reach in as many dimensions: good means at least as good (within {LEEWAY:g}), or "
    f"{100 * GOOD:g} % of the way from chance to 1; poor means less than half the way from chance to the baseline."
)

EXPLORER_HINT = (
    "Hover over a point to see its row. Select rows with a box or lasso, or all rows of a colour by its name: they "
    "are highlighted here and in the distances below, and counted beside the plot. Clear a checkbox to hide a colour."
)
DISTANCE_HINT = (
    "Random pairs of rows, binned by their distance in the features; each box shows the quartiles of their distances "
    "in the embedding, its line the median, its whiskers the range without outliers. Steadily rising boxes mean that "
    "distances are preserved; flat boxes mean that near and far are no longer distinguished. If rows are selected "
    "above, pairs with a selected row have their own boxes."
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
