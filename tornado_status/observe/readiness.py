"""What readiness looks at: puts the verdicts of `health` together for this server."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.core import Metric

from tornado_status.config import Settings
from tornado_status.observe import health, metrics
from tornado_status.pki.certificates import ca_id
from tornado_status.pki.credentials import Credentials
from tornado_status.pki.expiry import Validity


def look(
    settings: Settings,
    keys: Credentials,
    reload_problem: str,
    problem: str,
    warnings: Sequence[str],
    failing: Mapping[str, str],
) -> list[health.Check]:
    """Return all checks as they stand now.

    `reload_problem` is why the files could not be read anew. `problem` and `warnings` are the
    database's; `failing` are targets of announcements. Each problem is "" where there is none.
    """
    return [
        health.database(problem, warnings),
        *look_at_terms(settings, keys),
        health.files(reload_problem),
        health.announcements(failing),
    ]


def look_at_terms(settings: Settings, keys: Credentials) -> list[health.Check]:
    """Return what certificates and revocation lists lead to by now."""
    now = time.time()
    terms = keys.validities
    server = [term for term in terms if term.setting == "tls.certificate"]
    cas = [term for term in terms if term.setting == "tls.client_ca"]
    others = [term for term in terms if term.setting.startswith(("announce.", "management."))]
    lists = [term for term in terms if term.kind == "crl"]
    refuse = settings.tls.on_expired_crl == "refuse"
    return [
        # Those behind the first are intermediate CAs.
        health.certificates("certificate", server, now, needed=server[:1]),
        health.certificates("client_ca", cas, now, needed=cas),
        health.certificates("other_certificates", others, now),
        # A CA may have several certificates, and has one list.
        health.lists(lists, len(set(map(ca_id, keys.anchors.cas))), now, refuse=refuse),
    ]


def check_metrics(checks: Sequence[health.Check]) -> Iterable[Metric]:
    ready = not any(check.problems for check in checks)
    yield metrics.gauge("ready", "1 if check-ins are recorded", float(ready))
    failing = []
    for check in checks:
        failing.append(([check.name, "problem"], len(check.problems)))
        failing.append(([check.name, "warning"], len(check.warnings)))
    yield metrics.gauges(
        "checks_failing", "Problems and warnings of /readyz", ["check", "severity"], failing
    )


def expiry_metrics(terms: Sequence[Validity]) -> Iterable[Metric]:
    for kind, name, documentation in (
        ("certificate", "certificate", "When a certificate expires, in seconds since the epoch"),
        ("crl", "crl", "When a CA's CRL is out of date, in seconds since the epoch"),
    ):
        yield metrics.gauges(
            f"{name}_expiry_timestamp_seconds",
            documentation,
            ["setting", "file", "subject"],
            [
                ([term.setting, term.file, term.subject], term.not_after)
                for term in terms
                if term.kind == kind
            ],
        )
