"""How a rank reads its share of the triplet blocks: one file per reader."""
