"""One process that trains alone."""

from __future__ import annotations

from ivis_spark.train.backends import Backend


class Ranks(Backend):
    """The only rank."""

    distributed = False
