"""The user's table on Spark: which columns are read (columns, images), how they are checked and scaled (ingest)."""
