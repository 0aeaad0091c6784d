"""Metrics and pictures of a finished run; `evaluate` tells the story."""
