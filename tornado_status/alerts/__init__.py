"""Sends events of users to receivers by webhook: from the log, signed, at least once."""

from tornado_status.alerts.webhook import NotDelivered
from tornado_status.alerts.worker import Alerts, AlertSender, load_senders

__all__ = ["AlertSender", "Alerts", "NotDelivered", "load_senders"]
