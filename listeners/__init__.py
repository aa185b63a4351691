"""Receives the announcements of a status server: verified, complete, each update once, in order.

A datagram passes these stages, a folder each:

receive/   sockets, a NATS broker, and a queue that is fair to all senders
verify/    signatures by the known announcers; updates without proof, if asked for
order/     the followed log, its events in order, gaps, and the saved position
repair/    missing events and announcers, over HTTPS (`clients.https`)
board/     the terminal board

`listener` puts the stages together as a library, `cli` as a program. `events` are the deliveries,
`output` writes them. Of `tornado_status` only pure modules are used. Nothing happens at import.
"""
