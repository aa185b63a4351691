"""A server with the embedded PostgreSQL: started, ended, killed, and where its data may be."""

from __future__ import annotations

import asyncio
import fcntl
import http.client
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from certs_gen.cli import main as certs_gen
from tests.support.harness import (
    PATIENCE_S,
    ROOT,
    Server,
    StartServer,
    plain_environment,
    require,
    rows,
    running_server,
    wait_until,
)
from tests.support.store import until
from tests.support.users_command import run_users, told
from tests.support.with_constants import PREVIOUS_TIMEOUT_S
from tornado_status.runtime.backoff import Backoff
from tornado_status.store.embedded import data_directory
from tornado_status.store.embedded import postgres as postgres_module
from tornado_status.store.embedded.postgres import EmbeddedPostgres

pytestmark = pytest.mark.once


EMBEDDED = "embedded"
VALID = "valid_user@example.com"


def postmaster(server: Server) -> int:
    path = Path(server.settings["database"]["data_dir"]) / "postmaster.pid"
    return int(path.read_text().split("\n", 1)[0])


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_second_server_on_the_same_data_names_the_first(start_server: StartServer) -> None:
    """With the process that is to be stopped, which is not PostgreSQL."""
    first = start_server(url=EMBEDDED)
    data_dir = first.settings["database"]["data_dir"]
    second = start_server(
        url=EMBEDDED,
        database={"data_dir": data_dir},
        wait=False,
        constants={PREVIOUS_TIMEOUT_S: 0.5},
    )
    assert second.process.wait(PATIENCE_S) == 2
    message = (
        f"database.data_dir: {data_dir} is in use by another tornado-status server, process "
        f"{first.process.pid}: stop it, or set another database.data_dir"
    )
    assert message in second.log.wait_end()
    assert first.request("POST", "/api/client").status == 204


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_its_postgresql(
    start_server: StartServer, signum: signal.Signals
) -> None:
    """Exit 0, and nothing that it started is left."""
    server = start_server(url=EMBEDDED)
    assert server.request("POST", "/api/client").status == 204
    pid = postmaster(server)
    assert not is_gone(pid)
    assert server.stop(signum) == 0
    assert is_gone(pid)


def test_a_signal_during_the_start_ends_it_too(start_server: StartServer) -> None:
    """Also while initdb runs: exit 0, nothing left half made."""
    server = start_server(url=EMBEDDED, wait=False)
    server.wait_event("creating the database")
    assert server.stop() == 0
    data_dir = Path(server.settings["database"]["data_dir"])
    assert [path for path in data_dir.parent.iterdir() if "initdb" in path.name] == []


def test_kill_dash_nine_leaves_no_postgresql_and_loses_nothing(
    start_server: StartServer, tmp_path: Path
) -> None:
    """The embedded PostgreSQL ends by itself; the next start finds every acknowledged check-in."""
    data_dir = str(tmp_path / "kept")
    server = start_server(url=EMBEDDED, database={"data_dir": data_dir})
    for _ in range(3):
        assert server.request("POST", "/api/client").status == 204
    pid = postmaster(server)
    server.stop(signal.SIGKILL)
    # At once, while the old PostgreSQL still stops.
    again = start_server(url=EMBEDDED, database={"data_dir": data_dir})
    assert is_gone(pid)
    page = again.request("GET", "/api/events", cert="operator").json
    assert [event["seq"] for event in page["events"]] == [1, 2, 3]
    assert again.request("POST", "/api/client").status == 204


def test_after_a_power_cut_it_starts(start_server: StartServer, tmp_path: Path) -> None:
    """Both were killed: the file in which the old PostgreSQL said "ready" is still there."""
    data_dir = tmp_path / "kept"
    server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert server.request("POST", "/api/client").status == 204
    pid = postmaster(server)
    server.process.send_signal(signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    server.stop(signal.SIGKILL)
    # A process whose parent has not asked for its status still has its number.
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "PostgreSQL to be gone")
    assert "ready" in (data_dir / "postmaster.pid").read_text()
    again = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert again.request("POST", "/api/client").status == 204
    events = again.request("GET", "/api/events", cert="operator").json["events"]
    assert [event["seq"] for event in events] == [1, 2]


