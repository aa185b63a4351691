"""The command line `status-certs`.

Every error is one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from cryptography.x509 import CertificateRevocationList

from certs_gen import browser, copies, development, key_files, revocation
from certs_gen.authority import (
    CA_CERTIFICATE_FILE,
    CRL_DAYS,
    LEAF_DAYS,
    MAX_DAYS,
    Authority,
    KeyType,
    client_email,
    dns_name,
    ip_address,
)
from certs_gen.key_files import NewFile
from tornado_status import __version__
from tornado_status.errors import ConfigError
from tornado_status.model.email_address import parse_email
from tornado_status.pki.expiry import name_of
from tornado_status.runtime.printable import printable

Parsed = TypeVar("Parsed")

_DESCRIPTION = """\
Makes certificates for tornado_status. Without a command: a development set, which is a new CA with
an empty CRL, and what it issues to a server, three clients (client, bad_client, operator) and an
announcer. The commands issue one more with the CA of that set, or revoke what it issued. Private
keys are not encrypted; their files are readable by their owner alone."""

_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", re.ASCII)
# Legible over the telephone: no 0, 1, i, l, o. 16 of these 31 letters are 79 bits.
_LEGIBLE = "abcdefghjkmnpqrstuvwxyz23456789"
_SHOWN = 5  # wrong lines of a list of e-mail addresses


class _Options(argparse.Namespace):
    """The options of all commands. A command may read only its own."""

    run: Callable[[_Options], None]
    prog: str
    out: Path
    force: bool
    if_missing: bool
    days: int | None
    key_type: KeyType | None
    emails: list[str]
    emails_file: str | None
    names: list[str]
    ips: list[str]
    stem: str
    pkcs12: bool
    pkcs12_password: str | None
    revoked: list[str | int]
    reason: str
    role: str
    to: Path
    copied_email: str | None
    bundle: Path
    trust_roots: bool


class _CertsParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print the usage, too, and leave the process from in here.
        raise ConfigError(message)


def main(argv: Sequence[str] | None = None, *, prog: str = "status-certs") -> int:
    """Run the command line and return the exit status. `prog` is how the user called it."""
    try:
        options = _parser(prog).parse_args(argv, namespace=_Options())
        options.run(options)
    except ConfigError as error:
        print(f"{prog}: error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells say it
    return 0


def _make_set(options: _Options) -> None:
    if options.force and options.if_missing:
        raise ConfigError("--if-missing and --force contradict each other")
    paths = [options.out / name for name in development.FILE_NAMES]
    key_files.make_directory(options.out)
    with key_files.locked(options.out):
        there = key_files.existing(paths)
        if options.if_missing:
            if len(there) == len(paths):
                return
            if there:
                missing = ", ".join(path.name for path in paths if path not in there)
                raise ConfigError(
                    f"{options.out} has only a part of the set (there is no {missing}): "
                    "--force makes a new one, its CA included"
                )
        if not options.force:
            key_files.refuse_existing(paths)
        made = development.make(
            options.out, days=options.days or LEAF_DAYS, key_type=options.key_type or "ec"
        )
        _write(made, options)
    out = "" if options.out == development.DIRECTORY else f" --out {options.out}"
    _say(
        "For development only: a program that reads ca.key can pose as any user. "
        f"One more user: {options.prog} client EMAIL{out}"
    )


def _issue_client(options: _Options) -> None:
    if options.pkcs12_password and not options.pkcs12:
        raise ConfigError("--pkcs12-password is of use only with --pkcs12")
    emails = list(options.emails)
    if options.emails_file is not None:
        emails += _read_emails(options.emails_file)
    emails = list(dict.fromkeys(emails))
    if not emails:
        raise ConfigError("expected an EMAIL, or --from FILE with one a line")
    with _authority(options) as authority:
        made: list[NewFile] = []
        for email in emails:
            made += _client_files(authority, email, options)
        _write(made, options)
    if len(emails) > 1:
        _say(f"{len(emails)} users, {len(made)} files")


def _client_files(authority: Authority, email: str, options: _Options) -> list[NewFile]:
    try:
        credential = authority.issue_client(
            email, days=options.days or LEAF_DAYS, key_type=options.key_type or "ec"
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    stem = key_files.client_stem(email)
    made = key_files.pair(options.out, stem, credential)
    if options.pkcs12:
        # A new password is shown once and stored nowhere. That is the default: all users of
        # this machine can read an option in `ps`.
        password = options.pkcs12_password or _new_password()
        made.append(
            NewFile(
                options.out / f"{stem}.p12",
                credential.pkcs12(email, password, [authority.certificate]),
                key_files.PRIVATE,
                note="" if options.pkcs12_password else f"password {password}",
            )
        )
    return made


def _read_emails(source: str) -> list[str]:
    """Return the e-mail addresses in a file, one a line, in canonical form. `-` is stdin."""
    name = "stdin" if source == "-" else source
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"--from: cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--from: {name} is not text in UTF-8") from error
    emails, wrong = [], []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            emails.append(client_email(text))
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ConfigError(f"--from: {name}, {'; '.join(wrong[:_SHOWN])}{more}")
    return emails


def _issue_server(options: _Options) -> None:
    names, ips = options.names, options.ips
    if not names and not ips:
        names, ips = list(development.SERVER_NAMES), list(development.SERVER_IPS)
    with _authority(options) as authority:
        credential = authority.issue_server(
            names, ips, days=options.days or LEAF_DAYS, key_type=options.key_type or "ec"
        )
        _write(key_files.pair(options.out, "server", credential), options)


def _issue_announcer(options: _Options) -> None:
    if options.key_type is not None:
        raise ConfigError("--key-type: an announcer's key is always Ed25519")
    with _authority(options) as authority:
        credential = authority.issue_announcer(options.stem, days=options.days or LEAF_DAYS)
        _write(key_files.pair(options.out, options.stem, credential), options)


def _revoke(options: _Options) -> None:
    with _authority_of_crl(options) as authority:
        issued, unread = revocation.issued_in(options.out, authority)
        serials = revocation.serials(options.revoked, issued, authority)
        last = revocation.last_crl(options.out / development.CRL_FILE, authority)
        reason = revocation.REASONS[options.reason]
        crl = revocation.next_crl(authority, last, serials, reason=reason, days=options.days)
        file = development.crl_file(options.out, crl)
        key_files.replace(file)
    for path in unread:
        _say(f"{path} was not looked at: no certificate in PEM can be read in it")
    for serial in serials:
        entry = None if last is None else last.get_revoked_certificate_by_serial_number(serial)
        before = "" if entry is None else f" already on {entry.revocation_date_utc:%Y-%m-%d}"
        paths = [str(certificate.path) for certificate in issued if certificate.serial == serial]
        where = ", ".join(paths) or f"not of a certificate in {options.out}"
        _say(f"revoked{before}: {serial:x} ({where})")
    _say_crl(file, last)


def _issue_crl(options: _Options) -> None:
    with _authority_of_crl(options) as authority:
        last = revocation.last_crl(options.out / development.CRL_FILE, authority)
        crl = revocation.next_crl(authority, last, days=options.days or CRL_DAYS)
        file = development.crl_file(options.out, crl)
        key_files.replace(file)
    _say_crl(file, last)


def _copy(options: _Options) -> None:
    if not key_files.existing([options.out / CA_CERTIFICATE_FILE]):
        raise ConfigError(f"{options.out} has no certificates: make a set first")
    with key_files.locked(options.out):
        changed = copies.copy(options.out, options.role, options.to, email=options.copied_email)
    for file in changed:
        _say(str(file.path))


def _install(options: _Options) -> None:
    tools = browser.check_system()
    if not options.bundle.exists():
        raise ConfigError(f"{options.bundle} does not exist")
    bundle = browser.read_bundle(options.bundle, _ask_password(options.bundle))
    for directory in browser.databases(Path.home()):
        browser.install(bundle, directory, tools, trust_roots=options.trust_roots)
        _say(f"{bundle.email}: installed for Chromium and Chrome, in {directory}")
    for root in bundle.roots if options.trust_roots else ():
        _say(
            f'They now trust web sites with a certificate of "{name_of(root.subject)}". '
            "A program that has its key can pose as any web site to them."
        )
    _say("Close all windows of the browser, start it again, and open the server's page.")
    _say(browser.FIREFOX)


def _ask_password(bundle: Path) -> str:
    if sys.stdin.isatty():
        return getpass.getpass(f"Password of {bundle}: ")
    return sys.stdin.readline().rstrip("\r\n")


def _say_crl(file: NewFile, last: CertificateRevocationList | None) -> None:
    if last is None:
        _say(f"There was no {file.path}: if one was lost, what it revoked is valid again.")
    _say(f"{file.path} ({file.note})")
    _say("A server whose tls.crl it is notices by itself.")


def _authority_of_crl(options: _Options) -> contextlib.AbstractContextManager[Authority]:
    if options.force or options.key_type is not None:
        raise ConfigError("--force and --key-type are for issuing certificates")
    return _authority(options)


@contextlib.contextmanager
def _authority(options: _Options) -> Iterator[Authority]:
    if options.if_missing:
        raise ConfigError("--if-missing is for a whole set, not for a command")
    if not key_files.existing([options.out / CA_CERTIFICATE_FILE]):
        raise ConfigError(
            f"{options.out} has no CA: make a set first, {options.prog} --out {options.out}"
        )
    with key_files.locked(options.out):
        yield Authority.load(options.out)


def _write(made: Sequence[NewFile], options: _Options) -> None:
    key_files.write(made, force=options.force)
    for file in made:
        _say(f"{file.path} ({file.note})" if file.note else str(file.path))


def _parser(prog: str) -> _CertsParser:
    parser = _CertsParser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=f"More: {prog} COMMAND --help, and docs/certificates.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_common(
        parser,
        "without a command, replace the whole set and its CA: certificates of the old CA are void",
    )
    _add_key_type(parser)
    parser.add_argument(
        "--if-missing",
        action="store_true",
        help="do nothing if the set is complete, make it if there is none, else fail",
    )
    parser.set_defaults(
        run=_make_set, prog=prog, out=development.DIRECTORY, days=None, force=False, key_type=None
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in _COMMANDS:
        added = commands.add_parser(
            command.name, help=command.help, description=command.description, allow_abbrev=False
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser


def _add_client(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("emails", metavar="EMAIL", nargs="*", type=_argument(client_email))
    parser.add_argument(
        "--from",
        dest="emails_file",
        metavar="FILE",
        help="a file with one EMAIL a line, or - for stdin; empty lines and lines that begin "
        "with # are ignored",
    )
    _add_common(parser)
    _add_key_type(parser)
    parser.add_argument(
        "--pkcs12", action="store_true", help="write EMAIL.p12, too, to import in a browser"
    )
    parser.add_argument(
        "--pkcs12-password",
        metavar="PASSWORD",
        type=_argument(_password),
        help="of EMAIL.p12; by default a new one, which is printed",
    )


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name",
        dest="names",
        metavar="NAME",
        action="append",
        default=[],
        type=_argument(dns_name),
        help="DNS name by which clients reach it; may be repeated",
    )
    parser.add_argument(
        "--ip",
        dest="ips",
        metavar="ADDRESS",
        action="append",
        default=[],
        type=_argument(_ip),
        help="IP address by which clients reach it; may be repeated",
    )
    _add_common(parser)
    _add_key_type(parser)


def _add_announcer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name",
        dest="stem",
        metavar="STEM",
        default=development.ANNOUNCER_STEM,
        type=_argument(_announcer_stem),
        help="write STEM.crt and STEM.key, so that the next one can lie beside (announcer)",
    )
    _add_common(parser)


def _add_revoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "revoked",
        metavar="EMAIL|SERIAL",
        nargs="+",
        type=_argument(_email_or_serial),
        help="the serial number in hex, as the server or openssl shows it",
    )
    parser.add_argument(
        "--reason",
        metavar="NAME",
        choices=list(revocation.REASONS),
        default="unspecified",
        help=f"what the list says of it; the server does not care: {', '.join(revocation.REASONS)}",
    )
    _add_out(parser)
    _add_days(parser, f"how long the list is good ({CRL_DAYS}, or as long as the last one)")


def _add_crl(parser: argparse.ArgumentParser) -> None:
    _add_out(parser)
    _add_days(parser, f"how long the list is good ({CRL_DAYS})")


def _add_copy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("role", choices=copies.ROLES, help="who will read the copies")
    parser.add_argument("to", metavar="DIR", type=Path, help="where to; it is made if need be")
    parser.add_argument(
        "--email",
        dest="copied_email",
        metavar="EMAIL",
        type=_argument(client_email),
        help="whose certificate a listener or client gets, instead of operator's or client's; it "
        "has their file name in DIR",
    )
    _add_out(parser)


def _add_install(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="FILE.p12", type=Path, help="made by client --pkcs12")
    parser.add_argument(
        "--no-ca",
        dest="trust_roots",
        action="store_false",
        help="do not trust the CA in the file: the server's certificate is from a public CA",
    )


@dataclass(frozen=True, slots=True)
class _Command:
    name: str
    run: Callable[[_Options], None]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    help: str
    description: str


_COMMANDS = (
    _Command(
        "client",
        _issue_client,
        _add_client,
        "issue to more users or devices: EMAIL.crt and EMAIL.key",
        "Issue to more users or devices: EMAIL.crt and EMAIL.key for each. The e-mail is the "
        "identity; an operator is a client whom access.readers in config.yaml names. Nothing is "
        "written unless all can be.",
    ),
    _Command(
        "server",
        _issue_server,
        _add_server,
        "issue to the server: server.crt and server.key",
        "Issue to the server: server.crt and server.key. Without --name and --ip: "
        f"{', '.join([*development.SERVER_NAMES, *development.SERVER_IPS])}.",
    ),
    _Command(
        "announcer",
        _issue_announcer,
        _add_announcer,
        "issue to an announcer: a key that signs status datagrams",
        "Issue to an announcer: an Ed25519 key that signs status datagrams.",
    ),
    _Command(
        "revoke",
        _revoke,
        _add_revoke,
        "revoke certificates: add them to ca.crl",
        "Revoke certificates: add them to ca.crl. An e-mail stands for every certificate of it "
        "that is in the directory, a serial number for that one, be it there or not.",
    ),
    _Command(
        "crl",
        _issue_crl,
        _add_crl,
        "issue ca.crl anew, before it expires",
        "Issue ca.crl anew, before it expires, with the same revoked certificates.",
    ),
    _Command(
        "copy",
        _copy,
        _add_copy,
        "copy what a server, a listener or a client needs, and no other key",
        "Copy to DIR what a server, a listener or a client needs, and no other key. Files that are "
        "there already as they should be are left alone, so it may be repeated: after a renewal, "
        "or when ca.crl has changed.",
    ),
    _Command(
        "install",
        _install,
        _add_install,
        "install EMAIL.p12 for Chromium and Chrome of this user, on Linux",
        "Install EMAIL.p12 for Chromium and Chrome of this user, on Linux. Asks for the password, "
        "or reads it from stdin. For other browsers and systems, see docs/certificates.md.",
    ),
)


def _add_common(parser: argparse.ArgumentParser, force_help: str = "replace the files") -> None:
    _add_out(parser)
    _add_days(parser, f"validity, at most until the CA expires ({LEAF_DAYS})")
    parser.add_argument("--force", action="store_true", default=argparse.SUPPRESS, help=force_help)


# No defaults here: a command's default would override what stands before the command.
def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=argparse.SUPPRESS,
        help=f"directory of the set ({development.DIRECTORY})",
    )


def _add_days(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--days", type=_argument(_days), default=argparse.SUPPRESS, help=help_text)


def _add_key_type(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key-type",
        choices=("ec", "rsa"),
        default=argparse.SUPPRESS,
        help="P-256, or RSA with 3072 bits (ec)",
    )


def _argument(parse: Callable[[str], Parsed]) -> Callable[[str], Parsed]:
    """Let argparse show the sentence of a `ValueError`, which it would replace by its own."""

    def parsed(text: str) -> Parsed:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def _days(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_DAYS:
        raise ValueError(f"expected 1-{MAX_DAYS} days, got {text!r}")
    return int(text)


def _email_or_serial(text: str) -> str | int:
    return parse_email(text) if "@" in text else revocation.parse_serial(text)


def _ip(text: str) -> str:
    return str(ip_address(text))


def _announcer_stem(text: str) -> str:
    if not _STEM.fullmatch(text):
        raise ValueError(f"expected a file name of up to 40 letters and digits, got {text!r}")
    if text.lower() in set(development.STEMS) - {development.ANNOUNCER_STEM}:
        raise ValueError(f"{text} is the name of another certificate of the set")
    return text


def _password(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("expected a password of printable characters")
    return text


def _new_password() -> str:
    letters = [secrets.choice(_LEGIBLE) for _ in range(16)]
    return "-".join("".join(letters[start : start + 4]) for start in range(0, 16, 4))


def _say(line: str) -> None:
    print(printable(line))
