"""Traces: what a collector gets of requests and commits, and that nothing else depends on it."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    ROOT,
    Answer,
    Server,
    StartServer,
    free_port,
    plain_environment,
    rows,
    wait_until,
)
from tests.support.with_constants import CONTINUED_PER_SECOND
from tornado_status.commands.doctor import report
from tornado_status.config import loader
from tornado_status.config.settings import LoggingSettings, TracingSettings
from tornado_status.errors import ConfigError
from tornado_status.observe import logging_setup
from tornado_status.observe.tracing import Tracing

pytestmark = pytest.mark.once  # another library, and a collector

EMAIL = "valid_user@example.com"


class Collector:
    """A real OTLP/HTTP receiver on loopback that remembers what it is sent."""

    def __init__(self) -> None:
        collector = self

        class Receiver(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                assert self.headers["Content-Type"] == "application/x-protobuf"
                with collector.lock:
                    collector.bodies.append(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.lock = threading.Lock()
        self.bodies: list[bytes] = []
        self._server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Receiver)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE_S)
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self._server.server_address[1]}"

    def spans(self, name: str | None = None) -> list[Span]:
        """Return the spans so far, or those with this name."""
        with self.lock:
            bodies = list(self.bodies)
        return [
            span
            for body in bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if name in (None, span.name)
        ]

    def wait(self, name: str, count: int = 1) -> list[Span]:
        """Return the spans of a name once there are so many; they come every five seconds."""

        def enough() -> list[Span]:
            found = self.spans(name)
            return found if len(found) >= count else []

        found: list[Span] = wait_until(enough, f"{count} spans {name}")
        return found

    def resource(self) -> dict[str, Any]:
        [first, *_] = ExportTraceServiceRequest.FromString(self.bodies[0]).resource_spans
        return values(first.resource.attributes)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


def values(attributes: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value")
        for each in attributes
    }


def traced(sampled: bool = True) -> tuple[str, str, dict[str, str]]:
    """A new trace: its id, the caller's span, and the header that a request of it has."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    header = f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"
    return trace_id, span_id, {"traceparent": header}


def ask(
    server: Server, method: str, path: str, headers: dict[str, str], cert: str = "client"
) -> Answer:
    connection = server.connect(cert)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def test_a_traced_check_in_is_followed_into_its_commit(
    start_server: StartServer, collector: Collector
) -> None:
    """Its own span continues the caller's trace; that of its commit is linked, with announcing."""
    server = start_server(tracing={"endpoint": collector.endpoint, "sample_ratio": 0})
    trace_id, caller, headers = traced()
    assert ask(server, "POST", "/api/client", headers).status == 204
    [request] = collector.wait("POST /api/client")
    assert request.trace_id.hex() == trace_id
    assert request.parent_span_id.hex() == caller
    assert request.kind == Span.SPAN_KIND_SERVER
    about = values(request.attributes)
    assert about.pop("tornado_status.request_id")
    assert about == {
        "http.request.method": "POST",
        "http.response.status_code": 204,
        "http.route": "/api/client",
        "network.protocol.version": "1.1",
        "url.path": "/api/client",
        "url.scheme": "https",
    }
    [commit] = collector.wait("commit")
    assert [(link.trace_id, link.span_id) for link in commit.links] == [
        (request.trace_id, request.span_id)
    ]
    assert commit.trace_id != request.trace_id  # it is also that of others
    about = values(commit.attributes)
    assert about["tornado_status.batch.size"] == about["tornado_status.batch.recorded"] == 1
    assert about["tornado_status.head"] == 1
    assert about["db.system.name"] == "postgresql"
    [announce] = collector.wait("announce")
    assert announce.trace_id == commit.trace_id
    assert announce.parent_span_id == commit.span_id
    # As it happened: all clocks are one.
    moments = (
        request.start_time_unix_nano,
        commit.start_time_unix_nano,
        announce.start_time_unix_nano,
        announce.end_time_unix_nano,
    )
    assert list(moments) == sorted(moments)
    assert collector.resource()["service.name"] == "tornado_status"
    exported = b'tornado_status_trace_spans_total{outcome="exported"} 3.0'
    wait_until(lambda: exported in server.management("/metrics").body, "three exported spans")


def test_what_nobody_traces_is_drawn(start_server: StartServer, collector: Collector) -> None:
    """Commits of plain check-ins and ordinary requests, each with a trace of its own; all, at 1."""
    server = start_server(tracing={"endpoint": collector.endpoint, "sample_ratio": 1})
    assert server.request("POST", "/api/client").status == 204
    assert server.request("GET", "/api/client").status == 200
    [commit] = collector.wait("commit")
    [request] = collector.wait("GET /api/client")
    assert not request.parent_span_id
    assert not commit.links
    assert collector.spans("POST /api/client") == []  # of the quick path, where nothing is added


