# %% [markdown]
# # How far is far? Distances before and after
#
# An embedding is often read as a map: these two groups are close, that one is far away. Whether this is justified is
# measured here: distances of random pairs in the features, cut into ten bins of equal size, against their distances in
# the embedding. Rising boxes mean that far pairs stay far; boxes at the same height mean that distances in the picture
# are meaningless.
#
# `data` is an `.npz` file with `X`, shape (n, d), and `y`; see README.md for how to create one from MNIST.

# %% tags=["parameters"]
data = ""  # empty: the 1,797 digits that come with scikit-learn
rows = 5_000  # at most
epochs = "auto"  # of preset fast
pairs = 20_000

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from ivis_spark import Config, Ivis
from ivis_spark.core import metrics

X, y = (np.load(data)[name] for name in "Xy") if data else load_digits(return_X_y=True)
X, y = X[:rows].astype("float32") / X.max(), y[:rows]
fast = Config(preset="fast")
methods = {
    "PCA": PCA(2),
    "preset ivis": Ivis(k=15, n_epochs_without_progress=5),
    "preset fast, no global term": Ivis.from_config(fast, epochs=epochs, global_weight=0.0),
    "preset fast": Ivis.from_config(fast, epochs=epochs),
    "preset fast, global_weight=1": Ivis.from_config(fast, epochs=epochs, global_weight=1.0),
}
embeddings = {name: method.fit_transform(X) for name, method in methods.items()}

# %% [markdown]
# ## Near and far in numbers
# Pearson's and Spearman's correlation of the distances; the share of random triples whose order is preserved;
# trustworthiness of the 15 nearest. The first three measure far pairs, the last near ones.

# %%
figures = {}
print(f"{'':<30} Pearson  Spearman  triples  trustworthiness")
for name, Z in embeddings.items():
    pearson, spearman = metrics.distance_correlation(X, Z, n_pairs=pairs, rng=np.random.default_rng(0))
    triples = metrics.random_triplet_accuracy(X, Z, n_triplets=pairs, rng=np.random.default_rng(0))
    figures[name] = (pearson, spearman, triples, metrics.trustworthiness(X[:2000], Z[:2000], k=15))
    print(f"{name:<30} " + "  ".join(f"{value:7.3f}" for value in figures[name]))

# %% [markdown]
# ## Results
# All boxes rise: none of these pictures is meaningless at large scale, but none can be measured like a map.
# `global_weight` straightens the boxes: with 1, preset fast exceeds PCA in Pearson's correlation, .65 against .60 on
# these digits and .62 against .55 on 5,000 rows of MNIST, at almost no cost for near rows: the last column fell from
# .983 to .981 on the digits, and not at all on MNIST (.95, where PCA has .75).

# %%
rng = np.random.default_rng(0)
first, second = rng.integers(0, len(X), (2, pairs))
before = np.linalg.norm(X[first] - X[second], axis=1)
bins = np.array_split(np.argsort(before), 10)
figure, axes = plt.subplots(1, len(embeddings), figsize=(3.4 * len(embeddings), 4))
for panel, (name, Z) in zip(axes, embeddings.items(), strict=True):
    after = np.linalg.norm(Z[first] - Z[second], axis=1)
    panel.boxplot([after[rows_of_bin] / np.median(after) for rows_of_bin in bins], showfliers=False)
    panel.set(title=f"{name}\nr = {figures[name][0]:.2f}", xlabel="distance of the features, in tenths")
axes[0].set_ylabel("distance in the embedding / median")
figure.tight_layout()
plt.show()
