"""Tells receivers by webhook what happens to users: from the log, signed, at least once."""

from tornado_status.alerts.alerts import Alerts, Journal, Sender, load_senders
from tornado_status.alerts.webhook import NotDelivered

__all__ = ["Alerts", "Journal", "NotDelivered", "Sender", "load_senders"]
