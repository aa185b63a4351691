"""Settings: defaults, the file, the environment, and errors that name their key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.support.harness import ROOT
from tornado_status.config import loader
from tornado_status.config.settings import (
    AlertSettings,
    NatsTarget,
    Settings,
    UdpTarget,
    without_effect,
)
from tornado_status.errors import ConfigError
from tornado_status.pki.trust_anchors import Anchors, crl_file

SHIPPED = ROOT / "config.yaml"


def load(tmp_path: Path, text: str = "", **environment: str) -> Settings:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return loader.load(path, environment)


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += keys(inner, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


@pytest.mark.parametrize("key", keys(Settings))
def test_every_key_is_documented_where_it_stands(key: str) -> None:
    """config.yaml shows it with a comment in its line."""
    text = SHIPPED.read_text()
    section, _, name = key.partition(".")
    name = name or section  # a list of its own
    block = text[text.index(f"\n{section}:") + 1 :].split("\n\n")[0]
    [line] = [line for line in block.splitlines() if line.strip().startswith(f"{name}:")]
    assert "# " in line


def shown_entry(begin: str) -> dict[str, Any]:
    """Return the example of an entry that is in a comment from the line that begins so."""
    lines = [line.strip() for line in SHIPPED.read_text().splitlines()]
    first = next(number for number, line in enumerate(lines) if line.startswith(begin))
    rest = next(n for n, line in enumerate(lines[first:]) if not line.startswith("#   "))
    [entry] = yaml.safe_load("\n".join(line[1:] for line in lines[first : first + rest]))
    assert isinstance(entry, dict)
    return entry


@pytest.mark.parametrize(
    ("begin", "model"),
    [
        ("#   - name: plant", AlertSettings),
        ("#   - kind: multicast", UdpTarget),
        ("#   - kind: nats", NatsTarget),
    ],
)
def test_an_entry_of_a_list_is_shown_with_its_keys_and_defaults(
    begin: str, model: type[BaseModel]
) -> None:
    """In a comment of config.yaml: it can be taken as it stands."""
    shown = shown_entry(begin)
    assert shown.keys() == model.model_fields.keys()
    entry = model.model_validate(shown)
    for key, field in model.model_fields.items():
        if not field.is_required() and key != "secret_file":
            assert getattr(entry, key) == field.default, key


@pytest.mark.parametrize(
    ("alert", "message"),
    [
        ({"secret_file": "s", "secret": "whsec_x"}, "expected either secret or secret_file"),
        ({}, "expected either secret or secret_file"),
        ({"secret_file": "s", "url": "ftp://h/s3cret"}, "alerts[0].url: expected https://host"),
        ({"secret_file": "s", "url": "https://u:s3cret@h/"}, "alerts[0].url: expected https://h"),
        ({"secret_file": "s", "events": ["ofline"]}, "alerts[0].events[0]: "),
        ({"secret_file": "s", "events": []}, "alerts[0].events: "),
        ({"secret_file": "s", "events": ["back"], "quiet_s": 5}, "quiet_s: needs offline"),
        ({"secret_file": "s", "name": "A B"}, "alerts[0].name: "),
        ({"secret": 12345}, "alerts[0].secret: "),
    ],
)
def test_a_wrong_alert_is_told_without_its_secrets(
    tmp_path: Path, alert: dict[str, Any], message: str
) -> None:
    """The key and what was expected."""
    whole = {"name": "plant", "url": "https://hooks.example.com/s3cret", **alert}
    for alerts in ([whole], [{**whole, "name": "other", "secret_file": "s", "secret": None}] * 2):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, yaml.safe_dump({"alerts": alerts}))
        assert "s3cret" not in str(caught.value)
        assert "whsec" not in str(caught.value)
        assert "12345" not in str(caught.value)
        if len(alerts) == 1:
            assert message in str(caught.value)


@pytest.mark.parametrize("key", keys(Settings))
def test_the_shipped_file_says_the_default(tmp_path: Path, key: str) -> None:
    """Leaving a key out changes nothing, nor does a server without the file."""
    shipped = load(tmp_path, SHIPPED.read_text()).model_dump()
    default = load(tmp_path).model_dump()
    for name in key.split("."):
        shipped, default = shipped[name], default[name]
    assert shipped == default


def test_without_a_file_paths_are_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a config.yaml there that is empty."""
    monkeypatch.chdir(tmp_path)
    assert loader.find_file(None) is None
    assert loader.find_file(Path("a.yaml")) == Path("a.yaml")
    default = loader.load(None, {})
    assert loader.origins(None, {"PORT": "1"}) == {"server.port": "PORT"}
    assert default == load(tmp_path)
    assert loader.find_file(None) == Path("config.yaml")
    with pytest.raises(ConfigError, match=r"^PORT: server\.port: expected a whole number"):
        loader.load(None, {"PORT": "x"})


