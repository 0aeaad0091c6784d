"""Confused classes: a table of true and predicted labels, or for many classes the most confused pairs."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.report.labels import Labels, shortened

MOST_CLASSES = 30  # of a table that can be read
MOST_PAIRS = 30
_TINT = 0.55  # of the darkest cell, on which dark text still reads
_RIGHT, _WRONG = "31,95,158", "189,31,1"


@dataclass(frozen=True)
class Confusion:
    """True and predicted classes of tested rows.

    Attributes:
        names: Class names in order.
        true: int64 (t,), position in `names` of each row's label.
        predicted: int64 (t,), that of the predicted one.
        by: What predicted: `neighbours`, a vote of the nearest rows in the embedding, or `model`.
    """

    names: tuple[str, ...]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    by: str

    @classmethod
    def of_model(cls, labels: Labels, predicted: Labels, rows: NDArray[np.int64]) -> Confusion:
        """Return that of classes which a model predicted, for some rows of a sample.

        Args:
            labels: The true classes of the sample's rows.
            predicted: The predicted ones; both name equal classes alike.
            rows: Positions in the sample.
        """
        further = [name for name in predicted.names if name not in set(labels.names)]
        names = (*labels.names, *further)
        place = {name: code for code, name in enumerate(names)}
        codes = np.array([place[name] for name in predicted.names], np.int64)
        rows = rows[(predicted.codes[rows] >= 0) & (labels.codes[rows] >= 0)]
        return cls(names, labels.codes[rows], codes[predicted.codes[rows]], "model")

    def present(self) -> NDArray[np.int64]:
        """Return the classes that are true or predicted in some row, in order."""
        return np.unique(np.concatenate([self.true, self.predicted]))

    def counts(self) -> NDArray[np.int64]:
        """Return the rows by true and predicted class, of those that are `present`: int64 (c, c)."""
        present = self.present()
        n = len(present)
        pair_numbers = np.searchsorted(present, self.true) * n + np.searchsorted(present, self.predicted)
        return np.bincount(pair_numbers, minlength=n * n).reshape(n, n)

    def pairs(self) -> list[tuple[str, str, int, float]]:
        """Return the most confused pairs: label, predicted label, rows, and their share of the label's rows."""
        wrong = self.true != self.predicted
        confused, rows = np.unique(np.stack([self.true[wrong], self.predicted[wrong]]), axis=1, return_counts=True)
        total = np.bincount(self.true, minlength=len(self.names))
        most = np.argsort(-rows, kind="stable")[:MOST_PAIRS]
        named = [(int(confused[0, at]), int(confused[1, at]), int(rows[at])) for at in most]
        shown = sorted({code for first, second, _ in named for code in (first, second)})
        names = dict(zip(shown, shortened([self.names[code] for code in shown]), strict=True))
        return [(names[a], names[b], n, n / float(total[a])) for a, b, n in named]

    def to_mapping(self) -> dict[str, Any]:
        """Return what metrics.json holds: the pairs confused most, and of at most 30 classes the whole table."""
        present = self.present()
        keys = ("label", "predicted", "rows", "share")
        pairs = [(label, taken, rows, round(share, 4)) for label, taken, rows, share in self.pairs()]
        mapping: dict[str, Any] = {"by": self.by, "rows": len(self.true), "n_classes": len(present)}
        mapping |= {"pairs": [dict(zip(keys, pair, strict=True)) for pair in pairs]}
        if len(present) <= MOST_CLASSES:
            names = shortened([self.names[code] for code in present])
            mapping |= {"classes": names, "counts": self.counts().tolist()}
        return mapping


def confusion_section(confusion: Confusion | None, *, seen: bool) -> str:
    """Return the section of the page; empty where no labels are tested.

    Args:
        confusion: What is shown.
        seen: Whether training saw the labels of these rows.
    """
    if confusion is None or not len(confusion.true):
        return ""
    by = "the model" if confusion.by == "model" else "a vote of the nearest rows in the embedding"
    what = f"Predicted by {by}, for {len(confusion.true):,} sampled rows"
    note = f"{what} whose labels were used in training: accuracy on new rows may be lower." if seen else f"{what}."
    small = len(confusion.present()) <= MOST_CLASSES
    how = (
        "One line per true class, one column per predicted class; correct predictions are blue, darker for a larger "
        "share of the class."
        if small
        else f"The {MOST_PAIRS} most confused pairs of classes; metrics.json lists them too."
    )
    return f"""<section id="confusion">
<h2>Confused classes</h2>
<p class="soft">{note} {how}</p>
{_matrix(confusion) if small else _pairs(confusion)}
</section>"""


def _matrix(confusion: Confusion) -> str:
    names = shortened([confusion.names[code] for code in confusion.present()])
    counts = confusion.counts()
    totals = counts.sum(axis=1)
    heads = "".join(f'<th scope="col" title="{escape(name)}"><span>{escape(name)}</span></th>' for name in names)
    lines = []
    for row, name in enumerate(names):
        cells = "".join(_cell(int(n), int(totals[row]), right=row == at) for at, n in enumerate(counts[row]))
        share = f"{counts[row, row] / totals[row]:.0%}" if totals[row] else ""
        lines.append(
            f'<tr><th scope="row" title="{escape(name)}">{escape(name)}</th>{cells}'
            f'<td class="total">{share}</td><td class="total">{totals[row]:,}</td></tr>'
        )
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="Table of true and predicted classes">
<table class="confusion">
<thead><tr><th scope="col">true \\ predicted</th>{heads}<th scope="col"><span>correct</span></th>
<th scope="col"><span>rows</span></th></tr></thead>
<tbody>{"".join(lines)}</tbody>
</table></div>"""


def _cell(rows: int, total: int, *, right: bool) -> str:
    if not rows:
        return "<td></td>"
    return f'<td style="background:rgba({_RIGHT if right else _WRONG},{_TINT * rows / total:.2f})">{rows:,}</td>'


def _pairs(confusion: Confusion) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{escape(taken)}</td>'
        f'<td class="total">{rows:,}</td><td class="total">{share:.0%}</td></tr>'
        for label, taken, rows, share in confusion.pairs()
    )
    right = np.mean(confusion.true == confusion.predicted)
    return f"""<p>{right:.1%} of the rows are predicted correctly, in {len(confusion.present()):,} classes.</p>
<table>
<thead><tr><th scope="col">Class</th><th scope="col">Predicted as</th><th scope="col">Rows</th>
<th scope="col">Share of the class</th></tr></thead>
<tbody>{body}</tbody>
</table>"""
