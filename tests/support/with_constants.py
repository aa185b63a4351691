"""The server with other constants: `python -m tests.support.with_constants JSON ARGUMENT...`.

JSON maps full names, as `tornado_status.ingress.tls_acceptor.MAX_HANDSHAKES`, to values. It is
for limits that no setting changes and that a test cannot reach otherwise.
"""

from __future__ import annotations

import importlib
import json
import sys

from tornado_status.cli import main

MAX_HANDSHAKES = "tornado_status.ingress.tls_acceptor.MAX_HANDSHAKES"
MAX_MUTE = "tornado_status.ingress.tls_acceptor.MAX_MUTE"
MAX_HANDSHAKE_BYTES = "tornado_status.ingress.handshake.MAX_HANDSHAKE_BYTES"
CONTINUED_PER_SECOND = "tornado_status.observe.tracing.CONTINUED_PER_SECOND"
LINGER_S = "tornado_status.ingress.lingering.LINGER_S"
STALLED_S = "tornado_status.ingress.tls_acceptor.STALLED_S"
MAX_UNANSWERED = "tornado_status.ingress.identity_shares.MAX_UNANSWERED"
MAX_BATCH = "tornado_status.store.group_commit.MAX_BATCH"
BODY_TIMEOUT_S = "tornado_status.runtime.http_timeouts.BODY_TIMEOUT_S"
STALL_S = "tornado_status.runtime.http_timeouts.STALL_S"
MAX_READS = "tornado_status.api.application.MAX_READS"
MAX_READS_EACH = "tornado_status.api.application.MAX_READS_EACH"
READ_WAIT_S = "tornado_status.api.handler.READ_WAIT_S"
PIECE = "tornado_status.api.read_handler.PIECE"
MAX_UNSENT_BYTES = "tornado_status.runtime.base_acceptor.MAX_UNSENT_BYTES"
MAX_PENDING = "tornado_status.store.group_commit.MAX_PENDING"
KEEP_ALIVE_S = "tornado_status.api.live.subscriptions.KEEP_ALIVE_S"
UNKNOWN_LOG_S = "tornado_status.api.live.catch_up.UNKNOWN_LOG_S"
REST_FACTOR = "tornado_status.api.live.subscriptions.REST_FACTOR"
SLICE_S = "tornado_status.api.live.cpu_slices.SLICE_S"
MAX_PER_READER = "tornado_status.api.live.subscription_limit.MAX_PER_READER"
MAX_UNREAD_BYTES = "tornado_status.api.live.subscription.MAX_UNREAD_BYTES"
MAX_ANSWER = "tornado_status.alerts.webhook.MAX_ANSWER"
MAX_MESSAGE_BYTES = "tornado_status.wire.nats_client.MAX_MESSAGE_BYTES"
PREVIOUS_TIMEOUT_S = "tornado_status.store.embedded.postgres.PREVIOUS_TIMEOUT_S"
MIN_LATE_S = "tornado_status.store.presence_sweep.MIN_LATE_S"
STAGGER_S = "tornado_status.store.failover.STAGGER_S"
ASK_AGAIN_S = "tornado_status.store.failover.ASK_AGAIN_S"
MAX_WAITING_BYTES = "tornado_status.runtime.background_output.MAX_WAITING_BYTES"
MAX_QUEUED = "tornado_status.announce.nats_sink.MAX_QUEUED"
MAX_REQUESTS_EACH = "tornado_status.api.application.MAX_REQUESTS_EACH"
MAX_IGNORED = "tornado_status.api.live.connections.MAX_IGNORED"
KEPT_S = "tornado_status.ingress.check_in_service.KEPT_S"
LONG_READ_S = "tornado_status.ingress.peer_stream.LONG_READ_S"
LONGEST_READ_S = "tornado_status.runtime.read_watch.LONGEST_READ_S"
ALERT_POLL_S = "tornado_status.alerts.worker.POLL_S"
ALERT_GIVE_UP_EVERY_S = "tornado_status.alerts.worker.GIVE_UP_EVERY_S"
ALERT_MAX_QUEUED = "tornado_status.alerts.worker.MAX_QUEUED"
ALERT_BACK_OFF_S = "tornado_status.alerts.worker.BACK_OFF_S"
LOCAL = "tornado_status.store.remote_database.LOCAL"  # []: loopback counts as another machine


def replace_constants(constants: dict[str, object]) -> None:
    """Set each; a name that is not there raises `AttributeError`."""
    for name, value in constants.items():
        module_name, _, constant = name.rpartition(".")
        module = importlib.import_module(module_name)
        getattr(module, constant)
        setattr(module, constant, value)


if __name__ == "__main__":
    replace_constants(json.loads(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
