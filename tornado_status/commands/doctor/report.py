"""Runs all checks of the doctor, and writes the report."""

from __future__ import annotations

import asyncio
import importlib.util
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from tornado_status.commands.doctor import (
    check_certificates,
    check_data_dir,
    check_database,
    check_key_exchange,
    check_network,
    check_proxies,
)
from tornado_status.commands.doctor.finding import Finding, note, ok, problem
from tornado_status.config import loader
from tornado_status.config.settings import Settings, without_effect
from tornado_status.errors import ConfigError
from tornado_status.runtime.printable import printable

MARKS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


def examine(path: Path | None, environment: Mapping[str, str]) -> list[Finding]:
    """Return all findings, without a `path` on the defaults.

    Raises `ConfigError` if there is no such file.
    """
    if path is not None and not path.exists():
        raise ConfigError(f"{path}: no such file")
    try:
        settings = loader.load(path, environment)
    except ConfigError as error:
        advice = "Nothing else can be looked at before that."
        return [problem("config", line, advice) for line in str(error).splitlines()]
    found = [
        *_settings(path, settings),
        *check_proxies.examine(settings),
        *check_certificates.examine(settings),
        *check_key_exchange.examine(settings),
        *check_data_dir.examine(settings),
        *asyncio.run(check_database.examine(settings)),
        *check_network.examine(settings),
    ]
    return list(dict.fromkeys(found))  # two targets may share a finding


def text(findings: Iterable[Finding]) -> str:
    """Return the report: a line for each finding, its advice below it, and a summary."""
    lines = []
    levels: Counter[str] = Counter()
    for finding in findings:
        levels[finding.level] += 1
        lines.append(f"{MARKS[finding.level]} {finding.topic}: {finding.sentence}")
        if finding.advice:
            lines.append(f"        {finding.advice}")
    if levels["problem"]:
        lines.append(f"Problems found: {levels['problem']}.")
    elif levels["note"]:
        lines.append(f"No problems found. Notes: {levels['note']}.")
    else:
        lines.append("All is well.")
    return "".join(f"{printable(line)}\n" for text in lines for line in text.split("\n"))


def _settings(path: Path | None, settings: Settings) -> list[Finding]:
    found = [
        ok("config", f"{path} is valid" if path else "no config.yaml here: the defaults apply"),
        *(
            note("config", f"{key} has no effect with the others", "Take it out.")
            for key in without_effect(settings)
        ),
    ]
    if settings.tracing.endpoint is not None and importlib.util.find_spec("opentelemetry") is None:
        found.append(
            problem(
                "config",
                "tracing.endpoint: the server does not start without the extra otel",
                "Install it with `pip install 'tornado-status[otel]'`, or take the endpoint out.",
            )
        )
    return found
