# %% [markdown]
# # Rows that do not fit into memory
#
# `Ivis` accepts an HDF5 dataset like an array, and reads one batch at a time. Two arguments keep its memory from
# growing with the file: `precompute=False` queries the index for neighbours when a batch needs them, and
# `shuffle_mode="batch"` shuffles batches of adjacent rows, which can be read from a file at once. Adjacent rows then
# train together, so shuffle a file that is sorted by class first. (For tables too large for one machine, use
# `ivis-spark run`.)

# %% tags=["parameters"]
rows = 50_000  # of the file
epochs = 10

# %%
import os
import tempfile

import h5py
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from ivis_spark import Config, Ivis
from ivis_spark.core import metrics

digits, classes = load_digits(return_X_y=True)
folder = tempfile.TemporaryDirectory()
path = os.path.join(folder.name, "rows.h5")

# %% [markdown]
# ## The file
# Noisy copies of scikit-learn's digits, written one block at a time, so that the whole array is never in memory.

# %%
rng = np.random.default_rng(0)
with h5py.File(path, "w") as file:
    X = file.create_dataset("X", (rows, digits.shape[1]), dtype="float32")
    y = file.create_dataset("y", rows, dtype="int32")
    for start in range(0, rows, 5_000):
        stop = min(start + 5_000, rows)
        drawn = rng.integers(0, len(digits), stop - start)
        X[start:stop] = digits[drawn] / 16 + rng.normal(scale=0.1, size=(stop - start, digits.shape[1]))
        y[start:stop] = classes[drawn]
print(f"{os.path.getsize(path) / 2**20:.1f} MiB in the file")

# %% [markdown]
# ## Training and embedding
# The index of the neighbours is a file too, because `build_index_on_disk` is true by default.

# %%
with h5py.File(path) as file:
    X, y = file["X"], file["y"][:]
    model = Ivis.from_config(Config(preset="fast"), epochs=epochs, precompute=False, n_trees=10)
    model.fit(X, shuffle_mode="batch")
    Z = model.transform(X)
    sample = np.sort(rng.choice(rows, min(rows, 2_000), replace=False))
    trust = metrics.trustworthiness(X[sample], Z[sample], k=15)
accuracy = metrics.knn_accuracy(Z[sample], y[sample], k=15, rng=np.random.default_rng(0))
print(f"of {len(sample):,} rows: trustworthiness {trust:.3f}, kNN accuracy {accuracy:.3f}")

# %% [markdown]
# ## New rows
# The trained network embeds the digits without noise, which it has not seen.

# %%
clean = model.transform(digits / 16)
clean_accuracy = KNeighborsClassifier(15).fit(Z[sample], y[sample]).score(clean, classes)
print(f"digits without noise: kNN accuracy {clean_accuracy:.3f}")
figure, axes = plt.subplots(1, 2, figsize=(12, 5))
axes[0].scatter(*Z[sample].T, c=y[sample], s=4, cmap="tab10")
axes[0].set_title("rows of the file")
axes[1].scatter(*clean.T, c=classes, s=4, cmap="tab10")
axes[1].set_title("digits without noise, embedded afterwards")
plt.show()
folder.cleanup()
