"""The thread that writes: all of it, in order, and at the end of the process too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import PATIENCE_S, ROOT

BEGIN = "import os, sys, time\nfrom tornado_status.runtime import background_output as output\n"
LINES = 20_000


def run(code: str, stderr: int = subprocess.STDOUT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{BEGIN}{code}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def test_both_streams_of_one_file_keep_their_order() -> None:
    """Many lines, a traceback at the end, and nothing is lost at the exit."""
    done = run(f"""
output.MAX_WAITING_BYTES = 1 << 30
output.start()
for number in range({LINES}):
    print(number, file=sys.stderr if number % 2 else sys.stdout)
raise RuntimeError("the end")
""")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[:LINES] == [str(number) for number in range(LINES)]
    assert lines[LINES].startswith("Traceback")
    assert lines[-1] == "RuntimeError: the end"


@pytest.mark.parametrize("end", ["sys.exit()", "output.flush(); os._exit(0)"])
def test_the_last_line_is_written(end: str) -> None:
    """Also before an exit that runs nothing of the interpreter's."""
    assert run(f"output.start(); print('last'); {end}").stdout == "last\n"


def test_a_reader_that_has_gone_is_no_error() -> None:
    """Lines are dropped and counted, and the process goes on."""
    reading, writing = os.pipe()
    os.close(reading)
    done = run(
        """
output.start()
print("to nobody", file=sys.stderr)
output.flush()
print(output.dropped())
""",
        stderr=writing,
    )
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, "1\n")


def test_what_waits_is_bounded() -> None:
    """The process ends without it, once `FLUSH_S` is over."""
    reading, writing = os.pipe()
    done = run(
        """
output.start()
for number in range(100_000):
    print("x" * 99, file=sys.stderr)
assert output._outputs[0]._size <= output.MAX_WAITING_BYTES
print(output.dropped() > 80_000)
""",
        stderr=writing,
    )
    os.close(writing)
    os.close(reading)
    assert (done.returncode, done.stdout) == (0, "True\n")


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_a_closed_stream_stays_closed(tmp_path: Path, closed: str) -> None:
    """A file that is opened later gets its number, and nothing of the output."""
    code = f"{BEGIN}output.start()\nwith open('{tmp_path}/file', 'w'):\n    print('text')\n"
    code += "    output.flush()\n"
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" "$1" {closed}', sys.executable, str(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""
