"""The pages: their fenced blocks, and a reader who types what stands there in a fresh clone."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.harness import PATIENCE_S, ROOT, plain_environment, require
from tests.support.namespaces import Running, network_of_its_own, running

# The languages of fences whose lines are typed into a shell.
SHELLS = ("sh", "bash", "console", "shell", "shell-session", "zsh", "fish")
# As a reader's shell, but that a command which fails ends it, and so the test.
BASH = ("bash", "-euo", "pipefail", "-c")

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[^\s`]*)[^\n]*\n"
    r"(?P<text>.*?)^(?P=indent)(?P=fence)`*$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str  # its path in the checkout
    language: str
    text: str

    @property
    def name(self) -> str:
        """Its first line, less the prompt: what the tables of the tests call it."""
        return self.commands.split("\n", 1)[0].strip()

    @property
    def commands(self) -> str:
        """The commands to type: of a session only those behind the prompt."""
        if self.language in ("console", "shell-session"):
            lines = re.findall(r"(?m)^[$#] ((?:.*\\\n)*.*)\n", self.text)
            return "".join(f"{line}\n" for line in lines)
        return self.text


def pages() -> list[str]:
    """Return the paths of the pages in the checkout."""
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def blocks(page: str, text: str | None = None) -> list[Block]:
    """Return every fenced block of a page, or of a `text` in its place."""
    if text is None:
        text = (ROOT / page).read_text("utf-8")
    return [
        Block(page, found["language"], re.sub(rf"(?m)^{found['indent']}", "", found["text"]))
        for found in _FENCE.finditer(text)
    ]


def commands(page: str, text: str | None = None) -> list[Block]:
    """Return the blocks of a page that are for a shell, in their order."""
    return [block for block in blocks(page, text) if block.language in SHELLS]


def shown(page: str, part: str) -> str:
    """Return the one block of a page that shows an output with `part` in it."""
    others = [block.text for block in blocks(page) if block.language not in SHELLS]
    [found] = [text for text in others if part in text]
    return found


def pattern(example: str) -> re.Pattern[str]:
    """Return what an output shown on a page stands for: dates, numbers, streams and … are free."""
    hexadecimal = r"[0-9a-f]{8}(?:\\-[0-9a-f]{4}){3}\\-[0-9a-f]{12}"
    text = re.sub(hexadecimal, "[0-9a-f-]{36}", re.escape(example.strip()))
    parts = re.split(r"(\[0-9a-f-\]\{36\})", text)
    parts[::2] = [re.sub(r"\d+", r"\\d+", part).replace("…", ".*") for part in parts[::2]]
    return re.compile("".join(parts))


def run_in_bash(
    text: str,
    here: Path,
    environment: Mapping[str, str],
    *,
    enter: tuple[str, ...] = (),
    typed: str = "",
    patience_s: float = 3 * PATIENCE_S,
) -> str:
    """Run commands of a page in `here`; return all they say. One that fails is an AssertionError.

    `enter` is a command that runs them elsewhere, and `typed` what they read: without a terminal.
    """
    done = subprocess.run(
        [*enter, *BASH, text],
        cwd=here,
        env=environment,
        input=typed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        timeout=patience_s,
        check=False,
    )
    assert done.returncode == 0, f"{text}: {done.returncode}: {done.stdout}"
    return done.stdout


def checkout() -> list[str]:
    """Return what git has, or would take; in an unpacked sdist, what the sdist has."""
    if not (ROOT / ".git").exists():
        sources = (ROOT / "tornado_status.egg-info" / "SOURCES.txt").read_text().splitlines()
        return [name for name in sources if ".egg-info/" not in name]
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # Not what is deleted, but still known to git.
    return [name for name in names.split("\0") if name and (ROOT / name).is_file()]


def copy_of_the_checkout(into: Path) -> Path:
    """Copy all that git has, or would take."""
    for name in checkout():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, into / name, follow_symlinks=False)
    return into


def fresh_clone(into: Path) -> Path:
    """Return a copy of what git has, in which `make run` finds its packages installed.

    They are this environment's, because there is no network here. `make lint` and `make test` have
    just installed them from the same locks in the same way.
    """
    here = copy_of_the_checkout(into)
    installed = Path(sys.prefix)
    require("make's environment", (installed / ".run").is_file(), "run the tests with `make test`")
    (here / ".venv").mkdir()
    (here / ".venv" / "bin").symlink_to(installed / "bin")
    (here / ".venv" / "lib").symlink_to(installed / "lib")
    shutil.copy(installed / "pyvenv.cfg", here / ".venv")
    (here / ".venv" / ".run").touch()  # what `make run` would do
    return here


# `mount` in a file system view of its own: names lead to this machine, for who is entered.
_WITH_HOSTS = 'mount --bind "$0" /etc/hosts && exec "$@"'


@dataclass(frozen=True)
class Reader:
    """A reader of the pages in a fresh clone, on a machine of their own.

    Its `.venv` is active. The machine has loopback and an eth0, and no other machine is there.
    """

    here: Path
    enter: tuple[str, ...]
    environment: Mapping[str, str]

    def types(self, text: str, *, typed: str = "") -> str:
        """Run commands to their end; return what they say."""
        return run_in_bash(text, self.here, self.environment, enter=self.enter, typed=typed)

    def starts(self, text: str) -> contextlib.AbstractContextManager[Running]:
        """Start one command in another terminal; it is told to end at the end."""
        # A session of its own: Ctrl-C reaches every process that a terminal has in the foreground.
        command = [*self.enter, "setsid", *BASH, f"exec {text.strip()}"]
        return running(command, self.here, self.environment)

    @contextlib.contextmanager
    def serving(self) -> Iterator[tuple[Running, str]]:
        """`make run`, until it serves; yield it and the line that says so."""
        with self.starts("make run") as server:
            yield server, server.out.wait_for(lambda line: "Serving on" in line, "Serving on")


@contextlib.contextmanager
def reader(directory: Path, *names: str, **variables: str) -> Iterator[Reader]:
    """A reader in a new clone in `directory`; `names` are further host names of the machine."""
    here = fresh_clone(directory / "clone")
    environment = {
        **plain_environment(),
        "PYTHONUNBUFFERED": "1",
        "VIRTUAL_ENV": str(here / ".venv"),
        **variables,
    }
    environment["PATH"] = f"{here}/.venv/bin:{environment['PATH']}"
    with network_of_its_own("10.217.77.2/24") as enter:
        if names:
            hosts = directory / "hosts"
            hosts.write_text(f"127.0.0.1 localhost {' '.join(names)}\n::1 localhost\n")
            enter += ("unshare", "--mount", "sh", "-c", _WITH_HOSTS, str(hosts))
        yield Reader(here, enter, environment)
