"""Sources of neighbours."""

from ivis_spark.data.neighbour_retrieval.knn import AnnoyKnnMatrix, NeighbourMatrix
from ivis_spark.data.neighbour_retrieval.supervised import LabeledNeighbourMap

__all__ = ["AnnoyKnnMatrix", "LabeledNeighbourMap", "NeighbourMatrix"]