def test_a_caller_decides_that_its_trace_is_not_sampled(
    start_server: StartServer, collector: Collector
) -> None:
    """And a header that is none decides nothing."""
    server = start_server(tracing={"endpoint": collector.endpoint, "sample_ratio": 0})
    for headers in (
        traced(sampled=False)[2],
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {"traceparent": "nonsense"},
        {"traceparent": "00-" + "f" * 4000},
        {},
    ):
        assert ask(server, "POST", "/api/client", headers).status == 204
        assert ask(server, "GET", "/api/client", headers).status == 200
    trace_id, _, headers = traced()
    assert ask(server, "GET", "/api/client", headers).status == 200
    collector.wait("GET /api/client")
    assert {span.trace_id.hex() for span in collector.spans()} == {trace_id}


@pytest.mark.parametrize(("per_second", "continued"), [(0.001, 1), (1000, 5)])
def test_an_identity_may_ask_for_so_many_traces(
    start_server: StartServer, collector: Collector, per_second: float, continued: int
) -> None:
    """And so many at once: its spans would take the place of the others'."""
    server = start_server(
        tracing={"endpoint": collector.endpoint, "sample_ratio": 0},
        constants={CONTINUED_PER_SECOND: per_second},
    )
    for _ in range(5):
        assert ask(server, "GET", "/api/client", traced()[2]).status == 404
    trace_id, _, headers = traced()
    assert ask(server, "GET", "/api/client", headers, "operator").status == 404
    spans = collector.wait("GET /api/client", continued + 1)
    assert len(spans) == continued + 1
    assert spans[-1].trace_id.hex() == trace_id


@pytest.mark.parametrize("personal", [False, True])
def test_who_somebody_is_leaves_only_where_that_is_asked_for(
    start_server: StartServer, collector: Collector, personal: bool
) -> None:
    """E-mails stand in paths and certificates; addresses are personal, too."""
    server = start_server(
        tracing={"endpoint": collector.endpoint, "sample_ratio": 0, "personal_data": personal}
    )
    assert ask(server, "POST", "/api/client", traced()[2]).status == 204
    path = f"/api/users/{EMAIL}"
    assert ask(server, "GET", f"{path}?x={EMAIL}", traced()[2], "operator").status == 200
    assert ask(server, "GET", f"{path}/nothing", traced()[2], "operator").status == 404
    [user] = collector.wait("GET /api/users/{email}")
    [nothing] = collector.wait("GET")
    [check_in] = collector.wait("POST /api/client")
    collector.wait("commit")
    if personal:
        assert values(user.attributes)["url.path"] == path
        assert values(user.attributes)["user.email"] == "operator@example.com"
        assert values(nothing.attributes)["url.path"] == f"{path}/nothing"
        assert values(check_in.attributes)["user.email"] == EMAIL
        assert values(check_in.attributes)["client.address"] == LOOPBACK
        assert EMAIL.encode() in b"".join(collector.bodies)
    else:
        sent = b"".join(collector.bodies)
        for word in ("@example", "valid_user", "operator", LOOPBACK):
            assert word.encode() not in sent, word
    assert values(nothing.attributes)["http.response.status_code"] == 404
    assert nothing.status.code == nothing.status.STATUS_CODE_UNSET  # the client's mistake


def test_a_commit_that_fails_is_told(
    start_server: StartServer, collector: Collector, database_url: str
) -> None:
    """With PostgreSQL's own code, and linked to the request that was answered 503."""
    server = start_server(tracing={"endpoint": collector.endpoint, "sample_ratio": 0})
    rows(database_url, "ALTER TABLE check_in ADD CONSTRAINT nobody CHECK (false) NOT VALID")
    assert ask(server, "POST", "/api/client", traced()[2]).status == 503
    [request] = collector.wait("POST /api/client")
    [commit] = collector.wait("commit")
    assert commit.links[0].span_id == request.span_id
    assert values(commit.attributes)["error.type"] == "23514"
    assert values(commit.attributes)["tornado_status.batch.recorded"] == 0
    assert values(request.attributes)["error.type"] == "StoreUnavailable"
    for span in (request, commit):
        assert span.status.code == span.status.STATUS_CODE_ERROR
    assert collector.spans("announce") == []


