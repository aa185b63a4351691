"""Scanners before a running server, with a client's certificate: sslyze and testssl.sh.

`python -m tests.support.scan` starts a server on loopback, in each of its settings, and shows
what they say.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certs_gen.cli import main as certs_gen
from tests.support.harness import ROOT, Postgres, Server, running_server

SSLYZE = ROOT / ".venv-scan" / "bin" / "sslyze"
SCAN_TIMEOUT_S = 900
VERSIONS = ("1.3", "1.2")  # of tls.minimum_version
QUIET = ("OK", "INFO", "DEBUG")


@dataclass(frozen=True)
class Scan:
    """The findings of sslyze: results by name, and differences from Mozilla's "modern" profile."""

    version: str
    results: dict[str, Any]
    differences: dict[str, str]


def sslyze(server: Server, directory: Path) -> Scan:
    """Run all of sslyze's checks."""
    out = directory / "sslyze.json"
    out.unlink(missing_ok=True)
    checks = (
        "certinfo sslv2 sslv3 tlsv1 tlsv1_1 tlsv1_2 tlsv1_3 compression early_data reneg "
        "heartbleed robot openssl_ccs fallback elliptic_curves ems resum"
    )
    done = subprocess.run(
        [
            str(SSLYZE),
            f"--cert={server.certs / 'client.crt'}",
            f"--key={server.certs / 'client.key'}",
            f"--certinfo_ca_file={server.certs / 'ca.crt'}",
            *(f"--{check}" for check in checks.split()),
            "--mozilla_config=modern",
            f"--json_out={out}",
            f"localhost:{server.port}",
        ],
        capture_output=True,
        text=True,
        timeout=SCAN_TIMEOUT_S,
        check=False,  # it ends with 1 where the profile differs
    )
    assert out.exists(), done.stdout + done.stderr
    found = json.loads(out.read_text())
    [of_server] = found["server_scan_results"]
    results = {}
    for name, scan in of_server["scan_result"].items():
        if scan["status"] == "COMPLETED":
            results[name] = scan["result"]
        else:
            assert scan["status"] == "NOT_SCHEDULED", f"{name}: {scan}"
    assert f"localhost:{server.port}: " in done.stdout.split("COMPLIANCE", 1)[1]
    differences = dict(
        re.findall(r"^ +\* (\w+): (.+)$", done.stdout.split("COMPLIANCE", 1)[1], re.M)
    )
    return Scan(found["sslyze_version"], results, differences)


def testssl(server: Server, directory: Path) -> list[str]:
    """Run testssl.sh, which takes minutes; return what it does not call good."""
    program = shutil.which("testssl", path="/usr/bin:/usr/local/bin") or "testssl.sh"
    both = directory / "mtls.pem"
    both.touch(mode=0o600)
    both.write_bytes(
        (server.certs / "client.crt").read_bytes() + (server.certs / "client.key").read_bytes()
    )
    out = directory / "testssl.json"
    out.unlink(missing_ok=True)
    subprocess.run(
        [
            program,
            *("--mtls", str(both), "--add-ca", str(server.certs / "ca.crt")),
            *("--color", "0", "--warnings", "off", "--jsonfile", str(out)),
            f"localhost:{server.port}",
        ],
        stdout=subprocess.DEVNULL,
        timeout=SCAN_TIMEOUT_S,
        check=False,  # its status counts what it does not like
    )
    found = json.loads(out.read_text())
    return [
        f"{each['severity']} {each['id']}: {each['finding']}"
        for each in found
        if each["severity"] not in QUIET
    ]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="scan") as name:
        directory = Path(name)
        assert certs_gen(["--out", str(directory / "certs")]) == 0
        postgres = Postgres(directory / "pg")
        postgres.start()
        try:
            for version in VERSIONS:
                tls = {"minimum_version": version}
                place = directory / version
                with running_server(place, directory / "certs", postgres.url, tls=tls) as server:
                    scan = sslyze(server, place)
                    print(f'\ntls.minimum_version "{version}", sslyze {scan.version}')
                    for check, result in scan.results.items():
                        if check != "certificate_info":
                            print(f"  {check}: {_short(result)}")
                    for what, why in scan.differences.items():
                        print(f"  not as Mozilla's modern profile: {what}: {why}")
                    print("testssl.sh, what it does not call good:")
                    for line in testssl(server, place):
                        print(f"  {line}")
        finally:
            postgres.stop()
    return 0


def _short(result: dict[str, Any]) -> str:
    if "accepted_cipher_suites" in result:
        suites = [each["cipher_suite"]["name"] for each in result["accepted_cipher_suites"]]
        return ", ".join(suites) or "refused"
    return json.dumps(
        {key: value for key, value in result.items() if not isinstance(value, list | dict)}
    )


if __name__ == "__main__":
    sys.exit(main())
