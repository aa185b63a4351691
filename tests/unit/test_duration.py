"""Durations: one grammar in config.yaml and in the options of all programs."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients import cli as clients_cli
from listeners import options as listeners_options
from tornado_status.model.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("90s", 90),
        ("1m", 60),
        ("15 m", 900),
        ("12h", 43200),
        ("7d", 604800),
    ],
)
def test_seconds_and_units_are_read(text: str, seconds: float) -> None:
    """By each program."""
    assert parse_duration(text) == clients_cli.parse_duration(text) == seconds
    client = clients_cli._parser().parse_args(["--every", text, "--timeout", text])
    assert (client.every, client.timeout) == (seconds, seconds)
    listener = listeners_options.make_parser().parse_args(["--max-skew", text])
    assert listener.max_skew == seconds


@given(
    st.text(max_size=6)
    | st.from_regex(r"[0-9]{1,3}(\.[0-9])? ?[smhdx]?", fullmatch=True)
    | st.sampled_from(["inf", "nan", "1e3", "-5", "1_0", "5S", "٣", "m", "1.m"])
)
def test_the_clients_grammar_is_the_servers(text: str) -> None:
    """The client imports the standard library only, so it has a copy."""

    def read(parse: object) -> float | None:
        with contextlib.suppress(ValueError):
            return float(parse(text))  # type: ignore[operator]
        return None

    ours, theirs = read(parse_duration), read(clients_cli.parse_duration)
    assert ours == theirs or (ours is not None and math.isnan(ours))


@pytest.mark.parametrize("text", ["0", "0s", "8d", "soon", "inf", "1w"])
def test_a_wrong_duration_is_refused_with_the_forms(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Above 0, and up to a week."""
    with pytest.raises(SystemExit):
        clients_cli._parser().parse_args(["--every", text])
    assert "90s, 15m, 12h, above 0 and up to 7d" in capsys.readouterr().err
