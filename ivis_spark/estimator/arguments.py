"""Arguments of `Ivis`: unknown names, errors that name them, and which of them an existing model can follow."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from ivis_spark.config import did_you_mean
from ivis_spark.errors import ConfigError, reworded
from ivis_spark.estimator.settings import TRAIN_SETTINGS

# Arguments of UMAP and t-SNE for which nothing similar is called like them here.
_ELSEWHERE = {
    "n_neighbors": "k",
    "perplexity": "k",
    "metric": "knn_distance_metric",
    "n_epochs": "epochs",
    "max_iter": "epochs",
    "min_dist": "temperature",
    "spread": "temperature",
    "target_metric": "supervision_metric",
    "target_weight": "supervision_weight",
}
# Settings of pipelines in messages, and the arguments that they are here.
_ARGUMENTS = {
    "neighbours.metric": "knn_distance_metric",
    **{f"neighbours.{name}": name for name in ("k", "n_trees", "search_k")},
    **{f"train.{setting}": name for name, setting in TRAIN_SETTINGS.items()},
    **{f"train.{name}": name for name in ("distance", "model", "supervision_metric")},
}
# What a model is built from; other arguments only change how it is trained.
_BUILT_FROM = ("embedding_dims", "model", "dropout", "compute_precision", "n_components")
OF_OPTIMIZER = ("optimizer", "learning_rate", "clipnorm")
OF_HEAD = ("supervision_metric",)
_OF_LOSS = (
    *("distance", "margin", "temperature", "clip", "shared_negatives"),
    *("supervision_weight", "global_weight"),
)
FOLLOWED = (*_BUILT_FROM, *OF_OPTIMIZER, *OF_HEAD, *_OF_LOSS)

_Init = TypeVar("_Init", bound=Callable[..., None])


def with_hints(init: _Init) -> _Init:
    """Make a constructor suggest what an unknown argument is called here."""
    known = list(inspect.signature(init).parameters)

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **params: Any) -> None:
        for name in params:
            if name not in known:
                meant = f"; did you mean {_ELSEWHERE[name]}?" if name in _ELSEWHERE else did_you_mean(name, known[1:])
                raise TypeError(f"{type(self).__name__} has no argument {name!r}{meant or '; see help(Ivis)'}")
        init(self, *args, **params)

    return checked  # type: ignore[return-value]


def naming_arguments() -> AbstractContextManager[None]:
    """Let errors name arguments of `Ivis`, not the settings of pipelines that they stand for."""
    names = "|".join(map(re.escape, _ARGUMENTS))
    return reworded(functools.partial(re.sub, rf"\b({names})\b", lambda found: _ARGUMENTS[found[1]]))


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the arguments that changed since a model was trained."""
    return [name for name in before if before[name] is not now[name] and not bool(before[name] == now[name])]


def check_network(before: Mapping[str, Any], now: Mapping[str, Any], *, loaded: bool) -> None:
    """Check that a model whose training resumes still is what the arguments describe.

    Args:
        before: Values of `FOLLOWED` when the model was made.
        now: Their values.
        loaded: Whether it was loaded, so that `fit` always resumes.

    Raises: ConfigError: naming what changed.
    """
    names = [name for name in changed(before, now) if name in _BUILT_FROM]
    if names:
        what = ", ".join(f"{name} from {before[name]!r} to {now[name]!r}" for name in names)
        again = "make a new Ivis" if loaded else "set warm_start=False"
        raise ConfigError(
            f"training cannot resume: {what} changed since the model was trained, and its network has the former: "
            f"{again} to train another model from scratch, or set {' and '.join(names)} back"
        )
