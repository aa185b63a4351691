"""Three database machines as docs/high-availability.md sets them up, and a fourth for the servers.

A database machine has a systemd of its own, its file system in memory and an eth0 on a bridge. The
fourth is a network namespace on the same bridge. Nothing of this machine's network is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    ROOT,
    plain_environment,
    require,
    rows,
    wait_until,
)
from tests.support.hosts import run
from tests.support.machines import Machine, machine, need_machine
from tests.support.pages import BASH, commands

PAGE = "docs/high-availability.md"
DOMAIN = "example.com"
ADDRESSES = {"db1": "192.0.2.21", "db2": "192.0.2.22", "db3": "192.0.2.23"}
SERVERS_IP = "192.0.2.9"
COPIED = "/root/database"  # where the page's reader has put the files
CONFIG = "/etc/patroni/config.yml"
SCOPE = "status"
DEBIAN = "postgresql patroni python3-etcd etcd-server etcd-client"
BOOTSTRAP_PATIENCE_S = 3 * PATIENCE_S  # a cluster is created and copied twice

# The directories that the packages make in /etc and /var, which are empty on a machine of the
# tests, and one that is read-only there.
INSTALLED = f"""
mount -t tmpfs tmpfs /usr/local/sbin
install -d /etc/patroni
install -d -o postgres -g postgres /var/lib/postgresql /var/log/postgresql
install -d -o etcd -g etcd -m 700 /var/lib/etcd
install -d -o postgres -g postgres -m 2775 /run/postgresql
install -d {COPIED}
"""

_CLONE_NEWNET = 0x40000000


def block(first_line: str) -> str:
    """Return the commands of the page's block that begins so."""
    [found] = [each.commands for each in commands(PAGE) if each.name.startswith(first_line)]
    return found


