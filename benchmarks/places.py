"""Where things are: the checkout, and what is built in it."""

from __future__ import annotations

from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent  # `python -m` of the project's modules is started here
BUILD = BENCHMARKS / ".build"
