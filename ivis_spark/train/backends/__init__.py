"""How several ranks train together: one file per backend."""