@pytest.mark.parametrize("path", ["/api/stream", "/api/socket"])
def test_a_stream_is_a_request_that_has_been_answered(
    start_server: StartServer, collector: Collector, path: str
) -> None:
    """Its span ends where the stream begins, which may last for months."""
    server = start_server(tracing={"endpoint": collector.endpoint, "sample_ratio": 0})
    trace_id, _, headers = traced()
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
    }
    connection = server.connect("operator")
    try:
        connection.request("GET", path, headers=headers | (upgrade if "socket" in path else {}))
        response = connection.getresponse()
        assert response.status in (200, 101)
        [span] = collector.wait(f"GET {path}")
        assert span.trace_id.hex() == trace_id
        assert values(span.attributes)["http.response.status_code"] == response.status
    finally:
        connection.close()


def test_lines_of_a_traced_request_name_its_trace(
    start_server: StartServer, collector: Collector
) -> None:
    """One is found from the other; lines of other requests name none."""
    server = start_server(tracing={"endpoint": collector.endpoint, "sample_ratio": 0})
    trace_id, _, headers = traced()
    assert ask(server, "GET", "/api/client", {}).status == 404
    assert ask(server, "GET", "/api/users", headers).status == 403
    wait_until(lambda: len(server.events("request")) == 2, "both lines")
    assert [line.get("trace_id") for line in server.events("request")] == [None, trace_id]


# ---------------------------------------------------------------------------- nothing depends on it


def test_a_collector_that_is_away_costs_nothing(start_server: StartServer) -> None:
    """Check-ins are answered, the spans are counted as lost, the log says it once, and we end."""
    endpoint = f"http://{LOOPBACK}:{free_port()}"
    server = start_server(tracing={"endpoint": endpoint, "sample_ratio": 1})
    assert ask(server, "POST", "/api/client", traced()[2]).status == 204

    def lost() -> bool:
        metrics = server.management("/metrics").body.decode()
        return 'tornado_status_trace_spans_total{outcome="failed"} 3.0' in metrics

    wait_until(lost, "spans that are lost")
    assert server.request("POST", "/api/client").status == 204
    assert server.stop() == 0
    said = [json.loads(line) for line in server.log.wait_end().splitlines()]
    again = [line for line in said if line["event"].startswith("Transient error")]
    assert len(again) == 1  # of several attempts
    assert again[0]["logger"].startswith("opentelemetry.")
    assert not server.events("drain timed out")


@contextlib.contextmanager
def mute_collector() -> Iterator[str]:
    """The endpoint of one that accepts, and never answers."""
    with socket.create_server((LOOPBACK, 0)) as listening:
        yield f"http://{LOOPBACK}:{listening.getsockname()[1]}"


def test_a_collector_that_never_answers_does_not_hold_up_the_end(
    start_server: StartServer,
) -> None:
    """The last spans are given a moment, within the drain."""
    with mute_collector() as endpoint:
        server = start_server(tracing={"endpoint": endpoint, "sample_ratio": 1})
        assert ask(server, "POST", "/api/client", traced()[2]).status == 204
        assert server.stop() == 0
        assert not server.events("drain timed out")


def test_an_embedded_postgresql_is_restarted_beside_it(
    start_server: StartServer, collector: Collector
) -> None:
    """Forking a process that has the exporter's thread, which the library begins anew in forks."""
    server = start_server(
        url="embedded", tracing={"endpoint": collector.endpoint, "sample_ratio": 1}
    )
    assert server.request("POST", "/api/client").status == 204
    data_dir = Path(server.settings["database"]["data_dir"])
    os.kill(int((data_dir / "postmaster.pid").read_text().split("\n", 1)[0]), signal.SIGKILL)
    server.wait_event("embedded PostgreSQL died, restarting")
    wait_until(lambda: server.request("POST", "/api/client").status == 204, "the database")
    collector.wait("commit", 2)
    assert server.stop() == 0


def test_the_last_spans_are_waited_for_within_bounds(collector: Collector) -> None:
    """A collector that answers gets them; one that does not is left waiting."""

    def last_spans() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "last spans"]

    async def one(endpoint: str, timeout_s: float) -> None:
        settings = TracingSettings(endpoint=endpoint, sample_ratio=1)
        assert settings.endpoint is not None
        tracing = Tracing(settings, settings.endpoint)
        tracing.start()
        line = RequestStartLine("GET", "/", "HTTP/1.1")
        headers = HTTPHeaders({"Host": "localhost"})
        span = tracing.begin(HTTPServerRequest(start_line=line, headers=headers), "/", EMAIL)
        assert span is not None
        span.end("1", None, 200, None)
        await tracing.close(timeout_s)

    asyncio.run(one(collector.endpoint, PATIENCE_S))
    wait_until(lambda: not last_spans(), "the end of the thread")
    assert len(collector.spans("GET /")) == 1
    with mute_collector() as endpoint:
        asyncio.run(one(endpoint, 0.01))
        assert last_spans()  # still at it, and the server does not wait
    wait_until(lambda: not last_spans(), "the end of the thread")


