"""The documentation site: complete, built without warnings, and its tutorial was run."""

from __future__ import annotations

import html.parser
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs_site import links, reference
from tests.namespaces import network_of_its_own, running
from tests.support import PATIENCE_S, ROOT, plain_environment, require
from tornado_status.config import Settings

pytestmark = pytest.mark.once


def nav() -> list[str]:
    """Return every page of the nav in mkdocs.yml."""

    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        inner = entry.values() if isinstance(entry, dict) else entry
        return [page for each in inner for page in pages(each)]

    return pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])


def test_every_page_is_in_the_nav_once() -> None:
    """Who adds a page to docs/ adds a line to mkdocs.yml."""
    written = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    generated = [*links.PAGES.values(), "reference/cli.md"]
    assert sorted(nav()) == sorted({*written, *generated})


def test_the_settings_page_has_every_setting_with_its_words() -> None:
    """Key, values, default and what config.yaml says of it."""
    page = reference.config_page((ROOT / "config.yaml").read_text())
    for section, field in Settings.model_fields.items():
        if f"\n## {section}\n" not in page:
            continue  # all of it is reserved
        assert field.annotation is not None
        table = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        shown = set(re.findall(r"(?m)^\| `(\w+)` \|", table.partition("Each of")[0]))
        reserved = set(re.findall(rf"`{section}\.(\w+)`", page))
        assert shown | reserved == set(field.annotation.model_fields)
    assert "| `port` | whole number from 0 to 65535 | `8443` | 0 = any free port |" in page
    assert "| seconds above 0 to 365 days | `10.0` | a TLS handshake" in page
    assert "| `kind` | `multicast`, `broadcast`, `unicast`" in page
    assert "| `kind` | `nats`" in page
    assert "| must be given |" in page


def test_the_command_line_page_has_every_command_and_option() -> None:
    page = reference.cli_page()
    for heading in (
        *("## tornado-status", "### tornado-status version", "## status-listener"),
        *("## status-client", "## status-certs", "### status-certs revoke"),
    ):
        assert f"\n{heading}\n" in page
    for option in ("--config", "--interface", "--every", "--pkcs12", "--if-missing"):
        assert option in page
    assert str(ROOT) not in page


@pytest.mark.parametrize(
    ("source", "before", "after"),
    [
        ("README.md", "[a](docs/protocol.md#signature)", "[a](protocol.md#signature)"),
        ("README.md", "[a](config.yaml)", "[a](reference/config.md)"),
        ("README.md", "[a](Dockerfile)", "[a](files/Dockerfile)"),
        ("README.md", "[a](https://semver.org)", "[a](https://semver.org)"),
        ("docs/protocol.md", "[a](listeners.md)", "[a](listeners.md)"),
        ("docs/protocol.md", "[a](#numbers)", "[a](#numbers)"),
        ("docs/protocol.md", "[a](../README.md)", "[a](index.md)"),
        ("config.yaml", "[a](docs/protocol.md)", "[a](../protocol.md)"),
    ],
)
def test_a_link_of_the_repository_leads_to_the_same_in_the_site(
    source: str, before: str, after: str
) -> None:
    assert links.relink(before, source) == after


# ------------------------------------------------------------------------------------- with MkDocs


def build(checkout: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site in a network where nobody else is."""
    available = importlib.util.find_spec("mkdocs") is not None
    require("mkdocs", available, "make docs installs it")
    with network_of_its_own() as enter:
        return subprocess.run(
            [*enter, sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)],
            cwd=checkout,
            env={**plain_environment(), "NO_MKDOCS_2_WARNING": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of all that git has, or would take, to be changed."""
    return copy_of_the_checkout(tmp_path / "checkout")


def copy_of_the_checkout(into: Path) -> Path:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():  # not what is deleted, but still known to git
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name)
    return into


