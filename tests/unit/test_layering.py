"""Which part may import which: the house is what these rules keep it.

errors <- pure modules <- logs <- adapters <- server, the composition root <- the command line.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.harness import PATIENCE_S, ROOT, plain_environment

# Each imports from those before it, and adapters never from each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    (
        *("certificates", "authorities", "identity", "announcers", "revocation"),
        *("limits", "presence", "patterns", "checkin"),
        *("datagram", "brokers", "hosts", "config"),
    ),
    ("expiry", "measure", "health", "messages"),
    ("logs", "nats_connection", "timed_stream", "files", "names", "threads", "deadline", "ending"),
    ("ingress", "store", "announce", "api", "alerts", "admin", "metrics", "notify", "tracing"),
    ("keys", "welcome", "reminder", "readiness"),
    ("server",),
    ("show", "completion", "doctor", "users"),
    ("cli",),
    ("__main__",),
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
PURE = LAYERS[0] + LAYERS[1] + LAYERS[2]
ADAPTERS = LAYERS[4]

DATABASE = {"aiopg", "psycopg2", "alembic", "sqlalchemy"}
NETWORK = {"asyncio", "socket", "ssl", "structlog", "tornado"}
# What other packages may know of the server: the values and formats that they share with it.
SHARED = {
    "errors",
    "certificates",
    "identity",
    "announcers",
    "checkin",
    "datagram",
    "brokers",
    "nats_connection",
}
PACKAGES = ("tornado_status", "listeners", "clients", "certs_gen")

SQL = re.compile(
    r"\bselect\b.+\bfrom\b|\binsert\s+into\b|\bupdate\s+\w+\s+set\b|\bdelete\s+from\b"
    r"|\b(create|alter|drop)\s+(table|index)\b|\bfor\s+update\b",
    re.IGNORECASE | re.DOTALL,
)


def sources(package: str) -> dict[str, str]:
    """The modules of a package, by name, and their text."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path.read_text()
    assert found, f"no modules in {package}"
    return found


MODULES = {name: text for package in PACKAGES for name, text in sources(package).items()}


