"""Embedding a table on Spark: one pass (embed), a resumable job (job, units), a table of the user's (target)."""
