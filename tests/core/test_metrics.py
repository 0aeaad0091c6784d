"""Quality figures against scikit-learn, SciPy and cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr, spearmanr
from sklearn.manifold import trustworthiness as sklearn_trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from ivis_spark.core import metrics
from ivis_spark.core.metrics import points
from ivis_spark.core.metrics.structure import draw_distinct
from ivis_spark.errors import ConfigError, InputError

LINE = np.array([[0.0], [1.0], [3.0], [7.0], [15.0], [31.0]])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("n", "d", "e", "k"), [(40, 3, 2, 5), (301, 40, 2, 15), (90, 17, 20, 44), (12, 2, 1, 1)])
def test_trustworthiness_equals_sklearn(n: int, d: int, e: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "_BLOCK_BYTES", 8 * n * 7)  # many uneven blocks
    X, Z = rng(1).normal(size=(n, d)).astype(np.float32) + 100, rng(2).normal(size=(n, e))
    Z[:, 0] += X[:, 0] * 2
    assert metrics.trustworthiness(X, Z, k) == pytest.approx(sklearn_trustworthiness(X, Z, n_neighbors=k), abs=1e-12)
    assert metrics.continuity(X, Z, k) == pytest.approx(sklearn_trustworthiness(Z, X, n_neighbors=k), abs=1e-12)
    both = metrics.trust_and_continuity(X, (Z, X[:, ::-1]), k)
    assert both[0] == (metrics.trustworthiness(X, Z, k), metrics.continuity(X, Z, k)) and both[1] == (1.0, 1.0)


def test_trustworthiness_by_hand() -> None:
    """Exchanging rows 0 and 5 of a line, k=1: nearest in Z, with its rank in X, summed as rank - 1.

    Z = 31, 1, 3, 7, 15, 0. Nearest in Z of rows 0..5: 4, 5, 1, 2, 3, 1. Ranks in X: 4th of row 0; 5th of row 1;
    1st of row 2 (distance 2); 1st of row 3; 1st of row 4; of row 5, row 1 is the 4th. Excess: 3 + 4 + 0 + 0 + 0 + 3.
    """
    Z = LINE[[5, 1, 2, 3, 4, 0]]
    assert metrics.trustworthiness(LINE, Z, 1) == pytest.approx(1 - 2 * 10 / (6 * 1 * (12 - 3 - 1)))


@pytest.mark.parametrize("width", [2, 30])
def test_ties_are_not_preserved(width: int) -> None:
    """Equal rows have no neighbours to keep, on either side: chance."""
    X, Z, same = rng(1).normal(size=(300, width)), rng(2).normal(size=(300, 2)), np.full((300, width), 0.1)
    y = np.arange(300) % 3 % 2  # two thirds are 0
    for measure, chance in ((metrics.trustworthiness, 0.5), (metrics.continuity, 0.5), (metrics.knn_recall, 15 / 299)):
        for pair in ((X, same), (same, Z), (same, same)):
            assert measure(*pair, 15) == pytest.approx(chance, abs=0.02)
    assert metrics.trust_and_continuity(X, [same], 15)[0] == pytest.approx((0.5, 0.5), abs=0.02)
    test, predicted = metrics.knn_predictions(same, y, k=1, rng=rng())
    assert (predicted == 0).all() and len(test) == 75


def test_ties_in_part_are_the_mean_of_random_orders() -> None:
    """X on a line with repeated values, Z with others: the mean over tiny random shifts of both."""
    X, Z = rng(3).integers(0, 12, size=(60, 1)).astype(float), rng(4).integers(0, 12, size=(60, 1)).astype(float)
    shifted = [[p + 1e-6 * rng(seed + s).normal(size=p.shape) for s, p in enumerate((X, Z))] for seed in range(400)]
    for measure in (metrics.trustworthiness, metrics.continuity, metrics.knn_recall):
        expected = np.mean([measure(*pair, 5) for pair in shifted])
        assert measure(X, Z, 5) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("width", [2, 30])
def test_duplicates_at_one_point_are_preserved(width: int) -> None:
    X = np.repeat(rng(1).normal(size=(4, width)), 30, axis=0)
    for Z in (X, X[:, :2]):
        assert metrics.trust_and_continuity(X, [Z], 5)[0] == (1.0, 1.0)
        assert metrics.knn_recall(X, Z, 5) == pytest.approx(1)
    scattered = X[:, :2] + 1e-3 * rng(2).normal(size=(120, 2))
    assert 0.5 < metrics.trustworthiness(X, scattered, 5) < 1


@pytest.mark.parametrize("k", [0, 3, 100])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k={k} must be .* 6 rows"):
        metrics.trustworthiness(LINE, LINE, k)


def test_random_triplet_accuracy_by_hand() -> None:
    """Rows a, b, c at 0, 1, 3 in X and at 0, 3, 1 in Z: no anchor keeps the order of its distances.

    X: |ab| < |ac| (1, 3), |ba| < |bc| (1, 2), |ca| > |cb| (3, 2). Z: 3 > 1; 3 > 2; 1 < 2.
    """
    X, Z = LINE[:3], LINE[[0, 2, 1]]
    assert metrics.random_triplet_accuracy(X, Z, n_triplets=500, rng=rng()) == 0.0
    assert metrics.random_triplet_accuracy(X, 2 * X + 1, n_triplets=500, rng=rng()) == 1.0
    one_of_three = np.array([[0.0], [1.0], [-3.0]])
    flipped = np.array([[0.0], [1.0], [3.0]])
    assert metrics.random_triplet_accuracies(X, (Z, 2 * X + 1), n_triplets=500, rng=rng()) == [0.0, 1.0]
    share = metrics.random_triplet_accuracy(flipped, one_of_three, n_triplets=30_000, rng=rng())
    assert share == pytest.approx(2 / 3, abs=0.02)


def test_triplets_tied_in_features_are_left_out_and_in_embedding_count_half() -> None:
    """A triangle with |ab| = |ac| = 1, |bc| = sqrt(2): only anchors b and c have an order."""
    X = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert metrics.random_triplet_accuracy(X, X, n_triplets=100, rng=rng()) == 1.0
    assert metrics.random_triplet_accuracy(X, np.ones((3, 2)), n_triplets=100, rng=rng()) == 0.5
    assert metrics.random_triplet_accuracy(np.ones((3, 2)), X, n_triplets=100, rng=rng()) == 0.5


def test_draws_are_distinct_and_uniform() -> None:
    drawn = np.array(draw_distinct(4, 3, 48_000, rng()))
    assert all(len(set(column)) == 3 for column in drawn.T[:2000])
    _, counts = np.unique(drawn, axis=1, return_counts=True)
    assert len(counts) == 24
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_distance_correlation_equals_scipy() -> None:
    X, Z = rng(3).integers(0, 4, size=(50, 3)).astype(float), rng(4).normal(size=(50, 2))
    Z += X[:, :2]
    a, b = draw_distinct(50, 2, 400, rng(5))
    original, embedded = np.linalg.norm(X[a] - X[b], axis=1), np.linalg.norm(Z[a] - Z[b], axis=1)
    pearson, spearman = metrics.distance_correlation(X, Z, n_pairs=400, rng=rng(5))
    assert pearson == pytest.approx(pearsonr(original, embedded).statistic)
    assert spearman == pytest.approx(spearmanr(original, embedded).statistic)
    assert metrics.distance_correlation(X, -3 * X, n_pairs=50, rng=rng()) == pytest.approx((1.0, 1.0))
    assert metrics.distance_correlation(X, np.ones((50, 2)), n_pairs=50, rng=rng()) == (0.0, 0.0)


def test_pairs_are_cut_into_bins_of_equal_width_but_for_the_tails() -> None:
    """101 distances 0..100: percentiles 1 and 99 are 1 and 99, so that inner edges stand at 15, 29, 43, 57, 71, 85."""
    original = np.arange(101.0)
    pairs = metrics.PairDistances(np.zeros(101, int), np.ones(101, int), original, 2 * original)
    edges, bins = pairs.bins(7)
    assert edges.tolist() == [0, 15, 29, 43, 57, 71, 85, 100]
    assert np.bincount(bins).tolist() == [15, 14, 14, 14, 14, 14, 16]
    far = np.append(original, 1e9)
    assert len(np.unique(metrics.PairDistances(bins, bins, far, far).bins(7)[1])) == 7
    same = metrics.PairDistances(bins, bins, np.ones(101), original).bins(7)
    assert (same[0].tolist(), set(same[1])) == ([1.0, 1.0], {0})


@pytest.mark.parametrize("names", [False, True])
def test_knn_accuracy_equals_sklearn(names: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "_BLOCK_BYTES", 8 * 225 * 9)
    codes = rng(6).integers(0, 4, size=300)
    Z = rng(7).normal(size=(300, 2)) + 0.8 * codes[:, np.newaxis]
    y = np.array(["d", "c", "b", "a"])[codes] if names else codes * 3 - 4
    order = rng(8).permutation(300)
    model = KNeighborsClassifier(6).fit(Z[order[:225]], y[order[:225]])
    expected = model.score(Z[order[225:]], y[order[225:]])
    assert 0.3 < expected < 0.95
    assert metrics.knn_accuracy(Z, y, k=6, rng=rng(8)) == pytest.approx(expected)


def test_linear_svm_accuracy_by_hand() -> None:
    """Classes on a line, a gap between them: a straight cut tells all apart. A ring around a disc: none does."""
    y = rng(1).integers(0, 3, size=200)
    line = np.column_stack([10.0 * y + rng(2).uniform(-1, 1, 200), np.full(200, 7.0)])
    assert metrics.linear_svm_accuracy(line, np.array(["b", "c", "a"])[y], rng=rng(3)) == 1.0
    angle, ring = rng(4).uniform(0, 2 * np.pi, 400), np.arange(400) % 4 == 0
    disc = np.where(ring, 5.0, 1.0)[:, np.newaxis] * np.column_stack([np.cos(angle), np.sin(angle)])
    held_out = ring[rng(5).permutation(400)[300:]]
    assert metrics.linear_svm_accuracy(disc, ring, rng=rng(5)) == pytest.approx(1 - held_out.mean())
    assert metrics.linear_svm_accuracy(line, np.zeros(200), rng=rng(6)) == 1.0
    with pytest.raises(ConfigError, match=r"train_share=1\.0"):
        metrics.linear_svm_accuracy(line, y, rng=rng(0), train_share=1.0)


def test_knn_accuracy_refuses_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="k=5 must be between 1 and the 4 fitted rows"):
        metrics.knn_accuracy(LINE, np.arange(6), k=5, rng=rng())
    with pytest.raises(ConfigError, match=r"train_share=1\.0"):
        metrics.knn_accuracy(LINE, np.arange(6), k=1, rng=rng(), train_share=1.0)
    with pytest.raises(InputError, match=r"y has shape \(5,\)"):
        metrics.knn_accuracy(LINE, np.arange(5), k=1, rng=rng())


def test_centroid_correlation_equals_scipy() -> None:
    y = np.array(list("abcde"))[rng(9).integers(0, 5, size=200)]
    X, Z = rng(10).normal(size=(200, 30)), rng(11).normal(size=(200, 2))
    centres = [np.array([points[y == label].mean(axis=0) for label in "abcde"]) for points in (X, Z)]
    expected = pearsonr(pdist(centres[0]), pdist(centres[1])).statistic
    assert metrics.centroid_correlation(X, Z, y) == pytest.approx(expected)
    assert metrics.centroid_correlation(X, X * 2, y) == pytest.approx(1.0)
    assert metrics.centroid_correlation(X, Z, y == "a") == 0.0


@pytest.mark.parametrize(
    ("Z", "collapsed"),
    [
        (np.zeros((9, 2)), True),
        (np.full((9, 2), 5.0), True),
        (5.0 + 1e-4 * np.arange(18.0).reshape(9, 2), True),
        (rng().normal(size=(9, 2)), False),
        (1e-3 * rng().normal(size=(9, 2)), False),  # small is not collapsed
        (100.0 + rng().normal(size=(9, 2)), False),
        (np.zeros((1, 2)), False),
    ],
)
def test_is_collapsed(Z: np.ndarray, collapsed: bool) -> None:
    assert metrics.is_collapsed(Z) is collapsed


def test_bad_points_are_refused() -> None:
    with pytest.raises(InputError, match=r"X has 6 rows and Z has 5"):
        metrics.trustworthiness(LINE, LINE[:5], 1)
    with pytest.raises(InputError, match="Z holds NaN or infinity, first in row 2"):
        metrics.trustworthiness(LINE, np.where(LINE == 3.0, np.nan, LINE), 1)
    with pytest.raises(InputError, match=r"X has shape \(6,\)"):
        metrics.trustworthiness(LINE[:, 0], LINE, 1)
    with pytest.raises(InputError, match="X has 2 rows; at least 3"):
        metrics.random_triplet_accuracy(LINE[:2], LINE[:2], n_triplets=5, rng=rng())
    with pytest.raises(ConfigError, match="n_pairs=0"):
        metrics.distance_correlation(LINE, LINE, n_pairs=0, rng=rng())


_values = st.floats(-1e3, 1e3, width=32)


@settings(deadline=None, max_examples=60)
@given(
    X=hnp.arrays(np.float32, (9, 3), elements=_values | st.just(0.0)),
    Z=hnp.arrays(np.float32, (9, 2), elements=_values | st.just(0.0)),
    seed=st.integers(0, 99),
)
def test_figures_are_finite_in_range_and_best_for_the_same_points(X: np.ndarray, Z: np.ndarray, seed: int) -> None:
    y = rng(seed).integers(0, 3, size=9)
    for low, value in [
        (-1.0, metrics.trustworthiness(X, Z, 3)),
        (-1.0, metrics.continuity(X, Z, 3)),
        (0.0, metrics.random_triplet_accuracy(X, Z, n_triplets=40, rng=rng(seed))),
        *((-1.0, value) for value in metrics.distance_correlation(X, Z, n_pairs=40, rng=rng(seed))),
        (0.0, metrics.knn_accuracy(Z, y, k=2, rng=rng(seed))),
        (-1.0, metrics.centroid_correlation(X, Z, y)),
    ]:
        assert low <= value <= 1.0
    assert metrics.trustworthiness(X, X, 3) == 1.0 or (X == X[0]).all()
    assert metrics.random_triplet_accuracy(X, X, n_triplets=40, rng=rng(seed)) in {0.5, 1.0}


def test_knn_recall_by_hand() -> None:
    """On a line at 0, 1, 3, 7, 15 the nearest are 1, 0, 1, 3, 7; with the last two swapped three of them stay."""
    X = np.array([[0.0], [1], [3], [7], [15]])
    Z = np.array([[0.0], [1], [3], [15], [7]])
    assert metrics.knn_recall(X, X, 2) == 1.0
    # in Z: 0 -> 1, 1 -> 0, 3 -> 1, 15 -> 7 (row 4), 7 -> 3 (row 2)
    assert metrics.knn_recall(X, Z, 1) == pytest.approx(3 / 5)
    with pytest.raises(ConfigError, match="k=3 must be at least 1 and less than half of the 5 rows"):
        metrics.knn_recall(X, Z, 3)


def test_rows_to_test_on_can_be_given() -> None:
    Z, y = rng(1).normal(size=(200, 2)), rng(2).integers(0, 3, 200)
    tested = rng(3).random(200) < 0.2
    classifier = KNeighborsClassifier(7).fit(Z[~tested], y[~tested])
    found = metrics.knn_accuracy(Z, y, k=7, rng=rng(), tested=tested)
    assert found == pytest.approx(classifier.score(Z[tested], y[tested]))
    Z[~tested] = np.eye(3, 2)[y[~tested]] * 9  # told apart where it was fitted, not where it is tested
    assert metrics.linear_svm_accuracy(Z, y, rng=rng(), tested=tested) < 0.7
    with pytest.raises(InputError, match="must be tested"):
        metrics.knn_accuracy(Z, y, k=7, rng=rng(), tested=np.ones(200, bool))
