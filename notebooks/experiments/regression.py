# %% [markdown]
# # Regression
#
# With `supervision_metric="mae"`, or any other Keras regression loss, the embedding is ordered along the target, and
# `score_samples` predicts it. Ten measurements of 442 diabetes patients; the target is the progression of the disease
# within a year.

# %% tags=["parameters"]
epochs = 20
weight = 0.5  # of the target against the neighbours

# %%
import matplotlib.pyplot as plt
from scipy.stats import spearmanr
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from ivis_spark import Config, Ivis

X, y = load_diabetes(return_X_y=True)
X_seen, X_new, y_seen, y_new = train_test_split(StandardScaler().fit_transform(X), y, random_state=0)
target = StandardScaler().fit(y_seen[:, None])  # a loss of numbers near 1 weighs what `weight` says

# %% [markdown]
# Preset fast uses no dropout. With dropout (0.1 in preset ivis), predictions have a larger spread than the targets in
# training, because alpha dropout dampens the units that it does not drop.

# %%
settings = {"epochs": epochs, "batch_size": 64}
model = Ivis.from_config(Config(preset="fast"), **settings, supervision_metric="mae", supervision_weight=weight)
model.fit(X_seen, target.transform(y_seen[:, None]))
predicted = target.inverse_transform(model.score_samples(X_new)).ravel()
plain = Ivis.from_config(Config(preset="fast"), **settings).fit(X_seen)

# %% [markdown]
# ## Is it good?
# A linear model is hard to beat on so few rows: ridge regression shows how much the measurements can predict. The
# correlation is that of the target with the best-fitting direction of the embedding: how well the target can be read
# off the picture.

# %%
r2 = {"ridge": r2_score(y_new, Ridge().fit(X_seen, y_seen).predict(X_new)), "Ivis": r2_score(y_new, predicted)}
order = {}
for name, made in (("with target", model), ("without", plain)):
    line = Ridge().fit(made.transform(X_seen), y_seen)
    order[name] = spearmanr(line.predict(made.transform(X_new)), y_new).statistic
print("variance of new patients explained: " + ", ".join(f"{name} {value:.2f}" for name, value in r2.items()))
print("correlation of embedding and target: " + ", ".join(f"{name} {value:.2f}" for name, value in order.items()))

# %% [markdown]
# ## Results
# New patients. On the left the colour changes along the embedding, though not sharply: the measurements explain only a
# third of the variance of the disease progression, for the linear model too. In the middle it is more mixed.

# %%
figure, axes = plt.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
for panel, made, title in zip(axes, (model, plain), ("with target", "without"), strict=False):
    drawn = panel.scatter(*made.transform(X_new).T, c=y_new, s=15)
    panel.set_title(title)
figure.colorbar(drawn, ax=axes[1], label="progression")
axes[2].scatter(y_new, predicted, s=15)
axes[2].axline((y_new.mean(), y_new.mean()), slope=1, color="grey")
axes[2].set(xlabel="progression", ylabel="predicted")
plt.show()
