"""`make release`: what it refuses, and what one command makes of a checkout that is ready."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import ROOT, plain_environment
from tests.support.pages import copy_of_the_checkout
from tornado_status import __version__

pytestmark = pytest.mark.once

BUILD_S = 180  # two builds on a machine that runs other tests


class Repository:
    """A repository of its own, ready to be released."""

    def __init__(self, directory: Path) -> None:
        self.here = copy_of_the_checkout(directory)
        changelog = self.here / "CHANGELOG.md"
        text = changelog.read_text().replace(
            f"## {__version__} - unreleased", f"## {__version__} - 2026-01-31"
        )
        changelog.write_text(text)
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit()

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.com")
        return subprocess.run(
            ["git", *identity, *arguments],
            cwd=self.here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "all: as it is")

    def release(
        self, version: str = __version__, check: str = "true"
    ) -> subprocess.CompletedProcess[str]:
        """Run the script as make does, with `check` in the place of the tests."""
        git = {
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "Tester"), ("EMAIL", "tester@example.com"))
        }
        return subprocess.run(
            ["tools/release.sh", version],
            cwd=self.here,
            env={**plain_environment(), **git, "PYTHON": sys.executable, "RELEASE_CHECK": check},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=False,
        )


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def test_one_command_builds_and_tags_a_release(repository: Repository) -> None:
    """It says how to publish it, pushes nothing, and is not repeated."""
    done = repository.release()
    assert done.returncode == 0, done.stderr
    tag = f"v{__version__}"
    assert repository.git("rev-parse", f"{tag}^{{commit}}") == repository.git("rev-parse", "HEAD")
    assert {path.name for path in (repository.here / "dist").iterdir()} == {
        f"tornado_status-{__version__}.tar.gz",
        f"tornado_status-{__version__}-py3-none-any.whl",
    }
    assert f"git push origin HEAD {tag}\n" in done.stdout
    assert "twine upload dist/*\n" in done.stdout
    assert repository.git("status", "--porcelain") == ""
    again = repository.release()
    assert again.returncode == 2
    assert again.stderr.startswith(f"release: the tag {tag} exists")


def test_what_is_not_ready_is_not_released(repository: Repository) -> None:
    """Each refusal says what to do, and leaves neither a tag nor a build."""

    def refused(sentence: str, **options: str) -> None:
        done = repository.release(**options)
        assert done.returncode != 0
        assert sentence in done.stderr, done.stderr

    refused("expected VERSION=x.y.z, got ''", version="")
    refused(f"says {__version__}, not 98.7.6", version="98.7.6")
    (repository.here / "new.txt").write_text("not committed\n")
    refused("the working tree is not clean")
    (repository.here / "new.txt").unlink()
    refused("", check="false")
    changelog = repository.here / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("2026-01-31", "unreleased"))
    repository.commit()
    refused("CHANGELOG.md has no section")
    assert repository.git("tag") == ""
    assert not (repository.here / "dist").exists()


def test_make_starts_it() -> None:
    made = subprocess.run(
        ["make", "--dry-run", "--assume-old=.venv/.dev", "release", "VERSION=1.2.3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'tools/release.sh "1.2.3"\n' in made.stdout
