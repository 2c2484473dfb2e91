"""What a reader of foreign weight files raises. Both name the file and what was found in it."""

from __future__ import annotations


class BrokenWeightFileError(OSError):
    """A weight file is damaged, truncated, claims more than it holds, or has an unknown format."""


class UnsafePickleError(ValueError):
    """A pickle asks for something other than arrays and plain containers. Nothing of it was built or run."""
