"""Arrays in, arrays out: the algorithms, free of Spark and TensorFlow."""
