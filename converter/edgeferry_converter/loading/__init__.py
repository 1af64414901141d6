"""Loading: a model file, whatever wrote it, into a Keras model; one file a format."""