def newest_postgresql() -> str:
    """Return the newest major version that Debian's packages have installed."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[4])
    )
    require("PostgreSQL", bool(found), f"apt-get install --no-install-recommends {DEBIAN}")
    return found[-1].parts[4]


@contextlib.contextmanager
def in_network(namespace: str) -> Iterator[None]:
    """Be in a network namespace with this thread, and with what it starts meanwhile."""
    setns = ctypes.CDLL(None, use_errno=True).setns

    def enter(path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if setns(descriptor, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter {path}")
        finally:
            os.close(descriptor)

    before = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
    try:
        enter(namespace)
        try:
            yield
        finally:
            enter(f"/proc/self/fd/{before}")
    finally:
        os.close(before)


@dataclass(frozen=True)
class Member:
    """A machine as Patroni sees it: /cluster of its REST API."""

    name: str
    role: str  # leader, sync_standby, replica
    state: str


class DatabaseMachines:
    """The running machines. The caller is in the servers' network."""

    def __init__(self, machines: dict[str, Machine], network: Network, directory: Path) -> None:
        self.machines = machines
        self.directory = directory  # of the page's reader, with `database` in it
        self.certificate = directory / "database" / "ca.crt"
        self.hosts = directory / "hosts"  # the servers' /etc/hosts
        self._network = network

    @property
    def url(self) -> str:
        """The servers' `database.url`, as the page has it."""
        names = ",".join(f"{name}.{DOMAIN}" for name in self.machines)
        return f"postgresql://status:password@{names}/tornado_status?sslrootcert={self.certificate}"

    @property
    def writable_url(self) -> str:
        """The same for the tests: it needs no names, and only the leader is right."""
        addresses = ",".join(ADDRESSES[name] for name in self.machines)
        options = "sslmode=verify-full&target_session_attrs=read-write&connect_timeout=2"
        return f"{self.url}&hostaddr={addresses}&{options}"

    def url_of(self, name: str) -> str:
        """One machine, whatever it is."""
        return (
            f"postgresql://status:password@{name}.{DOMAIN}/tornado_status"
            f"?sslrootcert={self.certificate}&hostaddr={ADDRESSES[name]}"
            "&sslmode=verify-full&connect_timeout=2"
        )

    def can_read(self, name: str) -> bool:
        try:
            return rows(self.url_of(name), "SELECT 1") == [(1,)]
        except psycopg2.Error:
            return False

    @property
    def with_names(self) -> tuple[str, ...]:
        """A command that runs another one where the machines' names are known."""
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return ("unshare", "--mount", "sh", "-c", script, str(self.hosts))

    # ------------------------------------------------------------------------------ as Patroni says

    def members(self, asked: str) -> list[Member]:
        """Return what the Patroni of one machine knows; nothing if it does not answer."""
        connection = http.client.HTTPConnection(LOOPBACK, 8008, timeout=2)
        try:
            with in_network(f"/proc/{self.machines[asked].pid}/ns/net"):
                connection.request("GET", "/cluster")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            return [Member(m["name"], m["role"], m["state"]) for m in found["members"]]
        except (OSError, ValueError, http.client.HTTPException):
            return []
        finally:
            connection.close()

    def leader(self) -> str:
        """Return the machine that is the leader for all that answer."""

        def agreed() -> str | None:
            seen = {
                member.name
                for name in self.machines
                for member in self.members(name)
                if (member.role, member.state) == ("leader", "running")
            }
            return seen.pop() if len(seen) == 1 else None

        return str(wait_until(agreed, "a leader"))

    def wait_whole(self, *, synchronous: bool = True) -> None:
        """Wait until all three replicate, and one of them is the synchronous standby."""
        standbys = ["replica", "sync_standby"] if synchronous else ["replica", "replica"]

        def whole() -> bool:
            return all(
                [m.state for m in members if m.role == "leader"] == ["running"]
                and sorted(m.role for m in members if m.state == "streaming") == standbys
                for members in map(self.members, self.machines)
            )

        try:
            _wait_until(whole, "three machines that replicate", BOOTSTRAP_PATIENCE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.journal()}") from None

    def patronictl(self, *arguments: str, on: str | None = None) -> str:
        there = self.machines[on or self.leader()]
        return there.run("patronictl", "-c", CONFIG, *arguments).stdout

    def journal(self, lines: int = 15) -> str:
        """Return the last lines of each machine's log."""
        units = ("--unit=patroni", "--unit=etcd", "--unit=release-silent-leader")
        return "\n".join(
            f"{name}:\n"
            + there.run("journalctl", *units, f"--lines={lines}", "--no-pager", check=False).stdout
            for name, there in self.machines.items()
        )

    def empty(self) -> None:
        """Replace the servers' database by an empty one."""
        command = "dropdb --force tornado_status && createdb --owner=status tornado_status"
        self.machines[self.leader()].run("su", "postgres", "-c", command)
        wait_until(lambda: all(map(self.can_read, self.machines)), "an empty database everywhere")

    # -------------------------------------------------------------------------------------- faults

    def set_link(self, name: str, state: str) -> None:
        """Plug a machine's cable in ("up") or out ("down")."""
        self._network.set_link(name, state)

    def lose(self, name: str) -> None:
        """End a machine, with its disk."""
        end(self.machines[name])
        wait_until(lambda: not self._network.is_plugged_in(name), "the end of a machine")

    def replace(self, name: str) -> None:
        """Put a new machine in the place of a lost one, as the page says."""
        asked = next(other for other in self.machines if other != name)
        text = block("lost=db3")
        type_on(self.machines[asked], text.replace("lost=db3", f"lost={name}"))
        self.machines[name] = self._network.boot()
        self._network.install(name, self.machines[name], joins=True)
        members = self.machines[asked].run("etcdctl", "member", "list").stdout
        assert members.count(", started, ") == len(self.machines), members

    @contextlib.contextmanager
    def dropping(self, name: str, *rules: str) -> Iterator[None]:
        """Have a machine's firewall drop what matches one of nftables' `rules`, in and out."""
        lines = "".join(f"{rule} drop\n" for rule in rules)
        table = f"""
            table inet fault {{
                chain input {{
                    type filter hook input priority -10
                    {lines}
                }}
                chain output {{
                    type filter hook output priority -10
                    {lines}
                }}
            }}
        """
        there = self.machines[name]
        there.put("/run/fault.nft", table)
        there.run("nft", "-f", "/run/fault.nft")
        try:
            yield
        finally:
            there.run("nft", "delete", "table", "inet", "fault")

    def kill(self, name: str, *, patroni: bool) -> None:
        """kill -9 PostgreSQL, and its Patroni at once; systemd starts Patroni again."""
        there = self.machines[name]
        found = "$(head -n 1 /var/lib/postgresql/*/status/postmaster.pid)"
        if patroni:
            found += " $(systemctl show patroni --property=MainPID --value)"
        there.run("bash", "-c", f"kill -9 {found}")

    def release_lock(self, asked: str) -> None:
        """Revoke the lease of the leader's lock, as if its time were over."""
        there = self.machines[asked]
        lock = f"etcdctl get /service/{SCOPE}/leader --write-out=fields"
        lease = f"""$({lock} | sed -n 's/^"Lease" : //p')"""
        revoke = ("bash", "-o", "pipefail", "-c", f'etcdctl lease revoke "$(printf %x "{lease}")"')

        def released() -> bool:  # unless etcd, too, has just lost its leader
            return there.run(*revoke, check=False).returncode == 0

        wait_until(released, "etcd to forget the leader")


