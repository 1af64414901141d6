"""The on-device half of edgeferry: verified bundles, exact preprocessing, the camera loop."""

__version__ = "0.1.0"
