"""Clients that check in without pause: `python -m tests.support.check_in_load URL CERTS NAME...`.

Each keeps a connection, and after any failure makes a new one and goes on. At the end of its input
it prints as JSON what was answered 204, each as [name, local port], and how often one failed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT_S = 20.0


def check_in_on(
    address: tuple[str, int],
    context: ssl.SSLContext,
    name: str,
    stop: threading.Event,
    acknowledged: list[tuple[str, int]],
    failures: list[str],
) -> None:
    while not stop.is_set():
        connection = http.client.HTTPSConnection(*address, context=context, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            try:
                connection.connect()
                port = connection.sock.getsockname()[1]
                connection.auto_open = 0  # a new connection would have another port
                while not stop.is_set():
                    connection.request("POST", "/api/client")
                    response = connection.getresponse()
                    response.read()
                    if response.status != 204:
                        raise OSError(str(response.status))
                    acknowledged.append((name, port))
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{type(error).__name__}: {error}")
                stop.wait(0.05)


def main(url: str, certs: Path, names: list[str]) -> None:
    parts = urlsplit(url)
    address = parts.hostname or "", parts.port or 443
    stop = threading.Event()
    acknowledged: list[tuple[str, int]] = []
    failures: list[str] = []
    threads = []
    for name in names:
        context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
        context.load_cert_chain(certs / f"{name}.crt", certs / f"{name}.key")
        arguments = (address, context, name, stop, acknowledged, failures)
        threads.append(threading.Thread(target=check_in_on, args=arguments))
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"acknowledged": acknowledged, "failures": failures}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
