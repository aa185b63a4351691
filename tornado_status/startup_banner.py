"""The startup banner: a log line and, on a console, a command to try."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import structlog

from tornado_status.config.settings import EMBEDDED, Settings


def announce_serving(settings: Settings, port: int) -> None:
    """Log that the server serves, and on a console name a command to try next."""
    host = settings.server.host
    host = "localhost" if host in ("", "0.0.0.0", "::", "127.0.0.1", "::1") else host  # noqa: S104
    proxied = settings.ingress.mode == "proxy"
    url = f"{'http' if proxied else 'https'}://{host}:{port}"
    targets = " and ".join(str(target) for target in settings.announce.targets) or "no target"
    structlog.get_logger().info(
        "serving",
        url=url,
        announcing=targets,
        database=EMBEDDED if settings.database.url == EMBEDDED else "postgresql",
    )
    if proxied and settings.logging.format == "console":
        names = " and ".join(map(str, settings.ingress.trusted_proxies))
        print(f"Serving proxies at {names} on {url}, announcing to {targets}.", flush=True)
    elif settings.logging.format == "console":
        command = _try_next(settings, url)
        print(f"Serving on {url}, announcing to {targets}. Try: {command}", flush=True)


def _try_next(settings: Settings, url: str) -> str:
    """Return a command that checks in, to be run in the current directory."""
    here = Path.cwd()
    command = _shown(Path(sys.executable).with_name("status-client"), here)
    if url != "https://localhost:8443":
        command += f" --url {url}/api/client"
    certs = settings.tls.client_ca.parent
    if certs != here / "certs":
        command += f" --cert {certs}/client.crt --key {certs}/client.key"
        command += f" --ca {settings.tls.client_ca}"
    return command


def _shown(script: Path, here: Path) -> str:
    """Return how to call a script of this environment.

    Below the current directory by its path: the second terminal may have another PATH.
    """
    if script.is_relative_to(here):
        return str(script.relative_to(here))
    found = shutil.which(script.name)
    return script.name if found is not None and Path(found).absolute() == script else str(script)
