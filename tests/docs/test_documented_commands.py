"""Every command block of the pages is run as it stands, or says why not and what looks at it.

With a new block, add a line to `RUN`, or to `REASONS` with the test that does what can be done.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import enum
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import certs_gen.cli
import clients.cli
import listeners.options
import tornado_status.cli
from benchmarks import __main__ as benchmarks
from tests.support import pages
from tests.support.brokers import Nats
from tests.support.harness import PATIENCE_S, ROOT, plain_environment, require, wait_until
from tests.support.pages import Block, Reader, reader
from tests.support.terminal import Terminal
from tornado_status.alerts.webhook_signature import parse_secrets

pytestmark = [pytest.mark.once, pytest.mark.network]


class Why(enum.Enum):
    """Why a block is not run as it stands by `test_the_commands_of_a_page_do_what_it_says`."""

    ELSEWHERE = "run as it stands by the named test"
    FOR_EVER = "runs until it is stopped, or waits for another: started and stopped by"
    ENGINE = "needs a container engine: run by the named test where podman is, or its parts are by"
    CLUSTER = "needs a Kubernetes cluster: its parts are checked by"
    MACHINE = "changes the machine: run on one of its own, or its parts are checked by"
    INSTALLS = "fetches packages: what it installs is checked by"
    OTHERS = "needs other machines or programs: run with them by"
    MINUTES = "takes minutes: its parts are checked by"


@dataclasses.dataclass(frozen=True)
class Reason:
    why: Why
    test: str  # its file below tests/, and its name


def here(why: Why, test: str) -> Reason:
    return Reason(why, f"docs/{Path(__file__).name}::{test}")


# By page, and there by the block's first line: what it must print, as a regular expression.
RUN: dict[str, dict[str, str]] = {
    "README.md": {
        "curl --cacert certs/ca.crt --cert certs/client.crt --key certs/client.key \\": (
            r"^HTTP/1.1 204 No Content"
        ),
    },
    "docs/alerts.md": {
        '(umask 077; echo "whsec_$(openssl rand -base64 32)" > certs/plant.secret)': "",
        "printf 'Bearer %s' tk_example | base64 --wrap=0 | tr '+/' '-_' | tr -d =": (
            r"^QmVhcmVyIHRrX2V4YW1wbGU$"
        ),
    },
    "docs/api.md": {
        "curl --cacert certs/ca.crt --cert certs/client.crt --key certs/client.key \\": (
            r'"openapi": ?"3\.1'
        ),
        "curl -i --cacert certs/ca.crt --cert certs/operator.crt --key certs/operator.key \\": (
            r"^(?s:HTTP/1.1 200 OK.*Etag: .*\"users\":\[)"
        ),
    },
    "docs/board.md": {
        "status-certs client operator@example.com --pkcs12": r"\.p12",
    },
    "docs/certificates.md": {
        "status-certs": r"certs/bad_client\.crt",
        "status-certs client ada@example.com": r"certs/ada@example\.com\.key",
        "printf '%s\\n' '# the team' bob@example.com carol@example.com > team.txt": (
            r"^2 users, 4 files$"
        ),
        "status-certs server --name status.example.com --name localhost --ip 192.0.2.7"
        " --force": r"certs/server\.crt",
        "status-certs client ada@example.com --force": r"certs/ada@example\.com\.key",
        "status-certs announcer --name announcer-2": r"certs/announcer-2\.crt",
        "openssl x509 -in certs/ada@example.com.crt -noout -subject -dates -ext subjectAltName": (
            r"(?s)email:ada@example\.com.*ada@example\.com\.crt: OK$"
        ),
        "status-certs copy server handed/server": r"handed/client/client\.key",
        "status-certs revoke ada@example.com": r"certs/ca\.crl",
        "openssl x509 -in certs/client.crt -noout -serial": r"(?s)^serial=.*certs/ca\.crl",
        "status-certs crl --days 90": r"certs/ca\.crl",
        "openssl crl -in certs/ca.crl -CAfile certs/ca.crt -noout -text": (
            r"(?s)Key Compromise.*certs/operator\.crt: OK$"
        ),
        "status-certs client operator@example.com --pkcs12": r"\.p12",
        "openssl pkcs12 -export -in certs/operator@example.com.crt -inkey"
        " certs/operator@example.com.key \\": "",
    },
    "docs/listeners.md": {
        "status-certs copy listener handed/listener": r"handed/listener/operator\.crt",
    },
    "docs/network.md": {
        "ip -brief address": r"^eth0",
        "tornado-status doctor --config config.yaml": r"^ok +interfaces: .* can be sent to by",
    },
    "docs/monitoring.md": {
        "curl --silent --show-error --fail http://127.0.0.1:9464/healthz": r'^\{"alive": true\}$',
        "curl --silent --show-error --fail-with-body http://127.0.0.1:9464/readyz": (
            r'^\{"ready": true, "problems": \[\], .*"announce": \{"status": "ok"'
        ),
    },
    "docs/people.md": {
        "curl --write-out '%{http_code}\\n' -X PUT --cacert certs/ca.crt --cert"
        " certs/operator.crt \\": r"^201$",
        "curl --write-out '%{http_code}\\n' -X DELETE --cacert certs/ca.crt --cert"
        " certs/operator.crt \\": r"^204$",
        "tornado-status users add new_user@example.com": (
            r"^new_user@example\.com: enrolled\nformer_user@example\.com: enrolled$"
        ),
        "tornado-status users remove new_user@example.com": r"^new_user@example\.com: removed$",
        "tornado-status users erase former_user@example.com": (
            r"^former_user@example\.com: erased in \d+ entr"
        ),
        "tornado-status users list": (
            r"(?s)valid_user@example\.com +online.*^\d+ users?: .*online$"
        ),
        "tornado-status users list --state offline": (
            r'^\{"email":"valid_user@example\.com","state"'
        ),
        "curl -O --cacert certs/ca.crt --cert certs/operator.crt --key certs/operator.key \\": (
            r"(?s)^seq,event,email,.*^1,new,valid_user@example\.com"
        ),
        "curl -O --cacert certs/ca.crt --cert certs/client.crt --key certs/client.key \\": (
            r'^\{"seq":1,"event":"new","email":"valid_user@example\.com"'
        ),
    },
    "docs/troubleshooting.md": {
        "tornado-status doctor --config config.yaml": r"(?s)^ok .*database.*^No problems found",
        "tornado-status config --config config.yaml": r"(?s)port: 8443 +# config\.yaml",
    },
    "docs/upgrade.md": {
        "curl --silent --show-error --fail --retry 60 --retry-delay 1 --retry-all-errors"
        " http://127.0.0.1:9464/readyz": r'^\{"ready": true, "problems": \[\], ',
        "tornado-status doctor --config config.yaml": (
            r"^ok +database: its tables are those of this version \((g\d+_)?\d+\)$"
        ),
    },
}

TUTORIAL = (
    "docs/test_documentation.py::"
    "test_the_tutorial_leads_from_a_fresh_clone_to_a_check_in_that_is_heard"
)
REPLACED_ESTATE = "docs/test_replace_django.py::test_an_estate_goes_on_unchanged"
SYSTEMD = "system/test_systemd.py::test_start_returns_when_the_server_serves"
REPLACED = "system/test_systemd.py::test_the_next_version_takes_its_place"
RELOADED = "system/test_systemd.py::test_reload_returns_when_a_renewed_certificate_is_served"
INSTALLED = "system/test_browser_install.py::test_the_board_opens_once_the_certificate_is_installed"
TRACED = "system/test_tracing.py::test_a_traced_check_in_is_followed_into_its_commit"
COMPLETED = "system/test_shell_completion.py::test_a_shell_completes_as_the_page_says"
CONTAINERS = "system/test_containers_run.py::test_the_commands_of_the_page_do_what_it_says"
RESTORED = "system/test_backup.py::test_a_dump_brings_the_embedded_database_back"
COPIED = "system/test_backup.py::test_a_copy_of_the_files_brings_the_embedded_database_back"
RECOVERED = "system/test_backup.py::test_the_embedded_database_is_recovered_to_a_point_in_time"
PROXIES = "system/test_behind_a_proxy.py::test_behind_"
FAILED_OVER = "faults/test_failover_campaign.py::test_no_failover_loses_an_acknowledged_check_in"
PROMOTED = "system/test_backup.py::test_the_server_goes_on_with_a_promoted_standby_by_itself"

LISTENS = f"docs/{Path(__file__).name}::test_each_listener_of_the_page_listens"

REASONS: dict[str, dict[str, Reason]] = {
    "CONTRIBUTING.md": {
        "make .venv/.dev                      # set up: .venv with the locked packages": Reason(
            Why.INSTALLS, "docs/test_contributing.py::test_make_has_each_target_of_the_page"
        ),
        "make release VERSION=0.1.0": Reason(
            Why.MINUTES, "system/test_release.py::test_one_command_builds_and_tags_a_release"
        ),
    },
    "README.md": {
        "make run     # sets everything up and serves on https://localhost:8443": here(
            Why.FOR_EVER, "test_the_readme_shows_what_is_seen"
        ),
        ". .venv/bin/activate && status-listener --count 1": here(
            Why.FOR_EVER, "test_the_readme_shows_what_is_seen"
        ),
        ". .venv/bin/activate && status-client": here(
            Why.FOR_EVER, "test_the_readme_shows_what_is_seen"
        ),
    },
    "docs/alerts.md": {
        "tornado-status alerts test plant": Reason(
            Why.OTHERS, "server/test_alerts.py::test_an_alert_can_be_tried"
        ),
    },
    "docs/api.md": {
        "curl -N --cacert certs/ca.crt --cert certs/operator.crt --key certs/operator.key \\": here(
            Why.FOR_EVER, "test_the_stream_looks_as_the_page_shows_it"
        ),
    },
    "docs/backup.md": {
        'export PATH="$(dirname "$(find "$PWD/.venv/" -name pg_dump | head -n 1)"):$PATH"': Reason(
            Why.ELSEWHERE, RESTORED
        ),
        'export PGDATA="$PWD/var/postgresql" PGUSER=postgres PGDATABASE=tornado_status': Reason(
            Why.ELSEWHERE, RESTORED
        ),
        "tornado-status log show": Reason(Why.ELSEWHERE, RESTORED),
        "pg_dump --format=custom --file=status.dump": Reason(Why.ELSEWHERE, RESTORED),
        "pg_restore --clean --if-exists --no-owner --single-transaction"
        ' --dbname="$PGDATABASE" status.dump': Reason(Why.ELSEWHERE, RESTORED),
        'createdb "$PGDATABASE"': Reason(Why.ELSEWHERE, "system/test_backup.py::test_a_dump_moves"),
        "pg_basebackup --pgdata=copy --checkpoint=fast": Reason(Why.ELSEWHERE, COPIED),
        'mv "$PGDATA" before-the-restore': Reason(Why.ELSEWHERE, COPIED),
        "tornado-status log new": Reason(Why.ELSEWHERE, COPIED),
        "mkdir archive": Reason(Why.ELSEWHERE, RECOVERED),
        "pg_basebackup --pgdata=base --checkpoint=fast": Reason(Why.ELSEWHERE, RECOVERED),
        'MOMENT="2026-01-02 03:04:05.678 UTC"': Reason(Why.ELSEWHERE, RECOVERED),
        'psql -c "ALTER SYSTEM RESET restore_command" -c "ALTER SYSTEM RESET'
        ' recovery_target_time" \\': Reason(Why.ELSEWHERE, RECOVERED),
        "pg_basebackup --pgdata=standby --write-recovery-conf --checkpoint=fast": Reason(
            Why.ELSEWHERE, PROMOTED
        ),
        'psql -c "SELECT pg_promote()"': Reason(Why.ELSEWHERE, PROMOTED),
        "createdb rehearsal": Reason(Why.ELSEWHERE, RESTORED),
    },
    "docs/run-benchmarks.md": {
        **dict.fromkeys(
            (
                "python -m benchmarks --quick",
                "python -m benchmarks --quick --against HEAD",
                "python -m benchmarks --only tornado_status go --workloads keep-alive storm"
                " --rounds 9",
                "make bench",
                "python -m benchmarks.scaling --quick",
                "python -m benchmarks.scaling",
                "sysctl vm.nr_hugepages=700",
                "python -m benchmarks.huge_pages",
                "python -m benchmarks.cost_of_observing",
                "python -m benchmarks.loss",
                "python -m benchmarks.forged",
            ),
            here(Why.MINUTES, "test_the_benchmarks_of_the_page_can_be_asked_for"),
        ),
        "apt-get install --no-install-recommends gcc libc6-dev libssl-dev nginx nodejs npm \\": (
            here(Why.MACHINE, "test_debian_has_the_packages_that_a_page_installs")
        ),
    },
    "docs/certificates.md": {
        "status-certs install certs/operator@example.com.p12": Reason(Why.ELSEWHERE, INSTALLED),
    },
    "docs/completion.md": {
        "source <(tornado-status completion bash)": Reason(Why.ELSEWHERE, COMPLETED),
        "autoload -Uz compinit && compinit": Reason(Why.ELSEWHERE, COMPLETED),
        "mkdir -p ~/.zfunc && tornado-status completion zsh > ~/.zfunc/_tornado-status": Reason(
            Why.ELSEWHERE, COMPLETED
        ),
        "fpath=(~/.zfunc $fpath)   # in ~/.zshrc": Reason(Why.ELSEWHERE, COMPLETED),
    },
    "docs/deploy.md": {
        "docker compose up --build --detach": Reason(Why.ENGINE, CONTAINERS),
        "docker compose exec server python -m listeners": Reason(Why.ENGINE, CONTAINERS),
        "docker compose run --rm certs status-certs client ada@example.com": Reason(
            Why.ENGINE, CONTAINERS
        ),
        "docker compose run --rm certs status-certs revoke ada@example.com": Reason(
            Why.ENGINE, CONTAINERS
        ),
        "docker compose build": Reason(Why.ENGINE, CONTAINERS),
        "docker compose down --volumes": Reason(
            Why.ENGINE, "system/test_containers_run.py::test_nothing_is_left_after_down"
        ),
        "docker run --rm tornado_status:dev cat /opt/tornado_status/sbom.cdx.json": Reason(
            Why.ENGINE, CONTAINERS
        ),
        "useradd --system --home-dir /var/lib/tornado-status --shell /usr/sbin/nologin"
        " tornado-status": Reason(Why.MACHINE, SYSTEMD),
        "/opt/tornado_status/bin/status-certs --if-missing": Reason(Why.MACHINE, SYSTEMD),
        "install -m 600 /dev/null /etc/tornado-status/environment": Reason(Why.MACHINE, SYSTEMD),
        "install -m 644 deploy/tornado-status.service /etc/systemd/system/": Reason(
            Why.MACHINE, SYSTEMD
        ),
        "/opt/tornado_status/bin/pip install --require-hashes --requirement"
        " requirements/run.txt": Reason(Why.MACHINE, REPLACED),
        "systemctl reload tornado-status": Reason(Why.MACHINE, RELOADED),
        "honcho start": Reason(
            Why.FOR_EVER,
            "system/test_containers.py::test_the_procfile_serves_on_its_port_whatever_the_runner_sets",
        ),
        "kubectl create namespace tornado-status": Reason(
            Why.CLUSTER, "system/test_deploy.py::test_the_page_makes_what_the_manifests_want"
        ),
    },
    "docs/high-availability.md": {
        "mkdir -p /etc/postgresql-common": here(
            Why.MACHINE, "test_debian_has_the_packages_that_a_page_installs"
        ),
        **{
            command: Reason(Why.MACHINE, FAILED_OVER)
            for command in (
                "cat >>/etc/hosts <<'END'",
                "cp -r deploy/patroni database",
                "name=$(hostname --short)",
                "install -m 755 nftables.conf /etc/nftables.conf",
                "systemctl enable --now etcd",
                "systemctl enable --now patroni",
                "patronictl -c /etc/patroni/config.yml list",
                "su postgres -c \"psql --set ON_ERROR_STOP=1\" <<'END'",
                "patronictl -c /etc/patroni/config.yml switchover status --force",
                "lost=db3",
                "sed -i s/STATE=new/STATE=existing/ /etc/default/etcd",
                "install -m 755 release-silent-leader.sh /usr/local/sbin/release-silent-leader",
                "export PGHOST=db1.example.com,db2.example.com,db3.example.com"
                " PGTARGETSESSIONATTRS=read-write",
            )
        },
    },
    "docs/listeners.md": {
        line: Reason(Why.FOR_EVER, LISTENS)
        for line in (
            "status-listener",
            "status-listener --url https://status.example.com:8443 --interface eth0",
            "status-listener --interface eth0 --url https://status.example.com:8443"
            " --url https://status2.example.com:8443",
            "status-listener --announcer certs/announcer.crt --cert '' --interface eth0",
            "status-listener --format json",
            "status-listener --state listener.json --exec 'tee -a updates.jsonl'",
            "status-listener --encoding binary --port 6668 --interface eth0",
            "status-listener --board",
        )
    },
    "docs/nats.md": {
        "status-listener --nats tls://nats.example.com:4222 --nats-ca certs/ca.crt \\": here(
            Why.OTHERS, "test_the_listener_of_the_page_hears_a_broker"
        ),
    },
    "docs/monitoring.md": {
        "cd deploy/prometheus && promtool check config prometheus.yml": Reason(
            Why.OTHERS, "system/test_monitoring.py::test_the_alerts_are_what_they_say"
        ),
    },
    "docs/network.md": {
        "status-listener --group ff15::66 --interface eth0 --address ::": Reason(
            Why.FOR_EVER, LISTENS
        ),
    },
    "docs/troubleshooting.md": {
        "status-listener --count 1": here(Why.FOR_EVER, "test_the_readme_shows_what_is_seen"),
        "status-listener --interface eth0": here(
            Why.FOR_EVER, "test_each_listener_of_the_page_listens"
        ),
    },
    "docs/tracing.md": {
        "pip install '.[otel]'                                                        # in a"
        " checkout": Reason(
            Why.INSTALLS,
            "system/test_containers.py::test_the_image_gets_all_that_the_server_needs_and_no_more",
        ),
        "curl --cacert certs/ca.crt --cert certs/client.crt --key certs/client.key \\": Reason(
            Why.OTHERS, TRACED
        ),
        "curl --silent http://127.0.0.1:9464/metrics | grep trace_spans_total{": Reason(
            Why.OTHERS, TRACED
        ),
    },
    "docs/replace-django.md": {
        command: Reason(Why.ELSEWHERE, REPLACED_ESTATE)
        for command in (
            "openssl x509 -in client.crt -noout -subject -ext extendedKeyUsage",
            "tornado-status --config status.yaml",
            "curl -i -X PATCH --cacert ca.crt --cert client.crt --key client.key"
            " https://localhost/api/client",
            "curl -X PATCH --cacert ca.crt --cert bad_client.crt --key bad_client.key"
            " https://localhost/api/client",
            "curl -k -X PATCH https://localhost/api/client",
            "status-certs announcer --out .",
        )
    },
    "docs/proxies.md": {
        "haproxy -c -V -f /etc/haproxy/haproxy.cfg": Reason(Why.OTHERS, f"{PROXIES}haproxy"),
        "nginx -t": Reason(Why.OTHERS, f"{PROXIES}nginx"),
        "envoy --mode validate -c /etc/envoy/envoy.yaml": Reason(Why.OTHERS, f"{PROXIES}envoy"),
        "tornado-status doctor --config config.yaml": Reason(
            Why.OTHERS, "system/test_doctor.py::test_what_is_in_front_is_told"
        ),
        "status-client --url https://status.example.com:8443/api/client": Reason(
            Why.OTHERS,
            "network/test_three_servers.py::test_servers_come_and_go_and_nothing_acknowledged_is_lost",
        ),
        "curl --no-buffer --cacert certs/ca.crt --cert certs/operator.crt"
        " --key certs/operator.key \\": Reason(Why.OTHERS, f"{PROXIES}nginx"),
        "curl --cacert certs/ca.crt --cert certs/client.crt --key certs/client.key \\": Reason(
            Why.OTHERS, f"{PROXIES}nginx"
        ),
    },
    "docs/tutorial.md": {
        "make run": Reason(Why.ELSEWHERE, TUTORIAL),
        ". .venv/bin/activate && status-listener --count 1": Reason(Why.ELSEWHERE, TUTORIAL),
        ". .venv/bin/activate && status-client": Reason(Why.ELSEWHERE, TUTORIAL),
        "curl --silent --fail --cacert certs/ca.crt --cert certs/client.crt --key"
        " certs/client.key \\": Reason(Why.ELSEWHERE, TUTORIAL),
        "curl --silent --fail --cacert certs/ca.crt --cert certs/operator.crt --key"
        " certs/operator.key \\": Reason(Why.ELSEWHERE, TUTORIAL),
        "status-certs client ada@example.com": Reason(Why.ELSEWHERE, TUTORIAL),
        "status-certs revoke ada@example.com": Reason(Why.ELSEWHERE, TUTORIAL),
    },
}


# -------------------------------------------------------------------------------- the account of it


def complaints(
    found: list[Block], run: dict[str, dict[str, str]], reasons: dict[str, dict[str, Reason]]
) -> list[str]:
    """Return what is not accounted for: a block without an entry or with two, or the reverse."""
    there = [(block.page, block.name) for block in found]
    said = [(page, name) for table in (run, reasons) for page in table for name in table[page]]
    wrong = [f"{page}: neither run nor a reason: {name}" for page, name in set(there) - set(said)]
    wrong += [f"{page}: no such block: {name}" for page, name in set(said) - set(there)]
    for what, entries in (("two blocks", there), ("run, and a reason", said)):
        twice = {entry for entry in entries if entries.count(entry) > 1}
        wrong += [f"{page}: {what}: {name}" for page, name in twice]
    for page in reasons:
        for reason in reasons[page].values():
            file, _, test = reason.test.partition("::")
            if not (ROOT / "tests" / file).is_file() or test not in names_in(file):
                wrong.append(f"{page}: no such test: {reason.test}")
    return sorted(wrong)


def names_in(file: str) -> set[str]:
    """Return the names of the tests in a file below tests/."""
    parsed = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return {
        node.name
        for node in ast.walk(parsed)
        if isinstance(node, functions) and node.name.startswith("test_")
    }


def every_block() -> list[Block]:
    return [block for page in pages.pages() for block in pages.commands(page)]


def test_every_block_is_run_or_has_a_reason() -> None:
    """And every entry of the tables has its block, every reason its test."""
    assert complaints(every_block(), RUN, REASONS) == []


def test_what_is_not_accounted_for_is_found() -> None:
    """A new block, one that has gone, one that is there twice, a test that has gone."""
    text = "1. A list:\n\n   ```bash\n   make new\n   ```\n\n~~~sh\nmake other\n~~~\n"
    new = pages.commands("docs/new.md", text)
    assert [block.commands for block in new] == ["make new\n", "make other\n"]
    assert complaints(new, {"docs/new.md": {"make other": ""}}, {}) == [
        "docs/new.md: neither run nor a reason: make new"
    ]
    run = {"docs/new.md": {"make new": "", "make other": "", "make old": ""}}
    assert complaints(new, run, {}) == ["docs/new.md: no such block: make old"]
    gone = {"docs/new.md": {"make other": here(Why.MINUTES, "test_that_has_gone")}}
    assert complaints(new, {"docs/new.md": {"make new": ""}}, gone) == [
        f"docs/new.md: no such test: docs/{Path(__file__).name}::test_that_has_gone"
    ]
    twice = complaints([*new, new[0]], {"docs/new.md": {"make new": ""}}, gone)
    assert "docs/new.md: two blocks: make new" in twice
    session = "```console\n$ make new \\\n    now\nmade\n# make other\n```\n"
    [typed] = pages.commands("docs/new.md", session)
    assert typed.commands == "make new \\\n    now\nmake other\n"


# ------------------------------------------------------------------------------- page by page, run

# For pages that need more than a server with the shipped settings.
VARIABLES = {
    "docs/people.md": {"TORNADO_STATUS_ACCESS__ADMINS": '["operator@example.com"]'},
}
UNSERVED = ("docs/certificates.md",)  # everything happens in certs/, from its beginning


@contextlib.contextmanager
def reader_of(page: str, directory: Path, *names: str) -> Iterator[Reader]:
    """A reader of the page, with a running server and one check-in recorded."""
    with reader(directory, *names, **VARIABLES.get(page, {})) as somebody:
        if page in UNSERVED:
            yield somebody
            return
        with somebody.serving():
            somebody.types(".venv/bin/python -m clients")
            yield somebody


@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_do_what_it_says(page: str, tmp_path: Path) -> None:
    """As they stand, in their order, in a fresh clone, beside `make run`."""
    with reader_of(page, tmp_path) as somebody:
        if page == "docs/people.md":
            (somebody.here / "list_of_addresses").write_text("former_user@example.com\n")
        for block in pages.commands(page):
            if block.name in RUN[page]:
                typed = "for a trial\nfor a trial\n" if "pkcs12 -export" in block.name else ""
                said = somebody.types(block.commands, typed=typed)
                assert re.search(RUN[page][block.name], said, re.MULTILINE), f"{block}: {said}"
                assert not re.search(r'"status": ?[45]\d\d', said), f"{block}: {said}"
        if page == "docs/alerts.md":
            secret = somebody.here / "certs" / "plant.secret"
            assert secret.stat().st_mode & 0o777 == 0o600
            assert parse_secrets(secret.read_text(), "secret_file")
        if page == "docs/people.md":
            assert "new_user" not in somebody.types("tornado-status users list")


def block_of(page: str, begin: str) -> Block:
    [found] = [block for block in pages.commands(page) if block.name.startswith(begin)]
    return found


def test_the_readme_shows_what_is_seen(tmp_path: Path) -> None:
    """`make run` in one terminal, a listener in the next, a client in the third; the scenarios."""
    page = "README.md"
    start, test = block_of(page, "make run").commands.splitlines()
    with reader(tmp_path) as somebody:
        assert "-m tests.support.run_tests" in somebody.types(f"{test.partition('#')[0]} --dry-run")
        with somebody.starts(start.partition("#")[0]) as server:
            serving = server.out.wait_for(lambda line: "Serving on" in line, "Serving on")
            assert pages.pattern(pages.shown(page, "Serving on")).fullmatch(serving)
            [listen, check_in] = [
                block for block in pages.commands(page) if block.name.startswith(". .venv/bin/")
            ]
            with somebody.starts(f"bash -c '{listen.commands.strip()}'") as listener:
                listener.err.wait_for(lambda line: "Listening" in line, "Listening")
                assert somebody.types(check_in.commands) == "Success! (204 No Content)\n"
                assert listener.wait() == 0
                heard = listener.out.wait_end()
            assert pages.pattern(pages.shown(page, "Source Packet")).search(heard), heard
            said = somebody.types("clients/scenarios.sh")
            assert pages.pattern(pages.shown(page, "bad_identity")).fullmatch(said.strip()), said
            os.killpg(server.process.pid, signal.SIGINT)  # Ctrl-C
            server.wait()
            assert "stopping" in server.err.wait_end() + server.out.wait_end()
        held = subprocess.run(
            ["find", "/proc", "-maxdepth", "2", "-name", "cwd", "-lname", f"{somebody.here}/*"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert held.stdout == ""  # "Ctrl-C ends all of it": PostgreSQL, too


def test_the_stream_looks_as_the_page_shows_it(tmp_path: Path) -> None:
    page = "docs/api.md"
    with (
        reader_of(page, tmp_path) as somebody,
        somebody.starts(
            block_of(page, "curl -N").commands.replace("curl", "curl --silent", 1)
        ) as curl,
    ):
        curl.out.wait_for(lambda line: "event: position" in line, "a position")
        somebody.types("python -m clients")
        curl.out.wait_for(lambda line: '"event":"check-in"' in line, "a check-in")
        said = "\n".join(curl.out.lines)
        shown = pages.shown(page, "event: position").replace("10.0.0.7", "127.0.0.1")
        assert pages.pattern(shown).match(said), said


@pytest.mark.parametrize("page", ["docs/listeners.md", "docs/network.md"])
def test_each_listener_of_the_page_listens(page: str, tmp_path: Path) -> None:
    """Each command, with the names that it uses; what it hears if it can."""
    blocks = [block for block in pages.commands(page) if block.name.startswith("status-listener")]
    lines = [line for block in blocks for line in block.commands.splitlines()]
    assert len(lines) == {"docs/listeners.md": 8, "docs/network.md": 1}[page]
    with reader(tmp_path, "status.example.com") as somebody:
        somebody.types("python -m certs_gen")
        somebody.types(
            "python -m certs_gen server --name status.example.com --name localhost --force"
        )
        with somebody.serving():
            for number, line in enumerate(lines):
                if "--board" in line:
                    look(somebody, line, r"online +valid_user@example\.com", "q")
                    continue
                with somebody.starts(line) as listener:
                    listener.err.wait_for(lambda text: "Listening" in text, "Listening")
                    # On eth0 nothing is announced: it is the server that tells a reader.
                    somebody.types("python -m clients")
                    if "--interface" not in line:
                        wait_until(lambda: heard(somebody, listener.out.lines), f"line {number}")
                    listener.process.terminate()
                    assert listener.wait() == 0
                    end = listener.err.wait_end().splitlines()[-1]
                assert re.fullmatch(
                    r"Heard \d+ datagrams: \d+ updates? shown, \d+ duplicates?, \d+ refused.*, "
                    r"\d+ of the other encoding, \d+ healed, \d+ repaired, \d+ missed, lag \d+\.",
                    end,
                ), end


def heard(somebody: Reader, lines: list[str]) -> bool:
    """Whether an update was shown, or came to the command."""
    kept = somebody.here / "updates.jsonl"
    text = "\n".join(lines) + (kept.read_text() if kept.exists() else "")
    return "valid_user@example.com" in text


# Terminal starts Python: this one becomes the command, where the reader is.
BECOME = "import os, sys; os.chdir(sys.argv[1]); os.execvp(sys.argv[2], sys.argv[2:])"


def look(somebody: Reader, command: str, pattern: str, end: str) -> None:
    """Run a command in a terminal until a line matches, and end it with a key."""
    path = f"PATH={somebody.environment['PATH']}"
    typed = (*somebody.enter, "env", path, *pages.BASH, f"exec {command}")
    terminal = Terminal("-c", BECOME, somebody.here, *typed)
    try:
        terminal.wait(pattern)
        terminal.type(end)
        assert terminal.ended() == 0
    finally:
        terminal.close()


def test_the_listener_of_the_page_hears_a_broker(tmp_path: Path) -> None:
    """Over TLS, with a password, beside a server of another name."""
    page = "docs/nats.md"
    command = block_of(page, "status-listener").commands
    with reader(tmp_path, "status.example.com", "nats.example.com") as somebody:
        names = "--name status.example.com --name nats.example.com --name localhost"
        somebody.types(f"python -m certs_gen && python -m certs_gen server {names} --force")
        certs = somebody.here / "certs"
        broker_config = pages.shown(page, "authorization {")
        paths = {"/etc/nats": str(certs), "/var/lib/nats": str(tmp_path / "jetstream")}
        for shown, used in paths.items():
            broker_config = broker_config.replace(shown, used)
        (tmp_path / "nats.conf").write_text(broker_config)
        for name, user in (("server-password", "status"), ("nats-password", "listener")):
            [password] = re.findall(rf'user: {user}\s+password: "(.*)"', broker_config)
            (certs / name).write_text(f"{password}\n")
        nats = Nats(tmp_path / "nats")
        [program, *_] = nats.command
        start = [program, "--config", str(tmp_path / "nats.conf"), "--log", str(nats.log)]
        [yaml_block] = [block for block in pages.blocks(page) if block.language == "yaml"]
        [_, target] = yaml.safe_load(yaml_block.text)["announce"]["targets"]
        target["password_file"] = "certs/server-password"  # noqa: S105 - a path
        config = somebody.here / "config.yaml"
        settings = yaml.safe_load(config.read_text())
        settings["announce"]["targets"] = [target]
        config.write_text(yaml.safe_dump(settings))
        with somebody.starts(shlex.join(start)) as broker:
            wait_until(
                lambda: nats.log.exists() and "Server is ready" in nats.log.read_text(),
                "the broker",
            )
            with somebody.serving(), somebody.starts(command) as listener:
                listener.err.wait_for(lambda line: "Listening" in line, "Listening")
                somebody.types("python -m clients")
                listener.out.wait_for(lambda line: "valid_user@example.com" in line, "an update")
            assert broker.process.poll() is None


# ------------------------------------------------------------------- what is not run, looked at


def test_the_benchmarks_of_the_page_can_be_asked_for() -> None:
    """make knows the target; the options and the names after them are those of the programs."""

    def output(*command: str) -> str:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=plain_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        return done.stdout

    makes = output("make", "--dry-run", "--old-file=.venv/.run", "bench", "BENCH_FLAGS=--quick")
    assert "python -m benchmarks --quick" in makes
    scaling = output(sys.executable, "-m", "benchmarks.scaling", "--help")
    seen = set()
    for block in pages.commands("docs/run-benchmarks.md"):
        words = shlex.split(block.commands)
        if words[:2] != ["python", "-m"]:
            continue
        module, options = words[2], words[3:]
        seen.add(module)
        if module == "benchmarks":
            plan, *_ = benchmarks._read(options)
            assert plan.peers
        else:
            assert importlib.util.find_spec(module) is not None
            assert set(options) <= set(re.findall(r"--[a-z]+", scaling))
    others = {"scaling", "huge_pages", "cost_of_observing", "loss", "forged"}
    assert seen == {"benchmarks"} | {f"benchmarks.{name}" for name in others}
    with pytest.raises(SystemExit):
        benchmarks._read(["--only", "nobody"])  # it can fail


@pytest.mark.parametrize(
    ("page", "begin", "part"),
    [
        ("docs/run-benchmarks.md", "apt-get install", "nginx"),
        ("docs/high-availability.md", "mkdir -p /etc/postgresql-common", "patroni"),
    ],
)
def test_debian_has_the_packages_that_a_page_installs(page: str, begin: str, part: str) -> None:
    lines = block_of(page, begin).commands.replace("\\\n", " ").splitlines()
    [command] = [line for line in lines if line.startswith("apt-get install")]
    apt = shutil.which("apt-get") is not None
    known = apt and any(Path("/var/lib/apt/lists").glob("*_Packages*"))
    require("apt-get and its lists", known, "on Debian, apt-get update")

    def simulate(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*shlex.split(command), "--simulate"],
            env={**plain_environment(), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    done = simulate(command)
    assert done.returncode == 0, done.stderr
    assert simulate(command.replace(part, f"{part}x")).returncode != 0


# ------------------------------------------------------------------------------ within a sentence

PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "tornado_status": tornado_status.cli.make_parser,
    "listeners": listeners.options.make_parser,
    "clients": clients.cli._parser,
    "certs_gen": lambda: certs_gen.cli._parser("status-certs"),
}
SCRIPTS = {
    "tornado-status": "tornado_status",
    "status-listener": "listeners",
    "status-client": "clients",
    "status-certs": "certs_gen",
}
_OURS = re.compile(
    rf"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?"
    rf"(?:python3? -m (?P<package>{'|'.join(PARSERS)})|(?P<script>{'|'.join(SCRIPTS)}))"
    r"(?P<rest>(?: .*)?)"
)


def unknown(span: str) -> list[str]:
    """Return the words of a command within a sentence that its program or make does not know."""
    if span.startswith("make ") and not re.match(r"make [A-Z]", span):
        targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
        return [word for word in span.split()[1:] if "=" not in word and word not in targets]
    found = _OURS.fullmatch(re.split(r" [|<>&;]", span)[0])
    if found is None:
        return []
    parser = PARSERS[found["package"] or SCRIPTS[found["script"]]]()
    options, commands = known(parser)
    wrong = []
    for word in found["rest"].split():
        if word.startswith("--"):
            if word.partition("=")[0] not in options:
                wrong.append(word)
        elif word in commands:
            more, commands = known(commands[word])
            options |= more
        elif commands and not wrong and re.fullmatch(r"[a-z-]+", word):
            # A command is expected, unless it is an option's value.
            before = found["rest"].partition(f" {word}")[0].rpartition(" ")[2]
            if not before.startswith("--"):
                wrong.append(word)
    return wrong


def known(
    parser: argparse.ArgumentParser,
) -> tuple[set[str], dict[str, argparse.ArgumentParser]]:
    """Return the options of a parser, and its commands."""
    options = {option for action in parser._actions for option in action.option_strings}
    commands: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            commands.update(action.choices)
    return options, commands


def spans(page: str) -> list[str]:
    """Return what a page shows as code within its sentences."""
    text = (ROOT / page).read_text("utf-8")
    for block in pages.blocks(page):
        text = text.replace(block.text, "")
    found = re.findall(r"(?<!`)`([^`]+)`(?!`)", text.replace("```", ""))
    return [" ".join(span.split()) for span in found]


@pytest.mark.parametrize("page", pages.pages())
def test_every_command_within_a_sentence_is_one(page: str) -> None:
    """Its commands and options are those of the program, its targets those of make."""
    assert {span: unknown(span) for span in spans(page) if unknown(span)} == {}


@pytest.mark.parametrize(
    ("span", "wrong"),
    [
        (".venv/bin/python -m listeners --interfaces eth0", ["--interfaces"]),
        ("status-certs revoked ada@example.com", ["revoked"]),
        ("python -m certs_gen revoke ada@example.com --because", ["--because"]),
        ("tornado-status log newer", []),  # a value, which the tests of the program know
        ("tornado-status configs | head", ["configs"]),
        ("make tests", ["tests"]),
        ("DATABASE_URL=postgresql://host/name make run", []),
        ("python -m tornado_status --config config.yaml doctor", []),
    ],
)
def test_a_command_that_is_none_is_found(span: str, wrong: list[str]) -> None:
    assert unknown(span) == wrong
