"""Errors as a web page, for people: what is missing, and what to do about it."""
