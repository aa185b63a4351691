"""Rules for modules beyond import-linter's contracts in pyproject.toml."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys

import pytest

from tests.support.harness import PATIENCE_S, ROOT, plain_environment

PACKAGES = ("tornado_status", "listeners", "clients", "certs_gen")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}

DATABASE = {"aiopg", "psycopg2", "alembic", "sqlalchemy"}
NETWORK = {"asyncio", "socket", "ssl", "structlog", "tornado"}
LIBRARIES = {"cryptography", "email_validator", "pydantic", "yaml"}

SQL = re.compile(
    r"\bselect\b.+\bfrom\b|\binsert\s+into\b|\bupdate\s+\w+\s+set\b|\bdelete\s+from\b"
    r"|\b(create|alter|drop)\s+(table|index)\b|\bfor\s+update\b",
    re.IGNORECASE | re.DOTALL,
)


def sql_in(text: str) -> list[str]:
    """Return the strings with SQL in them, docstrings apart, each with its line."""
    tree = ast.parse(text)
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            parts = node.values
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = [node]
        else:
            continue
        string = "".join(str(p.value) if isinstance(p, ast.Constant) else "x" for p in parts)
        if id(node) not in skipped and SQL.search(string):
            found.append(f"{node.lineno}: {string[:60]!r}")
    return found


def test_every_module_has_a_docstring() -> None:
    """Its first line says what the module owns."""
    texts = {name: path.read_text() for name, path in MODULES.items()}
    assert [name for name, text in texts.items() if not ast.get_docstring(ast.parse(text))] == []


def test_only_the_store_has_sql() -> None:
    """A change of a table has one place to look for its uses."""
    found = {name: sql_in(path.read_text()) for name, path in MODULES.items()}
    with_sql = {name for name, lines in found.items() if lines}
    assert "tornado_status.store.queries" in with_sql
    elsewhere = {name for name in with_sql if not name.startswith("tornado_status.store.")}
    assert {name: found[name] for name in elsewhere} == {}


@pytest.mark.parametrize(
    "text",
    [
        'x = "select seq\\nfrom head"',
        'x = f"SELECT {columns} FROM head"',
        'def f():\n    g("INSERT INTO head VALUES (1)")',
        'x = "UPDATE head SET seq = 1"',
        'x = ("DELETE " "FROM check_in")',
        'x = "DROP TABLE head"',
    ],
)
def test_sql_is_found_however_it_is_written(text: str) -> None:
    """Prose in a docstring is not taken for it."""
    assert len(sql_in(text)) == 1
    assert sql_in('"""Select a user from the list."""') == []


# --------------------------------------------------------------------- in a fresh interpreter


def loaded_by(*modules: str) -> set[str]:
    """Return what a fresh interpreter has loaded once it has imported these modules."""
    program = f"import json, sys, {', '.join(modules)}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout)
    return {name.partition(".")[0] for name in names} | set(names)


# Sockets are allowed in `identity` and `config`: before 3.13 the standard library's e-mail parser,
# which their libraries use, imports them.
@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("errors", DATABASE | NETWORK | LIBRARIES),
        ("model.records", DATABASE | NETWORK | LIBRARIES),
        ("wire.datagram", DATABASE | NETWORK | LIBRARIES),
        ("wire.event_object", DATABASE | NETWORK | LIBRARIES),
        ("pki.identity", DATABASE | NETWORK - {"socket"} | {"pydantic", "yaml"}),
        ("config.loader", DATABASE | NETWORK - {"socket"} | {"cryptography", "email_validator"}),
    ],
)
def test_a_pure_module_loads_no_network_and_no_driver(module: str, unwanted: set[str]) -> None:
    """Nor does a library that it imports."""
    assert loaded_by(f"tornado_status.{module}") & unwanted == set()


def test_verification_and_order_of_listeners_load_no_network() -> None:
    """They get bytes and the time from their caller, so that tests can choose both."""
    apart = ("events", "output", "board.roster", "receive.fair_queue", "repair.api_responses")
    pure = [f"listeners.{name}" for name in apart]
    pure += [n for n in MODULES if n.startswith(("listeners.verify.", "listeners.order."))]
    assert loaded_by(*pure) & {"asyncio", "ssl", "http", "tornado", "pydantic"} == set()


@pytest.mark.parametrize("package", ["listeners", "clients", "certs_gen"])
def test_a_program_beside_the_server_loads_neither_tornado_nor_a_driver(package: str) -> None:
    """It starts quickly, and runs where neither is installed."""
    loaded = loaded_by(*(name for name in MODULES if name.partition(".")[0] == package))
    assert loaded & (DATABASE | {"tornado", "structlog", "pydantic", "yaml"}) == set()


def test_a_wrong_option_is_refused_before_the_server_is_loaded() -> None:
    """The command line answers at once: only `serve` loads Tornado and the database."""
    assert loaded_by("tornado_status.cli") & (DATABASE | {"tornado", "structlog"}) == set()


def test_a_fresh_interpreter_shows_what_is_loaded() -> None:
    """The tests above would find what they look for."""
    loaded = loaded_by("tornado_status.server", "tornado_status.store.database")
    assert {"tornado", "structlog", "aiopg", "psycopg2"} <= loaded
