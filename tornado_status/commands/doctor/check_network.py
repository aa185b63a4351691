"""The doctor's checks of ports, interfaces, routes, firewalls and containers. It sends nothing."""

from __future__ import annotations

import asyncio
import errno
import http.client
import ipaddress
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tornado_status.announce.errno_hints import hint
from tornado_status.announce.interfaces import Interfaces, read_interfaces
from tornado_status.announce.udp_sink import UdpSink, udp_sinks
from tornado_status.commands.doctor.finding import Finding, note, ok, problem
from tornado_status.config.settings import NatsTarget, Settings, UdpTarget
from tornado_status.errors import BrokerError, ConfigError
from tornado_status.runtime.listening import bind_address, explain, holder
from tornado_status.wire.nats_connection import check_files, connected

PORTS, INTERFACES, ROUTES = "ports", "interfaces", "routes"
FIREWALL, CONTAINERS = "firewall", "containers"
ASK_TIMEOUT_S = 5.0
BRIDGES = ("docker", "br-", "podman", "cni", "virbr")
ROUTE_TABLE = Path("/proc/net/route")
_PASSIVE = socket.AI_PASSIVE | socket.AI_ADDRCONFIG


def examine(settings: Settings) -> Iterator[Finding]:
    """Run all of these checks."""
    yield from _ports(settings)
    yield from _targets(settings)
    yield from _audience(settings)
    yield from _multicast_route(settings)
    yield from _firewall(settings)
    yield from _containers()


# ----------------------------------------------------------------------------------------- ports


def _ports(settings: Settings) -> Iterator[Finding]:
    running = _is_running(settings)
    listening = [("server.port", settings.server.host, settings.server.port)]
    if settings.management.port:
        listening.append(("management.port", settings.management.host, settings.management.port))
    for setting, host, port in listening:
        error = _cannot_listen(host, port, settings.server.reuse_port)
        if error is None:
            yield ok(PORTS, f"{setting}: {port} is free")
        elif error.errno == errno.EADDRINUSE and running:
            yield ok(PORTS, f"{setting}: {port} is in use, and a server runs")
        else:
            sentence, advice = explain(setting.partition(".")[0], host, port, error)
            yield problem(PORTS, sentence, f"{advice[0].upper()}{advice[1:]}.")


def _cannot_listen(host: str, port: int, reuse_port: bool) -> OSError | None:
    try:
        found = socket.getaddrinfo(
            bind_address(host), port, type=socket.SOCK_STREAM, flags=_PASSIVE
        )
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(address)
                sock.listen(1)
    except OSError as error:
        return error
    return None


