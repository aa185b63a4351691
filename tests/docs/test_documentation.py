"""The documentation site: complete, built without warnings, and its tutorial was run."""

from __future__ import annotations

import html
import html.parser
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from docs_site import api, links, reference
from tests.support.browser import chromium
from tests.support.describing import operations
from tests.support.harness import PATIENCE_S, ROOT, plain_environment, require, wait_until
from tests.support.namespaces import network_of_its_own
from tests.support.pages import commands, copy_of_the_checkout, pattern, reader
from tornado_status.api.openapi import load_document
from tornado_status.config import loader
from tornado_status.config.settings import AlertSettings, NatsTarget, Settings, UdpTarget

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
    """A new page in docs/ needs a line in mkdocs.yml."""
    written = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    generated = [*links.PAGES.values(), "reference/cli.md"]
    assert sorted(nav()) == sorted({*written, *generated})


SETTINGS = (ROOT / "config.yaml").read_text()


def table_below(page: str, text: str) -> list[list[str]]:
    """Return the rows of the first table behind a text, without its head."""
    lines = itertools.dropwhile(lambda line: line[:1] != "|", page.partition(text)[2].splitlines())
    rows = itertools.takewhile(lambda line: line[:1] == "|", lines)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows][2:]


def keys_in(rows: list[list[str]]) -> set[str]:
    return {row[0].split("`")[1] for row in rows}


def test_the_settings_page_has_every_setting_with_its_meaning() -> None:
    """Key, meaning, values and default of each, from config.yaml and the settings' model."""
    page = reference.config_page(SETTINGS)
    for section, settings in Settings():
        rows = table_below(page, f"\n## {section}\n")
        if isinstance(settings, BaseModel):
            assert keys_in(rows) == type(settings).model_fields.keys()
        assert all(len(row) == 4 and all(row) for row in rows)
    for part in (
        "| `port`{#server.port} | TCP port; 0: any free port | whole number from 0 to 65535 |",
        "| seconds above 0 to 365 days | `10` |",
        "| list of strings | `[]` |",
        "see [proxies](docs/proxies.md)",
    ):
        assert part in page


@pytest.mark.parametrize(
    ("intro", "model"),
    [
        ("\nA target on the network has", UdpTarget),
        ("\nA target on a NATS broker has", NatsTarget),
        ("\nAn alert has", AlertSettings),
    ],
)
def test_the_settings_page_has_every_member_of_an_entry_with_its_meaning(
    intro: str, model: type[BaseModel]
) -> None:
    """In a table of its own, from the example in a comment of config.yaml."""
    rows = table_below(reference.config_page(SETTINGS), intro)
    assert keys_in(rows) == model.model_fields.keys()
    for row in rows:
        assert all(row), row
        name = row[0].strip("`")
        assert (row[3] == "required") == model.model_fields[name].is_required()


def test_the_settings_page_names_every_environment_variable_once() -> None:
    """In the table of variables; each sets the key beside it."""
    rows = table_below(reference.config_page(SETTINGS), "\n## Environment variables\n")
    named = [row[0].strip("`") for row in rows]
    assert len(set(named)) == len(named)
    expected = {"PORT", "DATABASE_URL"}
    for section, settings in Settings():
        names = [f"{section}__{key}" for key, _ in settings] if section != "alerts" else [section]
        expected |= {f"TORNADO_STATUS_{name}".upper() for name in names}
    assert set(named) == expected
    for name, key in rows:
        assert key.startswith(f"[{origin_of(name.strip('`'))}](#")


def origin_of(variable: str) -> str:
    """Return the key that a variable sets."""
    [key] = loader.origins(None, {variable: "x"})
    return key


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
    """Build the site in a network of its own."""
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once."""
    directory = tmp_path_factory.mktemp("site")
    done = build(copy_of_the_checkout(directory / "checkout"), directory / "site")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return directory / "site"


@pytest.mark.network
def test_the_site_is_built_without_a_network_and_loads_nothing_from_elsewhere(site: Path) -> None:
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


# Words of the field that a reader searches for, beside the terms of the glossary.
SEARCHED = (
    "mTLS",
    "graceful shutdown",
    "slow client",
    "back-off",
    "environment variable",
    "troubleshooting",
)


@pytest.mark.network
def test_a_search_finds_every_term_of_the_glossary(site: Path) -> None:
    """Each is in the search index: the terms in the glossary, the field's words on other pages."""
    index = json.loads((site / "search" / "search_index.json").read_text())
    texts: dict[str, str] = {}
    for entry in index["docs"]:
        page = entry["location"].partition("#")[0]
        words = re.sub(r"<[^>]+>", "", f"{entry['title']} {entry['text']}")
        texts[page] = f"{texts.get(page, '')} {' '.join(html.unescape(words).split())}".lower()
    rows = table_below((ROOT / "docs" / "glossary.md").read_text(), "# Glossary")
    terms = [term for row in rows for term in row[0].split(", ")]
    assert len(terms) > 40
    assert [term for term in terms if term.lower() not in texts["glossary.html"]] == []
    others = " ".join(text for page, text in texts.items() if page != "glossary.html")
    assert [term for term in (*terms, *SEARCHED) if term.lower() not in others] == []


@pytest.mark.network
def test_the_settings_can_be_read_on_a_phone(site: Path) -> None:
    """In a window of 390 pixels neither the page nor a table is wider than it."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto((site / "reference" / "config.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        wide = "tables => tables.filter(table => table.scrollWidth > 390).length"
        assert page.locator("table").count() > 10
        assert page.locator("table").evaluate_all(wide) == 0


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
    activated, _, listen = listen.partition(" && ")
    assert activated == ". .venv/bin/activate"

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
        again = rest[3].splitlines()[1]
        assert "status-client" in again
        refusal = example("is revoked").pattern
        wait_until(
            lambda: re.fullmatch(refusal, somebody.types(f"{again} || [ $? = 1 ]").strip()),
            "the revoked certificate is refused",
        )
        os.killpg(server.process.pid, signal.SIGINT)  # Ctrl-C
        server.wait()
        assert "stopping" in server.err.wait_end() + server.out.wait_end()
