"""What labels mean to a report: classes or a continuous value, and the colour of each row."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# Eight of Petroff's ten colours (arXiv 2107.02270), and two dark ones for his greys, which stand for missing and rare
# labels. The closest two differ by 18 (CIE 1976), also without red, green or blue cones; then again with other markers.
PALETTE = ("#3f90da", "#bd1f01", "#ffa90e", "#832db6", "#003c64", "#a96b59", "#e76300", "#b9ac70", "#780028", "#92dadd")
MARKERS = ("circle", "square", "triangle-up", "diamond")
PLAIN_COLOUR = "#3f6fa8"
MISSING_COLOUR = "#c9c9c9"
UNLABELLED = "no label"

_MOST_NUMERIC_CLASSES = 100
MOST_LAYERS = len(PALETTE) * len(MARKERS)
_MOST_LABEL_CHARS, _MOST_APART_CHARS = 60, 120
_SCALE_STEPS = 10


@dataclass(frozen=True)
class Labels:
    """Labels of sampled rows.

    Attributes:
        names: Class names in order, empty if the label is continuous.
        codes: int64 (n,), position in `names`, -1 without a label.
        numbers: float64 (n,), NaN without a label; None for text.
    """

    names: tuple[str, ...]
    codes: Ints
    numbers: NDArray[np.float64] | None

    def head(self, n: int) -> Labels:
        """Return the labels of the first n rows."""
        return Labels(self.names, self.codes[:n], None if self.numbers is None else self.numbers[:n])

    @property
    def continuous(self) -> bool:
        """Whether the label is a quantity and not a class."""
        return not self.names and self.numbers is not None

    @property
    def known(self) -> NDArray[np.bool_]:
        """Rows that have a label, bool (n,)."""
        if self.continuous and self.numbers is not None:
            return np.isfinite(self.numbers)
        return self.codes >= 0

    @property
    def ends(self) -> tuple[float, float]:
        """Values at the ends of a colour scale: all but the outermost 1 %, so that outliers do not flatten it."""
        if self.numbers is None or not self.known.any():
            return 0.0, 1.0
        low, high = np.percentile(self.numbers[self.known], [1, 99])
        return float(low), float(high)

    @property
    def on_scale(self) -> bool:
        """Whether a colour scale shows the label better than one colour per class."""
        return self.continuous or (self.numbers is not None and len(self.names) > MOST_LAYERS)


@dataclass(frozen=True)
class Layer:
    """Rows drawn with one colour and marker, under one name in the legend."""

    name: str
    rows: Ints
    colour: str
    marker: str = "circle"


def read_labels(
    values: Sequence[object], *, classes: bool = False, order: Sequence[object] | None = None
) -> Labels | None:
    """Return the labels of rows, or None if no row has one.

    Text is classes. Numbers are classes if they are whole and of at most 100 different values, else continuous.

    Args:
        values: A float or text per row; None or NaN without a label.
        classes: Whether numbers are classes, whatever they are.
        order: Of the names of classes; natural when None.
    """
    missing = [value is None or value != value for value in values]
    if all(missing):
        return None
    if not any(isinstance(value, str) for value in values):
        numbers = np.array([np.nan if gone else value for value, gone in zip(values, missing, strict=True)], np.float64)
        numbers[~np.isfinite(numbers)] = np.nan
        unique = np.unique(numbers[np.isfinite(numbers)])
        if not len(unique):
            return None
        if not classes and (len(unique) > _MOST_NUMERIC_CLASSES or (unique != np.round(unique)).any()):
            return Labels((), np.full(len(numbers), -1, np.int64), numbers)
        codes = np.where(np.isnan(numbers), -1, np.searchsorted(unique, numbers)).astype(np.int64)
        return Labels(tuple(f"{value:.0f}" for value in unique), codes, numbers)
    found = {str(value) for value, gone in zip(values, missing, strict=True) if not gone}
    names = sorted(found, key=_natural) if order is None else [str(name) for name in order if str(name) in found]
    position = {name: code for code, name in enumerate(names)}
    numbered = [-1 if gone else position[str(value)] for value, gone in zip(values, missing, strict=True)]
    return Labels(tuple(names), np.array(numbered, np.int64), None)


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key under which `day 2` stands before `day 10`."""
    parts = re.split(r"([0-9]+)", name)
    return [(len(part.lstrip("0")) if part.isdecimal() else 0, part) for part in parts], name


