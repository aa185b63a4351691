"""The settings: sections, keys, defaults, and the check of each value. Opens no file."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tornado_status.model import presence
from tornado_status.model.duration import parse_duration
from tornado_status.model.presence import PresenceTimes
from tornado_status.model.records import normalise_ip
from tornado_status.wire.nats_broker import (
    SUBJECT,
    Broker,
    check_credentials,
    check_stream,
    check_subject,
    parse_addresses,
)

ENVIRONMENT_PREFIX = "TORNADO_STATUS_"
EMBEDDED = "embedded"
AUTO = "auto"


def _no_bool(value: object) -> object:
    # YAML's yes and no are booleans, and Python's booleans are numbers.
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else _no_bool(value)


def _below_config(path: Path, info: ValidationInfo) -> Path:
    directory: Path = (info.context or {}).get("directory", Path())
    try:
        return directory / path.expanduser()
    except RuntimeError as error:
        raise ValueError("expected a path; the user behind ~ has no home directory") from error


def _host(value: str) -> str:
    try:
        value.encode("idna")  # as the system's lookup does
    except UnicodeError as error:
        raise ValueError("expected a host name or an address") from error
    return value


def _network(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("expected an address or a network such as 10.0.0.0/24")
    try:
        return ipaddress.ip_network(value.strip())
    except ValueError as error:
        raise ValueError(
            f"expected an address or a network such as 10.0.0.0/24 ({error})"
        ) from error


def _split_url(value: str, expected: str) -> SplitResult:
    """Split a web address. Its value stays out of messages: it may have a secret in its path."""
    try:
        parts = urlsplit(value)
        host, _ = _host(parts.hostname or ""), parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("https", "http") or parts.username is not None:
        raise ValueError(f"expected {expected}, without user and password")
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ValueError("expected a URL in ASCII")
    return parts


def _alert_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", value):
        raise ValueError("expected a name of up to 40 letters a-z, digits, - and _")
    return value


Port = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=65535)]
ListenPort = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=65535)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
CountOrOff = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]
Seconds = Annotated[float, BeforeValidator(_duration), Field(gt=0, le=365 * 86400)]
SecondsOrOff = Annotated[float, BeforeValidator(_duration), Field(ge=0, le=3650 * 86400)]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
TrustedNetwork = Annotated[Network, BeforeValidator(_network)]
FilePath = Annotated[Path, AfterValidator(_below_config)]
Host = Annotated[str, AfterValidator(_host)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ServerSettings(Section):
    host: Host = "0.0.0.0"  # noqa: S104 - a service for the network; who gets in is TLS's matter
    port: ListenPort = 8443
    reuse_port: bool = False
    handshake_timeout_s: Seconds = 10.0
    max_connections: Count = 10_000
    max_connections_per_address: CountOrOff = Field(
        default_factory=lambda known: max(1, known["max_connections"] // 4)
    )
    max_connections_per_identity: CountOrOff = 100
    check_ins_per_second: Annotated[float, BeforeValidator(_no_bool), Field(ge=0)] = 5.0
    idle_timeout_s: Seconds = 180.0
    header_timeout_s: Seconds = 10.0
    drain_timeout_s: Seconds = 10.0


class TlsSettings(Section):
    certificate: FilePath = Path("certs/server.crt")
    private_key: FilePath = Path("certs/server.key")
    client_ca: FilePath = Path("certs/ca.crt")
    crl: FilePath | None = Field(default_factory=lambda known: known["client_ca"].parent / "ca.crl")
    on_expired_crl: Literal["warn", "refuse"] = "warn"
    client_certificate: Literal["required", "optional"] = "required"
    minimum_version: Literal["1.2", "1.3"] = "1.3"

    @property
    def crl_may_be_missing(self) -> bool:
        """A file that the configuration names must exist; the default one need not."""
        return "crl" not in self.model_fields_set

    @field_validator("minimum_version", mode="before")
    @classmethod
    def _unquoted(cls, value: object) -> object:
        # Without quotation marks YAML reads 1.3 as a number.
        return str(value) if isinstance(value, float) else value


class DatabaseSettings(Section):
    url: str = EMBEDDED
    data_dir: FilePath = Path("var/postgresql")
    connect_timeout_s: Seconds = 3.0
    commit_timeout_s: Seconds = 5.0
    durability: Literal["required", "warn"] = "required"

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        # The value stays out of the message: it may hold a password.
        if value != EMBEDDED and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("expected 'embedded' or postgresql://user:password@host/name")
        return value


AlertEvent = Literal["new", "back", "offline", "enrolled", "removed", "check-in"]


class IngressSettings(Section):
    """`mode: proxy` is plain HTTP from `trusted_proxies`, which terminate TLS."""

    mode: Literal["tls", "proxy"] = "tls"
    trusted_proxies: tuple[TrustedNetwork, ...] = ()
    proxy_protocol: bool = False
    certificate_header: Literal["client-cert", "x-ssl-client-cert", "x-forwarded-client-cert"] = (
        "client-cert"
    )
    address_header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"

    @model_validator(mode="after")
    def _knows_its_proxies(self) -> IngressSettings:
        proxied = self.mode == "proxy"
        if proxied and self.proxy_protocol:
            raise ValueError(
                "proxy_protocol: only for mode tls; in mode proxy the headers carry the address"
            )
        if proxied and any(network.prefixlen == 0 for network in self.trusted_proxies):
            raise ValueError(
                "trusted_proxies: with all addresses any client could claim any identity"
            )
        if (proxied or self.proxy_protocol) and not self.trusted_proxies:
            raise ValueError(
                "trusted_proxies: expected the addresses of the proxies, such as [10.0.0.5]"
            )
        return self


class UdpTarget(Section):
    """A target of announcements. `interfaces` are names (eth0) or addresses of this machine.

    `address` is `auto` for the broadcast address of each interface's own network. `ttl` is the
    hop limit with IPv6. `loop` says whether a group is heard on this machine, too.
    """

    kind: Literal["multicast", "broadcast", "unicast"]
    address: str
    port: Port = 6667
    interfaces: tuple[str, ...] = ()
    ttl: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=255)] = 1
    loop: bool = True
    encoding: Literal["json", "sealed", "binary"] = "json"

    @field_validator("kind", mode="before")
    @classmethod
    def _is_kind(cls, value: object) -> object:
        if value not in ("multicast", "broadcast", "unicast"):
            raise ValueError("expected multicast, broadcast, unicast or nats")
        return value

    @field_validator("address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if value == AUTO:
            return value
        if "%" in value:
            raise ValueError("give the interface with interfaces: [eth0], not behind a %")
        try:
            return normalise_ip(value)
        except ValueError as error:
            raise ValueError("expected an IPv4 or IPv6 address") from error

    @field_validator("interfaces")
    @classmethod
    def _are_interfaces(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for interface in value:
            address = _as_address(interface)
            if not interface or (address is not None and address.is_unspecified):
                raise ValueError("expected names or addresses of this machine's interfaces")
        return tuple(dict.fromkeys(value))  # twice the same would announce twice

    @model_validator(mode="after")
    def _fits_kind(self) -> UdpTarget:
        if self.address == AUTO:
            if self.kind != "broadcast":
                raise ValueError(f"address: auto is for broadcast; {self.kind} needs an address")
            if not self.interfaces:
                raise ValueError("address: auto needs interfaces: [eth0], whose network it is for")
        address = None if self.address == AUTO else ipaddress.ip_address(self.address)
        version = 4 if address is None else address.version
        if address is not None:
            self._check_address(address)
        if not self.loop and self.kind != "multicast":
            raise ValueError(f"loop: only for multicast, not for {self.kind}")
        for interface in self.interfaces:
            local = _as_address(interface)
            if local is not None and local.version != version:
                raise ValueError(
                    f"interfaces: {interface} cannot send to an IPv{version} address: "
                    "give the interface's name"
                )
        return self

    def _check_address(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        if self.kind == "multicast" and not address.is_multicast:
            raise ValueError(
                "address: expected a multicast group, 224.0.0.0-239.255.255.255 or ff00::/8"
            )
        if self.kind != "multicast" and address.is_multicast:
            raise ValueError(f"address: a multicast group needs kind multicast, not {self.kind}")
        if self.kind == "broadcast" and address.version == 6:
            raise ValueError("address: IPv6 has no broadcast: use kind multicast, as ff02::66")
        if address.is_unspecified:
            raise ValueError("address: expected the address of a receiver")
        if self.interfaces:
            return
        # Without an interface these would leave by the default route, or not at all.
        if self.kind == "multicast" and address.version == 6:
            raise ValueError("interfaces: an IPv6 group needs them, as interfaces: [eth0]")
        if address.is_link_local and address.version == 6:
            raise ValueError("interfaces: a link-local address needs one, as interfaces: [eth0]")
        if self.address == "255.255.255.255":
            raise ValueError("interfaces: 255.255.255.255 needs them, as interfaces: [eth0]")

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.kind} {address}:{self.port}"


def _as_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


class NatsTarget(Section):
    """A broker that carries announcements further than a network does. docs/nats.md.

    `address` is one nats://host:port or tls://host:port, or those of a cluster with commas between.
    `stream` is the JetStream stream that keeps them for a minute; None: nothing is kept.
    """

    kind: Literal["nats"]
    address: str
    subject: Annotated[str, AfterValidator(check_subject)] = SUBJECT
    stream: Annotated[str, AfterValidator(check_stream)] | None = None
    encoding: Literal["json", "sealed"] = "json"
    user: str | None = None
    password_file: FilePath | None = None
    ca: FilePath | None = None
    certificate: FilePath | None = None
    private_key: FilePath | None = None

    @field_validator("address")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        return ",".join(parse_addresses(value))

    @model_validator(mode="after")
    def _complete(self) -> NatsTarget:
        check_credentials(self.broker)
        return self

    @property
    def broker(self) -> Broker:
        return Broker(
            addresses=parse_addresses(self.address),
            subject=self.subject,
            user=self.user,
            password_file=self.password_file,
            ca=self.ca,
            certificate=self.certificate,
            private_key=self.private_key,
        )

    def __str__(self) -> str:
        return f"{self.address} {self.subject}"


def _carrier(value: object) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return "nats" if kind == "nats" else "udp"


AnyTarget = Annotated[
    Annotated[UdpTarget, Tag("udp")] | Annotated[NatsTarget, Tag("nats")], Discriminator(_carrier)
]

LOOPBACK_TARGETS = (
    UdpTarget(kind="multicast", address="239.255.66.66", interfaces=("127.0.0.1",)),
    UdpTarget(kind="broadcast", address="127.255.255.255", interfaces=("127.0.0.1",)),
)


class AnnounceSettings(Section):
    source_port: Port = 6666
    signing_key: FilePath | None = Path("certs/announcer.key")
    next_certificate: FilePath | None = None
    heartbeat_s: SecondsOrOff = 5.0
    repeat: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=64)] = 8
    targets: tuple[AnyTarget, ...] = LOOPBACK_TARGETS

    @model_validator(mode="after")
    def _is_signed(self) -> AnnounceSettings:
        if self.signing_key is None and self.has_sealed:
            raise ValueError("targets: encoding: sealed needs signing_key")
        return self

    @property
    def has_sealed(self) -> bool:
        """Whether a target gets sealed datagrams."""
        return any(target.encoding == "sealed" for target in self.targets)

    @property
    def udp_targets(self) -> tuple[UdpTarget, ...]:
        return tuple(target for target in self.targets if isinstance(target, UdpTarget))

    @property
    def nats_targets(self) -> tuple[NatsTarget, ...]:
        return tuple(target for target in self.targets if isinstance(target, NatsTarget))


class PresenceSettings(Section):
    """How often users check in, and after how much silence one is offline."""

    interval_s: Seconds = presence.INTERVAL_S
    offline_after_s: Seconds = Field(
        default_factory=lambda known: presence.OFFLINE_AFTER_INTERVALS * known["interval_s"]
    )

    @model_validator(mode="after")
    def _survives_a_lost_check_in(self) -> PresenceSettings:
        if self.offline_after_s < 2 * self.interval_s:
            raise ValueError("offline_after_s: expected at least two times interval_s")
        return self

    @property
    def times(self) -> PresenceTimes:
        late_after_s = presence.late_after_s(self.interval_s)
        return PresenceTimes(self.interval_s, late_after_s, self.offline_after_s)


class HistorySettings(Section):
    retention: SecondsOrOff = 7 * 86400.0


class LiveSettings(Section):
    max_streams: CountOrOff = 1000


class AccessSettings(Section):
    """`readers` and `admins` are e-mail addresses or shell patterns (`*@ops.example.com`)."""

    enrolment: Literal["open", "closed"] = "open"
    # The operator of the development set. A CA that checks addresses does not issue it: no mail has
    # this domain (RFC 2606). There is no reader unless the CA's owner makes that certificate.
    readers: tuple[str, ...] = ("operator@example.com",)
    admins: tuple[str, ...] = ()


class AlertSettings(Section):
    """One webhook, which gets events of `users` (patterns, as in `access.readers`)."""

    name: Annotated[str, AfterValidator(_alert_name)]
    url: str
    users: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    events: Annotated[tuple[AlertEvent, ...], Field(min_length=1)] = ("offline", "back")
    secret: str | None = None
    secret_file: FilePath | None = None
    ca: FilePath | None = None
    quiet_s: SecondsOrOff = 0.0
    timeout_s: Annotated[Seconds, Field(le=60)] = 10.0
    give_up_s: Seconds = 86400.0

    @field_validator("url")
    @classmethod
    def _is_web(cls, value: str) -> str:
        _split_url(value, "https://host/path")
        return value

    @model_validator(mode="after")
    def _whole(self) -> AlertSettings:
        if (self.secret is None) == (self.secret_file is None):
            raise ValueError("expected either secret or secret_file")
        if self.quiet_s and "offline" not in self.events:
            raise ValueError("quiet_s: needs offline among events")
        return self


class ManagementSettings(Section):
    host: Host = "127.0.0.1"
    port: ListenPort = 9464
    certificate: FilePath | None = None
    private_key: FilePath | None = None

    @model_validator(mode="after")
    def _pair(self) -> ManagementSettings:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key: expected both or neither")
        return self


class TracingSettings(Section):
    """The collector of spans (OTLP over HTTP), and the share of requests that is traced."""

    endpoint: str | None = None
    sample_ratio: Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)] = 0.01
    personal_data: bool = False

    @field_validator("endpoint")
    @classmethod
    def _is_collector(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = _split_url(value, "http://host:4318")
        if parts.path in ("", "/"):
            return parts._replace(path="/v1/traces").geturl()
        return value


class LoggingSettings(Section):
    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Section):
    """Everything that can be set. The sections and keys are those of config.yaml."""

    server: ServerSettings = ServerSettings()
    tls: TlsSettings = TlsSettings()
    database: DatabaseSettings = DatabaseSettings()
    ingress: IngressSettings = IngressSettings()
    announce: AnnounceSettings = AnnounceSettings()
    presence: PresenceSettings = PresenceSettings()
    history: HistorySettings = HistorySettings()
    live: LiveSettings = LiveSettings()
    access: AccessSettings = AccessSettings()
    alerts: tuple[AlertSettings, ...] = ()
    management: ManagementSettings = ManagementSettings()
    tracing: TracingSettings = TracingSettings()
    logging: LoggingSettings = LoggingSettings()

    @field_validator("alerts")
    @classmethod
    def _named_once(cls, value: tuple[AlertSettings, ...]) -> tuple[AlertSettings, ...]:
        names = [alert.name for alert in value]
        if len(set(names)) < len(names):
            raise ValueError("expected each name once")
        return value


def without_effect(settings: Settings) -> list[str]:
    """Return the keys that are set and have no effect together with the others."""
    ingress = settings.ingress
    if ingress.trusted_proxies and ingress.mode == "tls" and not ingress.proxy_protocol:
        return ["ingress.trusted_proxies"]
    return []


def keys_named(name: str) -> list[str]:
    """Return the keys, as `section.key`, that an option of this name would be meant for."""
    wanted = name.lower().replace("-", "_").replace(".", "_")
    keys = [
        (section, key)
        for section, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        for key in field.annotation.model_fields
    ]
    return [
        f"{section}.{key}"
        for section, key in keys
        if wanted in (key, key.removesuffix("_s"), f"{section}_{key}", f"{section}__{key}")
    ]


def variable(key: str) -> str:
    """Return the environment variable that sets a key."""
    return ENVIRONMENT_PREFIX + key.replace(".", "__").upper()
