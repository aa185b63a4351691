"""The machine of a run: numbers of two machines do not compare."""

from __future__ import annotations

import os
import platform
import re
import shutil
import ssl
import subprocess
from pathlib import Path

from benchmarks.postgresql import PostgreSql

_VERSIONS = {
    "nginx": (["nginx", "-v"], r"nginx/(\S+)"),
    "Node.js": (["node", "--version"], r"v(\S+)"),
    "Go": (["go", "version"], r"go(\d\S*)"),
    "C compiler": (["cc", "--version"], r"^(.+)"),
}


def describe(postgres: PostgreSql) -> dict[str, str]:
    """Return the hardware, the kernel and the versions, by name."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = {
        "CPU": _cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory_gib:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
        "PostgreSQL": postgres.version().split()[0],
        "one commit": f"{postgres.commit_ms():.2f} ms (median, one client)",
    }
    for name, (command, pattern) in _VERSIONS.items():
        version = _version(command, pattern)
        if version:
            machine[name] = version
    return machine


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def _version(command: list[str], pattern: str) -> str | None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    program = shutil.which(command[0], path=path)
    if program is None:
        return None
    done = subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, timeout=10, check=False
    )
    match = re.search(pattern, done.stdout + done.stderr, re.MULTILINE)
    return match[1] if match else None
