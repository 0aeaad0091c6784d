"""Nearest neighbours of arrays: quantise rows into partitions, search inside each, merge the lists."""
