"""What can go wrong in a benchmark, for the one who runs it."""

from __future__ import annotations


class BenchmarkError(Exception):
    """The benchmark cannot go on. Its text is one line for the one who runs it."""


class Unavailable(BenchmarkError):
    """A peer cannot be measured here: what is missing, and how to install it."""


class Refused(BenchmarkError):
    """A peer does not do the job, and so is not measured."""
