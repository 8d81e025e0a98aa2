"""What can go wrong between a float model and its ranges: texts of one line, for an operator."""

from __future__ import annotations


class QuantizeError(Exception):
    """The root: something an operator can mend; the text says what and how."""


class DataError(QuantizeError):
    """Samples are missing, unreadable, or not what the model takes."""


class ModelError(QuantizeError):
    """The model cannot be read, extended or run."""


class CacheError(QuantizeError):
    """A file of results is damaged, of another version, or of another model or data."""