def test_the_list_beside_the_ca_is_used_by_default(tmp_path: Path) -> None:
    """It may be missing, until it was loaded once. A file that is named must be there."""
    default = load(tmp_path, "tls: {client_ca: pki/ca.crt}").tls
    assert default.crl == tmp_path / "pki" / "ca.crl"
    assert crl_file(default) is None
    assert crl_file(default, Anchors((), {})) is None
    lists: Any = {b"": object()}
    assert crl_file(default, Anchors((), lists)) == default.crl
    named = load(tmp_path, "tls: {client_ca: pki/ca.crt, crl: pki/ca.crl}").tls
    assert crl_file(named) == named.crl
    none = load(tmp_path, "tls: {crl: null}").tls
    assert crl_file(none) is None
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki" / "ca.crl").touch()
    assert crl_file(default) == default.crl


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """And absolute ones stay."""
    settings = load(tmp_path, "tls: {certificate: a/b.crt, client_ca: /c.crt}")
    assert settings.tls.certificate == tmp_path / "a" / "b.crt"
    assert settings.tls.client_ca == Path("/c.crt")
    assert settings.database.data_dir == tmp_path / "var" / "postgresql"


def test_the_environment_wins_over_the_file_and_the_platform(tmp_path: Path) -> None:
    """Default, file, PORT and DATABASE_URL, TORNADO_STATUS_SECTION__KEY: the later one wins."""
    text = "server: {port: 1}"
    assert load(tmp_path).server.port == 8443
    assert load(tmp_path, text).server.port == 1
    assert load(tmp_path, text, PORT="2").server.port == 2
    settings = load(tmp_path, text, PORT="2", TORNADO_STATUS_SERVER__PORT="3")
    assert settings.server.port == 3
    url = "postgresql://user:password@host/name"
    assert load(tmp_path, DATABASE_URL=url).database.url == url


def test_lists_and_maps_come_from_the_environment_as_json(tmp_path: Path) -> None:
    """A section as a whole, too."""
    settings = load(
        tmp_path,
        TORNADO_STATUS_ACCESS__READERS='["a@example.com"]',
        TORNADO_STATUS_ANNOUNCE__TARGETS='[{"kind":"unicast","address":"10.0.0.9","port":1}]',
        TORNADO_STATUS_MANAGEMENT='{"port": 0}',
    )
    assert settings.access.readers == ("a@example.com",)
    assert str(settings.announce.targets[0]) == "unicast 10.0.0.9:1"
    assert settings.management.port == 0


def target(kind: str, address: str, interfaces: str = "[]") -> str:
    return (
        f"announce: {{targets: [{{kind: {kind}, address: '{address}', interfaces: {interfaces}}}]}}"
    )


