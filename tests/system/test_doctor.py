"""The doctor: healthy setups are well, and of each broken one it says what is wrong."""

from __future__ import annotations

import datetime
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs_gen.authority import Authority, Credential, common_name, leaf_extensions, new_key
from tests.support.doctor_setup import DoctorSetup
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    ROOT,
    Postgres,
    StartServer,
    free_port,
    plain_environment,
    require,
    rows,
)
from tornado_status.commands.doctor import check_data_dir, check_database, check_network
from tornado_status.store.diagnostics import Diagnosis

pytestmark = pytest.mark.once

DAY = datetime.timedelta(days=1)


@pytest.fixture
def site(tmp_path: Path, certs: Path, database_url: str) -> DoctorSetup:
    return DoctorSetup(tmp_path / "site", certs, database_url)


# ----------------------------------------------------------------------------------------- well


def test_a_healthy_setup_is_well(site: DoctorSetup) -> None:
    """Before its first start: exit 0, and everything that was looked at has a line."""
    site.well(
        "config.yaml is valid",
        "clients can reach the server as localhost",
        "issued by tls.client_ca",
        "its tables are of revision none",
        "acknowledged check-ins survive a crash",
        "the database's clock is ours",
        f"server.port: {site.settings['server']['port']} is free",
        "multicast 239.255.66.66",
        "only this machine hears the announcements",
    )


def test_a_running_server_is_well(site: DoctorSetup, start_server: StartServer) -> None:
    """Its own ports are no problem, and its database answers."""
    server = start_server(url=site.settings["database"]["url"])
    overrides = {
        "server": {"port": server.port},
        "management": {"port": server.management_port},
        "announce": {"source_port": server.settings["announce"]["source_port"]},
    }
    site.well("is in use, and a server runs", "are those of this version", **overrides)


def test_an_embedded_database_is_asked_where_it_runs(
    site: DoctorSetup, start_server: StartServer, tmp_path: Path
) -> None:
    """And where it does not, nothing is started for it."""
    data_dir = str(tmp_path / "pg")
    where = {"url": "embedded", "data_dir": data_dir}
    site.well("embedded, which runs while the server does", database=where)
    assert not Path(data_dir).exists()
    server = start_server(url="embedded", database={"data_dir": data_dir})
    site.well("are those of this version", database=where)
    assert server.stop() == 0
    site.well("embedded, which runs while the server does", database=where)


def embedded(site: DoctorSetup) -> tuple[Path, dict[str, Any]]:
    directory = site.directory / "var" / "postgresql"
    return directory, {"database": {"url": "embedded", "data_dir": str(directory)}}


def test_the_directory_of_the_embedded_database_is_looked_at(site: DoctorSetup) -> None:
    """Its place, now or later: the right to write there, and the free space."""
    directory, here = embedded(site)
    site.well(f"this user may write in {directory}", "free on the file system of", **here)
    directory.mkdir(parents=True, mode=0o755)
    site.wrong(f"other users may read or write {directory}", **here)
    directory.chmod(0o700)
    site.well(f"this user may write in {directory}", **here)


def test_a_directory_of_another_user_is_found(site: DoctorSetup) -> None:
    """PostgreSQL starts only as its owner. Root is told whom to ask as."""
    require("users to become", os.geteuid() == 0, "run the tests as root")
    directory, here = embedded(site)
    directory.mkdir(parents=True, mode=0o700)
    os.chown(directory, 12345, 12345)
    site.well(f"{directory} belongs to user 12345", **here)
    [finding] = check_data_dir._permissions(directory)
    assert finding.level == "note"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 65534)
        [finding] = check_data_dir._permissions(directory)
        assert finding.level == "problem"
        assert f"`chown -R nobody {directory}` as root" in finding.advice
        patch.setattr(os, "access", lambda *_: False)
        [finding] = check_data_dir._permissions(directory / "not" / "there")
        assert finding.level == "problem"
        assert f"nobody may not write in {directory}" in finding.sentence


