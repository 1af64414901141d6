"""edgeferry's converter: turns a Keras model into a proven bundle for one kind of board."""
