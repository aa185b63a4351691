"""Keys and certificates on disk: nothing lost, nothing readable by others, no wrong pair.

Owns file names, modes and the order of writing. Knows nothing of what a certificate says.
Every `OSError` ends here, as a `ConfigError` that names the file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from certs_gen.authority import Credential
from tornado_status.errors import ConfigError

_POSIX = True
try:
    import fcntl
except ImportError:  # Windows: no locks of directories, and no file modes
    _POSIX = False

PUBLIC = 0o644
PRIVATE = 0o600
CA_PRIVATE = 0o400  # written once, never again: a slip of an editor must not change it
# Open to others: the server may run as another user, in a container too, and needs the certificates
# here. Each secret file is protected by its own mode.
DIRECTORY = 0o755
_NAMED = 12  # files of one message; a whole set has 13
# Windows has no O_CLOEXEC, and without O_BINARY it would write CRLF in place of LF.
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_NEW_FILE |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to write. `note` is what the command line says about it, if anything."""

    path: Path
    content: bytes = field(repr=False)
    mode: int = PUBLIC
    note: str = ""

    @property
    def private(self) -> bool:
        return not self.mode & 0o077


def client_stem(email: str) -> str:
    """Return the name of a client's files without the suffix.

    A slash is allowed in an e-mail's local part (RFC 5322 atext), and would lead out of the
    directory.
    """
    return email.replace("%", "%25").replace("/", "%2F")


def pair(
    directory: Path, stem: str, credential: Credential, *, key_mode: int = PRIVATE
) -> list[NewFile]:
    """Return `stem.key` and `stem.crt`, to be written in `directory`."""
    last = credential.certificate.not_valid_after_utc
    return [
        NewFile(directory / f"{stem}.key", credential.key_pem(), key_mode),
        NewFile(
            directory / f"{stem}.crt",
            credential.certificate_pem(),
            note=f"until {last:%Y-%m-%d}",
        ),
    ]


def existing(paths: Iterable[Path]) -> list[Path]:
    """Return those that are there, a dangling symbolic link included."""
    return [path for path in paths if os.path.lexists(path)]


def refuse_existing(paths: Iterable[Path]) -> None:
    """Raise `ConfigError` when there is something already."""
    there = existing(paths)
    if there:
        raise _already(there)


def make_directory(directory: Path) -> None:
    """Make it, and those above it, unless it is there."""
    try:
        directory.mkdir(mode=DIRECTORY, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot make the directory: {error.strerror}") from error


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other runs out of the directory.

    Two containers that start at once on one volume would otherwise mix two sets. The wait is as
    long as the other run, which itself does not wait. If it dies, the system frees the lock.
    Windows has no such lock.
    """
    if not _POSIX:
        yield
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot open the directory: {error.strerror}") from error
    try:
        # Some network file systems lock no directories. Alone, a run is safe without.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write(files: Sequence[NewFile], *, force: bool) -> None:
    """Write all of `files`, or none of them. Raises `ConfigError`.

    Without `force` a file that exists is an error, and nothing is written. However the run ends,
    kill -9 included, no certificate lies beside the key of another.
    """
    if not force:
        refuse_existing(file.path for file in files)
    # Keys first: an interruption then leaves a key without a certificate, which no server accepts,
    # and never a certificate whose key is lost.
    ordered = sorted(files, key=lambda file: not file.private)
    if force:
        _replace(ordered)
    else:
        _write_new(ordered)


def replace(file: NewFile) -> None:
    """Put a public file in the place of the old one, if there is one. Raises `ConfigError`.

    In one step: a program that opens it finds the old file or the new one, whole. That holds after
    a kill -9 or a power cut, too. If it is a symbolic link, the file that it points to is
    replaced, because another program reads that one.
    """
    target = Path(os.path.realpath(file.path))
    beside = _beside(target)
    with contextlib.ExitStack() as leftovers:
        _create(beside, file, leftovers)
        try:
            # The server that read the old file, maybe as another user, must be able to read this
            # one, whatever the umask is.
            if _POSIX:
                beside.chmod(file.mode)
            beside.replace(target)
            _sync_directory(target.parent)
        except OSError as error:
            raise ConfigError(f"{file.path}: cannot replace it: {error.strerror}") from error


def _write_new(files: Sequence[NewFile]) -> None:
    with contextlib.ExitStack() as undo:
        for file in files:
            _create(file.path, file, undo)
        undo.pop_all()


def _replace(files: Sequence[NewFile]) -> None:
    with contextlib.ExitStack() as leftovers:
        staged: list[tuple[Path, NewFile]] = []
        try:
            # Everything that is likely to fail fails here, while the old files stand.
            for file in files:
                if file.path.is_dir() and not file.path.is_symlink():
                    raise ConfigError(f"{file.path}: a directory, expected a file to replace")
                beside = _beside(file.path)
                _create(beside, file, leftovers)
                staged.append((beside, file))
            # Two renames are not one step. With the old certificates gone before the first new key
            # comes, there is no moment at which a certificate lies beside another one's key.
            for file in files:
                if not file.private:
                    file.path.unlink(missing_ok=True)
            for beside, file in staged:
                beside.replace(file.path)
        except OSError as error:
            raise ConfigError(f"{file.path}: cannot replace it: {error.strerror}") from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _sync_directory(directory: Path) -> None:
    if not _POSIX:
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Some network file systems sync no directories; their server has the new name by now.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path, file: NewFile, undo: contextlib.ExitStack) -> None:
    """Write `file` at the new `path`. Unwinding `undo` removes it, half written or whole."""
    try:
        # On Windows --force cannot replace a file without the right to write.
        mode = file.mode if _POSIX else PRIVATE
        descriptor = os.open(path, _NEW_FILE, mode)
        undo.callback(path.unlink, missing_ok=True)
        with os.fdopen(descriptor, "wb") as stream:
            if file.private and _POSIX:
                os.fchmod(descriptor, file.mode)  # exactly, whatever the umask is
            stream.write(file.content)
            stream.flush()
            os.fsync(descriptor)  # or a power cut leaves the new name with nothing in it
    except FileExistsError as error:
        raise _already([path]) from error
    except OSError as error:
        raise ConfigError(f"{file.path}: cannot write it: {error.strerror}") from error


def _already(there: Sequence[Path]) -> ConfigError:
    names = ", ".join([str(there[0]), *(path.name for path in there[1:_NAMED])])
    if len(there) > _NAMED:
        names += f" and {len(there) - _NAMED} more"
    verb = "exists" if len(there) == 1 else "exist"
    return ConfigError(f"{names} {verb} already: nothing is overwritten without --force")
