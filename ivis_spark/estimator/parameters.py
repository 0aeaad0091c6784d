"""What scikit-learn asks of an estimator, without importing scikit-learn."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from ivis_spark.errors import ConfigError

_Self = TypeVar("_Self", bound="Parameters")


class Parameters:
    """Parameters are the arguments of the constructor, kept as attributes of the same name."""

    encoder_: Any

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name."""
        del deep
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self: _Self, **params: Any) -> _Self:
        """Set parameters by name.

        Raises: ConfigError: if one is unknown.
        """
        valid = self._parameter_names()
        unknown = sorted(set(params) - set(valid))
        if unknown:
            raise ConfigError(f"Ivis has no parameter {', '.join(unknown)}; valid: {', '.join(valid)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        """Show the parameters that are not the default."""
        defaults = {name: item.default for name, item in inspect.signature(type(self)).parameters.items()}
        changed = [(name, value) for name, value in self.get_params().items() if value is not defaults[name]]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        """Tell scikit-learn whether this can transform."""
        return self.encoder_ is not None

    def __sklearn_tags__(self) -> Any:
        """Describe this to scikit-learn, which alone asks."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(None, TargetTags(required=False), TransformerTags(), input_tags=InputTags())