def _is_running(settings: Settings) -> bool:
    """Return whether our management port answers as a server of this kind does."""
    if not settings.management.port:
        return False
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(  # noqa: S104
        settings.management.host, settings.management.host
    )
    connection: http.client.HTTPConnection
    if settings.management.certificate is not None:
        # Only liveness matters here, not the identity of the server.
        context = ssl._create_unverified_context()  # noqa: S323
        connection = http.client.HTTPSConnection(
            host, settings.management.port, timeout=ASK_TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(
            host, settings.management.port, timeout=ASK_TIMEOUT_S
        )
    try:
        connection.request("GET", "/healthz")
        answer = json.loads(connection.getresponse().read(4096))
        return isinstance(answer, dict) and answer.get("alive") is True
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


# ------------------------------------------------------------------------------------ interfaces


def _targets(settings: Settings) -> Iterator[Finding]:
    """Open the sockets that the server would announce from, without sending."""
    interfaces = read_interfaces()
    for target in settings.announce.udp_targets:
        for sink in udp_sinks(target, settings.announce.source_port):
            try:
                yield _sink_finding(sink, settings, interfaces)
            finally:
                sink.close()
    for broker in settings.announce.nats_targets:
        yield asyncio.run(_broker(broker))


async def _broker(target: NatsTarget) -> Finding:
    try:
        check_files(target.broker)
        async with connected(target.broker, "tornado_status doctor"):
            return ok(INTERFACES, f"announce.targets: {target}: the broker lets us in")
    except (ConfigError, BrokerError) as error:
        return problem(
            INTERFACES,
            f"announce.targets: {target}: {error}",
            "The server starts all the same where only the broker is away: see docs/nats.md.",
        )


def _sink_finding(sink: UdpSink, settings: Settings, interfaces: Interfaces) -> Finding:
    try:
        sink.check(interfaces)
    except ConfigError as error:
        advice = "`ip address` shows this machine's interfaces and addresses."
        return problem(INTERFACES, str(error), advice)
    sink.refresh(interfaces)
    if sink.problem is not None and sink.problem.errno == errno.EADDRINUSE:
        port = settings.announce.source_port
        return problem(
            PORTS,
            f"announce.source_port: UDP port {port} is taken by {holder(port, 'udp')}",
            "Stop it, or set another port.",
        )
    if sink.problem is not None:
        return problem(
            INTERFACES,
            f"announce.targets: {sink.target} by {sink.via}: {hint(sink.problem)}",
            "The server starts all the same, and announces there once it can.",
        )
    doubt = sink.doubt(interfaces)
    if doubt is not None:
        return problem(
            INTERFACES,
            f"announce.targets: {sink.target}: {doubt}",
            "`ip address` shows it behind `brd`; a wrong one reaches no listener.",
        )
    return ok(INTERFACES, f"announce.targets: {sink.target} can be sent to by {sink.via}")


def _audience(settings: Settings) -> Iterator[Finding]:
    targets = settings.announce.udp_targets
    interfaces = read_interfaces()
    if settings.announce.nats_targets:
        return
    if not targets:
        yield note(INTERFACES, "announce.targets: empty, so no check-in is announced")
    elif all(_is_local(target, interfaces) for target in targets):
        yield note(
            INTERFACES,
            "announce.targets: only this machine hears the announcements",
            "For a LAN name its interface and broadcast address: config.yaml shows the two lines.",
        )


def _is_local(target: UdpTarget, interfaces: Interfaces) -> bool:
    if target.kind == "unicast":
        return ipaddress.ip_address(target.address).is_loopback
    named = target.interfaces or (("127.0.0.1",) if target.kind == "multicast" else ())
    return bool(named) and all(_is_loopback(each, interfaces) for each in named)


def _is_loopback(text: str, interfaces: Interfaces) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        found = interfaces.named(text)
        return found is not None and all(each.address.is_loopback for each in found.networks)


# ---------------------------------------------------------------------------------------- routes


@dataclass(frozen=True, slots=True)
class Route:
    """One of the kernel's IPv4 routes; `gateway` is None for a network that is attached."""

    interface: str
    network: ipaddress.IPv4Network
    gateway: ipaddress.IPv4Address | None
    metric: int


def routes() -> list[Route]:
    """Return the kernel's IPv4 routes, in order of preference (proc_net(5))."""
    found = []
    for line in ROUTE_TABLE.read_text().splitlines()[1:]:
        fields = line.split()
        destination, gateway, mask = (
            ipaddress.IPv4Address(bytes.fromhex(fields[number])[::-1]) for number in (1, 2, 7)
        )
        network = ipaddress.IPv4Network(f"{destination}/{mask}")
        found.append(Route(fields[0], network, gateway if int(gateway) else None, int(fields[6])))
    return sorted(found, key=lambda route: (-route.network.prefixlen, route.metric))


def _multicast_route(settings: Settings) -> Iterator[Finding]:
    """A listener that names no interface joins a group where the route to it leads."""
    interfaces = read_interfaces()
    for target in settings.announce.udp_targets:
        if target.kind != "multicast" or ":" in target.address:
            continue  # an IPv6 group is reached by its interface alone
        group = ipaddress.IPv4Address(target.address)
        if _is_local(target, interfaces):
            yield ok(ROUTES, f"{group} stays on this machine, and needs no route")
            continue
        announced = sorted(filter(None, (_name(each, interfaces) for each in target.interfaces)))
        route = next((each for each in routes() if group in each.network), None)
        options = " ".join(f"--interface {name}" for name in announced)
        advice = f"Name the interface to listeners, too: `status-listener {options}`."
        if route is None:
            yield note(
                ROUTES,
                f"{group} has no route on this machine; the server needs none, as it names its "
                "interface",
                advice,
            )
        elif route.interface in announced:
            yield ok(ROUTES, f"{group} has a route, by {route.interface}")
        else:
            yield note(
                ROUTES,
                f"{group} has a route by {route.interface}, where it is not announced: a program "
                "on this machine that lets the kernel choose where to join hears nothing",
                advice,
            )


def _name(text: str, interfaces: Interfaces) -> str:
    """Return the interface that has this name or address; "" if there is none."""
    try:
        found = interfaces.with_address(ipaddress.ip_address(text))
    except ValueError:
        return text
    return found[0].name if found is not None else ""


# -------------------------------------------------------------------------------------- firewall


def _firewall(settings: Settings) -> Iterator[Finding]:
    program = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        yield note(FIREWALL, "there is no nft to read this machine's firewall rules with")
        return
    done = subprocess.run(  # noqa: S603 - by absolute path, and nothing of it is from outside
        [program, "-j", "list", "ruleset"],
        capture_output=True,
        text=True,
        check=False,
        timeout=ASK_TIMEOUT_S,
    )
    if done.returncode != 0:
        yield note(
            FIREWALL,
            "the firewall's rules cannot be read",
            "Run this as root to see whether one of them is in the way.",
        )
        return
    ports = {
        ("tcp", settings.server.port): "check-ins arrive at it",
        **{("udp", t.port): "announcements go to it" for t in settings.announce.udp_targets},
    }
    found = [*_rules_in_the_way(json.loads(done.stdout)["nftables"], ports)]
    yield from found or [ok(FIREWALL, "no rule of nftables is in the way")]


def _rules_in_the_way(
    entries: list[dict[str, Any]], ports: dict[tuple[str, int], str]
) -> Iterator[Finding]:
    sets = {
        (each["family"], each["table"], each["name"]): each.get("elem", [])
        for each in (entry["set"] for entry in entries if "set" in entry)
    }
    for entry in entries:
        chain, rule = entry.get("chain"), entry.get("rule")
        if chain is not None and chain.get("policy") == "drop" and chain.get("hook") != "forward":
            named = ", ".join(f"{protocol} {port}" for protocol, port in ports)
            yield note(
                FIREWALL,
                f"chain {chain['table']} {chain['name']} ({chain['hook']}) drops what no rule "
                "accepts",
                f"See that it accepts {named}: `nft list ruleset`.",
            )
        if rule is None or not any({"drop", "reject"} & part.keys() for part in rule["expr"]):
            continue
        here = (rule["family"], rule["table"])
        own = {key[2]: elements for key, elements in sets.items() if key[:2] == here}
        for (protocol, port), what in ports.items():
            if any(_matches(part, protocol, port, own) for part in rule["expr"]):
                yield problem(
                    FIREWALL,
                    f"a rule in {rule['table']} {rule['chain']} drops {protocol} port {port}, and "
                    f"{what}",
                    f"`nft -a list chain {rule['family']} {rule['table']} {rule['chain']}` shows "
                    "it: "
                    f"handle {rule['handle']}.",
                )


def _matches(part: dict[str, Any], protocol: str, port: int, sets: Mapping[str, list[Any]]) -> bool:
    match = part.get("match", {})
    payload = (
        match.get("left", {}).get("payload", {}) if isinstance(match.get("left"), dict) else {}
    )
    if payload.get("field") != "dport" or payload.get("protocol") not in (protocol, "th"):
        return False
    if match.get("op") not in ("==", "in"):
        return False
    right = match.get("right")
    wanted = right.get("set", [right]) if isinstance(right, dict) else [right]
    if isinstance(right, str) and right.startswith("@"):
        wanted = sets.get(right[1:], [])
    for element in wanted:
        each = element
        if isinstance(each, dict) and "elem" in each:  # with a comment, a `timeout` or a counter
            each = each["elem"]["val"]
        if isinstance(each, dict) and "range" in each:
            low, high = each["range"]
            if low <= port <= high:
                return True
        elif each == port:
            return True
    return False


# ------------------------------------------------------------------------------------ containers


def _containers() -> Iterator[Finding]:
    bridges = [name for _, name in socket.if_nameindex() if name.startswith(BRIDGES)]
    if bridges:
        yield note(
            CONTAINERS,
            f"this machine has networks of containers ({', '.join(bridges)})",
            "A published port may show the bridge's own address as every client's: publish it "
            "without a userland proxy, or let the server use the host's network.",
        )
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        default = [each for each in routes() if each.network.prefixlen == 0]
        named = ", ".join(str(each.gateway) for each in default if each.gateway) or "none"
        yield note(
            CONTAINERS,
            f"this is a container; its gateway is {named}",
            "If check-ins have that address as their client's, the port is published through a "
            "proxy. Multicast does not leave a bridge: announce to other machines from the host's "
            "network, or by unicast.",
        )
