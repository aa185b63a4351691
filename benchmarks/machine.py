"""The machine of a run: numbers of two machines do not compare."""

from __future__ import annotations

import os
import platform
import re
import ssl
import subprocess
from pathlib import Path

from benchmarks.postgresql import PostgreSql

_VERSIONS = {
    "nginx": ("nginx -v", r"nginx/(\S+)"),
    "Node.js": ("node --version", r"v(\S+)"),
    "Go": ("go version", r"go(\d\S*)"),
    "C compiler": ("cc --version", r"^(.+)"),
}


def describe(postgres: PostgreSql) -> dict[str, str]:
    """Return the hardware, the kernel and the versions, by name."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = re.search(r"(?m)^(?:model name|Model)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text())
    machine = {
        "CPU": cpu[1].strip() if cpu else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory_gib:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
        "PostgreSQL": postgres.version().split()[0],
        "one commit": f"{postgres.commit_ms():.2f} ms (median, one client)",
    }
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    for name, (command, pattern) in _VERSIONS.items():
        try:
            done = subprocess.run(
                command.split(), env={"PATH": path}, capture_output=True, text=True, timeout=10
            )  # its status says nothing
        except FileNotFoundError:
            continue
        if match := re.search(pattern, done.stdout + done.stderr, re.MULTILINE):
            machine[name] = match[1]
    return machine
