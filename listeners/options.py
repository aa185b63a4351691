"""The options of status-listener, and the settings that they make."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
import uuid
from pathlib import Path
from typing import Literal, NoReturn

from listeners.listener import (
    GROUP,
    INTERFACE,
    PORT,
    ListenerSettings,
)
from listeners.output import Format
from listeners.receive.sockets import WILDCARD
from listeners.verify.unverified import Encoding
from listeners.verify.verifier import MAX_SKEW_S
from tornado_status import __version__
from tornado_status.errors import ConfigError
from tornado_status.model.duration import EXPECTED, parse_duration
from tornado_status.wire.json_members import MAX_SEQ
from tornado_status.wire.nats_broker import (
    SUBJECT,
    Broker,
    check_credentials,
    check_subject,
    parse_addresses,
)

PROGRAM = "status-listener"

# The files that certs_gen makes, and the address of the shipped server.
URL = "https://localhost:8443"
CERTIFICATE = "certs/operator.crt"
PRIVATE_KEY = "certs/operator.key"
CA = "certs/ca.crt"
ANNOUNCER = "certs/announcer.crt"

EXIT_USAGE = 2


_EPILOG = f"""\
exit status:
  0  ended by a signal, a closed pipe, --count, or --timeout without --count
  1  --timeout was over before --count events were shown, standard output took no more, or the
     command of --exec failed
  2  wrong option, or a file, port, address, group, interface or command that cannot be used, or
     no terminal for --board

An event is shown after its signature is verified. The certificate of the announcer that signed it
comes from --announcer, or from a server at --url, which also supplies events that were missed.
By default both are used if {ANNOUNCER} and {CERTIFICATE} exist. An explicit --url
disables the default of --announcer.

A listener on the wildcard address receives broadcasts and multicast groups, and shows an event
that arrives by both once. On Linux, a listener on a broadcast address or on a group's own address
receives only that one.

SIGUSR1 prints a summary of what was received. SECONDS may have a unit: 90, 15m, 1d.
"""


def listener_settings(options: argparse.Namespace) -> ListenerSettings:
    """Return the listener's settings. Raises `ConfigError` that names the option."""
    groups = [GROUP] if options.group is None else [group for group in options.group if group]
    ca = Path(options.ca)
    encoding = Encoding(options.encoding)
    broker = _broker(options)
    if encoding is Encoding.BINARY:
        return ListenerSettings(
            address=options.address or WILDCARD,
            port=options.port or PORT,
            groups=groups,
            interfaces=options.interface or [INTERFACE],
            encoding=encoding,
        )
    if options.announcer is not None:
        announcers = [Path(name) for name in options.announcer if name]
    elif options.url is None and Path(ANNOUNCER).exists() and ca.exists():
        announcers = [Path(ANNOUNCER)]
    else:
        announcers = []
    certificate, private_key = options.cert, options.key
    if certificate is None and (options.url is not None or Path(CERTIFICATE).exists()):
        certificate = CERTIFICATE
        private_key = private_key or PRIVATE_KEY
    reads = bool(certificate)
    if not reads and options.url is not None and not announcers:
        raise ConfigError("--url: needs a reader's certificate, see --cert and --key")
    if reads and not private_key:
        raise ConfigError("--cert: needs its private key, see --key")
    return ListenerSettings(
        address=options.address or WILDCARD,
        port=options.port or PORT,
        groups=groups,
        interfaces=options.interface or [INTERFACE],
        broker=broker,
        ca=ca if reads or announcers else None,
        announcers=announcers,
        urls=(options.url or [URL]) if reads else [],
        certificate=Path(certificate) if reads else None,
        private_key=Path(private_key) if reads else None,
        log_id=options.log,
        state=options.state,
        start=options.start or ("snapshot" if options.board and reads else "now"),
        max_skew_s=options.max_skew,
        insecure=options.insecure,
        encoding=encoding,
    )


def _broker(options: argparse.Namespace) -> Broker | None:
    if options.nats is None:
        for name in ("subject", "user", "password_file", "ca", "cert", "key"):
            if getattr(options, f"nats_{name}") is not None:
                raise ConfigError(f"--nats-{name.replace('_', '-')}: only with --nats")
        return None
    for name in ("group", "address", "port", "interface"):
        if getattr(options, name):
            raise ConfigError(
                f"--{name}: not with --nats: start a second listener to receive UDP as well"
            )
    if options.encoding == Encoding.BINARY.value:
        raise ConfigError("--encoding: a broker carries only json")
    broker = Broker(
        addresses=options.nats,
        subject=options.nats_subject or SUBJECT,
        user=options.nats_user,
        password_file=options.nats_password_file,
        ca=options.nats_ca,
        certificate=options.nats_cert,
        private_key=options.nats_key,
    )
    try:
        check_credentials(broker)
    except ValueError as error:
        text = str(error).replace("certificate", "cert").replace("private_key", "key")
        raise ConfigError(f"--nats-{text.replace('password_file', 'password-file')}") from error
    return broker


