"""deploy/: the systemd unit and the Kubernetes manifests are what their own checkers accept."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.harness import PATIENCE_S, ROOT, require
from tests.support.pages import commands
from tornado_status.config import loader
from tornado_status.runtime.shutdown import REMAINDER_S

pytestmark = pytest.mark.once

UNIT = ROOT / "deploy" / "tornado-status.service"
MANIFESTS = ROOT / "deploy" / "kubernetes.yaml"
PAGE = (ROOT / "docs" / "deploy.md").read_text()


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    require("systemd-analyze", program is not None, "apt-get install systemd")
    return subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def as_installed(directory: Path, text: str) -> Path:
    """Return the unit with a program that is here."""
    unit = directory / UNIT.name
    unit.write_text(text.replace("/opt/tornado_status/bin/python", sys.executable))
    return unit


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    done = analyze("verify", "--man=no", as_installed(tmp_path, UNIT.read_text()))
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert complaints == []
    wrong = UNIT.read_text().replace("PrivateTmp=yes", "PrivateTmpp=yes")
    done = analyze("verify", "--man=no", as_installed(tmp_path, wrong))
    assert "PrivateTmpp" in done.stderr  # it can fail


def test_the_unit_is_as_hardened_as_the_page_says(tmp_path: Path) -> None:
    done = analyze("security", "--offline=true", as_installed(tmp_path, UNIT.read_text()))
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    [stated] = re.findall(r"gives it ([0-9.]+), of 10", PAGE)
    assert float(found[1]) <= float(stated) + 0.3  # versions of systemd weigh differently
    bare = "[Service]\nExecStart=/bin/true\n"
    done = analyze("security", "--offline=true", as_installed(tmp_path, bare))
    assert "UNSAFE" in done.stdout  # it can fail


def test_the_unit_waits_for_what_the_server_does() -> None:
    """It notifies, it drains, and it may open as many files as connections."""
    unit = configparser.RawConfigParser(strict=False, delimiters="=")
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    settings = loader.load(ROOT / "config.yaml", {})
    assert service["Type"] == "notify-reload"
    assert float(service["WatchdogSec"].removesuffix("s")) > 0
    assert (
        float(service["TimeoutStopSec"].removesuffix("s"))
        > settings.server.drain_timeout_s + REMAINDER_S
    )
    assert int(service["LimitNOFILE"]) > settings.server.max_connections


# -------------------------------------------------------------------------------------- Kubernetes


def manifests() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all(MANIFESTS.read_text())
    return {document["kind"]: document for document in documents}


def container() -> dict[str, Any]:
    [found] = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def validate(file: Path) -> subprocess.CompletedProcess[str]:
    available = importlib.util.find_spec("kubernetes_validate") is not None
    require("kubernetes-validate", available, "pip install -r requirements/kubernetes.txt")
    return subprocess.run(
        [sys.executable, "-m", "kubernetes_validate", "--strict", str(file)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_the_manifests_are_valid(tmp_path: Path) -> None:
    """By the schemas of Kubernetes itself, unknown keys included."""
    done = validate(MANIFESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(MANIFESTS.read_text().replace("maxSurge", "maxSurplus"))
    assert validate(wrong).returncode != 0


def test_the_manifests_settings_are_settings() -> None:
    """The server takes what the ConfigMap sets."""
    found = manifests()["ConfigMap"]["data"]
    settings = loader.load(ROOT / "config.yaml", {**found, "DATABASE_URL": "postgresql://db/x"})
    assert settings.announce.targets == ()
    assert settings.logging.format == "json"
    [port] = container()["ports"]
    assert port["containerPort"] == settings.server.port


def test_the_probes_ask_what_the_image_asks() -> None:
    """Alive by /healthz, ready by /readyz, from within."""
    text = (ROOT / "Dockerfile").read_text()
    [health] = re.findall(r"(?m)^HEALTHCHECK .*\n    CMD (.*)$", text)
    command = json.loads(health)
    assert container()["readinessProbe"]["exec"]["command"] == command
    alive = [word.replace("/readyz", "/healthz") for word in command]
    for probe in ("startupProbe", "livenessProbe"):
        assert container()[probe]["exec"]["command"] == alive


def test_a_pod_has_time_to_drain() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    pause = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    settings = loader.load(ROOT / "config.yaml", {})
    assert (
        pod["terminationGracePeriodSeconds"] > pause + settings.server.drain_timeout_s + REMAINDER_S
    )


def test_the_page_makes_what_the_manifests_want() -> None:
    """Its namespace, and each secret by its name, with the keys that are read."""
    [block] = [b.commands for b in commands("docs/deploy.md") if "kubectl" in b.commands]
    made, keys = set(), {}
    for line in block.splitlines():
        words = shlex.split(line)
        assert words.pop(0) == "kubectl"
        if words[0] == "--namespace":
            assert words[1] == "tornado-status"
            words = words[2:]
        if words[:2] == ["create", "namespace"]:
            made.add(words[2])
        elif words[:3] == ["create", "secret", "generic"]:
            keys[words[3]] = [option.partition("=")[2] for option in words[4:]]
        else:
            assert words == ["apply", "-f", str(MANIFESTS.relative_to(ROOT))]
    documents = list(yaml.safe_load_all(MANIFESTS.read_text()))
    assert {d["metadata"].get("namespace", "tornado-status") for d in documents} == made
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    wanted = {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    referred = [e["valueFrom"]["secretKeyRef"] for e in container()["env"] if "valueFrom" in e]
    assert set(keys) == wanted | {each["name"] for each in referred}
    for each in referred:
        assert keys[each["name"]][0].partition("=")[0] == each["key"]
    # The role whose directory is handed over, as docs/certificates.md makes it.
    assert keys["server-certs"] == ["handed/server"]
    copied = [b.commands for b in commands("docs/certificates.md") if "handed/server" in b.commands]
    assert copied
