"""Readiness: the checks of `health` on the state of this server, and their metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.core import Metric

from tornado_status.config.settings import Settings
from tornado_status.observe import health, metrics
from tornado_status.pki.certificates import ca_id
from tornado_status.pki.credentials import Credentials
from tornado_status.pki.expiry import Validity


def readiness_checks(
    settings: Settings,
    credentials: Credentials,
    reload_problem: str,
    problem: str,
    warnings: Sequence[str],
    presence: Mapping[str, str],
    failing: Mapping[str, str],
) -> list[health.Check]:
    """Return the results of all checks now.

    `reload_problem` is why the files could not be read anew. `problem` and `warnings` are the
    database's, `presence` the sweep's; `failing` are targets of announcements. Each problem is ""
    if there is none.
    """
    return [
        health.database(problem, warnings),
        health.presence(presence),
        *expiry_checks(settings, credentials),
        health.files(reload_problem),
        health.announcements(failing),
    ]


def expiry_checks(settings: Settings, credentials: Credentials) -> list[health.Check]:
    """Return the results of the checks of certificates and CRLs now."""
    now = time.time()
    all_of_them = credentials.validities
    server = [each for each in all_of_them if each.setting == "tls.certificate"]
    cas = [each for each in all_of_them if each.setting == "tls.client_ca"]
    others = [each for each in all_of_them if each.setting.startswith(("announce.", "management."))]
    crls = [each for each in all_of_them if each.kind == "crl"]
    refuse = settings.tls.on_expired_crl == "refuse"
    return [
        # Those after the first are intermediate CAs.
        health.certificates("certificate", server, now, needed=server[:1]),
        health.certificates("client_ca", cas, now, needed=cas),
        health.certificates("other_certificates", others, now),
        # A CA may have several certificates, and has one CRL.
        health.crls(crls, len(set(map(ca_id, credentials.anchors.cas))), now, refuse=refuse),
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


def expiry_metrics(validities: Sequence[Validity]) -> Iterable[Metric]:
    for kind, documentation in (
        ("certificate", "When a certificate expires, in seconds since the epoch"),
        ("crl", "When a CA's CRL is out of date, in seconds since the epoch"),
    ):
        yield metrics.gauges(
            f"{kind}_expiry_timestamp_seconds",
            documentation,
            ["setting", "file", "subject"],
            [
                ([each.setting, each.file, each.subject], each.not_after)
                for each in validities
                if each.kind == kind
            ],
        )
