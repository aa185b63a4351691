"""Completion in bash and zsh."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import PATIENCE_S, ROOT, plain_environment, require, wait_until
from tests.support.pages import commands
from tests.support.terminal import Terminal
from tornado_status.cli import COMMANDS

pytestmark = pytest.mark.once


def completed(shell: str, script: str, *words: str) -> list[str]:
    """Return what bash offers for the last of `words`."""
    given = " ".join(f"'{word}'" for word in words)
    program = f"""
source /dev/stdin <<'SCRIPT'
{script}
SCRIPT
COMP_WORDS=({given}) COMP_CWORD={len(words) - 1}
function=$(complete -p tornado-status | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function tornado-status '{words[-1]}' '{words[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        [shell, "--norc"],
        input=program,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.stdout.split()


def test_bash_completes_the_command_line() -> None:
    """Commands, what they take, and files where a file is meant."""
    done = subprocess.run(
        [sys.executable, "-m", "tornado_status", "completion", "bash"],
        cwd=ROOT,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    script = done.stdout
    names = {command.name for command in COMMANDS}
    assert names <= set(completed("bash", script, "tornado-status", ""))
    assert completed("bash", script, "tornado-status", "comple") == ["completion"]
    assert set(completed("bash", script, "tornado-status", "completion", "")) >= {"bash", "zsh"}
    assert "--format" in completed("bash", script, "tornado-status", "config", "--f")
    assert "config.yaml" in completed("bash", script, "tornado-status", "--config", "config")


# Terminal starts Python: this one becomes the shell.
BECOME = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"


@contextlib.contextmanager
def interactive(shell: str, home: Path, startup: str) -> Iterator[Terminal]:
    """A shell in a terminal, as a user has it who has `startup` in its file."""
    require(shell, shutil.which(shell) is not None, f"Debian's package {shell}")
    (home / f".{shell}rc").write_text(f"PS1='ready> '\n{startup}")
    path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
    # zsh -d: without the distribution's own files, which may run compinit.
    started = {"bash": ("bash", "--rcfile", home / ".bashrc", "-i"), "zsh": ("zsh", "-d", "-i")}
    variables = (f"HOME={home}", f"ZDOTDIR={home}", path, "TERM=xterm-256color")
    command = ("env", *variables, *started[shell])
    terminal = Terminal("-c", BECOME, *command, size=(80, 24))
    try:
        terminal.wait("(?m)^ready>")
        yield terminal
    finally:
        terminal.close()


def startups() -> dict[str, tuple[str, str]]:
    """The ways in docs/completion.md: the shell, and what is in its file."""
    bash, evaluated, once, found = commands("docs/completion.md")
    return {
        "bash": ("bash", bash.commands),
        "zsh": ("zsh", evaluated.commands),
        "zsh-file": ("zsh", f"{once.commands}{found.commands}"),
    }


TAB, KILL_LINE = "\t", "\x15"


@pytest.mark.parametrize("way", ["bash", "zsh", "zsh-file"])
def test_a_shell_completes_as_the_page_says(way: str, tmp_path: Path) -> None:
    """Tab completes commands, their arguments, options and files."""
    shell, startup = startups()[way]
    with interactive(shell, tmp_path, startup) as terminal:
        for typed, completed in (
            ("tornado-status comple", "completion"),
            ("tornado-status completion z", "zsh"),
            ("tornado-status config --for", "--format"),
            ("tornado-status --config conf", "config.yaml"),
            ("tornado-status users era", "erase"),
        ):
            terminal.type(f"{typed}{TAB}")
            whole = f"{typed.rpartition(' ')[0]} {completed}"
            terminal.wait(rf"(?m)ready> {whole}( |$)")
            terminal.type(f"{KILL_LINE}clear\r")
            wait_until(lambda: "tornado" not in terminal.screen, "an empty screen")
        terminal.type(f"tornado-status {TAB}{TAB}")
        for command in COMMANDS:
            terminal.wait(rf"(^|\s){command.name}\b")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_that_was_told_nothing_completes_nothing(shell: str, tmp_path: Path) -> None:
    """The test above can fail."""
    startup = {"bash": "", "zsh": f"{startups()['zsh'][1].partition(chr(10))[0]}\n"}[shell]
    with interactive(shell, tmp_path, startup) as terminal:
        terminal.type(f"tornado-status comple{TAB}{TAB}")
        terminal.type("x")
        terminal.wait(r"(?m)ready> tornado-status complex$")
