"""The documentation site: complete, built without warnings, and its tutorial was run."""

from __future__ import annotations

import html.parser
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs_site import api, links, reference
from tests.support.describing import operations
from tests.support.harness import PATIENCE_S, ROOT, plain_environment, require
from tests.support.namespaces import network_of_its_own
from tests.support.pages import commands, copy_of_the_checkout, pattern, reader
from tornado_status.api.openapi import load_document
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


def test_the_api_page_has_every_operation_and_shape() -> None:
    """With its bounds, and links from each shape to the next."""
    described = load_document()
    page = api.api_page(described)
    for method, path in operations(described):
        assert page.count(f"\n### {method} {path}\n") == 1
    for name in described["components"]["schemas"]:
        assert f"\n### {name}\n" in page
    assert "| `limit` | query | whole number, 1 to 10000; `1000` if not given |" in page
    assert "| 410 Gone |" in page
    assert "list of [Record](#record)" in page


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


@pytest.mark.network
def test_the_tutorial_leads_from_a_fresh_clone_to_a_check_in_that_is_heard(tmp_path: Path) -> None:
    """Its commands as they stand, in a copy of what git has."""
    make_run, listen, *rest = (block.commands for block in commands("docs/tutorial.md"))
    assert (make_run, len(rest)) == ("make run\n", 5)

    def example(said: str) -> re.Pattern[str]:
        """Return a pattern of a line in the page, its times and ports free."""
        [line] = [line for line in TUTORIAL.splitlines() if said in line]
        return pattern(line)

    with reader(tmp_path) as somebody, somebody.starts(make_run) as server:
        serving = example("Serving on")
        server.out.wait_for(lambda line: bool(serving.fullmatch(line)), serving.pattern)
        with somebody.starts(listen) as listener:
            listener.err.wait_for(lambda line: "Listening" in line, "Listening")
            answers = [somebody.types(command) for command in rest]
            assert listener.wait() == 0
            heard = listener.out.wait_end()
        for line in ("Source Packet", "User Email", "Last Seen", "Client IP", "Client Port"):
            assert example(line).search(heard), heard
        check_in, own, everybody, ada, revoked = answers
        assert "Success! (204 No Content)" in check_in
        assert '"email":"valid_user@example.com"' in own
        assert '"users":[{"email":"valid_user@example.com"' in everybody
        assert "Success! (204 No Content)" in ada
        assert "ada@example.com" in revoked
        os.killpg(server.process.pid, signal.SIGINT)  # Ctrl-C
        server.wait()
        assert "stopping" in server.err.wait_end() + server.out.wait_end()
