"""The listener on its own with unverified updates, and its pure parts."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from listeners import cli, options
from listeners import listener as library
from listeners.events import Snapshot
from listeners.operator_warnings import OperatorWarnings
from listeners.order.bounded_set import BoundedSet
from listeners.output import Format, json_line, render, text_block
from listeners.receive.sockets import WILDCARD
from listeners.verify.unverified import Encoding, UnverifiedReader
from tests.support.harness import LOOPBACK, PATIENCE_S, ROOT, Lines, free_port, wait_until
from tornado_status import __version__
from tornado_status.errors import DatagramError
from tornado_status.model.records import Event, StatusRecord
from tornado_status.runtime.rate_limit import MAX_KINDS, RateLimit
from tornado_status.wire.datagram import (
    MAX_DATAGRAM,
    BinaryUpdate,
    DatagramEncoder,
    decode_binary,
    encode_binary,
    encode_json,
)

LISTENER = [sys.executable, "-W", "error", "-m", "listeners"]
# Certificates in the checkout do not matter.
ALONE = ["--insecure", "--cert", "", "--announcer", ""]
GROUP = "239.255.66.67"  # not the shipped one: a server may run on this machine
BROADCAST = "127.255.255.255"
LOG_ID = uuid.UUID("0b0e7a52-4c1f-4f57-9d8e-2f6a3c5b1d90")
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)

no_deadline = settings(deadline=None)  # a busy machine is no failure
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells these apart")


def check_in(seq: int = 42, event: str = "check-in") -> Event:
    return Event(seq, event, f"user{seq}@example.com", MOMENT, "127.0.0.1", 51514)


def free_udp_port() -> int:
    return free_port(socket.SOCK_DGRAM)


def as_json(*events: Event, log_id: uuid.UUID = LOG_ID) -> bytes:
    (payload,) = encode_json(
        log_id, MOMENT, max((event.seq for event in events), default=0), events
    )
    return payload


# ----------------------------------------------------------------------------- a listener that runs


class RunningListener:
    """`python -m listeners` on a port of its own, once it listens."""

    def __init__(self, *arguments: str, port: int | None = None, stdout: int | None = None) -> None:
        self.port = free_udp_port() if port is None else port
        self.process = subprocess.Popen(
            [*LISTENER, *ALONE, "--port", str(self.port), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.output = Lines(self.process.stdout if stdout is None else io.StringIO())
        self.remarks = Lines(self.process.stderr)

    def __enter__(self) -> RunningListener:
        self.remarks.wait_for(lambda line: line.startswith("Listening on "), "Listening on")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.ended()

    def shows(self, text: str) -> None:
        """Wait until a line of its output contains `text`."""
        self.output.wait_for(lambda line: text in line, text)

    def ended(self) -> tuple[int, list[str], list[str]]:
        """Wait for its end. Returns the exit status, its output and what it said on stderr."""
        status = self.process.wait(PATIENCE_S)
        self.output.wait_end()
        self.remarks.wait_end()
        return status, self.output.lines, self.remarks.lines

    def stopped(self) -> tuple[int, list[str], list[str]]:
        """End it with SIGTERM, and see `ended`."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a listener to its end."""
    return subprocess.run(
        [*LISTENER, *ALONE, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    """A socket that announces as the server does, on loopback only."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sock.bind(("127.0.0.1", 0))
        yield sock


# ------------------------------------------------------------------------------------ what is shown


def test_the_defaults_hear_what_the_shipped_configuration_announces() -> None:
    """Without flags a listener hears a server that was started without flags."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    multicast, broadcast = config["announce"]["targets"]
    assert (multicast["address"], multicast["port"]) == (library.GROUP, library.PORT)
    assert multicast["interfaces"] == [library.INTERFACE]
    assert broadcast["port"] == library.PORT
    assert str(Path(config["announce"]["signing_key"]).with_suffix(".crt")) == options.ANNOUNCER


def test_an_update_heard_by_multicast_and_by_broadcast_is_shown_once(
    sender: socket.socket,
) -> None:
    """A check-in that arrives twice is one check-in, in exactly the documented block."""
    with RunningListener("--group", GROUP) as listener:
        for payload in (as_json(check_in(1)), as_json(check_in(2))):
            sender.sendto(payload, (GROUP, listener.port))
            sender.sendto(payload, (BROADCAST, listener.port))
        wait_until(lambda: len(listener.output.lines) >= 16, "two blocks")
        _, shown, remarks = listener.stopped()
    assert shown == [
        line
        for number in (1, 2)
        for line in (
            "----------------------------------------",
            f"Source Packet: ('127.0.0.1', {sender.getsockname()[1]})",
            f"User Email   : user{number}@example.com",
            "Last Seen    : 2026-01-02 03:04:05.678901+00:00",
            "Client IP    : 127.0.0.1",
            "Client Port  : 51514",
            "Verified     : no",
            "----------------------------------------",
        )
    ]
    assert remarks[1:] == [
        "Heard 4 datagrams: 2 updates shown, 2 duplicates, 0 refused, 0 of the other encoding, "
        "0 healed, 0 repaired, 0 missed, lag 0."
    ]


def test_json_output_is_one_flat_object_a_line(sender: socket.socket) -> None:
    """A program reads one object a line; what the binary format lacks is absent."""
    with RunningListener("--group", "", "--format", "json") as listener:
        sender.sendto(as_json(check_in(7, "new")), (BROADCAST, listener.port))
        sender.sendto(encode_binary(check_in(8)), (BROADCAST, listener.port))
        listener.shows("user8")
        _, shown, _ = listener.stopped()
    assert shown == [
        '{"seq":7,"event":"new","email":"user7@example.com",'
        '"last_seen":"2026-01-02T03:04:05.678901Z","client_ip":"127.0.0.1","client_port":51514,'
        '"verified":false}',
        '{"email":"user8@example.com",'
        '"last_seen":"2026-01-02T03:04:05.678901Z","client_ip":"127.0.0.1","client_port":51514,'
        '"verified":false}',
    ]


@pytest.mark.parametrize(
    ("encoding", "shown"), [("json", ["user1", "user3"]), ("binary", ["user2", "user4"])]
)
def test_one_encoding_can_be_asked_for(
    encoding: str, shown: list[str], sender: socket.socket
) -> None:
    """With --encoding the other format is counted and not shown."""
    with RunningListener("--group", "", "--encoding", encoding, "--format", "json") as listener:
        for payload in (as_json(check_in(1)), encode_binary(check_in(2))):
            sender.sendto(payload, (BROADCAST, listener.port))
        sender.sendto(as_json(check_in(3)), (BROADCAST, listener.port))
        sender.sendto(encode_binary(check_in(4)), (BROADCAST, listener.port))
        listener.shows(shown[1])
        _, lines, remarks = listener.stopped()
    assert [json.loads(line)["email"].partition("@")[0] for line in lines] == shown
    # The signal may come before the very last datagram is read.
    assert re.search(r" 2 updates shown, .* [12] of the other encoding", remarks[-1])


def test_heartbeats_show_nothing(sender: socket.socket) -> None:
    """A datagram without updates only says that the stream is alive."""
    with RunningListener("--group", "", "--format", "json") as listener:
        sender.sendto(as_json(), (BROADCAST, listener.port))
        sender.sendto(as_json(check_in(1)), (BROADCAST, listener.port))
        listener.shows("user1")
        _, shown, remarks = listener.stopped()
    assert len(shown) == 1
    assert remarks[-1].startswith("Heard 2 datagrams: 1 updates shown, 0 duplicates, 0 refused")


def test_what_is_malformed_is_one_warning_and_no_end(sender: socket.socket) -> None:
    """A stranger's bytes cost one line a minute and reason, and hold nothing up."""
    with RunningListener("--group", "", "--format", "json") as listener:
        for number in range(20):
            sender.sendto(b"garbage %d" % number, (BROADCAST, listener.port))
            sender.sendto(b'{"v":9}', (BROADCAST, listener.port))
            sender.sendto(b"\x01" * (MAX_DATAGRAM + 1), (BROADCAST, listener.port))
            sender.sendto(b'{"' + b"x" * 60_000, ("127.0.0.1", listener.port))
        sender.sendto(as_json(check_in(1)), (BROADCAST, listener.port))
        listener.shows("user1")
        _, _, remarks = listener.stopped()
    _, *warnings, counts = remarks
    assert len(warnings) == 3
    assert all(
        warning.startswith("Warning: dropped a datagram from 127.0.0.1: ") for warning in warnings
    )
    assert counts.startswith(
        "Heard 81 datagrams: 1 updates shown, 0 duplicates, "
        "80 refused (malformed 40, too-long 20, version 20)"
    )


# ------------------------------------------------------------------------------ what is listened to


def test_any_number_of_listeners_share_a_port(sender: socket.socket) -> None:
    """Several listeners, and the server, live on one machine."""
    with (
        RunningListener("--group", GROUP, "--format", "json") as first,
        RunningListener("--group", GROUP, "--format", "json", port=first.port) as second,
    ):
        sender.sendto(as_json(check_in(1)), (GROUP, first.port))
        first.shows("user1")
        second.shows("user1")


@linux_only
@pytest.mark.parametrize("option", ["SO_REUSEADDR", "SO_REUSEPORT"])
def test_a_port_is_shared_with_programs_that_ask_for_it_either_way(
    option: str, sender: socket.socket
) -> None:
    """Another program's receiver needs only one of the two options."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
        other.bind(("", 0))
        port = other.getsockname()[1]
        with RunningListener("--group", "", "--format", "json", port=port) as listener:
            sender.sendto(as_json(check_in(1)), (BROADCAST, port))
            listener.shows("user1")


@linux_only
@pytest.mark.parametrize("taker", ["other option", "other listener"])
def test_a_unicast_port_is_shared_with_nobody(taker: str, sender: socket.socket) -> None:
    """Of several sockets one gets a unicast datagram, and it may be another user's."""
    arguments = ["--address", LOOPBACK, "--group", "", "--format", "json"]
    with RunningListener(*arguments) as listener:
        if taker == "other listener":
            assert run(*arguments, "--port", str(listener.port)).returncode == 2
        else:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with pytest.raises(OSError, match="in use"):
                    other.bind((LOOPBACK, listener.port))
        sender.sendto(as_json(check_in(1)), (LOOPBACK, listener.port))
        listener.shows("user1")


@linux_only
def test_a_group_is_joined_on_an_interface_given_by_name(sender: socket.socket) -> None:
    """An interface may be called by its name."""
    with RunningListener("--group", GROUP, "--interface", "lo", "--format", "json") as listener:
        sender.sendto(as_json(check_in(1)), (GROUP, listener.port))
        listener.shows("user1")


@linux_only
@pytest.mark.parametrize("groups", [["--group", GROUP], ["--group", ""]], ids=["other", "none"])
def test_groups_that_were_not_joined_are_not_heard(
    groups: list[str], sender: socket.socket
) -> None:
    """Groups that another program on this machine joined do not concern this listener."""
    foreign = "239.255.66.68"
    with (
        RunningListener(*groups, "--format", "json") as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.setsockopt(
            socket.IPPROTO_IP,
            socket.IP_ADD_MEMBERSHIP,
            socket.inet_aton(foreign) + socket.inet_aton("127.0.0.1"),
        )
        sender.sendto(as_json(check_in(1)), (foreign, listener.port))
        sender.sendto(as_json(check_in(2)), (BROADCAST, listener.port))
        listener.shows("user2")
        assert len(listener.output.lines) == 1


@linux_only
def test_several_groups_are_joined_on_one_socket(sender: socket.socket) -> None:
    """Each --group is heard."""
    second = "239.255.66.69"
    arguments = ["--group", GROUP, "--group", second, "--group", GROUP, "--format", "json"]
    with RunningListener(*arguments) as listener:
        sender.sendto(as_json(check_in(1)), (second, listener.port))
        listener.shows("user1")
        sender.sendto(as_json(check_in(2)), (GROUP, listener.port))
        listener.shows("user2")


@linux_only
def test_a_broadcast_address_can_be_bound(sender: socket.socket) -> None:
    """A listener on the broadcast address hears the broadcast, and not what is sent to the host."""
    arguments = ["--address", BROADCAST, "--group", "", "--format", "json"]
    with RunningListener(*arguments) as listener:
        sender.sendto(as_json(check_in(1)), ("127.0.0.1", listener.port))
        sender.sendto(as_json(check_in(2)), (BROADCAST, listener.port))
        listener.shows("user2")
        assert len(listener.output.lines) == 1


# ------------------------------------------------------------------------------------------ its end


def test_it_ends_after_so_many_updates(sender: socket.socket) -> None:
    """--count shows as many as were asked for, also from the middle of a datagram."""
    with RunningListener("--group", "", "--format", "json", "--count", "2") as listener:
        sender.sendto(as_json(*map(check_in, range(1, 6))), (BROADCAST, listener.port))
        status, shown, _ = listener.ended()
    assert status == 0
    assert [json.loads(line)["seq"] for line in shown] == [1, 2]


def test_it_ends_in_time() -> None:
    """--timeout alone is an orderly end."""
    result = run("--port", str(free_udp_port()), "--group", GROUP, "--timeout", "0.2")
    assert (result.returncode, result.stdout) == (0, "")


def test_too_few_updates_in_time_is_a_failure() -> None:
    """A script that waits for an update learns that none came."""
    result = run(
        "--port",
        str(free_udp_port()),
        "--group",
        GROUP,
        "--timeout",
        "0.2",
        "--count",
        "1",
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert "0 of 1 updates after 0.2 seconds" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    """Both ways of stopping it are a success, and the counts are told."""
    with RunningListener("--group", GROUP) as listener:
        listener.process.send_signal(number)
        status, shown, remarks = listener.ended()
    assert (status, shown) == (0, [])
    assert len(remarks) == 2
    assert remarks[1].startswith("Heard 0 datagrams")


def test_a_closed_stdout_ends_it_quietly(sender: socket.socket) -> None:
    """`python -m listeners | head -1` ends as a pipe should."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdout:
        with RunningListener("--group", "", "--format", "json", stdout=writing) as listener:
            os.close(writing)
            sender.sendto(as_json(check_in(1)), (BROADCAST, listener.port))
            assert "user1" in stdout.readline()
            stdout.close()
            sender.sendto(as_json(check_in(2)), (BROADCAST, listener.port))
            status, _, remarks = listener.ended()
    assert status == 0
    assert len(remarks) == 2
    assert remarks[1].startswith("Heard 2 datagrams: 1 updates shown")


@linux_only
def test_a_signal_ends_it_while_nobody_reads_its_output(sender: socket.socket) -> None:
    """A reader that stands still does not keep the listener alive."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        os.set_blocking(writing, True)
        with RunningListener("--group", "", stdout=writing) as listener:
            sender.sendto(as_json(check_in(1)), (BROADCAST, listener.port))
            wait_until(lambda: _waits_for_its_reader(listener), "a write that waits")
            status, _, remarks = listener.stopped()
    finally:
        os.close(reading)
        os.close(writing)
    assert status == 0
    assert len(remarks) == 2
    assert remarks[1].startswith("Heard 1 datagrams: 0 updates shown")


def _waits_for_its_reader(listener: RunningListener) -> bool:
    """Whether it took the datagram and sleeps: it has nothing else to sleep in before the write."""
    process = Path("/proc") / str(listener.process.pid)
    udp = (process / "net" / "udp").read_text("ascii")
    queued = re.search(rf":{listener.port:04X} \S+ \S+ [0-9A-F]+:([0-9A-F]+) ", udp)
    assert queued is not None
    state = (process / "stat").read_text("ascii").rpartition(") ")[2][0]
    return int(queued[1], 16) == 0 and state == "S"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_sentence(sender: socket.socket) -> None:
    """Updates that cannot be written are not lost in silence."""
    with Path("/dev/full").open("w") as full:
        with RunningListener("--group", "", stdout=full.fileno()) as listener:
            sender.sendto(as_json(check_in(1)), (BROADCAST, listener.port))
            status, _, remarks = listener.ended()
    assert status == 1
    assert remarks[1] == "status-listener: cannot write to stdout: No space left on device"


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_crash(closed: str) -> None:
    """A supervisor that gives it no stdout or no stderr gets no traceback."""
    port = free_udp_port()
    result = subprocess.run(
        [
            "sh",
            "-c",
            f'exec "$0" -m listeners --insecure --timeout 0.3 --port {port} {closed}',
            sys.executable,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert result.returncode == 0
    assert "Traceback" not in result.stderr + result.stdout


# ------------------------------------------------------------------------------ what cannot be done


def test_a_port_taken_by_another_program_is_a_sentence() -> None:
    """A port that is not shared is named, with what to do about it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", 0))
        port = other.getsockname()[1]
        result = run("--port", str(port))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"status-listener: UDP port {port} on 0.0.0.0 is taken by a program that does not share "
        f"it: end that program or choose another port with --port\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--address", "192.0.2.1"], "192.0.2.1 is not an address of this machine"),
        (
            ["--address", "localhost"],
            "--address: expected an IPv4 or IPv6 address, got 'localhost'",
        ),
        (["--address", "::1"], "--address: ::1 receives no IPv4 group"),
        (["--interface", "192.0.2.1"], "no interface of this machine has the address 192.0.2.1"),
        (["--interface", "nonesuch0"], "--interface: "),
        (["--interface", WILDCARD], "0.0.0.0 names no interface"),
        (["--interface", "192.0.2.1", "--group", "ff15::1"], "has the address 192.0.2.1"),
        (["--group", "ff02::1%nonesuch0"], "this machine has no interface 'nonesuch0'"),
        (["--group", "10.0.0.1"], "--group: expected a multicast group"),
        (["--group", "fe80::1"], "--group: expected a multicast group"),
        (["--port", "0"], "argument --port: expected 1 to 65535, got '0'"),
        (["--port", "65536"], "argument --port: "),
        (["--count", "-1"], "argument --count: "),
        (["--timeout", "nan"], "argument --timeout: "),
        (["--encoding", "xml"], "argument --encoding: "),
        (["--format", "xml"], "argument --format: "),
        (["--from", "0"], "argument --from: expected now, start, snapshot or a number"),
        (["--log", "x"], "argument --log: expected a UUID, got 'x'"),
        (["--max-skew", "0"], "argument --max-skew: "),
        (["--state", "/nonesuch/state"], "--state: the directory /nonesuch cannot be written"),
        (
            ["--exec", "/nonesuch/command"],
            "--exec: '/nonesuch/command' cannot be run (No such file",
        ),
        (["--url", "http://localhost"], "--url: needs a reader's certificate"),
        (["--announcer", "x.crt", "--ca", "/nonesuch/ca.crt"], "--ca: /nonesuch/ca.crt cannot"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(arguments: list[str], sentence: str) -> None:
    """A wrong option or address is one line that says what to change, and exit status 2."""
    result = run("--port", str(free_udp_port()), *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("status-listener: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


# ------------------------------------------------------------------------------ duplicates, in pure


@no_deadline
@given(st.integers(1, 6), st.lists(st.integers(0, 9), max_size=60))
def test_the_window_knows_exactly_the_newest_keys(size: int, keys: list[int]) -> None:
    """A key is known again as long as it is among the newest, and memory is bounded."""
    known = BoundedSet[int](size)
    remembered: list[int] = []
    for key in keys:
        assert known.add(key) == (key not in remembered)
        if key not in remembered:
            remembered = [*remembered, key][-size:]
        assert len(known) == len(remembered) <= size


@no_deadline
@given(st.lists(st.tuples(st.sampled_from([LOG_ID, uuid.UUID(int=1)]), st.integers(1, 9))))
def test_an_update_is_known_by_its_stream_and_number(heard: list[tuple[uuid.UUID, int]]) -> None:
    """The same number of another stream is another update."""
    reader = UnverifiedReader()
    shown = [
        (log_id, seq)
        for log_id, seq in heard
        if reader.receive(as_json(check_in(seq), log_id=log_id))
    ]
    assert shown == list(dict.fromkeys(heard))
    assert reader.counts.duplicates == len(heard) - len(shown)


def test_an_update_repeated_inside_a_datagram_is_shown_once() -> None:
    """It does not matter how the copies arrive."""
    payload = as_json(check_in(1), check_in(2))
    twice = payload[:-1] + b',"repeat":[[1,"2026-01-02T03:04:05.678901Z",["a@b","::1",1]]]}'
    assert list(UnverifiedReader().receive(twice)) == [check_in(1), check_in(2)]


def test_what_was_lost_is_shown_when_it_is_repeated_and_nothing_from_before() -> None:
    """In order within a datagram; the first one of a log says where the listener began."""
    encoder = DatagramEncoder(8)
    first, second, third, fourth, fifth = (
        next(encoder.encode(LOG_ID, MOMENT, number, [check_in(number)])) for number in range(1, 6)
    )
    reader = UnverifiedReader()
    assert list(reader.receive(second)) == [check_in(2)]
    assert list(reader.receive(fifth)) == [check_in(3), check_in(4), check_in(5)]
    assert (reader.counts.healed, reader.counts.duplicates) == (2, 0)
    assert [reader.receive(late) for late in (third, fourth)] == [[], []]
    assert (reader.counts.healed, reader.counts.duplicates) == (2, 2)
    assert list(reader.receive(first)) == [check_in(1)]  # new, and late


def test_binary_updates_are_known_by_all_their_bytes() -> None:
    """The older format has no numbers: any difference makes another update."""
    reader = UnverifiedReader(Encoding.AUTO)
    first, second = encode_binary(check_in(1)), encode_binary(check_in(2))
    shown = [update for payload in (first, second, first) for update in reader.receive(payload)]
    assert shown == [decode_binary(first), decode_binary(second)]


def test_a_flood_in_one_format_does_not_bring_back_the_other() -> None:
    """Forged binary datagrams do not push numbered updates out of the memory."""
    reader = UnverifiedReader(window_size=4)
    assert reader.receive(as_json(check_in(1)))
    for number in range(2, 20):
        assert reader.receive(encode_binary(check_in(number)))
    assert not reader.receive(as_json(check_in(1)))


@no_deadline
@given(st.binary(max_size=400))
def test_any_bytes_are_updates_or_refused(payload: bytes) -> None:
    """A stranger's bytes end nothing."""
    reader = UnverifiedReader()
    with contextlib.suppress(DatagramError):
        assert reader.receive(payload) or reader.counts == type(reader.counts)()


# ----------------------------------------------------------------------------------- the version


@pytest.mark.parametrize("program", ["listeners", "clients", "certs_gen"])
def test_each_program_says_its_version(program: str) -> None:
    """On one line, with exit status 0."""
    done = subprocess.run(
        [sys.executable, "-m", program, "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    if program == "clients":  # it does not import the server's package
        try:
            expected = importlib.metadata.version("tornado-status")
        except importlib.metadata.PackageNotFoundError:
            expected = "unknown (tornado-status is not installed)"
    else:
        expected = __version__
    assert done.stdout.endswith(f" {expected}\n")


# -------------------------------------------------------------------------------- warnings, in pure


def test_a_warning_comes_once_a_minute_and_says_how_many_were_suppressed() -> None:
    """A flood of one kind from one source is one line, and the next one counts it."""
    times = iter((0.0, 1.0, 59.0, 60.0, 61.0, 120.0, 120.0))
    limit = RateLimit(60.0, lambda: next(times))
    assert [limit.allow("a") for _ in range(6)] == [0, None, None, 2, None, 1]
    assert limit.allow("b") == 0


def test_forged_sources_cost_bounded_lines_and_memory() -> None:
    """However many sources there are in a minute, the warnings and the memory stay bounded."""
    said: list[str] = []
    warnings = OperatorWarnings(said.append)
    for number in range(2000):
        warnings.warn_limited(f"a datagram from {number}", "unsigned", "it has no signature")
    assert said[0] == "a datagram from 0: it has no signature"
    assert len(said) == MAX_KINDS + 1


def test_a_full_rate_limit_forgets_the_oldest_first() -> None:
    """Expired entries make room, and the others stay suppressed."""
    now = 0.0
    limit = RateLimit(60.0, lambda: now)
    for number in range(MAX_KINDS):
        now = number / MAX_KINDS
        assert limit.allow(number) == 0
    now = 60.0
    assert limit.allow(0) == 0  # moves to the end
    now = 60.0 + 2 / MAX_KINDS
    assert limit.allow("new") == 0
    assert limit.allow(0) is None
    assert limit.allow(MAX_KINDS - 1) is None


# ---------------------------------------------------------------------------------- output, in pure

_KINDS = st.one_of(
    st.sampled_from(["check-in", "new", "back", "offline"]),
    st.from_regex(r"[a-z][a-z-]{0,31}", fullmatch=True),
)
_EMAILS = st.text("".join(map(chr, range(0x23, 0x7F))), min_size=1, max_size=40)
_MOMENTS = st.datetimes(timezones=st.just(datetime.UTC))
_ADDRESSES = st.ip_addresses().map(str)
_PORTS = st.integers(0, 65535)
_EVENTS = st.builds(
    Event, st.integers(1), _KINDS, _EMAILS, _MOMENTS, _ADDRESSES, _PORTS, st.none() | _MOMENTS
)
_UPDATES = st.one_of(_EVENTS, st.builds(BinaryUpdate, _EMAILS, _MOMENTS, _ADDRESSES, _PORTS))
_SOURCES = st.tuples(st.ip_addresses(v=4).map(str), _PORTS)


@no_deadline
@given(_UPDATES)
def test_a_json_line_parses_and_is_flat(update: Event | BinaryUpdate) -> None:
    """Every line is one object with the members in order, each a number or a text."""
    line = json_line(update)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    members = json.loads(line)
    early = ["seq", "event"] if isinstance(update, Event) else []
    late = ["at"] if isinstance(update, Event) and update.at is not None else []
    assert list(members) == [*early, *"email last_seen client_ip client_port".split(), *late]
    assert all(isinstance(value, int | str) for value in members.values())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", members["last_seen"])
    assert datetime.datetime.fromisoformat(members["last_seen"]) == update.last_seen


@no_deadline
@given(_UPDATES, _SOURCES)
def test_a_text_block_never_contains_control_characters(
    update: Event | BinaryUpdate, source: tuple[str, int]
) -> None:
    """Nothing that arrives can steer the terminal that shows it."""
    lines = text_block(update, source).removesuffix("\n").split("\n")
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert lines[0] == lines[-1] == "-" * 40
    named = isinstance(update, Event) and update.event not in ("check-in", "new", "back")
    assert len(lines) == 7 + named


def test_an_event_that_is_no_check_in_is_named() -> None:
    """Later kinds of events are told apart from a check-in; check-ins all look the same."""
    source = ("127.0.0.1", 6666)
    offline = text_block(check_in(event="offline"), source)
    assert offline.splitlines()[2] == "Event        : offline"
    plain = {text_block(check_in(event=kind), source) for kind in ("check-in", "new", "back")}
    assert plain == {offline.replace("Event        : offline\n", "")}


def test_an_event_that_no_client_caused_shows_no_address() -> None:
    """It is left out for people and for programs, and `at` says when."""
    later = MOMENT + datetime.timedelta(seconds=187)
    event = Event(43, "offline", "a@example.com", MOMENT, None, None, later)
    assert text_block(event, ("127.0.0.1", 6666)).splitlines()[1:-1] == [
        "Source Packet: ('127.0.0.1', 6666)",
        "Event        : offline",
        "User Email   : a@example.com",
        "Last Seen    : 2026-01-02 03:04:05.678901+00:00",
    ]
    members = json.loads(json_line(event))
    assert not {"client_ip", "client_port"} & set(members)
    assert members["at"] == "2026-01-02T03:07:12.678901Z"


def test_a_snapshot_says_the_state() -> None:
    """The listener knows the offline users after a gap, too."""
    record = StatusRecord(7, "a@example.com", MOMENT, "10.0.0.7", 1, "offline")
    assert json.loads(render(Format.JSON, Snapshot(record)))["state"] == "offline"
    assert "State        : offline\n" in render(Format.TEXT, Snapshot(record))


def test_the_fraction_is_shown_even_where_it_is_zero() -> None:
    """The column is as wide on the full second."""
    update = BinaryUpdate("a@b.example", MOMENT.replace(microsecond=0), "::1", 1)
    assert "Last Seen    : 2026-01-02 03:04:05.000000+00:00\n" in text_block(update, ("::1", 1))


def test_help_names_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    """--help has what a script needs to know."""
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    assert "exit status:" in capsys.readouterr().out
