# %% [markdown]
# # Does it invent clusters?
#
# A method that shows groups where there are none misleads. Uniform noise has none; two moons are two curved groups; the
# swiss roll is one rolled-up sheet. Each is embedded by PCA, by `Ivis` with ivis's defaults and with preset fast, and
# by UMAP if umap-learn is installed; all use 15 neighbours.
#
# The measure: k-means splits the embedding into 2 to 8 groups, and the best silhouette of these measures how well they
# are separated. Uniform points reach about .4 in a square and .64 on a line, because k-means splits anything; only
# clearly higher values indicate groups.

# %% tags=["parameters"]
rows = 1500
epochs = "auto"  # of preset fast; a number ends it sooner

# %%
import importlib.util

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import make_moons, make_swiss_roll
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import minmax_scale

from ivis_spark import Config, Ivis

rng = np.random.default_rng(0)
roll, along = make_swiss_roll(rows, random_state=0)
moons, moon = make_moons(rows, noise=0.05, random_state=0)
sets = {
    "uniform noise": (rng.random((rows, 10)), rng.random(rows)),
    "two moons": (minmax_scale(moons), moon),
    "swiss roll": (minmax_scale(roll), along),
}
methods = {
    "PCA": PCA(2),
    "ivis": Ivis(k=15),
    "preset fast": Ivis.from_config(Config(preset="fast"), epochs=epochs),
}
if importlib.util.find_spec("umap"):
    import umap

    methods["UMAP"] = umap.UMAP(random_state=0)
else:
    print("umap-learn is not installed: no UMAP beside the others; pip install umap-learn adds it")


# %%
def best_silhouette(Z: np.ndarray) -> float:
    cuts = (KMeans(k, random_state=0).fit_predict(Z) for k in range(2, 9))
    return max(silhouette_score(Z, cut) for cut in cuts)


print(f"{'evenly scattered in a square':<28} {best_silhouette(rng.random((rows, 2))):.2f}")
figure, axes = plt.subplots(len(sets), len(methods), figsize=(3.2 * len(methods), 9.5))
silhouettes = {}
for row, (name, (X, colour)) in zip(axes, sets.items(), strict=True):
    for panel, (method, estimator) in zip(row, methods.items(), strict=True):
        Z = clone(estimator).fit_transform(X)
        silhouettes[name, method] = best_silhouette(Z)
        print(f"{name + ', ' + method:<28} {silhouettes[name, method]:.2f}")
        panel.scatter(*Z.T, c=colour, s=3, cmap="viridis")
        panel.set(title=f"{name}, {method}: {silhouettes[name, method]:.2f}", xticks=[], yticks=[])

# %% [markdown]
# ## Results
# Upper row: one cloud without gaps is the correct picture of noise, and all methods show it. Middle row: two unbroken
# curves are correct, and preset fast shows them. UMAP breaks them into strings of beads, which the eye sees and the
# silhouette of a few groups does not. ivis's angular distance uses only the direction of a point from the origin, so
# both moons fall onto one line; `knn_distance_metric="euclidean"` keeps them apart. Lower row: no method unrolls the
# sheet without flaws. Preset fast bends it open; with PCA and ivis, layers overlap; UMAP's sheet is full of holes.

# %%
figure.tight_layout()
plt.show()
