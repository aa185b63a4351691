"""The exception tree. All errors that one part of the server raises for another.

StatusError
├── ConfigError            a setting, a file or a start-up condition is wrong: exit 2
├── IdentityError          a certificate that may not check in, with the HTTP status that says so
├── AnnouncerError         a certificate that does not prove a key that may announce
├── CRLError               a CRL that cannot be used
├── ProxyHeaderError       a PROXY protocol header that says no client's address
├── ForwardedError         a proxy's headers that do not say who the client is
├── DatagramError          bytes that are no status datagram, or values that do not fit in one
├── BrokerError            a message broker that cannot be reached or used, and is tried again
├── HeadTooSlow            the head of a request is not whole in time (408)
├── TooFrequent            an identity checks in more often than it may (429)
└── StoreError             the database could not do it
    ├── StoreUnavailable   away, slow or overloaded: not known to be recorded (503)
    ├── UserUnknown        enrolment is closed and this e-mail is not enrolled (403)
    └── HistoryGone        the asked-for numbers are pruned, or not reached yet (410)
"""

from __future__ import annotations

from typing import NamedTuple


class StatusError(Exception):
    """Base of all errors of this project."""


class ConfigError(StatusError):
    """A setting, a file or a start-up condition is wrong.

    The message names the key, what was expected and what to do, in one line; settings have a line
    for each error. The command line prints it and exits with status 2.
    """


class Refusal(NamedTuple):
    """Why a certificate may not check in. A value to keep; raise `IdentityError(*refusal)`.

    Keep no exception instead: each raise of one instance lengthens its traceback, which holds
    frames and their locals. `status` is the HTTP status (400 or 403), `detail` the sentence for the
    client, `reason` a short stable word for logs and counters.
    """

    status: int
    reason: str
    detail: str


class IdentityError(StatusError):
    """A peer certificate does not give an identity that may check in; `refusal` says why."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.refusal = Refusal(status, reason, detail)
        self.status, self.reason, self.detail = self.refusal


class AnnouncerError(StatusError):
    """A certificate does not prove a key that may announce; the message says why."""


class CRLError(StatusError):
    """A CRL cannot be used; the message says why."""


class ProxyHeaderError(StatusError):
    """Bytes that are no PROXY protocol header, or one that gives no address of a client.

    `reason` is a short stable word for logs and counters.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ForwardedError(StatusError):
    """A proxy's headers do not say who the client is. `reason` is a short word for counters."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DatagramError(StatusError):
    """Bytes that are no status datagram. `reason` is a short stable word for counters."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BrokerError(StatusError):
    """A broker cannot be reached or used now. `reason` is a short stable word for counters."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class HeadTooSlow(StatusError):
    """The head of a request is not whole within `server.header_timeout_s`."""


class TooFrequent(StatusError):
    """An identity checks in more often than it may; `retry_after_s` is in whole seconds."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many check-ins, try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class StoreError(StatusError):
    """The database could not do what was asked."""


class StoreUnavailable(StoreError):
    """The database is away, slow or overloaded: nothing is known to be recorded.

    `retry_after_s` is the whole number of seconds after which trying again makes sense.
    """

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UserUnknown(StoreError):
    """Enrolment is closed and this e-mail is not enrolled."""


class HistoryGone(StoreError):
    """The events asked for are not in the log: pruned, or above its head."""
