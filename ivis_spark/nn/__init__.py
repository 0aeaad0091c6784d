"""Networks, losses and the triplet model, on TensorFlow and Keras."""