def test_every_logger_of_the_library_is_limited() -> None:
    """Each message once a minute, wherever below its name; other loggers say what they like."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    logging_setup.configure(LoggingSettings(format="json"))
    written: list[str] = []
    [handler] = root.handlers
    handler.emit = lambda record: written.append(record.name)  # type: ignore[method-assign]
    try:
        for name in ("opentelemetry.sdk.new", "opentelemetry.exporter.new", "some.other"):
            for number in range(3):
                logging.getLogger(name).warning("cannot send %s to %d", name, number)
    finally:
        logging_setup.configure(LoggingSettings())
        root.handlers[:] = before
        root.setLevel(level)
    assert written == ["opentelemetry.sdk.new"] + ["some.other"] * 3


# ------------------------------------------------------------------------------- switched off


@pytest.fixture
def without_library(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment in which the library cannot be imported, and what shows that it was tried."""
    tried = tmp_path / "tried"
    package = tmp_path / "hidden" / "opentelemetry"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        f"import pathlib\npathlib.Path({str(tried)!r}).touch()\n"
        "raise ModuleNotFoundError('no opentelemetry', name='opentelemetry')\n"
    )
    return {"PYTHONPATH": str(package.parent)}, tried


def test_switched_off_nothing_of_it_is_loaded(
    start_server: StartServer, without_library: tuple[dict[str, str], Path]
) -> None:
    """A server serves where the extra is not installed, and never looks for it."""
    environment, tried = without_library
    server = start_server(environment=environment)
    assert ask(server, "POST", "/api/client", traced()[2]).status == 204
    assert server.stop() == 0
    assert not tried.exists()


def test_switched_on_and_not_installed_is_one_sentence(
    tmp_path: Path, certs: Path, without_library: tuple[dict[str, str], Path]
) -> None:
    """Exit status 2, before anything is served."""
    environment, tried = without_library
    path = tmp_path / "config.yaml"
    path.write_text(
        f"tls: {{certificate: {certs}/server.crt, private_key: {certs}/server.key, "
        f"client_ca: {certs}/ca.crt}}\n"
        f"server: {{port: 0}}\nannounce: {{signing_key: {certs}/announcer.key}}\n"
        "tracing: {endpoint: 'http://127.0.0.1:4318'}\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tornado_status", "--config", str(path)],
        cwd=ROOT,
        env=plain_environment() | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "tornado-status: tracing.endpoint: needs the package opentelemetry: "
        "pip install 'tornado-status[otel]'\n"
    )
    assert tried.exists()


def test_the_doctor_says_that_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the server does, which then does not start."""
    path = tmp_path / "config.yaml"
    path.write_text("tracing: {endpoint: 'http://127.0.0.1:4318'}\n")
    sentence = "tracing.endpoint: the server does not start without the extra otel"
    assert sentence not in report.text(report.examine(path, {}))
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert f"PROBLEM config: {sentence}\n" in report.text(report.examine(path, {}))


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://traces.example.com/", "https://traces.example.com/v1/traces"),
        ("https://traces.example.com/otlp/v1/traces", "https://traces.example.com/otlp/v1/traces"),
    ],
)
def test_an_endpoint_may_leave_out_the_usual_path(tmp_path: Path, given: str, used: str) -> None:
    """As in OTEL_EXPORTER_OTLP_ENDPOINT."""
    path = tmp_path / "config.yaml"
    path.write_text(f"tracing: {{endpoint: '{given}'}}\n")
    assert loader.load(path, {}).tracing.endpoint == used


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("endpoint: '127.0.0.1:4318'", "tracing.endpoint: expected http://host:4318"),
        ("endpoint: 'grpc://host:4317'", "tracing.endpoint: expected http://host:4318"),
        ("endpoint: 'https://u:s3cret@host'", "tracing.endpoint: expected http://host:4318"),
        ("sample_ratio: 2", "tracing.sample_ratio"),
        ("sample_ratio: yes", "tracing.sample_ratio: expected a number"),
    ],
)
def test_a_wrong_setting_names_its_key(tmp_path: Path, section: str, said: str) -> None:
    """And never tells what may be a secret."""
    path = tmp_path / "config.yaml"
    path.write_text(f"tracing: {{{section}}}\n")
    with pytest.raises(ConfigError) as caught:
        loader.load(path, {})
    assert said in str(caught.value)
    assert "s3cret" not in str(caught.value)
