"""Every command that the doctor can print: it is run, or read by the parser of its program."""

from __future__ import annotations

import ast
import datetime
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from certs_gen.authority import Authority
from certs_gen.cli import main as certs_gen
from listeners.options import make_parser as listener_parser
from tests.support.doctor_setup import DoctorSetup
from tests.support.harness import PATIENCE_S, ROOT, Postgres, rows

pytestmark = pytest.mark.once

# The doctor's own sentences, and those of the modules whose errors it prints.
MODULES = [
    *sorted((ROOT / "tornado_status" / "commands" / "doctor").glob("*.py")),
    *(ROOT / "tornado_status" / "pki" / name for name in ("file_kinds.py", "tls_contexts.py")),
    *(
        ROOT / "tornado_status" / "pki" / name
        for name in ("datagram_signing.py", "trust_anchors.py")
    ),
    *(ROOT / "tornado_status" / "runtime" / name for name in ("listening.py", "program_names.py")),
    ROOT / "tornado_status" / "store" / "log_id.py",
]
COMMAND = re.compile(
    r"status-certs (server|crl|client|announcer|revoke)\b|tornado-status (log|users|config)\b"
    r"|status-listener -|nft (-a|list)|chmod \d|chown -|openssl \w+ -|pip install|sysctl "
)
VALUES = {"NAME": "localhost", "USER": "postgres"}


