"""The findings of sslyze about a running server, with a client's certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import StartServer, require
from tests.support.scan import SSLYZE, VERSIONS, Scan, sslyze

pytestmark = pytest.mark.once

OLD = ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1")
MODERN = {
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
}
TLS_1_2 = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
}

# Why: docs/security.md.
DIFFERENCES = {
    "1.3": {"maximum_certificate_lifespan", "tls_curves"},
    "1.2": {"maximum_certificate_lifespan", "tls_curves", "tls_versions", "ciphers"},
}


def accepted(scan: Scan, version: str) -> set[str]:
    suites: list[dict[str, Any]]
    suites = scan.results[f"{version}_cipher_suites"]["accepted_cipher_suites"]
    return {each["cipher_suite"]["name"] for each in suites}


@pytest.mark.parametrize("version", VERSIONS)
def test_sslyze_finds_nothing(start_server: StartServer, tmp_path: Path, version: str) -> None:
    """Nothing below the minimum, no weak cipher, none of the known holes, a good chain."""
    require("sslyze", SSLYZE.exists(), "make .venv-scan/.scan")
    scan = sslyze(start_server(tls={"minimum_version": version}), tmp_path)
    results = scan.results
    for old in OLD:
        assert accepted(scan, old) == set()
    assert accepted(scan, "tls_1_3") == MODERN
    assert accepted(scan, "tls_1_2") == (TLS_1_2 if version == "1.2" else set())
    assert not results["tls_compression"]["supports_compression"]
    assert not results["tls_1_3_early_data"]["supports_early_data"]
    assert not results["heartbleed"]["is_vulnerable_to_heartbleed"]
    assert not results["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"]
    assert results["robot"]["robot_result"] == "NOT_VULNERABLE_RSA_NOT_SUPPORTED"
    renegotiation = results["session_renegotiation"]
    assert renegotiation["supports_secure_renegotiation"]
    assert renegotiation["client_renegotiations_success_count"] == 0
    assert results["tls_fallback_scsv"]["supports_fallback_scsv"]
    assert results["tls_extended_master_secret"]["supports_ems_extension"]
    [deployment] = results["certificate_info"]["certificate_deployments"]
    assert deployment["received_chain_has_valid_order"]
    assert not deployment["verified_chain_has_sha1_signature"]
    valid = {
        each["trust_store"]["name"]: each["was_validation_successful"]
        for each in deployment["path_validation_results"]
    }
    # By our own CA, and by no other: the control.
    assert [name for name, good in valid.items() if good] == ["Supplied CA file"]
    assert scan.differences.keys() == DIFFERENCES[version]