def test_a_killed_embedded_postgresql_is_started_again(start_server: StartServer) -> None:
    """The server notices, restarts it and goes on; nothing acknowledged is lost."""
    server = start_server(url=EMBEDDED)
    assert server.request("POST", "/api/client").status == 204
    os.kill(postmaster(server), signal.SIGKILL)
    server.wait_event("embedded PostgreSQL died, restarting")
    wait_until(lambda: server.request("POST", "/api/client").status == 204, "a check-in")
    events = server.request("GET", "/api/events", cert="operator").json["events"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert len(events) >= 2


def test_only_a_start_that_fails_backs_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that served before it was killed is back at once, each time."""
    pauses: list[float] = []

    class Recorded(Backoff):
        def next_s(self) -> float:
            pauses.append(super().next_s())
            return pauses[-1]

    monkeypatch.setattr(postgres_module, "Backoff", Recorded)

    async def main() -> None:
        server = EmbeddedPostgres(tmp_path / "pg")
        await server.start()
        try:
            async with asyncio.timeout(PATIENCE_S):
                for _ in range(5):
                    before = await killed(server)
                    await back(server, before)
                    assert pauses[0] <= postgres_module.RESTART_MIN_S
                settings = tmp_path / "pg" / "postgresql.auto.conf"
                right = settings.read_text()
                settings.write_text(f"{right}no_such_setting = on\n")
                before = await killed(server)
                await until(lambda: len(pauses) > 4)
                settings.write_text(right)
                assert pauses[3] > 2 * postgres_module.RESTART_MIN_S
                await back(server, before)
        finally:
            await server.stop()

    async def killed(server: EmbeddedPostgres) -> int:
        pid = server.pid
        assert pid is not None
        pauses.clear()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pauses)
        return pid

    async def back(server: EmbeddedPostgres, before: int) -> None:
        await until(lambda: server.pid != before and server._accepts())

    asyncio.run(main())


@pytest.mark.parametrize("deep", [False, True], ids=["in the data directory", "in /tmp"])
def test_a_deleted_socket_is_made_again(
    start_server: StartServer, tmp_path: Path, deep: bool
) -> None:
    """PostgreSQL does not notice it, and no connection could be made any more."""
    data_dir = tmp_path / ("deep" * 20 if deep else "kept") / "postgresql"
    server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert server.request("POST", "/api/client").status == 204
    directory = Path((data_dir / "postmaster.pid").read_text().splitlines()[4])
    assert (directory == data_dir) is not deep
    socket = directory / ".s.PGSQL.5432"
    socket.unlink()
    if deep:
        shutil.rmtree(directory)
    server.wait_event("embedded PostgreSQL lost its socket, restarting")
    wait_until(socket.exists, "a socket")
    wait_until(lambda: server.request("POST", "/api/client").status == 204, "a check-in")
    assert server.request("GET", "/api/client").status == 200


@pytest.mark.parametrize("locked", [False, True], ids=["left", "of an initdb that still runs"])
def test_what_a_killed_first_start_has_left_is_removed(
    start_server: StartServer, tmp_path: Path, locked: bool
) -> None:
    """Once no initdb works in it any more."""
    data_dir = tmp_path / "kept" / "postgresql"
    left = data_directory.fresh(data_dir)
    (left / "base").mkdir(parents=True)
    (left / "PG_VERSION").write_text("18")
    lock = os.open(left, os.O_RDONLY)
    if locked:
        fcntl.flock(lock, fcntl.LOCK_EX)
    server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)}, wait=False)
    if locked:
        server.wait_event("creating the database")
        assert (left / "base").exists()
    os.close(lock)
    wait_until(lambda: server.events("serving"), "a server")
    assert [path.name for path in data_dir.parent.iterdir()] == ["postgresql"]


def test_a_first_start_that_is_killed_leaves_nothing_to_the_next(
    start_server: StartServer, tmp_path: Path
) -> None:
    """At any step of its initdb."""
    data_dir = tmp_path / "kept" / "postgresql"
    for _ in range(3):
        server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)}, wait=False)
        server.wait_event("creating the database")
        server.stop(signal.SIGKILL)
    server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert server.request("POST", "/api/client").status == 204
    assert [path.name for path in data_dir.parent.iterdir()] == ["postgresql"]


# ------------------------------------------------------------------------------------------ as root


def open_embedded(data_dir: Path) -> str:
    return f"postgresql://postgres@/tornado_status?host={data_dir}"


@pytest.fixture
def as_root() -> None:
    require("root", os.geteuid() == 0, "run the tests as root: an ordinary user has less to lose")


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that every user may search, as pytest's are not."""
    directory = Path(tempfile.mkdtemp(prefix="tornado_status-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("closed", [False, True], ids=["open directories", "closed directories"])
def test_its_superuser_is_not_root(
    start_server: StartServer, tmp_path: Path, open_dir: Path, closed: bool
) -> None:
    """Files of root stay as they are, whatever is asked of the database."""
    data_dir = (tmp_path if closed else open_dir) / "postgresql"
    server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert server.request("POST", "/api/client").status == 204
    assert Path(f"/proc/{postmaster(server)}").stat().st_uid != 0
    for victim in (open_dir / "victim", tmp_path / "victim"):
        victim.write_text("of root\n")
        with pytest.raises(psycopg2.Error, match="could not open file"):
            rows(open_embedded(data_dir), f"COPY (SELECT 1) TO '{victim}'")
        assert victim.read_text() == "of root\n"


@pytest.mark.usefixtures("as_root")
def test_a_link_in_its_directory_leads_root_nowhere(
    start_server: StartServer, tmp_path: Path, open_dir: Path
) -> None:
    """The database's user may put one there; no start writes, or gives away, what it names."""
    data_dir = tmp_path / "postgresql"
    server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert server.stop() == 0
    victim = open_dir / "victim"
    victim.write_text("of root\n")
    for name in ("startup.log", "log/link", "link"):
        (data_dir / name).unlink(missing_ok=True)
        (data_dir / name).symlink_to(victim)
    server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert server.request("POST", "/api/client").status == 204
    assert victim.read_text() == "of root\n"
    assert victim.stat().st_uid == 0


def test_the_root_of_a_user_namespace_is_an_ordinary_user() -> None:
    """There are no other users in it, and its files are that user's."""
    require("root, to become an ordinary user", os.geteuid() == 0, "run as root, or see the others")
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    inside = (*user, "unshare", "--user", "--map-root-user")
    possible = subprocess.run([*inside, "true"], check=False, capture_output=True).returncode == 0
    require("user namespaces of ordinary users", possible, "allow them in the kernel")
    script = (
        "from pathlib import Path; from tornado_status.store.embedded import run_as;"
        "chosen = run_as.choose_user([Path('/none')], Path('/none'));"
        "print(chosen.uid, *chosen.prefix[1:])"
    )
    done = subprocess.run(
        [*inside, sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    if "ModuleNotFoundError" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip(f"needs a Python that others may run: {sys.executable} is not")
    assert done.stdout.split() == ["None", "--user", "--map-user=1", "--map-group=1"], done.stderr


@pytest.mark.usefixtures("as_root")
def test_data_of_root_is_handed_over_once(
    start_server: StartServer, tmp_path: Path, open_dir: Path
) -> None:
    """A copy that root has made: whole, but for what its links name."""
    data_dir = tmp_path / "postgresql"
    server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert server.request("POST", "/api/client").status == 204
    assert server.stop() == 0
    user = data_dir.stat().st_uid
    victim = open_dir / "victim"
    victim.write_text("of root\n")
    (data_dir / "link").symlink_to(victim)
    for path in (data_dir, *data_dir.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)
    server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert server.request("POST", "/api/client").status == 204
    assert {path.lstat().st_uid for path in (data_dir, *data_dir.rglob("*"))} == {user}
    assert victim.stat().st_uid == 0
    assert server.stop() == 0
    # From now on it is that user's, who may have put anything there.
    (data_dir / "of root").write_text("x")
    server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert (data_dir / "of root").stat().st_uid == 0


def test_it_starts_from_any_directory(
    start_server: StartServer, certs: Path, tmp_path: Path
) -> None:
    """Relative paths in the configuration are relative to it, not to the current directory."""
    home = tmp_path / "home"
    shutil.copytree(certs, home / "certs")
    config = home / "config.yaml"
    config.write_text((ROOT / "config.yaml").read_text())
    process = subprocess.Popen(
        [sys.executable, "-m", "tornado_status", "--config", str(config)],
        cwd="/",
        env={
            **plain_environment(),
            "TORNADO_STATUS_SERVER__PORT": "0",
            "TORNADO_STATUS_MANAGEMENT__PORT": "0",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        last = process.stdout.readline()
        assert last.startswith("Serving on https://localhost:")
        assert "multicast 239.255.66.66:6667 and broadcast 127.255.255.255:6667" in last
        assert f"--ca {home}/certs/ca.crt" in last
        assert (home / "var" / "postgresql" / "PG_VERSION").exists()
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        process.stdout.close()  # type: ignore[union-attr] # a pipe: asked for above


@pytest.mark.parametrize("listed", [True, False])
def test_in_a_folder_without_a_configuration_the_defaults_apply(
    certs: Path, tmp_path: Path, listed: bool
) -> None:
    """A revoked certificate gets 403; without a CRL it gets 204, with one warning in the log."""
    home = tmp_path / "home"
    shutil.copytree(certs, home / "certs")
    if listed:
        assert certs_gen(["revoke", "valid_user@example.com", "--out", str(home / "certs")]) == 0
    else:
        (home / "certs" / "ca.crl").unlink()
    process = subprocess.Popen(
        [sys.executable, "-m", "tornado_status"],
        cwd=home,
        env={
            **plain_environment(),
            "TORNADO_STATUS_SERVER__PORT": "0",
            "TORNADO_STATUS_MANAGEMENT__PORT": "0",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port, *_ = re.findall(r"https://localhost:(\d+)", process.stdout.readline())
        context = ssl.create_default_context(cafile=home / "certs" / "ca.crt")
        context.load_cert_chain(home / "certs" / "client.crt", home / "certs" / "client.key")
        connection = http.client.HTTPSConnection("localhost", int(port), context=context)
        connection.request("POST", "/api/client")
        assert connection.getresponse().status == (403 if listed else 204)
        connection.close()
    finally:
        process.terminate()
        _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert len(re.findall("no config.yaml, the defaults apply", log)) == 1
    assert len(re.findall("tls.crl: no CRL, revoked certificates are accepted", log)) == (
        not listed
    )


@pytest.mark.parametrize("user", [65534, 123456])
def test_an_ordinary_user_can_run_it_all(certs: Path, user: int) -> None:
    """No root needed, with the embedded PostgreSQL; nor a name, as containers may have none."""
    require("root, to become an ordinary user", os.geteuid() == 0, "run as root, or see the others")
    setpriv = shutil.which("setpriv")
    require("setpriv", setpriv is not None, "Debian: util-linux")
    assert setpriv is not None
    directory = Path("/tmp") / f"tornado_status-{os.getpid()}-{user}"  # noqa: S108 - theirs, and 0700
    directory.mkdir(mode=0o700)
    try:
        theirs = directory / "certs"
        shutil.copytree(certs, theirs)
        for path in (directory, theirs, *theirs.iterdir()):
            os.chown(path, user, user)
        home = directory / "home"
        home.mkdir()
        os.chown(home, user, user)
        prefix = (setpriv, f"--reuid={user}", f"--regid={user}", "--clear-groups")
        can_run = [*prefix, sys.executable, "-c", "import pydantic"]
        if subprocess.run(can_run, check=False, capture_output=True).returncode != 0:
            # A Python or a checkout in root's own home: nothing that could be installed.
            pytest.skip(f"needs a Python that others may run: {sys.executable} is not")
        with running_server(
            home, theirs, EMBEDDED, prefix=prefix, environment={"HOME": str(home)}
        ) as server:
            assert server.request("POST", "/api/client").status == 204
            owner = Path(f"/proc/{postmaster(server)}").stat().st_uid
            assert owner == user
    finally:
        shutil.rmtree(directory)


def test_a_data_directory_of_another_major_is_never_touched(
    start_server: StartServer, tmp_path: Path
) -> None:
    """One clear line instead of an initdb."""
    data_dir = tmp_path / "old"
    data_dir.mkdir()
    (data_dir / "PG_VERSION").write_text("9.6\n")
    server = start_server(url=EMBEDDED, wait=False, database={"data_dir": str(data_dir)})
    assert server.process.wait(PATIENCE_S) == 2
    assert "belongs to PostgreSQL 9.6" in server.log.wait_end()
    assert [path.name for path in data_dir.iterdir()] == ["PG_VERSION"]


def test_a_data_directory_with_other_files_is_never_touched(
    start_server: StartServer, tmp_path: Path
) -> None:
    """A mistyped path costs no files."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    data_dir = str(tmp_path / "photos")
    server = start_server(url=EMBEDDED, wait=False, database={"data_dir": data_dir})
    assert server.process.wait(PATIENCE_S) == 2
    assert "is not empty and no PostgreSQL data directory" in server.log.wait_end()


def test_a_long_path_to_the_data_directory_works(start_server: StartServer, tmp_path: Path) -> None:
    """Unix sockets have short names only; the path of the data may be long."""
    data_dir = tmp_path / ("deep" * 20) / "postgresql"
    server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert server.request("POST", "/api/client").status == 204


@pytest.mark.parametrize("running", [True, False])
def test_the_command_works_on_an_embedded_database(
    start_server: StartServer, tmp_path: Path, running: bool
) -> None:
    """That of the server that runs, or started for the command."""
    server = start_server(url="embedded")
    if not running:
        server.stop()
    assert told(run_users(server, tmp_path, "add", VALID)) == [f"{VALID}: enrolled"]
    shown = told(run_users(server, tmp_path, "list", "--json"))
    assert [json.loads(line)["email"] for line in shown] == [VALID]
    if running:
        assert server.request("GET", "/api/client").json["state"] == "never"