def _wait_until(condition: Callable[[], bool], what: str, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s in vain: {what}"
        time.sleep(0.1)


def need_database_machines() -> None:
    need_machine()
    programs = ("patroni", "patronictl", "etcd", "etcdctl", "curl", "nft", "ip", "pg_isready")
    missing = [name for name in programs if shutil.which(name) is None]
    require(
        f"{', '.join(missing)}", not missing, f"apt-get install --no-install-recommends {DEBIAN}"
    )


def type_on(there: Machine, text: str, patience_s: float = PATIENCE_S) -> str:
    """Run commands of the page on a machine, in the directory that its reader has copied."""
    return there.run(*BASH, text, cwd=COPIED, patience_s=patience_s).stdout


class Network:
    """The bridge, and the machines on it."""

    def __init__(self, stack: contextlib.ExitStack, directory: Path, release_silent: bool) -> None:
        self._stack = stack
        self._directory = directory
        self._release_silent = release_silent
        self._booted = 0
        prefix = f"tornado_status_{os.getpid()}"
        self._switch, self._servers = f"{prefix}_switch", f"{prefix}_servers"
        for name in (self._switch, self._servers):
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name)
        run("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self._switch, "link", "set", "br0", "up")
        enter = ("ip", "netns", "exec", self._servers)
        self._plug_in("servers", SERVERS_IP, self._servers, enter)

    def servers(self) -> contextlib.AbstractContextManager[None]:
        """Be in the servers' network."""
        return in_network(f"/run/netns/{self._servers}")

    def set_link(self, name: str, state: str) -> None:
        run("ip", "-n", self._switch, "link", "set", name, state)

    def is_plugged_in(self, name: str) -> bool:
        return f" {name}@" in run("ip", "-n", self._switch, "link", "show")

    def boot(self) -> Machine:
        """Start a machine, which ends with the network at the latest."""
        self._booted += 1
        there = self._stack.enter_context(machine(self._directory / f"machine_{self._booted}"))
        # An orderly end takes Patroni seconds, and it holds nothing worth keeping.
        self._stack.callback(end, there)
        return there

    def install(self, name: str, there: Machine, *, joins: bool = False) -> None:
        """Make a machine that one by the page; `joins`: in the place of a lost one."""
        inside = ("nsenter", f"--net=/proc/{there.pid}/ns/net")
        self._plug_in(name, ADDRESSES[name], str(there.pid), inside)
        there.run(*BASH, f"hostname {name}\n{INSTALLED}")
        for path in (self._directory / "database").iterdir():
            there.put(f"{COPIED}/{path.name}", path.read_text(), path.stat().st_mode)
        type_on(there, block("cat >>/etc/hosts"))
        type_on(there, block("name=$(hostname"))
        type_on(there, block("install -m 755 nftables.conf"))
        if joins:
            type_on(there, block("sed -i s/STATE=new"))
        type_on(there, block("systemctl enable --now etcd"))
        type_on(there, block("systemctl enable --now patroni"))
        if self._release_silent:
            type_on(there, block("install -m 755 release-silent-leader.sh"))

    def _plug_in(self, name: str, address: str, netns: str, enter: tuple[str, ...]) -> None:
        port = ("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", netns)
        run("ip", "-n", self._switch, *port)
        run("ip", "-n", self._switch, "link", "set", name, "master", "br0", "up")
        run(*enter, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            run(*enter, "ip", "link", "set", link, "up")


def end(there: Machine) -> None:
    """End a machine at once, with all that is on its disk."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(there.pid, signal.SIGKILL)


@contextlib.contextmanager
def database_machines(
    directory: Path,
    *,
    release_silent: bool = True,
    edit: Callable[[str], str] = lambda configuration: configuration,
) -> Iterator[DatabaseMachines]:
    """Follow the page up to a database that the servers can use.

    `directory` has a short path, for sockets. Without `release_silent`, leave out the page's
    section on silent machines; `edit` changes its patroni.yml.
    """
    need_database_machines()
    with contextlib.ExitStack() as stack:
        network = Network(stack, directory, release_silent)
        prepare(directory, edit)
        with ThreadPoolExecutor(len(ADDRESSES)) as pool:
            booting = {name: pool.submit(network.boot) for name in ADDRESSES}
            machines = {name: booted.result() for name, booted in booting.items()}
            list(pool.map(network.install, machines, machines.values()))
        hosts = (machines["db1"].root / "etc" / "hosts").read_text()
        (directory / "hosts").write_text(hosts)
        with network.servers():
            cluster = DatabaseMachines(machines, network, directory)
            cluster.wait_whole()
            type_on(machines[cluster.leader()], block("su postgres -c"))
            wait_until(lambda: all(map(cluster.can_read, machines)), "standbys with the database")
            yield cluster


def prepare(directory: Path, edit: Callable[[str], str]) -> None:
    """Type what the page has for the checkout, on a copy of its files."""
    shutil.copytree(ROOT / "deploy" / "patroni", directory / "deploy" / "patroni")
    environment = {
        **plain_environment(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    subprocess.run(
        [*BASH, block("cp -r deploy/patroni database")],
        cwd=directory,
        env=environment,
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    configuration = directory / "database" / "patroni.yml"
    text = configuration.read_text()
    assert text.count("/postgresql/17/") == 2
    text = text.replace("/postgresql/17/", f"/postgresql/{newest_postgresql()}/")
    configuration.write_text(edit(text))


def can_write(url: str) -> bool:
    """Return whether a commit succeeds, as a server's would."""
    try:
        with contextlib.closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO probe DEFAULT VALUES")
    except psycopg2.Error:
        return False
    return True
