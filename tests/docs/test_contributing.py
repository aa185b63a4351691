"""The habits that CONTRIBUTING.md promises: hooks, hosted CI, templates, and make's targets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.harness import PATIENCE_S, ROOT, plain_environment
from tests.support.pages import blocks, checkout

pytestmark = pytest.mark.once

GITHUB = ROOT / ".github"


def test_make_has_each_target_of_the_page() -> None:
    """Set up, run, change, test: the first block is five commands."""
    first, *_ = blocks("CONTRIBUTING.md")
    lines = [line.partition("#")[0].split() for line in first.text.splitlines()]
    assert len(lines) == 5
    makefile = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
    for program, target in lines:
        if program == "make":
            assert re.search(rf"(?m)^{re.escape(target)}:", makefile), target


def test_a_commit_runs_the_linters_of_make() -> None:
    """The same programs, from the same environment."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]  # nothing is fetched from elsewhere
    entries = {hook["entry"] for hook in hooks[0]["hooks"]}
    recipe = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    commands = re.findall(r"(?m)^\t\$\(BIN\)/(.*?)(?: \.)?$", recipe)
    assert entries == {f".venv/bin/{command}" for command in commands}


def test_pre_commit_takes_its_configuration(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"],
        cwd=ROOT,
        env={**plain_environment(), "PRE_COMMIT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hosted_ci_runs_the_whole_check_on_debian() -> None:
    workflow = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["container"]["image"].startswith("debian:")
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert workflow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("template", sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.md")), ids=str)
def test_an_issue_template_has_what_its_host_reads(template: Path) -> None:
    _, head, body = template.read_text().split("---\n", 2)
    assert {"name", "about"} <= set(yaml.safe_load(head))
    assert body.strip()


def test_every_text_file_is_as_the_editorconfig_says() -> None:
    """No trailing space and one line feed at the end: what editors do by that file."""
    kept = (
        *("tests/vectors/", "tests/schemas/", "tornado_status/api/board/files/vendor/"),
        "benchmarks/results/",
    )
    wrong = []
    for name in checkout():
        if name.startswith(kept):
            continue
        content = (ROOT / name).read_bytes()
        if b"\0" in content or not content:
            continue
        if not content.endswith(b"\n") or re.search(rb"[ \t]\n|\r\n", content):
            wrong.append(name)
    assert wrong == []
