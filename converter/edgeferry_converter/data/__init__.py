"""Data: images to calibrate with and to judge by, one file a layout."""