def check_board(options: argparse.Namespace) -> None:
    """Raise `ConfigError` if the board cannot be shown."""
    for name in ("exec", "count", "format", "state"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--board: not together with --{name}")
    files = {"stdin": sys.stdin, "stdout": sys.stdout, "stderr": sys.stderr}
    for name, file in files.items():
        if file is None or not file.isatty():
            raise ConfigError(f"--board: needs a terminal, and {name} is not one")
    if os.environ.get("TERM") == "dumb":
        raise ConfigError("--board: needs a terminal that can move its cursor: TERM is dumb")
    if importlib.util.find_spec("textual") is None:
        raise ConfigError("--board: needs the package textual: pip install 'tornado-status[board]'")


class _ListenerParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of status-listener."""
    parser = _ListenerParser(
        prog=PROGRAM,
        description="Show the check-ins and other events that servers announce: verified, in order "
        "and each once.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_receiving(parser.add_argument_group("receiving"))
    _add_broker(parser.add_argument_group("receiving from a broker"))
    _add_trust(parser.add_argument_group("trust and repair"))
    _add_showing(parser.add_argument_group("showing"))
    return parser


def _add_receiving(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--group",
        action="append",
        metavar="ADDRESS",
        help="multicast group to join, IPv4 or IPv6; may be repeated; '' joins none "
        f"(default: {GROUP})",
    )
    group.add_argument(
        "--address", default="", help=f"local address to bind (default: all, {WILDCARD})"
    )
    group.add_argument(
        "--port", type=_port, metavar="PORT", help=f"UDP port to bind (default: {PORT})"
    )
    group.add_argument(
        "--interface",
        action="append",
        metavar="ADDRESS|NAME",
        help="interface to join the groups on: an address of this machine, or on Linux a name; "
        f"may be repeated (default: {INTERFACE})",
    )


def _add_broker(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--nats",
        type=_addresses,
        metavar="URL",
        help="receive from a NATS broker at nats://HOST:PORT or tls://HOST:PORT instead of by UDP; "
        "separate the members of a cluster with commas",
    )
    group.add_argument(
        "--nats-subject",
        type=_subject,
        metavar="SUBJECT",
        help=f"subject that the server publishes to (default: {SUBJECT})",
    )
    group.add_argument("--nats-user", metavar="NAME", help="user name for the broker")
    group.add_argument(
        "--nats-password-file", type=Path, metavar="FILE", help="file that contains the password"
    )
    group.add_argument(
        "--nats-ca",
        type=Path,
        metavar="FILE",
        help="CA of the broker's certificate; makes TLS mandatory (default: the system's CAs)",
    )
    group.add_argument(
        "--nats-cert", type=Path, metavar="FILE", help="client certificate for the broker"
    )
    group.add_argument("--nats-key", type=Path, metavar="FILE", help="private key of --nats-cert")


def _add_trust(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help="server that lists the trusted announcers and supplies missed events; may be "
        f"repeated: the next one is asked if one gives no answer (default: {URL})",
    )
    group.add_argument(
        "--cert",
        metavar="FILE",
        help="a reader's client certificate for that server; '' for none "
        f"(default: {CERTIFICATE}, if it exists)",
    )
    group.add_argument(
        "--key", metavar="FILE", help=f"private key of --cert (default: {PRIVATE_KEY})"
    )
    group.add_argument(
        "--ca",
        metavar="FILE",
        default=CA,
        help="CA of the server's and the announcers' certificates (default: %(default)s)",
    )
    group.add_argument(
        "--announcer",
        action="append",
        metavar="FILE",
        help="certificate of a trusted announcer, followed by its intermediate CAs; may be "
        "repeated; '' for none "
        f"(default: {ANNOUNCER}, if it exists and --url is not given)",
    )
    group.add_argument(
        "--log",
        type=_log_id,
        metavar="UUID",
        help="follow the log with this id and no other (default: the one that the server confirms)",
    )
    group.add_argument(
        "--max-skew",
        type=_seconds,
        default=MAX_SKEW_S,
        metavar="SECONDS",
        help="refuse a datagram whose time differs by more from this machine's clock "
        "(default: %(default)g)",
    )
    group.add_argument(
        "--insecure",
        action="store_true",
        help="also show events without a valid signature, marked as not verified",
    )


def _add_showing(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--from",
        dest="start",
        type=_start,
        metavar="now|start|snapshot|SEQ",
        help="first event to show: the next one, the oldest that the server keeps, the records of "
        "all users, or a sequence number (default: now; snapshot with --board and a reader's "
        "certificate)",
    )
    group.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="save the position in this file, and continue after it at the next start",
    )
    group.add_argument(
        "--encoding",
        choices=[encoding.value for encoding in Encoding],
        default=Encoding.AUTO.value,
        help="show both formats, or only one; binary is never signed (default: %(default)s)",
    )
    group.add_argument(
        "--format",
        choices=[form.value for form in Format],
        help="print a block for each event, or a JSON object a line (default: text)",
    )
    group.add_argument(
        "--board",
        action="store_true",
        help="show all users in a live table that fills the terminal: online, late, offline, never "
        "seen",
    )
    group.add_argument(
        "--exec",
        metavar="COMMAND",
        help="start this command once, without a shell, and write a JSON object a line to its "
        "standard input",
    )
    group.add_argument(
        "--count", type=_count, metavar="N", help="exit after N events (default: never)"
    )
    group.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="exit after this time (default: never)"
    )


def _addresses(text: str) -> tuple[str, ...]:
    try:
        return parse_addresses(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _subject(text: str) -> str:
    try:
        return check_subject(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _port(text: str) -> int:
    return _whole_number(text, 1, 65535)


def _count(text: str) -> int:
    return _whole_number(text, 1, MAX_SEQ)


def _start(text: str) -> int | Literal["now", "start", "snapshot"]:
    match text:
        case "now" | "start" | "snapshot":
            return text
    try:
        return _whole_number(text, 1, MAX_SEQ)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"expected now, start, snapshot or a number: {error}"
        ) from None


def _log_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a UUID, got {text!a}") from None


def _whole_number(text: str, low: int, high: int) -> int:
    if text.isascii() and text.isdecimal() and low <= int(text) <= high:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected {low} to {high}, got {text!a}")


def _seconds(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = math.nan
    if 0 < seconds < math.inf:
        return seconds
    raise argparse.ArgumentTypeError(f"{EXPECTED}, above 0, got {text!a}")
