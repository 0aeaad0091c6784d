"""Both presets draw uniform noise as one cloud, and a moon as one curve: k-means finds no groups that are not there.

The silhouette of the best cut into 2 to 8 groups is compared with that of uniform noise in a square, or on a line for
what is a curve: k-means cuts those too.
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from sklearn.cluster import KMeans
from sklearn.datasets import make_moons
from sklearn.metrics import pairwise_distances, silhouette_score

from ivis_spark.config import Config
from ivis_spark.estimator import Ivis

pytestmark = [pytest.mark.tf, pytest.mark.slow]

N = 1000
# Between draws of noise the best silhouette differs by about .01; two blobs that touch are .1 above it.
TOLERANCE = 0.05


def best_silhouette(Z: np.ndarray) -> float:
    distances = pairwise_distances(Z)
    cuts = (KMeans(k, n_init=2, random_state=0).fit_predict(Z) for k in range(2, 9))
    return max(float(silhouette_score(distances, cut, metric="precomputed")) for cut in cuts)


@functools.cache
def silhouette_of_noise(n: int, dims: int, seed: int = 1) -> float:
    return best_silhouette(np.random.default_rng(seed).random((n, dims)))


def is_above_noise(silhouette: float, n: int, dims: int) -> bool:
    return silhouette > silhouette_of_noise(n, dims) + TOLERANCE


def invents_clusters(Z: np.ndarray, *, dims: int) -> bool:
    return is_above_noise(best_silhouette(Z), len(Z), dims)


def pulled_together(points: np.ndarray, groups: int, share: float) -> np.ndarray:
    """Return points moved a share of the way to the centre of their k-means group, as an embedding might."""
    cut = KMeans(groups, n_init=2, random_state=0).fit(points)
    return points + share * (cut.cluster_centers_[cut.labels_] - points)


@pytest.mark.parametrize(
    ("preset", "features", "dims"),
    [
        ("fast", 2, 2),
        ("fast", 10, 2),
        ("ivis", 10, 2),
        ("ivis", 2, 1),  # its metric is angular, and the angle of two features is one number: a curve is right
    ],
)
def test_uniform_noise_stays_one_cloud(preset: Literal["fast", "ivis"], features: int, dims: int) -> None:
    X = np.random.default_rng(0).random((N, features))
    assert not invents_clusters(Ivis.from_config(Config(preset=preset)).fit_transform(X), dims=dims)


@pytest.mark.parametrize("preset", ["fast", "ivis"])
def test_a_moon_stays_one_curve(preset: Literal["fast", "ivis"]) -> None:
    X, moon = make_moons(N, noise=0.05, random_state=0)
    Z = Ivis.from_config(Config(preset=preset)).fit_transform(X)
    assert not invents_clusters(Z[moon == 0], dims=1)
    assert not invents_clusters(Z[moon == 1], dims=1)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("groups", [2, 4, 8])
def test_invented_clusters_are_seen(groups: int, dims: int) -> None:
    assert not is_above_noise(silhouette_of_noise(N, dims, seed=0), N, dims)
    noise = np.random.default_rng(0).random((N, dims))
    assert invents_clusters(pulled_together(noise, groups, 0.3), dims=dims)
