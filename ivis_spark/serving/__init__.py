"""A trained model where it is used: its folder, its encoder, other products' formats. No Spark, no training."""
