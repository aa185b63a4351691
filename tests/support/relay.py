"""A cable that repeats and reorders: `python -m tests.support.relay A B PORT PERCENT`.

Between the interfaces A and B, in the namespace of the bridge. It repeats a percentage of the
datagrams to a UDP port that go from B to A. It holds as many back until later ones have overtaken
them. Kernels without sch_netem have nothing of their own for it. Says "relaying" once it
does, and what it did when its input ends.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import sys
from collections.abc import Iterator

ETH_P_ALL = 3
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 263, 1, 1
PACKET_OUTGOING = 4
IPV4, IPV6, UDP = b"\x08\x00", b"\x86\xdd", 17
HELD = 7  # frames that overtake one that is held back; fewer where nothing comes
QUIET_S = 0.02
LONGEST = 65536


def main(near: str, far: str, port: int, percent: int) -> None:
    chance = random.Random(1)  # noqa: S311 - a network, not a secret
    here, there = interface(near), interface(far)
    held: list[tuple[int, bytes]] = []
    relayed = repeated = overtaken = 0
    print("relaying", flush=True)
    while True:
        ready, _, _ = select.select([here, there, sys.stdin], [], [], QUIET_S)
        if sys.stdin in ready:
            break
        if here in ready:
            for frame in frames(here):
                there.send(frame)
        if not ready:
            for _, frame in held:
                here.send(frame)
            held.clear()
        if there not in ready:
            continue
        for frame in frames(there):
            for _ in range(len(held)):
                left, waiting = held.pop(0)
                if left:
                    held.append((left - 1, waiting))
                else:
                    here.send(waiting)
            if udp_port(frame) != port:
                here.send(frame)
                continue
            relayed += 1
            if chance.randrange(100) < percent:
                overtaken += 1
                held.append((HELD, frame))
                continue
            here.send(frame)
            if chance.randrange(100) < percent:
                repeated += 1
                held.append((chance.randrange(HELD), frame))
    print(f"relayed {relayed} repeated {repeated} overtaken {overtaken}", flush=True)


def interface(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 1024 * 1024)
    everything = struct.pack("@iHH8x", socket.if_nametoindex(name), PACKET_MR_PROMISC, 0)
    sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, everything)
    sock.bind((name, ETH_P_ALL))
    return sock


def frames(sock: socket.socket) -> Iterator[bytes]:
    """Yield what has come, but not what we sent ourselves."""
    for _ in range(64):
        try:
            frame, address = sock.recvfrom(LONGEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if address[2] != PACKET_OUTGOING:
            yield frame


def udp_port(frame: bytes) -> int | None:
    """Return the destination port of an unfragmented UDP datagram."""
    if frame[12:14] == IPV4 and frame[23] == UDP:
        start = 14 + 4 * (frame[14] & 0x0F)
    elif frame[12:14] == IPV6 and frame[20] == UDP:
        start = 54
    else:
        return None
    return int.from_bytes(frame[start + 2 : start + 4], "big")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
