"""The version of this package, also where its metadata did not come along (frozen apps, vendored copies)."""

__version__ = "0.1.0"
