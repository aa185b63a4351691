"""docs/protocol.md is enough to write a receiver: this one knows nothing of the project's codec."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import ROOT, Heard, StartServer, free_port, targets
from tests.support.vectors import encoded
from tornado_status.api.users import record_json
from tornado_status.model.presence import State
from tornado_status.model.records import EventKind, StatusRecord
from tornado_status.wire.datagram import decode_json
from tornado_status.wire.event_object import decode_update, encode_update

MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)

VECTORS = ROOT / "tests" / "vectors"
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()


def decode_binary_v0(datagram: bytes) -> dict[str, Any]:
    """Decode as the table in the page says, offset by offset."""
    n = datagram[0]
    email = datagram[1 : 1 + n].decode("ascii")
    (nanoseconds,) = struct.unpack(">Q", datagram[1 + n : 9 + n])
    m = datagram[9 + n]
    address = ipaddress.ip_address(datagram[10 + n : 10 + n + m].decode("ascii"))
    (port,) = struct.unpack(">H", datagram[10 + n + m : 12 + n + m])
    assert len(datagram) == 12 + n + m
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    last_seen = epoch + datetime.timedelta(microseconds=nanoseconds / 1000)
    return {"email": email, "last_seen": last_seen, "client_ip": str(address), "client_port": port}


def test_the_pages_binary_example_decodes_by_its_table() -> None:
    """Every byte of it."""
    after = PROTOCOL[PROTOCOL.index("is these 42 bytes:") :]
    [block] = re.findall(r"```\n([0-9a-f\s]+)```", after)
    datagram = bytes.fromhex(block)
    assert len(datagram) == 42
    assert decode_binary_v0(datagram) == {
        "email": "valid_user@example.com",
        "last_seen": datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC),
        "client_ip": "10.0.0.7",
        "client_port": 51514,
    }


def test_the_pages_json_example_is_what_the_codec_writes() -> None:
    """To the byte: an announcement, one of other events, and a heartbeat."""
    examples = re.findall(r'^\{"v":2.*\}$', PROTOCOL, re.MULTILINE)
    unsigned = [example.encode() for example in examples if '"sig":' not in example]
    assert [encoded(decode_json(example)) for example in unsigned] == [[each] for each in unsigned]
    assert len(unsigned) == 3
    [signed] = set(examples) - {example.decode() for example in unsigned}
    assert signed == json.loads((VECTORS / "signed-v2-one-check-in.json").read_text())["text"]


def test_the_pages_examples_tell_one_history() -> None:
    """Events, datagrams and the lineage say the same of the same numbers and logs."""
    events = [decode_update(json.loads(e)) for e in re.findall(r'^\{"seq".*\}$', PROTOCOL, re.M)]
    known = {event.seq: event for event in events}
    [log] = re.findall(r'^\{"log":.*"lineage".*\}$', PROTOCOL, re.MULTILINE)
    forks = {step["log"]: (step["parent"], step["fork"]) for step in json.loads(log)["lineage"]}
    heard = 0
    for example in re.findall(r'^\{"v":2.*[^"]\}$', PROTOCOL, re.MULTILINE):
        datagram = decode_json(example.encode())
        parent, fork = forks[str(datagram.log_id)]
        if datagram.parent is not None:
            assert (str(datagram.parent.parent), datagram.parent.fork) == (parent, fork)
        for event in (*datagram.updates, *datagram.repeated):
            heard += event.seq in known
            assert known.get(event.seq, event) == event
            assert fork < event.seq <= datagram.head
            assert (event.at or event.last_seen or datagram.sent) <= datagram.sent
    assert heard == 3


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*-v2-*.json")), ids=lambda path: path.stem)
def test_the_table_of_the_first_bytes_is_true_of_every_vector(path: Path) -> None:
    """A receiver may look at these positions before it knows the signature."""
    text = json.loads(path.read_text())["text"]
    table = re.findall(r"^\| (\d+) to (\d+) \| (.*) \|$", PROTOCOL, re.MULTILINE)
    forward = [row for row in table if int(row[0]) < int(row[1])]
    assert len(forward) == 5
    message = json.loads(text)
    said = {"the log id": message["log"], "the sender's clock": message["sent"]}
    for first, last, content in forward:
        expected = said.get(content, content.strip("`"))
        assert text[int(first) : int(last) + 1] == expected
    assert re.match(r'\d{1,19},"', text[96:])


def test_real_binary_datagrams_decode_by_the_page(start_server: StartServer) -> None:
    """The server's datagrams say what the database holds."""
    import socket

    port = free_port(socket.SOCK_DGRAM)
    server = start_server(announce={"targets": targets(port, "binary")})
    with Heard(port) as group:
        assert server.request("POST", "/api/client").status == 204
        update = decode_binary_v0(group.one()[0])
    [row] = server.rows("SELECT email, last_seen, host(client_ip), client_port FROM user_status")
    assert tuple(update.values()) == row


def test_the_page_tells_every_event_and_error_sentence() -> None:
    """The page has everything that the server can say."""
    for words in (
        "CN must be a valid email address",
        "User unknown",
        "No required SSL certificate was sent",
        *(f"`{kind}`" for kind in EventKind),
        *(f"`{state}`" for state in State),
    ):
        assert words in PROTOCOL
    members = json.loads(re.findall(r'```json\n(\{"email".*\})\n```', PROTOCOL)[0])
    record = StatusRecord(1, "a@example.com", MOMENT, "10.0.0.7", 1, State.ONLINE, MOMENT)
    assert list(members) == list(json.loads(record_json(record)))
    events = re.findall(r'^\{"seq".*\}$', PROTOCOL, re.MULTILINE)
    assert len(events) == 5
    for event in events:
        assert encode_update(decode_update(json.loads(event))) == event.encode()
