"""One file a stage: tables in, tables out."""
