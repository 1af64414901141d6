"""The workstation half of edgeferry that carries a bundle to a board over SSH."""