def sentences(path: Path) -> list[str]:
    """Return every text of a module, docstrings apart; what is put in is {its source}."""
    tree = ast.parse(path.read_text("utf-8"))
    docstrings = {
        ast.get_docstring(node, clean=False)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (
                f"{{{ast.unparse(part.value)}}}"
                if isinstance(part, ast.FormattedValue)
                else str(getattr(part, "value", ""))
                for part in node.values
            )
            found.append("".join(parts))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            if node.value not in docstrings:
                found.append(node.value)
    return found


def commands() -> dict[str, str]:
    """Return all commands between backticks, and the module of each."""
    found = {}
    for path in MODULES:
        for sentence in sentences(path):
            for command in re.findall(r"`([^`]+)`", sentence):
                found[command] = path.name
    return found


def by_certs_gen(command: str, directory: Path) -> None:
    """To the end: in a development set, without the file that the command makes."""
    certs = directory / "certs"
    words = shlex.split(command)[1:]
    if words:
        assert certs_gen(["--out", str(certs)]) == 0
    if words == ["announcer"]:
        (certs / "announcer.key").unlink()
        (certs / "announcer.crt").unlink()
    assert certs_gen([*words, "--out", str(certs)]) == 0


def by_listener_parser(command: str, directory: Path) -> None:
    listener_parser().parse_args([*shlex.split(command)[1:], "--interface", "lo"])


def by_shell(command: str, directory: Path) -> None:
    words = shlex.split(command)
    if shutil.which(words[0], path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        pytest.skip(f"{words[0]} is not installed")
    (directory / "it").touch()
    words = [str(directory / "it") if "{" in word else word for word in words]
    subprocess.run(words, check=True, capture_output=True, timeout=PATIENCE_S)


def tried_elsewhere(command: str, directory: Path) -> None:
    """By the test that is named beside the command."""


Way = Callable[[str, Path], None]
WAYS: dict[str, Way] = {
    r"status-certs( .*)?": by_certs_gen,
    # Made of parts: run by test_the_printed_commands_of_status_certs_are_run.
    r"\{_command\(.*\)\}|\{command\}": tried_elsewhere,
    r"status-listener \{options\}": lambda command, path: by_listener_parser(
        "status-listener", path
    ),
    r"openssl .*|\{take_out\}|\{convert\}|\{decrypt\}": tried_elsewhere,  # test_bad_files
    r"ss -l[tu]np|ss -l\{option\}np": lambda _, path: by_shell("ss -ltnup", path),
    r"ip address": by_shell,
    r"brd": tried_elsewhere,  # a word in the output of `ip address`
    r"nft list ruleset": by_shell,
    r"nft -a list chain .*": tried_elsewhere,  # network/test_doctor_network.py
    r"chmod \d+ .*": by_shell,
    r"chown -R .*": lambda _, path: by_shell(f"chown -R root {path}", path),
    r"sysctl net\.ipv4\.ip_unprivileged_port_start=.*": lambda _, path: by_shell(
        "sysctl net.ipv4.ip_unprivileged_port_start", path
    ),
    r"pip install 'tornado-status\[otel\]'": tried_elsewhere,  # test_package
    r"(ALTER|SELECT|GRANT) .*": tried_elsewhere,  # test_each_statement_is_run
    r"tornado-status log new": tried_elsewhere,  # test_backup
}


@pytest.mark.parametrize("command", sorted(commands()))
def test_a_command_of_the_doctor_works(command: str, tmp_path: Path) -> None:
    """A new one needs an entry above."""
    ways = [way for pattern, way in WAYS.items() if re.fullmatch(pattern, command)]
    assert len(ways) == 1, f"{command!r} in {commands()[command]}"
    filled = re.sub(r"\b[A-Z]{4}\b", lambda match: VALUES.get(match[0], match[0]), command)
    ways[0](filled, tmp_path)


def test_every_command_stands_between_backticks() -> None:
    """Else the test above would not find it."""
    bare = [
        (path.name, sentence)
        for path in MODULES
        for sentence in sentences(path)
        if COMMAND.search(re.sub(r"`[^`]+`", "", sentence))
        and not COMMAND.match(sentence)  # a command that is put between them
    ]
    assert bare == []


@pytest.mark.parametrize(
    "pattern", ["GRANT .*", "ALTER SYSTEM .*", "ALTER ROLE .*", "SELECT pg_reload_conf.*"]
)
def test_each_statement_is_run(own_postgres: Postgres, pattern: str) -> None:
    """Against a PostgreSQL, with plausible values."""
    [statement] = [each for each in commands() if re.fullmatch(pattern, each)]
    statement = statement.replace("{setting}", "full_page_writes").replace("USER", "postgres")
    rows(own_postgres.url, statement)


def test_the_printed_commands_of_status_certs_are_run(
    tmp_path: Path, certs: Path, database_url: str
) -> None:
    """As they are printed; the doctor is content then, and no name of the server is lost."""
    site = DoctorSetup(tmp_path, certs, database_url)
    now = datetime.datetime.now(datetime.UTC)
    then = now - datetime.timedelta(days=360)
    site.put("server", site.authority.issue_server(["a.example.com"], ["192.0.2.7"], now=then))
    site.put("announcer", site.authority.issue_announcer(now=then))
    late = site.authority.empty_crl(days=30, now=now - datetime.timedelta(days=28))
    (site.certs / "ca.crl").write_bytes(late.public_bytes(Encoding.PEM))
    printed = re.findall(r"`(status-certs [^`]+)`", site.ask().stdout)
    out = f"--out {site.certs}"
    assert sorted(printed) == [
        f"status-certs announcer --force {out}",
        f"status-certs crl {out}",
        f"status-certs server --name a.example.com --ip 192.0.2.7 --force {out}",
    ]
    for command in printed:
        assert certs_gen(shlex.split(command)[1:]) == 0
    site.well("clients can reach the server as a.example.com, 192.0.2.7")
    assert "status-certs" not in site.ask().stdout
    said = site.ask(tls={"crl": None}).stdout
    assert f"Make one with `status-certs crl {out}`, and name it in tls.crl." in said


def test_the_key_that_an_announcer_was_rotated_to_is_renewed(
    tmp_path: Path, certs: Path, database_url: str
) -> None:
    """The command writes the files of that key, and no others."""
    site = DoctorSetup(tmp_path, certs, database_url)
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=360)
    site.put("announcer-2", site.authority.issue_announcer("announcer-2", now=then))
    site.settings["announce"]["signing_key"] = "certs/announcer-2.key"
    [command] = re.findall(r"`(status-certs announcer[^`]+)`", site.ask().stdout)
    assert command == f"status-certs announcer --name announcer-2 --force --out {site.certs}"
    before = (site.certs / "announcer.key").read_bytes()
    assert certs_gen(shlex.split(command)[1:]) == 0
    assert (site.certs / "announcer.key").read_bytes() == before
    assert "status-certs announcer" not in site.ask().stdout


def server_of_another_ca(site: DoctorSetup, then: datetime.datetime) -> None:
    site.put("server", Authority.create(name="public").issue_server(["localhost"], now=then))


def announcer_of_another_ca(site: DoctorSetup, then: datetime.datetime) -> None:
    site.put("announcer", Authority.create(name="another").issue_announcer(now=then))


def server_in_another_file(site: DoctorSetup, then: datetime.datetime) -> None:
    site.put("tls", site.authority.issue_server(["localhost"], now=then))
    site.settings["tls"] |= {"certificate": "certs/tls.crt", "private_key": "certs/tls.key"}


def server_key_in_another_file(site: DoctorSetup, then: datetime.datetime) -> None:
    site.put("server", site.authority.issue_server(["localhost"], now=then))
    (site.certs / "server.key").rename(site.certs / "tls.key")
    site.settings["tls"]["private_key"] = "certs/tls.key"


def announcer_key_in_another_file(site: DoctorSetup, then: datetime.datetime) -> None:
    site.put("announcer", site.authority.issue_announcer(now=then))
    (site.certs / "announcer.key").rename(site.certs / "announcer.pem")
    site.settings["announce"]["signing_key"] = "certs/announcer.pem"


@pytest.mark.parametrize(
    "make",
    [
        *(server_of_another_ca, server_in_another_file, server_key_in_another_file),
        *(announcer_of_another_ca, announcer_key_in_another_file),
    ],
    ids=lambda make: make.__name__,
)
def test_a_certificate_that_status_certs_cannot_renew_has_no_command(
    tmp_path: Path,
    certs: Path,
    database_url: str,
    make: Callable[[DoctorSetup, datetime.datetime], None],
) -> None:
    """It is of another CA, or the command would write other files."""
    site = DoctorSetup(tmp_path, certs, database_url)
    make(site, datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=360))
    said = site.ask().stdout
    assert "expires in 5 days" in said
    assert "Put a new one in its place. " in said
    assert "status-certs" not in said
