"""Hears the announcements of a status server: true, complete, each update once and in order.

The parts, in the order in which a datagram passes them: `sockets` opens the ears, `intake` lets
nobody crowd out the others, `verify` judges the bytes with `keys`, `streams` says whose numbers
count, `sequence` puts them in order, `repair` fetches what is missing and `state` remembers where
it stopped. `listener` puts them together as a library, `cli` as a program, and `output` writes.

No sockets and no clock in all but `sockets`, `repair`, `listener` and `cli`. Of `tornado_status`
only the pure modules are used. Nothing happens at import.
"""
