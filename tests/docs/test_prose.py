"""The rules for prose: each finds what is against it, and nothing else."""

from __future__ import annotations

import pytest

from docs_site import prose


def rules(name: str, text: str) -> list[str]:
    """Return which rules a file of this name and text breaks."""
    return [
        finding.rule.partition(" (")[0]
        for passage in prose.passages(name, text)
        for finding in prose.check(passage, name)
    ]


LONG = " ".join(["word"] * 26)


@pytest.mark.parametrize(
    ("sentence", "broken"),
    [
        ("Who reads nothing is cut off.", ["begins with Who"]),
        ("It is so. So it stays.", ["begins with So"]),
        ("**What is kept** stays.", ["begins with What"]),
        ("What is kept?", []),
        ("Nobody is offline.", ['"Nobody"']),
        ("A timeout ends it.", ['"timeout"']),
        ("`timeout` and `nobody` are code, as is a.timeout.", []),
        (f"{LONG}.", ["26 words, at most 25"]),
        (f"`{LONG}`.", []),
        ("The server closes a connection that reads nothing for 30 s.", []),
    ],
)
def test_each_rule_finds_its_sentences(sentence: str, broken: list[str]) -> None:
    """On a page, in a comment, in a docstring; code and questions are left alone."""
    assert rules("page.md", sentence) == broken
    assert rules("settings.yaml", f"# {sentence}\nkey: value\n") == broken
    assert rules("module.py", f'"""{sentence}"""\n') == broken
    assert rules("module.py", f"count = 1  # {sentence}\n") == broken


def test_messages_are_checked_and_data_is_not() -> None:
    """A string of words is a message; one word, SQL and the tests' data are none."""
    assert rules("module.py", 'log.info("nobody can be shut out")') == ['"nobody"']
    assert rules("module.py", 'log.info(f"{name} tells nobody at all")') == ['"nobody"']
    assert rules("module.py", 'user = "nobody"') == []
    assert rules("module.py", 'Q = "SELECT 1 FROM nobody WHERE a = b"') == []
    assert rules("tests/test_it.py", 'assert "nobody can be shut out" in log') == []


def test_headings_code_blocks_and_excused_lines_are_left_alone() -> None:
    """The excuse has its reason on the line."""
    page = "# What you see\n\n```sh\necho Nobody\n```\n\nNobody. <!-- prose: a quotation -->\n"
    assert rules("page.md", page.partition("Nobody. ")[0]) == []
    assert rules("module.py", "count = 1  # nobody  # prose: the name of a user\n") == []


def test_every_sentence_keeps_the_rules() -> None:
    """Pages, comments, docstrings and messages."""
    found = [str(finding) for path in prose.files() for finding in prose.findings(path)]
    assert len(prose.files()) > 300
    assert not found, "\n".join(found)
