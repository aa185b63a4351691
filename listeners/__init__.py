"""Hears the announcements of a status server and shows each update once.

The parts, in the order in which a datagram passes them: `sockets` opens the ears, `receiver` judges
the bytes, `duplicates` drops what was heard before, `output` writes what is left, and `cli` puts
them together. Of `tornado_status` only the pure modules are used. Nothing happens at import.
"""