def nats(address: str, more: str = "subject: status") -> str:
    return f"announce: {{targets: [{{kind: nats, address: '{address}', {more}}}]}}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (nats("nats://a,tls://b:1"), "nats://a:4222,tls://b:1 status"),
        (target("multicast", "FF15:0::66", "[eth0, 'fd00::1']"), "multicast [ff15::66]:6667"),
        (target("multicast", "239.1.1.1"), "multicast 239.1.1.1:6667"),
        (target("broadcast", "auto", "[eth0, 10.0.0.1]"), "broadcast auto:6667"),
        (target("unicast", "fe80::1", "[eth0]"), "unicast [fe80::1]:6667"),
        (target("unicast", "fd00::1"), "unicast [fd00::1]:6667"),
    ],
)
def test_targets_are_of_ipv4_and_ipv6(tmp_path: Path, text: str, shown: str) -> None:
    """Shown with brackets where a port follows an IPv6 address."""
    assert str(load(tmp_path, text).announce.targets[0]) == shown


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("12h", 43200), ("7d", 604800)]
)
def test_durations_have_units(tmp_path: Path, text: str, seconds: float) -> None:
    """Seconds where there is none."""
    assert load(tmp_path, f"history: {{retention: {text}}}").history.retention == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sever: {}", "config.yaml, line 1: sever: unknown key; did you mean server?"),
        ("\n\nretention: 7d", "line 3: retention: unknown key; did you mean history.retention?"),
        ("nothing_like_it: 7", "nothing_like_it: unknown key"),
        ("1: 2", "line 1: 1: unknown key"),
        ("server: 5", "server: expected a section with keys below it, got 5"),
        ("tracing: {personal_data: perhaps}", "expected true or false, got 'perhaps'"),
        ("access: {readers: a@example.com}", "access.readers: expected a list, got 'a@example"),
        ("logging: {level: loud}", "expected debug, info, warning or error, got 'loud'"),
        ("server: {host: 5}", "server.host: expected text, got 5"),
        ("tls: {crl: 5}", "tls.crl: expected the name of a file, got 5"),
        ("server: {max_connections: 1.5}", "expected a whole number, got 1.5"),
        ("server: {port: 65536}", "line 1: server.port: expected at most 65535, got 65536"),
        ("server: {port: yes}", "server.port: expected a number"),
        (
            "server: {idle_timeout_s: soon}",
            "server.idle_timeout_s: expected seconds, or a duration such as 90s, 15m, 12h, 7d, got",
        ),
        ("server: {idle_timeout_s: 0}", "server.idle_timeout_s: "),
        ("tls: {minimum_version: 1.1}", "tls.minimum_version: "),
        ("announce: {targets: [{kind: multicast, address: 10.0.0.1}]}", "expected a multicast"),
        ("announce: {targets: [{kind: unicast, address: 239.0.0.1}]}", "needs kind multicast"),
        ("announce: {targets: [{kind: unicast, address: example.com}]}", "targets[0].address"),
        ("announce: {targets: [{kind: unicast}]}", "announce.targets[0].address: missing"),
        (target("unicast", "fe80::1%eth0"), "give the interface with interfaces: [eth0]"),
        (target("unicast", "fe80::1"), "interfaces: a link-local address needs one"),
        (target("unicast", "::"), "expected the address of a receiver"),
        (target("multicast", "ff02::66"), "interfaces: an IPv6 group needs them"),
        (target("multicast", "ff02::66", "[10.0.0.1]"), "10.0.0.1 cannot send to an IPv6 address"),
        (target("multicast", "fd00::1", "[eth0]"), "expected a multicast group"),
        (target("multicast", "auto", "[eth0]"), "address: auto is for broadcast"),
        (target("broadcast", "auto"), "address: auto needs interfaces"),
        (target("broadcast", "auto", "['fd00::1']"), "cannot send to an IPv4 address"),
        (target("broadcast", "fd00::1", "[eth0]"), "IPv6 has no broadcast"),
        (target("broadcast", "255.255.255.255"), "255.255.255.255 needs them"),
        (target("broadcast", "auto", "[eth0], loop: false"), "loop: only for multicast"),
        (target("multicast", "239.1.1.1", "['']"), "interfaces: expected names or addresses"),
        (target("multicast", "239.1.1.1", "[0.0.0.0]"), "interfaces: expected names or addresses"),
        (nats("http://a"), "targets[0].address: expected nats://host:4222 or tls://host:4222, got"),
        (nats("nats://a", "subject: 'a.*'"), "targets[0].subject: expected a subject"),
        (nats("nats://a", "stream: a.b"), "targets[0].stream: expected a stream's name"),
        (nats("nats://a", "user: b"), "password_file: needed with user"),
        (nats("nats://a", "certificate: b"), "private_key: needed with certificate"),
        (nats("nats://a", "port: 4222"), "targets[0].port: not a field of this kind of target"),
        (nats("nats://a", "encoding: binary"), "encoding: expected json or sealed"),
        (
            "announce: {targets: [{kind: kafka, address: 10.0.0.1}]}",
            "expected multicast, broadcast, uni",
        ),
        ("announce: {targets: [{kind: unicast, address: 10.0.0.1, subject: a}]}", "not a field of"),
        ("announce: {targets: [nats]}", "announce.targets[0]: "),
        ("server: [", "not valid YAML"),
        ("- server", "expected sections such as 'server:', got a list"),
        (
            "presence:\n  offline_after_s: 90",
            "line 2: presence.offline_after_s: expected at least two times",
        ),
        ("presence: {interval_s: soon}", "presence.interval_s: "),
        ("server: {port: 2026-99-99}", "line 1: not valid YAML: expected a valid timestamp, or te"),
        ("a: 1\nserver: {port: !!timestamp x}", "line 2: not valid YAML: expected a valid times"),
        ('server: {port: !!int "x"}', "expected a valid int, or text in quotation marks"),
        ('server: {port: !!int ""}', "expected a valid int, or text in quotation marks"),
        ("server: {port: " + "9" * 5000 + "}", "line 1: not valid YAML: expected a valid int"),
        ('server: {idle_timeout_s: !!float ""}', "expected a valid float"),
        ("server: {reuse_port: !!bool x}", "line 1: not valid YAML: expected a valid bool"),
        ("server: " + "[" * 5000, "not valid YAML: nested too deeply"),
        ('server: {host: "\\ud800"}', "line 1: not valid YAML: expected text without NUL and unp"),
        (
            '"\\ud800": 1',
            "line 1: not valid YAML: expected text without NUL and unpaired surrogates",
        ),
        ('tls: {client_ca: "a\\0b"}', "line 1: not valid YAML: expected text without NUL and unp"),
        ("server: {host: a..b}", "server.host: expected a host name or an address, got 'a..b'"),
        ("management: {host: " + "a" * 64 + "}", "management.host: expected a host name or an add"),
        ("tracing: {endpoint: 'http://a..b:1'}", "tracing.endpoint: expected http://host:4318"),
        ("alerts: [{name: a, secret: b, url: 'https://a..b/'}]", "alerts[0].url: expected https:"),
        (nats("nats://a..b"), "targets[0].address: expected nats://host:4222 or tls://host:4222"),
        ("tls: {client_ca: ~nobody-here/a}", "expected a path; the user behind ~ has no home di"),
        ("tls: {crl: null}\n\ntls: {}", "line 3: not valid YAML: 'tls' is given twice, first on l"),
        ("server: {port: 1, 'port': 2}", "'port' is given twice, first on line 1"),
        ("announce:\n  targets:\n  - kind: unicast\n    kind: nats", "line 4: not valid YAML: 'k"),
    ],
)
def test_errors_are_one_line_that_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    """The file and its line, the key, what was expected."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


ODD: list[Any] = [None, True, 1, -1, 1.5, float("inf"), float("nan"), 10**400, "", "x", "\0"]
ODD += [[], [1], [None], {}, {"a": 1}, [[]], [{}], "9" * 5000]


@pytest.mark.parametrize("section", Settings.model_fields)
def test_whatever_is_wrong_is_said_in_our_words(tmp_path: Path, section: str) -> None:
    """Each key with odd values: nothing of the library's own words, and no endless line."""
    for key in keys(Settings):
        if key.partition(".")[0] != section:
            continue
        name = key.partition(".")[2]
        for value in ODD:
            try:
                load(tmp_path, yaml.safe_dump({section: {name: value} if name else value}))
            except ConfigError as error:
                for line in str(error).splitlines():
                    assert re.search(r": (expected|missing|needed|unknown key)\b", line), line
                    assert "nput should" not in line
                    assert len(line) < 400