def imported(module: str, text: str) -> Iterator[tuple[int, str]]:
    """The line and the full name of each import, wherever in the module it stands."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: a relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def part_of(name: str) -> str | None:
    """The part of the server that a full name is in: `store` for tornado_status.store.Store."""
    package, _, rest = name.partition(".")
    part = rest.partition(".")[0]
    # `from tornado_status import __version__` is of no part.
    is_module = part in LAYER or any(
        module == f"tornado_status.{part}" or module.startswith(f"tornado_status.{part}.")
        for module in MODULES
    )
    return part if package == "tornado_status" and is_module else None


def wrong_imports(module: str, text: str) -> list[str]:
    """Say of each import that breaks a rule where it is and which rule it breaks."""
    package = module.partition(".")[0]
    part = part_of(module)
    found = []
    for line, name in imported(module, text):
        top = name.partition(".")[0]
        target = part_of(name)
        problem = None
        if package != "tornado_status":
            if target is not None and target not in SHARED:
                problem = f"{package} may share only {', '.join(sorted(SHARED))}"
            elif package == "listeners" and top in {"tornado", *DATABASE}:
                problem = "a listener needs neither a database nor Tornado"
            elif top in set(PACKAGES) - {package, "tornado_status"}:
                problem = "the programs beside the server do not know each other"
        elif top in set(PACKAGES) - {"tornado_status"}:
            problem = "the server does not know the programs beside it"
        elif top in DATABASE and part != "store":
            problem = "only store talks to the database"
        elif part in PURE and top in NETWORK:
            problem = f"{part} is pure"
        elif target is not None and target != part:
            if part is None:
                problem = "the package itself imports none of its parts"
            elif part in ADAPTERS and target in ADAPTERS:
                problem = "adapters do not import each other"
            elif LAYER.get(target, 0) > LAYER.get(part, len(LAYERS)):
                problem = f"{target} is built on {part}, not the other way round"
        if problem:
            found.append(f"{module}:{line} imports {name}: {problem}")
    return found


def sql_in(module: str, text: str) -> list[str]:
    """Say where SQL stands in a string that is not a docstring."""
    tree = ast.parse(text)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in prose | inside:
                continue
            said = node.value
        elif isinstance(node, ast.JoinedStr):
            said = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values
            )
        else:
            continue
        if SQL.search(said):
            found.append(f"{module}:{node.lineno} has SQL in it: {said[:60]!r}")
    return found


def test_every_part_of_the_server_has_its_place() -> None:
    """A new module is put into `LAYERS` by whoever adds it."""
    parts = {name.split(".")[1] for name in MODULES if name.startswith("tornado_status.")}
    assert parts - LAYER.keys() == set()
    assert LAYER.keys() - parts == set()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    """What is below knows nothing of what is above, and what is beside is handed over."""
    assert wrong_imports(module, MODULES[module]) == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for(module: str) -> None:
    """In a docstring, or nobody knows what it owns and what it refuses."""
    assert ast.get_docstring(ast.parse(MODULES[module])), f"{module} has no docstring"


@pytest.mark.parametrize(
    "module", [name for name in MODULES if not name.startswith("tornado_status.store")]
)
def test_sql_is_in_the_store_alone(module: str) -> None:
    """Whoever changes a table has one place to look."""
    assert sql_in(module, MODULES[module]) == []


def test_the_store_is_found_to_have_sql_and_drivers() -> None:
    """What the rules look for is what there is; else they would hold for nothing."""
    store = {name: text for name, text in MODULES.items() if part_of(name) == "store"}
    assert any(sql_in(name, text) for name, text in store.items())
    used = {top.partition(".")[0] for name in store for _, top in imported(name, store[name])}
    assert used & DATABASE == DATABASE


@pytest.mark.parametrize(
    ("module", "text", "named"),
    [
        ("tornado_status.api.users", "import tornado_status.store", "tornado_status.store"),
        (
            "tornado_status.ingress.authentication",
            "from tornado_status.api import x",
            "tornado_status.api.x",
        ),
        ("tornado_status.announce", "from tornado_status import store", "tornado_status.store"),
        (
            "tornado_status.errors",
            "from tornado_status import checkin",
            "tornado_status.model.records",
        ),
        (
            "tornado_status.pki.identity",
            "def f():\n    from tornado_status import logs",
            ":2 imports",
        ),
        ("tornado_status.store.store", "from tornado_status.server import x", "server.x"),
        ("tornado_status.server", "from tornado_status.cli import main", "cli.main"),
        (
            "tornado_status.observe.logging_setup",
            "import tornado_status.observe.management",
            "tornado_status.observe.management",
        ),
        ("tornado_status", "from tornado_status import errors", "tornado_status.errors"),
        ("tornado_status.api.users", "from psycopg2.extras import x", "psycopg2.extras.x"),
        ("tornado_status.server", "import aiopg", "aiopg"),
        ("tornado_status.wire.datagram", "import socket", "socket"),
        ("tornado_status.config", "from tornado.options import define", "tornado.options.define"),
        ("tornado_status.cli", "import certs_gen.cli", "certs_gen.cli"),
        ("listeners.cli", "from tornado_status import config", "tornado_status.config"),
        ("listeners.verify.unverified", "import tornado.ioloop", "tornado.ioloop"),
        ("listeners.verify.unverified", "import psycopg2", "psycopg2"),
        ("clients.cli", "from listeners import cli", "listeners.cli"),
        ("certs_gen.cli", "from tornado_status.server import serve", "server.serve"),
    ],
)
def test_an_import_that_breaks_a_rule_is_named(module: str, text: str, named: str) -> None:
    """With its line, so that it is found at once."""
    [said] = wrong_imports(module, text)
    assert said.startswith(f"{module}:")
    assert named in said


@pytest.mark.parametrize(
    "text",
    [
        'x = "SELECT seq FROM head"',
        'x = "select seq\\nfrom head"',
        'x = f"SELECT {columns} FROM head"',
        'def f():\n    g("INSERT INTO head VALUES (1)")',
        'x = "UPDATE head SET seq = 1"',
        'x = ("DELETE " "FROM check_in")',
        'x = "DROP TABLE head"',
    ],
)
def test_sql_outside_the_store_is_named(text: str) -> None:
    """However it is put together; prose is not taken for it."""
    [said] = sql_in("tornado_status.api.users", text)
    assert said.startswith("tornado_status.api.users:")
    assert sql_in("tornado_status.api.users", '"""Select a user from the list."""') == []


# --------------------------------------------------------------------- in a fresh interpreter

LIBRARIES = {"cryptography", "email_validator", "pydantic", "yaml"}


def loaded_by(*modules: str) -> set[str]:
    """What is loaded in a fresh interpreter once it has imported these."""
    done = subprocess.run(
        [
            sys.executable,
            *("-W", "error", "-c"),
            f"import json, sys, {', '.join(modules)}; print(json.dumps(list(sys.modules)))",
        ],
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


# Not sockets in `identity` and `config`: before 3.13 the standard library's own e-mail parser,
# which their libraries use, imports them.
@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("errors", DATABASE | NETWORK | LIBRARIES),
        ("checkin", DATABASE | NETWORK | LIBRARIES),
        ("datagram", DATABASE | NETWORK | LIBRARIES),
        ("identity", DATABASE | NETWORK - {"socket"} | {"pydantic", "yaml"}),
        ("config", DATABASE | NETWORK - {"socket"} | {"cryptography", "email_validator"}),
    ],
)
def test_a_pure_module_loads_nothing_that_talks_to_the_world(
    module: str, unwanted: set[str]
) -> None:
    """Not even by way of what it imports."""
    loaded = loaded_by(f"tornado_status.{module}")
    assert f"tornado_status.{module}" in loaded
    assert loaded & unwanted == set()
    above = {f"tornado_status.{part}" for part in LAYER if part not in PURE}
    assert loaded & above == set()


@pytest.mark.parametrize("package", ["listeners", "clients", "certs_gen"])
def test_a_program_beside_the_server_loads_nothing_of_its_inside(package: str) -> None:
    """It starts quickly, and runs where there is neither Tornado nor a database driver."""
    loaded = loaded_by(*(name for name in MODULES if name.partition(".")[0] == package))
    inside = {f"tornado_status.{part}" for part in LAYER if part not in SHARED}
    assert loaded & (inside | DATABASE | {"tornado", "structlog"}) == set()


def test_a_wrong_option_is_told_without_loading_the_server() -> None:
    """The command line answers at once; Tornado and the database are loaded to serve."""
    loaded = loaded_by("tornado_status.cli")
    assert loaded & (DATABASE | {"tornado", "structlog"}) == set()


def test_a_fresh_interpreter_shows_what_is_loaded() -> None:
    """What the tests above look for would be found."""
    assert {"tornado", "structlog", "tornado_status.ingress"} <= loaded_by("tornado_status.server")
    assert {"aiopg", "psycopg2"} <= loaded_by("tornado_status.store")