def test_a_full_or_read_only_file_system_is_found(site: DoctorSetup) -> None:
    """Before PostgreSQL fails on it."""
    require("a view of the file system", os.geteuid() == 0, "run the tests as root")
    directory, here = embedded(site)
    directory.parent.mkdir()
    for size, problem in (("50m", True), ("500m", False)):
        script = f'mount -t tmpfs -o size={size} none {directory.parent} && exec "$@"'
        prefix = ("unshare", "--mount", "sh", "-c", script, "sh")
        if problem:
            site.wrong("52 MB free on the file system of", prefix=prefix, **here)
        else:
            said = site.ask(*prefix, **here).stdout
            assert "note    database: database.data_dir: 524 MB free" in said
    top = directory.parent
    script = f'mount --bind {top} {top} && mount -o remount,bind,ro {top} && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", script, "sh")
    site.wrong(f"may not write in {top}", prefix=prefix, **here)


def test_usage_errors_are_exit_2(tmp_path: Path) -> None:
    """No file, and no such option."""
    for arguments in (["--config", str(tmp_path / "none.yaml")], ["--no-such-option"]):
        done = subprocess.run(
            [sys.executable, "-m", "tornado_status", "doctor", *arguments],
            cwd=ROOT,
            env=plain_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr


# -------------------------------------------------------------------------------- what is wrong


def test_a_wrong_configuration_is_found(site: DoctorSetup) -> None:
    """With its key."""
    site.wrong("server.port: ", server={"port": 70000})


def issue(site: DoctorSetup, days_left: float = 300, **given: Any) -> Credential:
    begun = datetime.datetime.now(datetime.UTC) - 365 * DAY + days_left * DAY
    return site.authority.issue_server(["localhost"], [LOOPBACK], now=begun, **given)


def expired(site: DoctorSetup) -> str:
    site.put("server", issue(site, -3))
    return "server.crt (tornado_status server) expired 3 days ago"


def another_key(site: DoctorSetup) -> str:
    (site.certs / "server.key").write_bytes(issue(site).key_pem())
    return "server.key is not the key of"


def wrong_chain(site: DoctorSetup) -> str:
    site.put("server", issue(site), issue(site))
    return "has not issued it"


def no_file(site: DoctorSetup) -> str:
    (site.certs / "ca.crl").unlink()
    return "tls.crl: no file"


def readable(site: DoctorSetup) -> str:
    (site.certs / "server.key").chmod(0o644)
    return "every user of this machine can read"


def signing_key_readable(site: DoctorSetup) -> str:
    (site.certs / "announcer.key").chmod(0o644)
    return "announce.signing_key: every user of this machine can read"


def no_ca(site: DoctorSetup) -> str:
    (site.certs / "ca.crt").write_text("no certificate")
    return "tls.client_ca: "


def no_ca_file(site: DoctorSetup) -> str:
    (site.certs / "ca.crt").unlink()
    return "tls.client_ca: no file"


def no_announcer(site: DoctorSetup) -> str:
    (site.certs / "announcer.crt").unlink()
    return "announce.signing_key: "


def broken_list(site: DoctorSetup) -> str:
    (site.certs / "ca.crl").write_text("no list")
    return "tls.crl: "


def admin_without_key(site: DoctorSetup) -> str:
    site.settings["management"] |= {
        "certificate": "certs/server.crt",
        "private_key": "certs/none.key",
    }
    return "management."


def admin_key_readable(site: DoctorSetup) -> str:
    for suffix in ("crt", "key"):
        shutil.copy(site.certs / f"server.{suffix}", site.certs / f"admin.{suffix}")
    (site.certs / "admin.key").chmod(0o604)
    site.settings["management"] |= {
        "certificate": "certs/admin.crt",
        "private_key": "certs/admin.key",
    }
    return "management.private_key: every user of this machine can read"


def announcer_expired(site: DoctorSetup) -> str:
    begun = datetime.datetime.now(datetime.UTC) - 400 * DAY
    site.put("announcer", site.authority.issue_announcer(now=begun))
    return "announcer.crt (tornado_status announcer) expired"


@pytest.mark.parametrize(
    "breaking",
    [
        *(expired, another_key, wrong_chain, no_file, readable, announcer_expired),
        *(signing_key_readable, no_ca, no_ca_file, no_announcer, broken_list),
        *(admin_without_key, admin_key_readable),
    ],
    ids=lambda breaking: breaking.__name__,
)
def test_what_is_wrong_with_a_file_is_found(
    site: DoctorSetup, breaking: Callable[[DoctorSetup], str]
) -> None:
    """One problem each, in a sentence, and nothing else."""
    site.wrong(breaking(site))


def test_what_soon_ends_is_noted(site: DoctorSetup) -> None:
    """A certificate two weeks before, a list three days before; fresh ones are well."""
    site.well("ok      certificates: tls.certificate: ", "ok      certificates: tls.crl: ")
    site.put("server", issue(site, 5))
    then = datetime.datetime.now(datetime.UTC) - 28 * DAY
    late = site.authority.empty_crl(days=30, now=then)
    (site.certs / "ca.crl").write_bytes(late.public_bytes(Encoding.PEM))
    site.well("expires in 5 days", "note    certificates: tls.crl: ")


def test_a_key_without_effect_is_noted(site: DoctorSetup) -> None:
    """No proxy stands in front of this server."""
    trusted = {"trusted_proxies": ["10.0.0.5"]}
    sentence = "note    config: ingress.trusted_proxies has no effect"
    site.well(sentence, ingress=trusted)
    assert sentence not in site.ask(ingress={**trusted, "proxy_protocol": True}).stdout


def test_a_clients_certificate_is_no_servers(site: DoctorSetup) -> None:
    """The server refuses it."""
    site.put("server", site.authority.issue_client("server@example.com"))
    site.wrong("server.crt is not for a server (its extended key usage has no serverAuth)")


def test_a_certificate_for_any_purpose_is_a_problem(site: DoctorSetup) -> None:
    """The server accepts it, but OpenSSL's clients want serverAuth."""
    key = new_key("ec")
    then = datetime.datetime.now(datetime.UTC)
    certificate = site.authority.certify(
        key.public_key(),
        common_name("any"),
        leaf_extensions([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], [x509.DNSName("localhost")]),
        not_before=then - DAY,
        not_after=then + 300 * DAY,
    )
    site.put("server", Credential(certificate, key))
    site.wrong("its extended key usage has anyExtendedKeyUsage without serverAuth")
    command = ["openssl", "verify", "-purpose", "sslserver", "-CAfile"]
    command += [str(site.certs / file) for file in ("ca.crt", "server.crt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "unsuitable certificate purpose" in done.stderr


def test_a_certificate_of_another_ca_is_noted(site: DoctorSetup) -> None:
    """That may be meant so."""
    site.put("server", Authority.create(name="another CA").issue_server(["localhost"]))
    site.well("which is not in tls.client_ca")


def test_a_late_list_is_a_problem_where_it_locks_out(site: DoctorSetup) -> None:
    """Else it is noted."""
    then = datetime.datetime.now(datetime.UTC) - 40 * DAY
    late = site.authority.empty_crl(days=30, now=then)
    (site.certs / "ca.crl").write_bytes(late.public_bytes(Encoding.PEM))
    site.well("expired 10 days ago")
    site.wrong("expired 10 days ago", tls={"on_expired_crl": "refuse"})
    site.well("there is no CRL: no certificate can be revoked", tls={"crl": None})


def test_a_weak_ca_is_a_problem_and_one_without_a_list_is_noted(site: DoctorSetup) -> None:
    """The clients of the one get in nowhere, those of the other cannot be shut out."""
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is the point
    then = datetime.datetime.now(datetime.UTC)
    certificate = site.authority.certify(
        weak.public_key(),
        common_name("weak"),
        [(x509.BasicConstraints(ca=True, path_length=0), True)],
        not_before=then - DAY,
        not_after=then + 100 * DAY,
    )
    bundle = site.certs / "ca.crt"
    alone = bundle.read_bytes()
    bundle.write_bytes(alone + Authority.create(name="unlisted").certificate_pem())
    site.well("tls.crl: there is no CRL of unlisted: no certificate")
    bundle.write_bytes(alone + certificate.public_bytes(Encoding.PEM))
    site.wrong("tls.client_ca: weak: A CA of the certificate is too weak: RSA keys below 2048")
    bundle.write_bytes(alone + site.authority.issue_client("a@example.com").certificate_pem())
    site.well("tls.client_ca: a@example.com is no CA certificate")


def test_an_absent_database_is_found_without_its_password(site: DoctorSetup) -> None:
    """In one sentence."""
    url = f"postgresql://somebody:s3cr3t@{LOOPBACK}:{free_port()}/name"
    said = site.wrong("the database cannot be reached", database={"url": url})
    assert "s3cr3t" not in said


def test_a_database_that_forgets_is_found(site: DoctorSetup, own_postgres: Postgres) -> None:
    """Each of its settings; with `durability: warn` noted, as the server would serve with it."""
    here = {"url": own_postgres.url}
    site.well("survive a crash", database=here)
    rows(own_postgres.url, "ALTER DATABASE postgres SET synchronous_commit = off")
    rows(own_postgres.url, "ALTER SYSTEM SET full_page_writes = off")
    rows(own_postgres.url, "SELECT pg_reload_conf()")
    site.wrong("full_page_writes is off", "synchronous_commit is off", database=here)
    site.well(
        "full_page_writes is off",
        "synchronous_commit is off: a crash may lose acknowledged check-ins or damage the "
        "database; "
        "database.durability: warn allows it",
        database={**here, "durability": "warn"},
    )


def test_a_database_without_fsync_is_found(site: DoctorSetup, own_postgres: Postgres) -> None:
    """As the server would refuse it."""
    own_postgres.stop()
    own_postgres.settings["fsync"] = "off"
    own_postgres.start()
    site.wrong("fsync is off", database={"url": own_postgres.url})


def test_a_standby_is_found(site: DoctorSetup, own_postgres: Postgres) -> None:
    """It takes no check-ins; the same one as a primary is well."""
    site.well("survive a crash", database={"url": own_postgres.url})
    own_postgres.stop()
    (own_postgres.directory / "standby.signal").touch()
    own_postgres.start()
    site.wrong("the database is a standby", database={"url": own_postgres.url})


def test_a_role_that_may_make_no_tables_is_found(
    site: DoctorSetup, start_server: StartServer
) -> None:
    """Before the first start; one that may is well, and a server starts with it."""
    url = site.settings["database"]["url"]
    [(name,)] = rows(url, "SELECT current_database()")
    rows(url, f"CREATE ROLE reader_{name} LOGIN")
    user = url.partition("//")[2].partition("@")[0]
    here = {"url": url.replace(f"//{user}@", f"//reader_{name}@", 1)}
    site.wrong("may not make any", database=here)
    rows(url, f"GRANT CREATE ON DATABASE {name} TO reader_{name}")  # that is for schemas
    site.wrong("may not make any", database=here)
    rows(url, f"GRANT CREATE ON SCHEMA public TO reader_{name}")
    site.well("its tables are of revision none", database=here)
    assert start_server(url=here["url"]).request("POST", "/api/client").status == 204


def test_a_url_that_is_none_is_found(site: DoctorSetup) -> None:
    """Before anything is connected to."""
    site.wrong("database.url: ", database={"url": "postgresql://[::1/x"})


def test_what_is_in_front_is_told(site: DoctorSetup) -> None:
    """The proxies that may name a client's address, and what that means."""
    trusted = {"trusted_proxies": ["10.0.0.5", "10.1.0.0/16"]}
    header = site.ask(ingress={**trusted, "proxy_protocol": True})
    assert "10.0.0.5/32, 10.1.0.0/16 begin with a PROXY header" in header.stdout
    assert "10.1.0.0/16 is a wide network" in header.stdout
    for name in ("server.crt", "server.key"):
        (site.certs / name).unlink()  # the proxy's matter
    site.well(
        "ingress.mode: proxy: plain HTTP from 10.0.0.5/32",
        "tls.client_ca: ",
        ingress={"mode": "proxy", "trusted_proxies": ["10.0.0.5"]},
    )
    site.wrong("tls.certificate: ", ingress={"mode": "tls"})


def test_tables_of_a_newer_version_are_found(site: DoctorSetup) -> None:
    """Served where they are compatible; else the server would not start with them."""
    url = site.settings["database"]["url"]
    rows(url, "CREATE TABLE head AS SELECT now() AS at")
    rows(url, "CREATE TABLE alembic_version (version_num text)")
    rows(url, "INSERT INTO alembic_version VALUES ('0001')")
    site.well("its tables are of revision 0001")
    rows(url, "UPDATE alembic_version SET version_num = 'g2_9999'")
    site.well("its tables are of revision g2_9999, newer than this program's")
    rows(url, "UPDATE alembic_version SET version_num = 'g3_9999'")
    site.wrong("revision g3_9999, generation 3, and this version can serve generation 2")
    rows(url, "UPDATE alembic_version SET version_num = 'a1b2c3'")
    rows(url, "DROP TABLE head")
    site.wrong("belongs to another program: its revision is 'a1b2c3'")


@pytest.mark.parametrize(
    ("off_s", "level"), [(0, "ok"), (-5, "note"), (5, "note"), (45, "problem")]
)
def test_a_clock_that_is_off_is_found(site: DoctorSetup, off_s: int, level: str) -> None:
    """The database tells another time than this machine, by a function of its own."""
    url = site.settings["database"]["url"]
    rows(
        url,
        "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS"
        f" $$SELECT pg_catalog.clock_timestamp() + {off_s} * interval '1 second'$$",
    )
    [(name,)] = rows(url, "SELECT current_database()")
    rows(url, f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
    if level == "problem":
        site.wrong("s ahead of ours")
    elif level == "note":
        site.well(f"s {'ahead of' if off_s > 0 else 'behind'} ours")
    else:
        site.well("the database's clock is ours")


def test_a_log_ahead_of_the_databases_clock_is_found(
    site: DoctorSetup, start_server: StartServer
) -> None:
    """It is the trace of a clock that was wrong, and no longer is."""
    url = site.settings["database"]["url"]
    server = start_server(url=url)
    assert server.request("POST", "/api/client").status == 204
    assert server.stop() == 0
    site.well("the database's clock is ours")
    rows(url, "UPDATE head SET at = clock_timestamp() + interval '1 hour'")
    site.wrong("s ahead of the database's clock: new events all get the log's time")


@pytest.mark.parametrize(("took_s", "level"), [(0.01, "note"), (10, "ok")])
def test_a_slow_answer_is_no_wrong_clock(took_s: float, level: str) -> None:
    """The time of the question itself may be all of the difference."""
    now = datetime.datetime.now(datetime.UTC)
    found = Diagnosis(
        "18", 180000, True, True, True, False, True, now + datetime.timedelta(seconds=5),
        now, took_s / 2, "1", "1",
    )  # fmt: skip
    [finding] = check_database._clock(found)
    assert finding.level == level


@pytest.mark.parametrize(("number", "level"), [(149999, "problem"), (150000, "ok")])
def test_a_postgresql_that_is_too_old_is_found(number: int, level: str) -> None:
    """By the number that it tells; none so old is to be had."""
    now = datetime.datetime.now(datetime.UTC)
    found = Diagnosis("14", number, True, True, True, False, True, now, now, 0.0, "1", "1")
    assert next(check_database._state(found)).level == level


def test_ports_of_other_programs_are_found(site: DoctorSetup) -> None:
    """TCP for check-ins and for the management port, UDP to announce from."""
    port, admin = site.settings["server"]["port"], site.settings["management"]["port"]
    source = site.settings["announce"]["source_port"]
    with socket.socket() as one, socket.socket() as two:
        for sock, taken in ((one, port), (two, admin)):
            sock.bind((LOOPBACK, taken))
            sock.listen()
        two.shutdown(socket.SHUT_RDWR)
        two.listen()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as three:
            three.bind((LOOPBACK, source))
            me = f"{Path('/proc/self/comm').read_text().strip()}, process {os.getpid()}"
            site.wrong(
                f"server.port: {port} is taken by {me}",
                f"management.port: {admin} is taken by {me}",
                f"UDP port {source} is taken by {me}",
            )


def test_targets_that_lead_nowhere_are_found(site: DoctorSetup) -> None:
    """An unknown interface, and a broadcast address of no network here."""
    unknown = {"kind": "multicast", "address": "239.1.2.3", "interfaces": ["nic9"]}
    not_here = {"kind": "broadcast", "address": "127.1.2.255", "interfaces": [LOOPBACK]}
    site.wrong(
        "interface 'nic9' does not exist; there are",
        "127.1.2.255:6667: no interface has this broadcast address",
        announce={"targets": [unknown, not_here]},
    )


@pytest.mark.parametrize(
    ("right", "found"),
    [
        (6667, True),
        (6668, False),
        ({"set": [1, 6667]}, True),
        ({"set": [1, {"range": [6000, 7000]}]}, True),
        ({"range": [6000, 6666]}, False),
    ],
)
def test_ports_of_rules_are_read(right: object, found: bool) -> None:
    """As nft writes them in JSON: a number, or a set of numbers and ranges."""
    left = {"payload": {"protocol": "udp", "field": "dport"}}
    part = {"match": {"op": "==", "left": left, "right": right}}
    assert check_network._matches(part, "udp", 6667, {}) is found
    assert not check_network._matches(part, "tcp", 6667, {})