def test_all_errors_are_reported_each_with_its_line(tmp_path: Path) -> None:
    """In the file and in the environment."""
    text = "server:\n  port: 70000\n  prot: 1\nlive:\n  max_streams: -1\n"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, TORNADO_STATUS_LIVE__MAX_STREAMS="many")
    path = tmp_path / "config.yaml"
    assert str(caught.value).splitlines() == [
        f"{path}, line 2: server.port: expected at most 65535, got 70000",
        f"{path}, line 3: server.prot: unknown key; did you mean server.port?",
        "TORNADO_STATUS_LIVE__MAX_STREAMS: live.max_streams: expected a whole number, got 'many'",
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TORNADO_STATUS_ACCESS__READERS", "[a", "expected JSON"),
        ("TORNADO_STATUS_ACCESS__READERS", "[" * 100_000, "expected JSON: nested too deeply"),
        ("TORNADO_STATUS_ACCESS__READERS", '[["\\ud800"]]', "expected JSON: expected text without"),
        (
            "TORNADO_STATUS_SERVER",
            '{"host": "\\u0000"}',
            "expected JSON: expected text without NUL",
        ),
        ("TORNADO_STATUS_TLS", '{"crl": 1, "crl": 2}', "expected JSON: 'crl' is given twice"),
        ("TORNADO_STATUS_SERVER__HOST", "a..b", "server.host: expected a host name or an address"),
        ("TORNADO_STATUS_SERVER__PORT", "x", "server.port: expected a whole number, got 'x'"),
        ("TORNADO_STATUS_MANAGEMENT", '{"port": "x"}', "management.port: expected a whole number"),
        ("DATABASE_URL", "mysql://h/x", "database.url: expected 'embedded' or postgresql://"),
        (
            "TORNADO_STATUS_SERVER__PROT",
            "1",
            "server.prot: unknown key; did you mean TORNADO_STATUS_SERVER__PORT?",
        ),
        (
            "TORNADO_STATUS_SEVER__PORT",
            "1",
            "sever: unknown key; did you mean TORNADO_STATUS_SERVER__PORT?",
        ),
        (
            "TORNADO_STATUS_PORT",
            "1",
            "port: unknown key; did you mean TORNADO_STATUS_SERVER__PORT or "
            "TORNADO_STATUS_MANAGEMENT__PORT?",
        ),
        (
            "TORNADO_STATUS_PRESENCE__OFFLINE_AFTER_S",
            "90",
            "presence.offline_after_s: expected at least two times interval_s",
        ),
    ],
)
def test_errors_in_the_environment_name_the_variable(
    tmp_path: Path, name: str, value: str, message: str
) -> None:
    """And not config.yaml, which is right."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SHIPPED.read_text(), **{name: value})
    assert str(caught.value).startswith(f"{name}: {message}")
    assert "config.yaml" not in str(caught.value)


def test_a_password_never_appears_in_an_error(tmp_path: Path) -> None:
    """For each mistake in the URL."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, DATABASE_URL="mysql://user:s3cret@host/name")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected no user or password in it") as caught:
        load(tmp_path, nats("nats://user:s3cret@host"))
    assert "s3cret" not in str(caught.value)


def test_keys_without_effect_are_told(tmp_path: Path) -> None:
    """They are accepted, and the operator learns that they do nothing."""
    assert without_effect(load(tmp_path)) == []
    settings = load(tmp_path, "ingress: {trusted_proxies: [10.0.0.1]}")
    assert without_effect(settings) == ["ingress.trusted_proxies"]


def test_three_missed_intervals_are_offline_unless_told_otherwise(tmp_path: Path) -> None:
    """A change of the interval needs no change of the other key."""
    assert load(tmp_path, "presence: {interval_s: 5m}").presence.offline_after_s == 900
    told = load(tmp_path, "presence: {interval_s: 5m, offline_after_s: 10m}").presence
    assert told.offline_after_s == 600


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_values: st.SearchStrategy[Any] = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["port", "targets", "kind", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Settings.model_fields, "x"]), _values, max_size=4))
def test_any_yaml_is_settings_or_errors_in_our_words(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    """Never a traceback."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(values))
    try:
        loader.load(path, {})
    except ConfigError as error:
        lines = str(error).splitlines()
        assert len(set(lines)) == len(lines) > 0
        for line in lines:
            assert line.startswith(str(path))
            assert not re.search("[Ii]nput should|[Vv]alid (string|tuple|dict)", line), line
