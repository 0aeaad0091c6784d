# %% [markdown]
# # Concept drift: new rows on the old map
#
# A trained network embeds each day's rows on the fixed map of its training rows. If the new rows are distributed
# differently, the world has changed, or the instrument has. The energy distance between a day and the past measures how
# much, and a permutation test gives its distribution by chance. Both are computed on the map and on the features.
#
# The days consist of digits that were not trained on, of which an increasing share is changed in one of three ways:
# only zeros and ones remain, an unseen digit appears, or the lamp of the scanner fades.

# %% tags=["parameters"]
epochs = "auto"  # enough for the number of rows; a number ends it sooner
day = 150  # rows of a day
shares = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)  # changed rows of a day
unseen = 4  # the digit left out

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import pairwise_distances
from sklearn.model_selection import train_test_split

from ivis_spark import Config, Ivis

X, y = load_digits(return_X_y=True)
X = X / 16
past, present, _, digit = train_test_split(X[y != unseen], y[y != unseen], random_state=0)
model = Ivis.from_config(Config(preset="fast"), epochs=epochs).fit(past)
map_of_past = model.transform(past)
changes = {"only 0 and 1": present[digit < 2], "a digit never seen": X[y == unseen], "a fading lamp": present * 0.6}


# %%
def surprise(old: np.ndarray, new: np.ndarray, rng: np.random.Generator, shuffles: int = 200) -> float:
    """Return the energy distance of two samples, in standard deviations above what chance gives."""
    distances = pairwise_distances(np.vstack([old, new]))
    is_new = np.repeat([0.0, 1.0], [len(old), len(new)])
    draws = np.column_stack([is_new, *(rng.permutation(is_new) for _ in range(shuffles))])  # the first is the real one
    within_new = np.einsum("ij,ij->j", draws, distances @ draws)
    across = distances.sum(axis=0) @ draws - within_new
    within_old = distances.sum() - within_new - 2 * across
    n, m = len(old), len(new)
    energy, *chance = 2 * across / (n * m) - within_old / n**2 - within_new / m**2
    return (energy - np.mean(chance)) / np.std(chance)


# %% [markdown]
# ## From which share is drift detected?
# About 3 standard deviations are beyond chance.

# %%
rng = np.random.default_rng(0)
found = {}
for change, changed in changes.items():
    for share in shares:
        count = round(share * day)
        rows = np.vstack([rng.choice(present, day - count), rng.choice(changed, count)])
        found[change, share] = surprise(map_of_past, model.transform(rows), rng), surprise(past, rows, rng)
        print(f"{change:<18} {share:4.0%}: {found[change, share][0]:6.1f} map, {found[change, share][1]:6.1f} features")

# %% [markdown]
# ## Results
# Dots are the day on which every row has changed, on the map of the past in grey. A different mix of digits is detected
# as well on the map as in the features. An unseen digit lands between the groups, where no past rows are: the eye sees
# it at once, the energy distance much less than in the features. A fading lamp hardly moves a point: the map cannot
# detect it, the features can. So use the features to detect that something changed, and the map to see what.

# %%
figure, axes = plt.subplots(1, len(changes) + 1, figsize=(20, 4.5))
for panel, (change, changed) in zip(axes, changes.items(), strict=False):
    panel.scatter(*map_of_past.T, s=3, color="lightgrey")
    panel.scatter(*model.transform(rng.choice(changed, day)).T, s=8)
    panel.set_title(change)
    for place, line in ((0, "-"), (1, ":")):
        values = [found[change, share][place] for share in shares]
        axes[-1].plot(shares, values, line, label=f"{change}, {('map', 'features')[place]}")
axes[-1].axhline(3, color="grey")
axes[-1].set(xlabel="share of changed rows", title="standard deviations above chance")
axes[-1].legend()
plt.show()
