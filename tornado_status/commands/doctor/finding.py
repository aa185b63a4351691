"""A finding of the doctor: one sentence, and what to do about it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """`level` is ok, note (worth knowing) or problem; `advice` is what to do, or ""."""

    topic: str
    level: Literal["ok", "note", "problem"]
    sentence: str
    advice: str = ""


def ok(topic: str, sentence: str) -> Finding:
    return Finding(topic, "ok", sentence)


def note(topic: str, sentence: str, advice: str = "") -> Finding:
    return Finding(topic, "note", sentence, advice)


def problem(topic: str, sentence: str, advice: str) -> Finding:
    return Finding(topic, "problem", sentence, advice)
