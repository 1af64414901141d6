"""Tasks: what the outputs of a model mean, one small file a kind."""
