"""Verifying datagrams: signatures, known announcers, and what is shown unverified."""
