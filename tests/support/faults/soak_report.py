"""The report of a soak: soak.md with its tables, and soak.svg with memory and descriptors."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from tests.support.faults.samples import Sample

if TYPE_CHECKING:
    from tests.support.faults.soak import Outcome

WIDTH, PANEL, LEFT, RIGHT, HEAD = 800, 150, 60, 20, 34


def write(outcome: Outcome, directory: Path, bounds: tuple[int, int, float]) -> None:
    """Write both files. `bounds`: the growth of memory (kB) and descriptors, a recovery (s)."""
    (directory / "soak.svg").write_text(svg(outcome), encoding="utf-8")
    (directory / "soak.md").write_text(markdown(outcome, bounds), encoding="utf-8")


def markdown(outcome: Outcome, bounds: tuple[int, int, float]) -> str:
    """Return the page."""
    now = datetime.datetime.now(datetime.UTC)
    answers = {str(status or "none"): n for status, n in outcome.statuses.items()}
    processes = len({sample.pid for sample in outcome.samples})
    memory, descriptors, recovery_s = bounds
    verdict = (
        "**Every check passed.**"
        if not outcome.violations
        else "**Failed:**\n\n" + "\n".join(f"- {each}" for each in outcome.violations)
    )
    faults = "\n".join(
        f"| {name} | {len(times)} | {max(times):.2f} |"
        for name, times in outcome.recoveries.items()
    )
    return f"""# Soak test

This explanation says what the soak test checks; the tables are the results of its last run.
`make soak` runs it and writes this page. `SOAK_SECONDS=3600 make soak` takes an hour.

Eight clients check in over mTLS, each at most fifty times a second, while one fault follows
another. A listener receives the announcements, and a reader follows the live stream through every
restart. At intervals, called *still moments*, the load pauses. A judge then compares the clients'
answers, the database, the announcements and the reader's events. It checks that

- every acknowledged check-in is recorded,
- sequence numbers have no gap,
- every announced event is recorded,
- the reader has every event once and in order.

The exit status is 1 if one of these fails, or if one of these limits is exceeded:

- memory: growth of {memory // 1024} MiB between still moments of one process, after its first
  quarter,
- open descriptors: growth of {descriptors},
- recovery: {recovery_s:g} s from the end of a fault to the next 204. One second is normal; the
  limit allows for slow and shared machines.

{verdict}

![Memory, descriptors and check-ins over time](soak.svg)

| | |
|---|---|
| date | {now:%d %B %Y} |
| machine | {_cpu()}, {os.cpu_count()} cores, load average {os.getloadavg()[1]:.1f} at the end |
| Python | {platform.python_version()} |
| duration | {outcome.seconds:.0f} s, {len(outcome.times)} faults, {outcome.stills} still moments |
| server processes | {processes} |
| answers | {", ".join(f"{status}: {n:,}" for status, n in sorted(answers.items()))} |
| events in the log | {outcome.events:,} |
| received over UDP | {outcome.announced:,} |
| received by the reader | {outcome.followed:,} |
| highest memory (PSS) | {max((s.pss_kb for s in outcome.samples), default=0) / 1024:.1f} MiB |
| memory growth | {outcome.memory_growth_kb / 1024:.1f} MiB |
| most descriptors | {max((s.descriptors for s in outcome.samples), default=0)} |
| descriptor growth | {outcome.descriptor_growth} |

A check-in that was answered 503, or not at all (`none`), during a fault may be recorded or not. An
event in the log that was not received over UDP was committed by a server that was killed before it
could announce it. Listeners repair it from the log.

Recovery is measured from the end of the fault, or for a restarted server from the moment it is
ready, to the next 204.

| fault | times | longest recovery, s |
|---|---|---|
{faults}
"""


def svg(outcome: Outcome) -> str:
    """Return the plot: memory, descriptors and check-ins a second, with a mark for each fault."""
    samples = outcome.samples
    end = max((sample.at_s for sample in samples), default=1.0)
    panels: list[tuple[str, str, Callable[[Sample], float]]] = [
        ("Memory of the server, MiB: RSS (grey), PSS", "#00695c", lambda s: s.pss_kb / 1024),
        ("Open descriptors of the server", "#1565c0", lambda s: s.descriptors),
    ]
    body = []
    for n, (title, colour, value) in enumerate(panels):
        top = HEAD + n * (PANEL + HEAD)
        lines = [(colour, [(s.at_s, value(s)) for s in samples])]
        if n == 0:
            lines.insert(0, ("#9e9e9e", [(s.at_s, s.rss_kb / 1024) for s in samples]))
        body += _panel(title, top, end, lines, outcome.times)
    rates = [
        (after.at_s, max(0.0, (after.acknowledged - before.acknowledged)) / gap)
        for before, after in zip(samples[:-4], samples[4:], strict=True)
        if (gap := after.at_s - before.at_s) > 0
    ]
    top = HEAD + 2 * (PANEL + HEAD)
    body += _panel("Check-ins a second", top, end, [("#6a1b9a", rates)], outcome.times)
    height = top + PANEL + 40
    body.append(_text(LEFT, height - 8, "seconds; each thin line is a fault"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" role="img" font-family="sans-serif" font-size="12">\n'
        "<title>Memory, descriptors and check-ins of the soak</title>\n"
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _panel(
    title: str,
    top: int,
    end: float,
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    faults: Sequence[tuple[float, str]],
) -> list[str]:
    most = max((y for _, points in lines for _, y in points), default=0) * 1.1 or 1.0
    bottom, span = top + PANEL, WIDTH - LEFT - RIGHT

    def x(at: float) -> float:
        return LEFT + span * at / end

    body = [_text(LEFT, top - 6, title)]
    for part in (0, 0.5, 1):
        y = bottom - PANEL * part
        body.append(f'<path d="M{LEFT} {y:.0f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        body.append(_text(LEFT - 6, y + 4, f"{most * part:.0f}", anchor="end"))
        body.append(_text(x(end * part), bottom + 14, f"{end * part:.0f}", anchor="middle"))
    for at, name in faults:
        body.append(
            f'<path d="M{x(at):.1f} {top}V{bottom}" stroke="#ffab91" stroke-width="0.7">'
            f"<title>{escape(name)}</title></path>"
        )
    for colour, points in lines:
        path = " ".join(f"{x(at):.1f},{bottom - PANEL * y / most:.1f}" for at, y in points)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
    return body


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'


def _cpu() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()
