"""A flood of forged datagrams costs a listener no update and little memory."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import uuid

import pytest

from tests.support.announcing import OTHER, Announcing
from tests.support.faults.samples import peak_memory_kb
from tests.support.harness import (
    GROUP,
    Server,
)
from tests.support.listening import Listening, check_in, log_of, reading

pytestmark = pytest.mark.once


# Sends what it is given, in hexadecimal, again and again, 100 in 10 ms, from many ports: GROUP PORT
# COUNT SOURCES.
FLOOD = """\
import itertools, socket, sys, time
group, port, count, sources = sys.argv[1:]
payloads = [bytes.fromhex(line) for line in sys.stdin]
socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(int(sources))]
for sock in socks:
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    sock.bind(("127.0.0.1", 0))
work = zip(itertools.cycle(payloads), itertools.cycle(socks))
sent, begin = 0, time.monotonic()
while sent < int(count):
    for payload, sock in itertools.islice(work, 100):
        sock.sendto(payload, (group, int(port)))
    sent += 100
    time.sleep(max(0, begin + sent / 10_000 - time.monotonic()))
"""


MEMORY_ALLOWED_KB = 32 * 1024  # beside 4,096 datagrams and 20,000 updates that may wait


@pytest.mark.parametrize("sources", [1, 40])
def test_a_flood_of_forged_datagrams_costs_no_update(server: Server, sources: int) -> None:
    """10,000 a second for five seconds, from one address or many, beside 1,000 check-ins.

    They are as like the good ones as they can be without the key.
    """
    port = server.announce_port
    with Listening(*reading(server)) as listener:
        check_in(server, 1)
        listener.wait_for_seq(1)
        [[stream]] = server.rows("SELECT log_id FROM head")
        chance = random.Random(1)  # noqa: S311 - the same at each run
        wrong = OTHER.sign(b"something else")
        with Announcing(port, server.certs / "announcer.key", uuid.UUID(stream)) as signed:
            payloads = [
                signed.payload(chance.randrange(2, 2000), head=9000)[:-88] + wrong + b'"}'
                for _ in range(2000)
            ]
        before = peak_memory_kb(listener.process.pid)
        arguments = [GROUP, str(port), "50000", str(sources)]
        with subprocess.Popen(
            [sys.executable, "-c", FLOOD, *arguments], stdin=subprocess.PIPE, text=True
        ) as flood:
            assert flood.stdin is not None
            flood.stdin.write("\n".join(payload.hex() for payload in payloads))
            flood.stdin.close()
            while flood.poll() is None and len(log_of(server)) < 1001:
                check_in(server, 20)
        assert flood.returncode == 0
        check_in(server, 1001 - len(log_of(server)))
        shown = listener.wait_for_seq(1001)
        grown = peak_memory_kb(listener.process.pid) - before
        final = listener.stop()
    assert shown == log_of(server)
    counted = re.search(r"\(signature (\d+)\)", final)
    assert counted is not None, final
    assert int(counted[1]) > 1000  # it was flooded
    assert grown < MEMORY_ALLOWED_KB
    assert final.endswith(" 0 missed, lag 0.")
    warnings = [line for line in listener.said.lines if line.startswith("Warning")]
    assert len(warnings) < 10, warnings
