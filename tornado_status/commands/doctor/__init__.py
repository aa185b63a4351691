"""`tornado-status doctor`: what is wrong with this setup, and what to do about it."""

from tornado_status.commands.doctor.finding import Finding
from tornado_status.commands.doctor.report import examine, text

__all__ = ["Finding", "examine", "text"]
