"""One file per stage: its specification (what decides its result) and its body. `pipeline.py` gives their order.

| stage | reads | publishes in its folder |
|---|---|---|
| rows | the input table | `rows/data` (id, features, label), `rows/scaler.npz` |
| neighbours | rows | `neighbours/data` (id, neighbour_ids, distances), `neighbours/index` |
| queries | neighbours, another table | `queries-<table>/data` |
| triplets | neighbours, rows | `triplets/data`, one packed block per row |
| model | triplets | `model/`: encoder, head, scaler |
| embeddings | model, rows or another table | `embeddings/data` (id, embedding, label) |
| report | embeddings, rows, model, neighbours | `report/report.html`, `metrics.json`, pictures |
"""

from __future__ import annotations

STAGES = ("rows", "neighbours", "triplets", "model", "embeddings", "report")
# The command that publishes each stage, for messages.
COMMANDS = {
    "rows": "neighbours",
    "neighbours": "neighbours",
    "triplets": "triplets",
    "model": "train",
    "embeddings": "embed",
    "report": "evaluate",
}


def lock_of(stage: str) -> str:
    """Return the lock under which a stage is published.

    Tables of other inputs may be built concurrently; the stages of a run may not be built twice at once.
    """
    return "run" if stage in STAGES else stage
