"""Triplets of arrays: which positives an anchor gets, and how blocks are packed."""
