"""The management port: what it says of a server that is well, soon is not, or cannot serve."""

from __future__ import annotations

import datetime
import http.client
import math
import shutil
import ssl
import time
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from certs_gen.authority import Authority, Credential
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Answer,
    Server,
    StartServer,
    exchange,
    free_port,
    wait_until,
)
from tornado_status.observe import health
from tornado_status.observe.counters import RESULTS, ROWS, SECONDS, CheckIns, Histogram
from tornado_status.observe.expiry_warnings import CHECK_EVERY_S, LOG_EVERY_S, ExpiryWarnings
from tornado_status.pki.expiry import DAY_S, Validity

PLAIN = b"POST /api/client HTTP/1.1\r\nHost: localhost\r\n\r\n"
DAY = datetime.timedelta(days=1)


def samples(server: Server) -> dict[tuple[str, ...], float]:
    """Return each value of /metrics by the name and the labels' values in their names' order."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(server.management("/metrics").body.decode())
        for sample in family.samples
    }


class Site:
    """A server with certificates of its own."""

    def __init__(self, start: StartServer, certs: Path) -> None:
        self.certs = certs
        self.authority = Authority.load(certs)
        self._start = start

    def put(self, name: str, credential: Credential) -> None:
        """Put a certificate and its key in place."""
        for suffix, content in (
            (".key", credential.key_pem()),
            (".crt", credential.certificate_pem()),
        ):
            path = self.certs / f"{name}{suffix}"
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            path.chmod(0o600)

    def server_certificate(self, days_left: float, days: int = 365) -> Credential:
        begun = datetime.datetime.now(datetime.UTC) + DAY * days_left - DAY * days
        return self.authority.issue_server(["localhost"], [LOOPBACK], days=days, now=begun)

    def start(self, **settings: object) -> Server:
        files = {"certificate": "server.crt", "private_key": "server.key", "client_ca": "ca.crt"}
        tls = {key: str(self.certs / name) for key, name in files.items()}
        tls["crl"] = str(self.certs / "ca.crl")
        announce = {"signing_key": str(self.certs / "announcer.key")}
        server = self._start(tls=tls, **{"announce": announce, **settings})
        server.certs = self.certs
        return server


@pytest.fixture
def site(certs: Path, tmp_path: Path, start_server: StartServer) -> Site:
    return Site(start_server, Path(shutil.copytree(certs, tmp_path / "certs")))


# --------------------------------------------------------------------------------------- metrics


def test_check_ins_are_counted_by_what_became_of_them(start_server: StartServer) -> None:
    """On both ways in, each once: the sum is the number of answers."""
    server = start_server(server={"check_ins_per_second": 0.2})
    ways: list[tuple[str, str | None]] = [("quick", "client"), ("ordinary", "operator")]
    for way, cert in ways:
        connection = server.connect(cert)
        headers = {"X-Way": way} if way == "ordinary" else {}
        statuses = []
        for _ in range(6):
            connection.request("POST", "/api/client", headers=headers)
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        connection.close()
        assert 429 in statuses
    assert server.request("POST", "/api/client", cert="bad_client").status == 400
    found = samples(server)
    counts = {r: int(found["tornado_status_check_ins_total", r]) for r in RESULTS}
    assert counts["recorded"] == server.rows("SELECT count(*) FROM check_in")[0][0]
    assert counts["refused"] == 1
    assert counts["recorded"] + counts["too_frequent"] == 12
    assert sum(counts.values()) == 13
    assert found["tornado_status_http_requests_total", "400", "POST"] == 1
    assert found["tornado_status_log_head",] == counts["recorded"]


def test_a_user_who_is_not_enrolled_is_counted(start_server: StartServer) -> None:
    """As such, not as a fault."""
    server = start_server(access={"enrolment": "closed"})
    assert server.request("POST", "/api/client").status == 403
    assert samples(server)["tornado_status_check_ins_total", "user_unknown"] == 1


def test_every_check_in_and_every_commit_is_timed(server: Server) -> None:
    """One observation each; the buckets end in all of them."""
    with server.connect_raw() as connection:
        connection.sendall(PLAIN * 40)
        received = b""
        while received.count(b"HTTP/1.1 204") < 40:
            received += connection.recv(65536)
        found = samples(server)
        assert found["tornado_status_connections",] == 1
        assert found["tornado_status_handshakes",] == 0
    assert found["tornado_status_check_in_duration_seconds_count",] == 40
    assert found["tornado_status_check_in_duration_seconds_bucket", "+Inf"] == 40
    assert found["tornado_status_check_in_duration_seconds_sum",] > 0
    commits = found["tornado_status_commit_duration_seconds_count",]
    assert 1 <= commits < 40  # batches
    assert found["tornado_status_commit_batch_size_count",] == commits
    assert found["tornado_status_commit_batch_size_sum",] == 40
    assert found["tornado_status_handshake_duration_seconds_count",] == 1
    wait_until(lambda: samples(server)["tornado_status_connections",] == 0, "it to be closed")


def test_users_are_shown_by_presence(start_server: StartServer) -> None:
    """Of whoever is in the database when the server starts, and never while it cannot be asked."""
    first = start_server()
    assert first.request("POST", "/api/client").status == 204
    server = start_server()
    found = wait_until(
        lambda: (s := samples(server)) and ("tornado_status_users", "never") in s and s, "a count"
    )
    users = {key[1]: value for key, value in found.items() if key[0] == "tornado_status_users"}
    assert users == {"never": 0, "online": 1, "late": 0, "offline": 0}
    wait_until(
        lambda: ("tornado_status_last_sweep_timestamp_seconds",) in samples(server), "a sweep"
    )
    assert found["tornado_status_users_gone_offline_total",] == 0
    assert found["tornado_status_log_events_pruned_total",] == 0
    url = f"postgresql://nobody@{LOOPBACK}:{free_port()}/name"
    away = start_server(url=url, wait=False)
    away.wait_event("database away, trying again")
    text = wait_until(lambda: away.management("/metrics").body, "the management port")
    assert b"tornado_status_users{" not in text
    assert b"\ntornado_status_last_sweep_timestamp_seconds " not in text


def test_the_moment_of_expiry_is_told_by_file(site: Site) -> None:
    """Of certificates, CAs and CRLs, with the setting that names the file."""
    site.put("server", site.server_certificate(100))
    server = site.start()
    found = samples(server)
    name = "_expiry_timestamp_seconds"
    expiry = {key[2]: value for key, value in found.items() if key[0].endswith(name)}
    days = {setting: (moment - time.time()) / DAY_S for setting, moment in expiry.items()}
    assert days["tls.certificate"] == pytest.approx(100, abs=1)
    assert days["tls.client_ca"] > 3000
    assert days["tls.crl"] == pytest.approx(30, abs=1)
    assert days["announce.signing_key"] == pytest.approx(365, abs=1)
    files = {key[1] for key in found if key[0].endswith(name)}
    assert files == {
        str(site.certs / name) for name in ("server.crt", "ca.crt", "ca.crl", "announcer.crt")
    }


def test_open_metrics_are_spoken_with_whoever_asks_for_them(server: Server) -> None:
    """Other clients get the older text; both are valid."""
    connection = http.client.HTTPConnection(LOOPBACK, server.management_port, timeout=PATIENCE_S)
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    connection.request("GET", "/metrics", headers=accept)
    response = connection.getresponse()
    text = response.read().decode()
    names = {family.name for family in open_metrics(text)}  # type: ignore[no-untyped-call]
    connection.close()
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    plain = server.management("/metrics")
    assert plain.headers["Content-Type"].startswith("text/plain")
    older = {family.name for family in text_string_to_metric_families(plain.body.decode())}
    assert "tornado_status_check_ins" in names
    assert "process_resident_memory_bytes" in names & older


@given(
    st.lists(st.floats(0, 20), max_size=60).map(sorted),
    st.sampled_from([SECONDS, tuple(float(n) for n in ROWS)]),
)
def test_observing_a_batch_is_observing_each(begun: list[float], bounds: tuple[float, ...]) -> None:
    """The quick way comes to the same counts."""
    now = 20.0
    at_once, each = Histogram(bounds), Histogram(bounds)
    at_once.observe_since(begun, now)
    for moment in begun:
        each.observe(now - moment)
    assert sum(at_once.counts) == len(begun)
    assert math.isclose(at_once.sum, each.sum, abs_tol=1e-6)
    moved = sum(abs(a - b) for a, b in zip(at_once.counts, each.counts, strict=True))
    on_a_bound = sum(any(math.isclose(now - m, b) for b in bounds) for m in begun)
    assert moved <= 2 * on_a_bound  # there rounding decides


def test_a_value_on_a_bound_is_within_it() -> None:
    """`le` means at most."""
    counted = CheckIns()
    for rows in (1, 2, 3, 512, 513):
        counted.batches.observe(rows)
    assert counted.batches.counts == [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]


# ------------------------------------------------------------------------------------- readiness


def test_readiness_tells_what_it_looked_at(server: Server) -> None:
    """All is well: every check says so, and there is nothing to say."""
    assert server.management("/healthz").json == {"alive": True}
    ready = server.management("/readyz")
    assert ready.status == 200
    assert ready.json["ready"] is True
    assert ready.json["problems"] == ready.json["warnings"] == []
    assert set(ready.json["checks"]) == {
        *("database", "presence", "certificate", "client_ca", "other_certificates", "crl"),
        *("files", "announce"),
    }
    assert {check["status"] for check in ready.json["checks"].values()} == {"ok"}


def test_a_certificate_is_warned_of_before_its_end(site: Site) -> None:
    """In the log and in readiness, with its file, while all goes on; until it is renewed."""
    site.put("server", site.server_certificate(5))
    server = site.start()
    said = f"tls.certificate: {site.certs}/server.crt (tornado_status server) expires in 5 days"
    ready = server.management("/readyz")
    assert (ready.status, ready.json["warnings"]) == (200, [said])
    assert ready.json["checks"]["certificate"] == {"status": "warning", "reasons": [said]}
    assert [event["reason"] for event in server.events("check failing")] == [said]
    assert server.request("POST", "/api/client").status == 204

    site.put("server", site.server_certificate(100))
    server.wait_event("certificates and keys reloaded")
    assert server.management("/readyz").json["warnings"] == []


def test_with_an_expired_certificate_nobody_can_be_served(site: Site) -> None:
    """No client that verifies it would go on: 503, and why."""
    site.put("server", site.server_certificate(-2))
    ready = site.start().management("/readyz")
    assert ready.status == 503
    [problem] = ready.json["problems"]
    assert problem.endswith("(tornado_status server) expired 2 days ago")


def test_an_expired_announcer_is_a_warning(site: Site) -> None:
    """Listeners refuse what it signs, and check-ins are recorded all the same."""
    begun = datetime.datetime.now(datetime.UTC) - 400 * DAY
    site.put("announcer", site.authority.issue_announcer(now=begun))
    ready = site.start().management("/readyz")
    assert ready.status == 200
    [warning] = ready.json["checks"]["other_certificates"]["reasons"]
    assert "announcer.crt" in warning
    assert "expired 35 days ago" in warning


def test_a_target_that_refuses_is_a_warning(start_server: StartServer) -> None:
    """With what it means; check-ins go on."""
    nobody = {"kind": "unicast", "address": "127.0.0.1", "port": 1, "interfaces": ["127.0.0.1"]}
    server = start_server(announce={"targets": [nobody]})
    for _ in range(3):
        assert server.request("POST", "/api/client").status == 204
    ready = server.management("/readyz")
    assert ready.status == 200
    check = ready.json["checks"]["announce"]
    assert check["status"] == "warning"
    [reason] = check["reasons"]
    assert reason.startswith("unicast 127.0.0.1:1: ECONNREFUSED: no program listens there")
    found = samples(server)
    assert found["tornado_status_checks_failing", "announce", "warning"] == 1
    assert found["tornado_status_ready",] == 1


def term(days_left: float, days: float, kind: str = "certificate") -> Validity:
    end = days_left * DAY_S
    return Validity(
        "crl" if kind == "crl" else "certificate", "s", "f", "x", end - days * DAY_S, end
    )


@pytest.mark.parametrize(
    ("kind", "days_left", "days", "warned"),
    [
        ("certificate", 15, 365, False),
        ("certificate", 13, 365, True),
        ("certificate", 13, 30, False),  # a short life: of it a fifth
        ("certificate", 5, 30, True),
        ("certificate", 0.5, 1, False),
        ("certificate", 0.1, 1, True),
        ("certificate", -1, 365, True),
        ("certificate", 366, 365, True),  # not yet
        ("crl", 4, 30, False),
        ("crl", 2, 30, True),
        ("crl", -1, 30, True),
    ],
)
def test_there_is_time_to_renew_before_the_end(
    kind: str, days_left: float, days: float, warned: bool
) -> None:
    """Two weeks, or a fifth of a short life; a list three days."""
    assert (term(days_left, days, kind).warning(0) is not None) is warned


def test_one_good_list_is_service_for_some() -> None:
    """With `refuse` a late list is a problem only if it locks out every client."""
    late, good = term(-1, 30, "crl"), term(5, 30, "crl")
    assert health.crls([late], 1, 0, refuse=True).status == "problem"
    assert health.crls([late], 2, 0, refuse=True).status == "warning"
    assert health.crls([late, good], 2, 0, refuse=True).status == "warning"
    assert health.crls([late], 1, 0, refuse=False).status == "warning"


def test_a_warning_is_said_again_while_it_lasts() -> None:
    """Twice a day, at once when it becomes another one, and after each reload."""
    now = 0.0
    days_left = 1.0

    def checks() -> list[health.Check]:
        return [health.certificates("certificate", [term(days_left, 365)], 0)]

    # Not what is written: a test before may have sent the log where it liked.
    warnings = ExpiryWarnings(checks, lambda: now)
    with structlog.testing.capture_logs() as lines:

        def said() -> int:
            count = len([line for line in lines if "(x)" in line.get("reason", "")])
            lines.clear()
            return count

        warnings.check()
        assert said() == 1
        while now < LOG_EVERY_S - CHECK_EVERY_S:
            now += CHECK_EVERY_S
            warnings.check()
        assert said() == 0
        now += CHECK_EVERY_S
        warnings.check()
        assert said() == 1
        days_left = -1.0
        warnings.check()
        assert said() == 1
        warnings.restart()
        assert said() == 1


# ------------------------------------------------------------------------------------------- TLS


def over_tls(server: Server, path: str, certs: Path) -> tuple[Answer, int]:
    """Ask over TLS; return the answer and the serial number of the certificate."""
    context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
    connection = http.client.HTTPSConnection(
        "localhost", server.management_port, context=context, timeout=PATIENCE_S
    )
    try:
        answer = exchange(connection, "GET", path)
        assert isinstance(connection.sock, ssl.SSLSocket)
        peer = connection.sock.getpeercert()
        assert peer is not None
        return answer, int(str(peer["serialNumber"]), 16)
    finally:
        connection.close()


def test_the_management_port_may_have_tls(site: Site) -> None:
    """With a certificate of its own, which is read anew like all others."""
    first, second = site.server_certificate(100), site.server_certificate(100)
    site.put("admin", first)
    files = {
        "certificate": str(site.certs / "admin.crt"),
        "private_key": str(site.certs / "admin.key"),
    }
    server = site.start(management={"host": LOOPBACK, "port": free_port(), **files})
    answer, serial = over_tls(server, "/readyz", site.certs)
    assert (answer.status, serial) == (200, first.certificate.serial_number)
    metrics = over_tls(server, "/metrics", site.certs)[0].body
    assert b'setting="management.certificate"' in metrics
    with pytest.raises((OSError, http.client.HTTPException)):
        server.management("/healthz")  # in clear

    site.put("admin", second)
    wait_until(
        lambda: over_tls(server, "/readyz", site.certs)[1] == second.certificate.serial_number,
        "the new certificate",
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"certificate": "server.crt"}, "management: certificate and private_key: expected both"),
        ({"certificate": "ca.crt", "private_key": "server.key"}, "is not the key of"),
        (
            {"certificate": "none.crt", "private_key": "server.key"},
            "management.certificate: no file",
        ),
    ],
)
def test_a_wrong_admin_certificate_is_one_line(
    site: Site, start_server: StartServer, files: dict[str, str], message: str
) -> None:
    """At start, exit 2."""
    named = {key: str(site.certs / name) for key, name in files.items()}
    server = start_server(wait=False, management=named)
    assert server.process.wait(PATIENCE_S) == 2
    [line] = server.log.wait_end().splitlines()
    assert message in line
