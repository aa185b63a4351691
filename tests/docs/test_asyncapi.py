"""docs/asyncapi.yaml: valid, and true of every datagram and message that is sent."""

from __future__ import annotations

import copy
import json
import uuid
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator, ValidationError

from tests.support.describing import validator
from tests.support.harness import ROOT, Heard, StartServer
from tests.support.subscriber import Subscriber
from tornado_status import __version__
from tornado_status.api.live import framing
from tornado_status.api.openapi import load_document

DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text())
MESSAGES = DOCUMENT["components"]["messages"]
VECTORS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "tests" / "vectors").glob("*-v2-*.json"))
}
LOG_ID = uuid.UUID("0b0e7a52-4c1f-4f57-9d8e-2f6a3c5b1d90")


def check(kind: str, message: Any) -> None:
    """Validate a message against its description: no member is missing or undescribed."""
    validator(DOCUMENT, MESSAGES[kind]["payload"]).validate(message)


def kind_of(message: dict[str, Any]) -> str:
    if "events" in message:
        return "announcement" if message["events"] else "heartbeat"
    kinds = ("position", "gap", "rollback")
    return message["event"] if message["event"] in kinds else "event"


@pytest.mark.once
def test_it_is_valid_asyncapi() -> None:
    """By the specification's own schema, which finds a fault in an invalid one."""
    schema = json.loads((ROOT / "tests" / "schemas" / "asyncapi-3.0.0.json").read_text())
    check = Draft7Validator(schema)
    assert [f"{error.json_path}: {error.message}" for error in check.iter_errors(DOCUMENT)] == []
    broken = copy.deepcopy(DOCUMENT)
    broken["operations"]["announce"]["action"] = "shout"
    assert list(check.iter_errors(broken))


def test_shapes_in_both_documents_are_equal() -> None:
    """As in the OpenAPI document; the version is the package's."""
    ours = DOCUMENT["components"]["schemas"]
    theirs = load_document()["components"]["schemas"]
    shared = ours.keys() & theirs.keys()
    assert shared >= {"Email", "Time", "LogId", "Head", "Event"}
    for name in shared:
        assert ours[name] == theirs[name], name
    assert DOCUMENT["info"]["version"] == __version__


@pytest.mark.parametrize("name", VECTORS)
def test_each_golden_datagram_is_as_described(name: str) -> None:
    message = json.loads(VECTORS[name]["text"])
    check(kind_of(message), message)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"v": 1}, "2 was expected"),
        ({"head": -1}, "less than the minimum"),
        ({"sent": "2026-01-02 03:04:05"}, "does not match|is not a 'date-time'"),
        ({"log": "seven"}, "is not a 'uuid'"),
        ({"kid": "3881fda889fccb77"}, "'sig' is a dependency"),
        ({"height": 7}, "unexpected"),
        ({"first": 0}, "less than the minimum"),
        ({"events": [{"event": "new"}]}, "not valid under any"),
        ({"events": [["a@example.com", "10.0.0.7"]]}, "not valid under any"),
        ({"events": [["a@example.com", "10.0.0.7", 1, 2]]}, "not valid under any"),
        ({"events": []}, "non-empty"),
        ({"repeat": [[1, "2026-01-02T03:04:05.678901Z"]]}, "too short"),
    ],
)
def test_a_datagram_that_is_not_as_described_is_found(change: dict[str, Any], said: str) -> None:
    message = json.loads(VECTORS["json-v2-one-check-in"]["text"])
    with pytest.raises(ValidationError, match=said):
        check("announcement", {**message, **change})


def test_every_kind_of_message_is_as_described(start_server: StartServer) -> None:
    """Datagrams and live messages of a real server, and what it may send beside them."""
    server = start_server(announce={"heartbeat_s": 0.2})
    found: set[str] = set()
    with Heard(server.announce_port) as group, Subscriber(server) as subscriber:
        assert server.request("POST", "/api/client").status == 204
        while not found >= {"announcement", "heartbeat"}:
            message = json.loads(group.one()[0])
            check(kind_of(message), message)
            found.add(kind_of(message))
        while not found >= {"event", "position"}:
            said = subscriber.next_message()
            assert said is not None
            check(kind_of(said.data), said.data)
            found.add(kind_of(said.data))
    for new_log in (False, True):
        check("gap", json.loads(framing.gap_message(LOG_ID, 8, 7, new_log=new_log).body))
    check("rollback", json.loads(framing.rollback_message(LOG_ID, 41, 43).body))
    assert found | {"gap", "rollback"} == set(MESSAGES)
