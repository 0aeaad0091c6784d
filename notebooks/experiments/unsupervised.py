# %% [markdown]
# # Without labels: iris
#
# Four measurements of 150 flowers become two coordinates. The network does not see the species, only which flowers are
# similar: each is trained to be closer to one of its neighbours than to a random flower.

# %% tags=["parameters"]
epochs = 500  # at most; training stops when the loss no longer falls
k = 15  # neighbours of each flower; ivis's default of 150 is for larger tables
metric = "euclidean"  # of the neighbours; see the last cell for ivis's default, angular

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_iris
from sklearn.preprocessing import minmax_scale

from ivis_spark import Ivis
from ivis_spark.core import metrics

iris = load_iris()
X, y = minmax_scale(iris.data), iris.target  # distances need columns of one scale

# %%
model = Ivis(k=k, knn_distance_metric=metric, epochs=epochs, batch_size=32)
Z = model.fit_transform(X)

# %% [markdown]
# ## What is preserved
# The vote of the neighbours predicts the species about as well in two dimensions as in four. Trustworthiness measures
# whether flowers that are near in the picture are near in the measurements (1 is best, .5 is chance); the triples,
# whether the nearer of two flowers is still the nearer one.

# %%
figures = {
    "kNN accuracy, four measures": metrics.knn_accuracy(X, y, k=5, rng=np.random.default_rng(0)),
    "kNN accuracy, embedding": metrics.knn_accuracy(Z, y, k=5, rng=np.random.default_rng(0)),
    "trustworthiness": metrics.trustworthiness(X, Z, k=15),
    "triples in order": metrics.random_triplet_accuracy(X, Z, n_triplets=20_000, rng=np.random.default_rng(0)),
}
for name, value in figures.items():
    print(f"{name:<28} {value:.3f}")

# %% [markdown]
# ## Results
# Setosa is separate; versicolor and virginica touch, as in the measurements: no unsupervised method can separate them
# with certainty. The loss falls quickly, then slowly; when it stops falling, training ends.
#
# With `metric = "angular"` the picture gets worse, because angles between rows of four measurements carry little
# information: a large and a small flower of the same shape count as near. Angles suit rows with many columns, such as
# counts of words or genes.

# %%
figure, (points, loss) = plt.subplots(1, 2, figsize=(11, 4.5))
for species, name in enumerate(iris.target_names):
    points.scatter(*Z[y == species].T, s=15, label=name)
points.legend(loc="lower left")
points.set_title("150 flowers")
loss.plot(model.loss_history_)
loss.set(title="Loss", xlabel="epoch")
plt.show()