def shortened(names: Sequence[str], most: int = _MOST_LABEL_CHARS) -> list[str]:
    """Return names on one line, cut to `most` characters, or to as many as keep different ones apart.

    They are cut where all long ones begin or end alike, and in the middle. Those that 120 characters do not keep apart
    end in a number.
    """
    flat = [" ".join(name.split()) or "(empty)" for name in names]
    alike = Counter(flat)
    flat = [name if alike[name] == 1 else repr(text) for name, text in zip(flat, names, strict=True)]
    longer = [name for name in flat if len(name) > most]
    shared = [_alike(longer), _alike([name[::-1] for name in longer])]
    cut = [_cut(name, most, *shared) for name in flat]
    for size in range(most + 8, _MOST_APART_CHARS + 1, 8):
        for place in _places_alike(cut, flat):
            cut[place] = _cut(flat[place], size, *shared)
    for number, place in enumerate(_places_alike(cut, flat), start=1):
        cut[place] = f"{_cut(flat[place], _MOST_APART_CHARS - 10, *shared)} ({number})"
    return cut


def _places_alike(cut: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return where names were cut so that they are like another one."""
    same = Counter(cut)
    return [
        place for place, (short, name) in enumerate(zip(cut, names, strict=True)) if short != name and same[short] > 1
    ]


def _alike(names: Sequence[str]) -> int:
    """Return how many characters several names begin with alike."""
    return next((at for at, these in enumerate(zip(*names, strict=False)) if len(set(these)) > 1), 0)


def _cut(name: str, size: int, before: int, after: int) -> str:
    """Return a name of at most `size` characters, first without what all share: `before` and `after`."""
    kept = size // 4
    if len(name) > size and before > kept:
        name = f"{name[:kept]}…{name[before:]}"
    if len(name) > size and after > kept:
        name = f"{name[: len(name) - after]}…{name[len(name) - kept :]}"
    if len(name) > size:
        name = f"{name[: (size - 1) // 2]}…{name[len(name) - size // 2 :]}"
    return name


def plan_layers(labels: Labels | None, n_rows: int) -> list[Layer]:
    """Return what to draw in flat colours, first what lies below: unlabelled rows, rare classes, then the classes.

    Classes beyond the palette (10 colours, 4 markers) share one grey layer, the rarest first. With a colour scale only
    the unlabelled rows are returned.
    """
    if labels is None:
        return [Layer("rows", np.arange(n_rows), PLAIN_COLOUR)]
    layers = []
    gone = np.flatnonzero(~labels.known)
    if len(gone):
        layers.append(Layer(UNLABELLED, gone, MISSING_COLOUR))
    if labels.on_scale:
        return layers
    counts = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.names))
    shown = np.arange(len(counts))
    if len(counts) > MOST_LAYERS:
        shown = np.sort(np.argsort(-counts, kind="stable")[: MOST_LAYERS - 1])
        rare = np.flatnonzero((labels.codes >= 0) & ~np.isin(labels.codes, shown))
        layers.append(Layer(f"{len(counts) - len(shown)} rarer labels", rare, MISSING_COLOUR, "diamond"))
    names = shortened([labels.names[code] for code in shown])
    for place, (code, name) in enumerate(zip(shown, names, strict=True)):
        colour, marker = PALETTE[place % len(PALETTE)], MARKERS[place // len(PALETTE)]
        layers.append(Layer(name, np.flatnonzero(labels.codes == code), colour, marker))
    return layers


def _as_text(edges: NDArray[np.float64]) -> list[str]:
    """Return evenly spaced numbers as texts that differ, of equally many decimals."""
    if len(edges) < 2 or max(abs(edges)) >= 1e7 or edges[1] - edges[0] < 1e-6:
        return [f"{edge:.6g}" for edge in edges]
    decimals = max(0, 1 - math.floor(math.log10(edges[1] - edges[0])))
    return [f"{edge:,.{decimals}f}" for edge in edges]


def scale_steps(labels: Labels, colour_of: Callable[[float], str]) -> list[Layer]:
    """Return what `plan_layers` leaves to a colour scale, in equal steps between its ends, each named by its range.

    Args:
        labels: Of all rows.
        colour_of: Returns the colour at a share of 1 of the scale.
    """
    if not labels.on_scale or labels.numbers is None:
        return []
    labelled = np.flatnonzero(labels.known)
    low, high = labels.ends
    edges = np.linspace(low, high, _SCALE_STEPS + 1)[1:-1] if high > low else np.empty(0)
    step = np.searchsorted(edges, labels.numbers[labelled], side="right")
    ends = ["", *_as_text(edges), ""]
    layers = []
    for place in range(len(edges) + 1):
        below, above = ends[place], ends[place + 1]
        name = f"{below} to {above}" if below and above else f"under {above}" if above else f"from {below}"
        share = (place + 0.5) / (len(edges) + 1)
        layers.append(Layer(name if len(edges) else f"{low:.4g}", labelled[step == place], colour_of(share)))
    return layers
