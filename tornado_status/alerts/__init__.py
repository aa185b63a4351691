"""Tells receivers by webhook what happens to users: from the log, signed, at least once."""

from tornado_status.alerts.webhook import NotDelivered
from tornado_status.alerts.worker import Alerts, Journal, Sender, load_senders

__all__ = ["Alerts", "Journal", "NotDelivered", "Sender", "load_senders"]
