"""`tornado-status config` and `completion`: what is set and why, and a shell that helps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.support.harness import PATIENCE_S, ROOT, plain_environment, run_command
from tornado_status.commands import config_dump
from tornado_status.config import loader
from tornado_status.config.settings import Settings

URL = "postgresql://somebody:s3cr3t@one.example,two.example:5433/name?sslmode=require"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_command(*arguments, environment=environment)


def shown(path: Path, **environment: str) -> dict[str, tuple[object, str]]:
    """Value and origin of each key, as `config --format json` prints them."""
    done = run("config", "--config", str(path), "--format", "json", **environment)
    assert done.returncode == 0, done.stderr
    return {key: (v["value"], v["origin"]) for key, v in json.loads(done.stdout).items()}


def test_every_setting_says_where_it_comes_from(tmp_path: Path) -> None:
    """Default, file, the platform's variables, ours: what counts in the end."""
    path = tmp_path / "config.yaml"
    path.write_text("server: {port: 1, host: 127.0.0.1}\nmanagement: {host: '::1'}\n")
    found = shown(
        path,
        PORT="2",
        DATABASE_URL=URL,
        TORNADO_STATUS_LOGGING__LEVEL="debug",
        TORNADO_STATUS_MANAGEMENT='{"port": 0}',
    )
    assert found["server.host"] == ("127.0.0.1", str(path))
    assert found["server.port"] == (2, "PORT")
    assert found["logging.level"] == ("debug", "TORNADO_STATUS_LOGGING__LEVEL")
    assert found["logging.format"] == ("console", "default")
    assert found["database.url"][1] == "DATABASE_URL"
    assert found["management.port"] == (0, "TORNADO_STATUS_MANAGEMENT")
    assert found["management.host"] == ("127.0.0.1", "default")  # replaced as a whole
    assert shown(path, PORT="2", TORNADO_STATUS_SERVER__PORT="3")["server.port"] == (
        3,
        "TORNADO_STATUS_SERVER__PORT",
    )


def test_every_setting_is_shown() -> None:
    """Of all sections, with the shipped file's values."""
    found = shown(ROOT / "config.yaml")
    for section, value in Settings():
        names = (
            [f"{section}.{key}" for key, _ in value] if hasattr(value, "model_dump") else [section]
        )
        for name in names:
            assert name in found


def test_what_is_shown_is_a_configuration(tmp_path: Path) -> None:
    """It can be read, and leads to the same settings."""
    done = run("config", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "config.yaml"
    copy.write_text(done.stdout)
    assert loader.load(copy, {}) == loader.load(ROOT / "config.yaml", {})
    assert "# config.yaml" in done.stdout
    copy.write_text("")
    assert "# default" in run("config", "--config", str(copy)).stdout


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("url", URL, URL.replace("s3cr3t", config_dump.MASK)),
        (
            "url",
            "postgresql://h/n?user=u&password=s3cr3t",
            f"postgresql://h/n?user=u&password={config_dump.MASK}",
        ),
        ("url", "postgresql://user@h/n", "postgresql://user@h/n"),
        ("url", "https://hooks.example/T0/s3cr3t", f"https://hooks.example/{config_dump.MASK}"),
        ("url", "https://hooks.example/?k=s3cr3t", f"https://hooks.example/?{config_dump.MASK}"),
        ("url", "nats://u:s3cr3t@127.0.0.1:4222", f"nats://u:{config_dump.MASK}@127.0.0.1:4222"),
        ("url", "http://[s3cr3t/x", config_dump.MASK),
        ("url", "nats://s3cr3t@127.0.0.1:4222", f"nats://{config_dump.MASK}@127.0.0.1:4222"),
        ("secret", "s3cr3t", config_dump.MASK),
        ("signing_key", "-----BEGIN PRIVATE KEY-----\ns3cr3t", config_dump.MASK),
        ("note", "-----BEGIN EC PRIVATE KEY-----\ns3cr3t", config_dump.MASK),
        ("keep_alive_s", 15.0, 15.0),
        ("key_id", "a", "a"),
        ("bot_token", "s3cr3t", config_dump.MASK),
        ("secret_file", "/run/secrets/x", "/run/secrets/x"),
        ("private_key", Path("/k"), "/k"),
        ("url", "embedded", "embedded"),
    ],
)
def test_secrets_are_masked(name: str, value: object, expected: str) -> None:
    """In each setting that may hold one, in lists of sections too."""
    plain = config_dump._plain("", {"section": [{name: value}]})
    assert plain == {"section": [{name: expected}]}


WORDS = ("secret", "password", "passwd", "passphrase", "token", "key", "api_key", "credentials")


@given(
    st.sampled_from(WORDS),
    st.sampled_from(["", "smtp_", "client_"]),
    st.sampled_from([str, str.upper, str.title]),
    st.recursive(
        st.just("s3cr3t"),
        lambda inner: (
            st.lists(inner, min_size=1, max_size=2)
            | st.dictionaries(st.sampled_from(["a", "file"]), inner, min_size=1)
        ),
        max_leaves=4,
    ),
)
def test_whatever_is_named_like_a_secret_is_masked(
    word: str, before: str, write: Callable[[str], str], value: object
) -> None:
    """In any setting that there may ever be, also where it is a list or a map."""
    name = write(f"{before}{word}")
    assert "s3cr3t" not in repr(config_dump._plain("", {"section": {name: value}}))
    assert "s3cr3t" in repr(config_dump._plain("", {"section": {"note": value}}))


def test_a_password_in_any_url_setting_is_masked() -> None:
    """Every text that can be set, in every section: as a URL with a password in it."""
    replaced = 0

    def with_urls(value: object) -> object:
        nonlocal replaced
        if isinstance(value, dict):
            return {key: with_urls(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [with_urls(inner) for inner in value]
        if isinstance(value, str):
            replaced += 1
            return "scheme://user:s3cr3t@host/path?password=s3cr3t&n=1"
        return value

    settings = loader.load(ROOT / "config.yaml", {}).model_dump()
    shown = config_dump._plain("", with_urls(settings))
    assert replaced > 10
    assert "s3cr3t" not in repr(shown)
    assert repr(shown).count("scheme://user:") == replaced


def test_a_password_is_not_printed() -> None:
    """In neither format."""
    for chosen in ("yaml", "json"):
        done = run("config", "--format", chosen, DATABASE_URL=URL)
        assert done.returncode == 0
        assert "somebody" in done.stdout
        assert "s3cr3t" not in done.stdout + done.stderr


def test_a_wrong_setting_is_one_line() -> None:
    """As when serving."""
    done = run("config", PORT="none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "server.port" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [("completion", "zsh"), ("config",), ("version",)])
def test_a_reader_that_has_gone_is_no_traceback(command: tuple[str, ...]) -> None:
    """As with `| head`: nothing is said, and the status is not 0."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tornado_status", *command],
            cwd=ROOT,
            env=plain_environment(),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_yaml_of_the_shown_settings_keeps_types() -> None:
    """Text stays text, though it looks like a number."""
    text = config_dump.as_yaml(loader.load(ROOT / "config.yaml", {}), {})
    assert yaml.safe_load(text)["tls"]["minimum_version"] == "1.3"
