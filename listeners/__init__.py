"""Receives the announcements of a status server: verified, complete, each update once, in order.

A datagram passes these stages, a folder each:

receive/   sockets, a NATS broker, and a queue that is fair to all senders
verify/    signatures against the known announcers, and updates without proof if asked for
order/     which log is followed, its events in order, gaps, and the saved position
repair/    what is missing and who announces, over HTTPS (`clients.https`)
board/     the terminal board

`listener` puts the stages together as a library, `cli` as a program. `events` are the deliveries,
`output` writes them. Of `tornado_status` only pure modules are used. Nothing happens at import.
"""
