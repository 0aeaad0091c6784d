"""What a model may be trained on."""
