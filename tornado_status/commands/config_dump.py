"""`tornado-status config`: the settings in effect, where each comes from, and no secrets."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from tornado_status.config import loader
from tornado_status.config.settings import Settings

MASK = "********"

# Names of settings that are never shown. Names of files that hold keys are no secrets.
_SECRET = re.compile(
    r"secret|passw|passphrase|passcode|token|credential|authorization|cookie|(^|_)(api)?key(s|$)",
    re.IGNORECASE,
)
_FILE = re.compile(r"_(file|path)$", re.IGNORECASE)
_PARAMETER = re.compile(r"pass|secret|token|key|auth|sig", re.IGNORECASE)
_KEY = re.compile(r"-----BEGIN [A-Z ]*(PRIVATE KEY|SECRET)")
_USER_IS_NO_SECRET = ("postgresql", "postgres")  # elsewhere a user without a password is a token


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("yaml", "json"), default="yaml", help="default: yaml, as in the file"
    )


def run(options: argparse.Namespace) -> int:
    """Print the settings in effect and where each comes from, without secrets."""
    settings = loader.load(options.config, os.environ)
    format_of = as_json if options.format == "json" else as_yaml
    print(format_of(settings, loader.origins(options.config, os.environ)), end="")
    return 0


def as_yaml(settings: Settings, origins: Mapping[str, str]) -> str:
    """Return all settings in the form of config.yaml, each with its origin as a comment."""
    lines = []
    for section, value in masked(settings).items():
        if not isinstance(value, dict):
            lines.append(f"{section}: {_one_line(value)}  # {origins.get(section, loader.DEFAULT)}")
            continue
        lines.append(f"{section}:")
        for key, inner in value.items():
            origin = origins.get(f"{section}.{key}", loader.DEFAULT)
            lines.append(f"  {key}: {_one_line(inner)}  # {origin}")
    return "\n".join(lines) + "\n"


def as_json(settings: Settings, origins: Mapping[str, str]) -> str:
    """Return the same for programs: `{"section.key": {"value": …, "origin": …}}`."""
    found: dict[str, object] = {}
    for section, value in masked(settings).items():
        keys = (
            {f"{section}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {}
        )
        for name, inner in (keys or {section: value}).items():
            found[name] = {"value": inner, "origin": origins.get(name, loader.DEFAULT)}
    return json.dumps(found, indent=2) + "\n"


def masked(settings: Settings) -> dict[str, object]:
    """Return the settings as plain values, with secrets masked."""
    plain = _plain("", settings.model_dump())
    if not isinstance(plain, dict):
        raise TypeError("settings are sections")
    return plain


def _plain(name: str, value: object) -> object:
    if isinstance(value, dict):
        # Everything below a secret name is secret.
        return {
            str(key): _plain(name if _is_secret(name) else str(key), inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(name, inner) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    if _is_secret(name) or _KEY.search(str(value)):
        return MASK
    return _without_secrets(str(value))


def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(name)) and not _FILE.search(name)


def _without_secrets(text: str) -> str:
    """Return a URL with secrets masked. Of an HTTP URL only the host is shown."""
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return MASK
    user, at, host = parts.netloc.rpartition("@")
    if ":" in user:
        user = f"{user.partition(':')[0]}:{MASK}"
    elif user and parts.scheme not in _USER_IS_NO_SECRET:
        user = MASK
    path, query = parts.path, parts.query
    if parts.scheme in ("http", "https"):
        path, query = (f"/{MASK}" if path.strip("/") else path), MASK if query else ""
    else:
        pairs = [(k, MASK if _PARAMETER.search(k) else v) for k, v in parse_qsl(query)]
        query = urlencode(pairs, safe="*/,:")
    return parts._replace(netloc=user + at + host, path=path, query=query, fragment="").geturl()


def _one_line(value: object) -> str:
    # JSON is YAML.
    return json.dumps(value, ensure_ascii=False)