class Loaded(html.parser.HTMLParser):
    """Collects what a browser loads by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        if tag in ("script", "img", "link", "iframe"):
            self.found += [url for url in (given.get("src"), given.get("href")) if url]


@pytest.mark.network
def test_the_site_is_built_without_a_network_and_loads_nothing_from_elsewhere(
    checkout: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    done = build(checkout, site)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    assert {page.removesuffix(".md") + ".html" for page in nav()} <= pages
    for page in pages - {"404.html"}:
        loaded = Loaded()
        loaded.feed((site / page).read_text())
        assert loaded.found, page
        for url in loaded.found:
            path = (site / page).parent / url.partition("?")[0].partition("#")[0]
            assert path.exists(), f"{page} loads {url}"
    assert "A check-in service" in (site / "index.html").read_text()
    assert (site / "files/benchmarks/results/results.svg").is_file()


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("extra.md", "# A page that is in no nav\n", "extra.md"),
        ("security.md", "# Security\n\n[gone](gone.md)\n", "gone.md"),
        ("security.md", "# Security\n\n[gone](protocol.md#gone)\n", "#gone"),
        ("security.md", "# Security\n\n[gone](../deploy/gone.txt)\n", "gone.txt"),
    ],
)
def test_a_page_outside_of_the_nav_or_a_dead_link_fails_the_build(
    checkout: Path, tmp_path: Path, name: str, text: str, complaint: str
) -> None:
    (checkout / "docs" / name).write_text(text)
    done = build(checkout, tmp_path / "site")
    assert done.returncode != 0
    assert complaint in done.stderr


# ---------------------------------------------------------------------------------------- Tutorial

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()


def commands() -> list[str]:
    """Return the page's commands, block by block."""
    return [block.strip() for block in re.findall(r"```sh\n(.*?)```", TUTORIAL, re.DOTALL)]


@pytest.mark.network
def test_the_tutorial_leads_from_a_fresh_clone_to_a_check_in_that_is_heard(tmp_path: Path) -> None:
    """Its commands as they stand, in a copy of what git has.

    The packages alone are those of this environment: `make lint` and `make test` have just
    installed them from the same locks in the same way, and here is no network.
    """
    here = copy_of_the_checkout(tmp_path / "clone")
    installed = Path(sys.prefix)
    require("make's environment", (installed / ".run").is_file(), "run the tests with `make test`")
    (here / ".venv").mkdir()
    (here / ".venv" / "bin").symlink_to(installed / "bin")
    (here / ".venv" / "lib").symlink_to(installed / "lib")
    shutil.copy(installed / "pyvenv.cfg", here / ".venv")
    (here / ".venv" / ".run").touch()  # what `make run` would do
    environment = {**plain_environment(), "PYTHONUNBUFFERED": "1"}
    make_run, listen, *rest = commands()
    assert (make_run, len(rest)) == ("make run", 5)

    def example(said: str) -> re.Pattern[str]:
        """Return a pattern of a line in the page, its times and ports free."""
        [line] = [line for line in TUTORIAL.splitlines() if said in line]
        return re.compile(re.sub(r"\d+", r"\\d+", re.escape(line)))

    with network_of_its_own() as enter:
        # A session of its own: Ctrl-C reaches every process that a terminal has in the foreground.
        command = [*enter, "setsid", "sh", "-c", f"exec {make_run}"]
        with running(command, here, environment) as server:
            serving = example("Serving on")
            server.out.wait_for(lambda line: bool(serving.fullmatch(line)), serving.pattern)
            with running([*enter, "sh", "-c", f"exec {listen}"], here, environment) as listener:
                listener.err.wait_for(lambda line: "Listening" in line, "Listening")
                answers = [run(enter, command, here, environment) for command in rest]
                assert listener.wait() == 0
                heard = listener.out.wait_end()
            for line in ("Source Packet", "User Email", "Last Seen", "Client IP", "Client Port"):
                assert example(f"{line}").search(heard), heard
            check_in, own, everybody, ada, revoked = answers
            assert "Success! (204 No Content)" in check_in
            assert '"email":"valid_user@example.com"' in own
            assert '"users":[{"email":"valid_user@example.com"' in everybody
            assert "Success! (204 No Content)" in ada
            assert "ada@example.com" in revoked
            os.killpg(server.process.pid, signal.SIGINT)  # Ctrl-C
            server.wait()
            assert "stopping" in server.err.wait_end() + server.out.wait_end()


def run(enter: tuple[str, ...], command: str, here: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [*enter, "sh", "-ec", command],
        cwd=here,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr
