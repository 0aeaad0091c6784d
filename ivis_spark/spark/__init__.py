"""One file per stage: tables in, tables out."""
