"""Check the project's prose by the rules in CONTRIBUTING.md: `python -m docs_site.prose [FILE...]`.

It reads pages, comments, docstrings, and string constants that are messages, log lines or help.
A line that is right against a rule ends in `prose: ` and the reason, in a comment.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MAX_WORDS = 25

# A relative clause as subject hides the actor. A question may begin with any of these.
OPENINGS = re.compile(r"(Who|Whoever|Whom|Whose|What|Whatever|Where|Wherever|So|Such)\b(?!:)")

# What the sentence should say instead; the glossary has the terms.
WORDS = {
    r"(some|no|every|any)body": "name the actor: a client, a user, a listener, you",
    r"(some|any|every)one|no one": "name the actor: a client, a user, a listener, you",
    r"(take|takes|taken|took) back": "revoke",
    r"stream of numbers|stream id": "log, log id",
    r"census|preamble|the bell": "the glossary's term",
    r"back ?off|backing off": "back-off",
    r"time ?outs?": "time-out",
    r"back ?pressure": "back-pressure",
    r"utili[sz]e|leverage|simply|obviously|of course|please": "nothing, or a plain word",
}
BANNED = {
    re.compile(rf"(?<![\w`./-])({words})(?![\w`-]|[./]\w)", re.I): say
    for words, say in WORDS.items()
}

# Files of others, and words that are data.
EXEMPT = {
    "LICENSE",
    "CODE_OF_CONDUCT.md",
    "docs_site/prose.py",
    "tests/docs/test_prose.py",
    "benchmarks/results/results.md",
}
NOT_OURS = ("requirements/", "tests/schemas/")

# Comments begin with this in files of this kind.
COMMENTS = {
    **dict.fromkeys((".yaml", ".yml", ".toml", ".sh", ".cfg", ".conf", ".service", ".nft"), "#"),
    **dict.fromkeys(("Makefile", "Dockerfile", "Procfile"), "#"),
    **dict.fromkeys((".js", ".mjs", ".go", ".c", ".css"), "//"),
    ".sql": "--",
}

_EXCUSED = re.compile(r"prose: \S.*\S")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')*_]*\s+(?=[\"'(*_`\[]*[A-Z`])")
_NO_END = re.compile(r"\b(e\.g|i\.e|etc|cf|vs|Nr|St)\.$")
_CODE = re.compile(r"``[^`]*``|`[^`]*`")
_LINK = re.compile(r"!?\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])")
_HTML = re.compile(r"<!--.*?-->|</?[a-z][^>]*>", re.S)


@dataclass(frozen=True, slots=True)
class Passage:
    """Text without line breaks of its own, such as a paragraph, a table cell or a comment."""

    line: int
    text: str
    counted: bool = True  # whether the length of its sentences counts: not that of messages


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence against a rule, and where it stands."""

    path: str
    line: int
    rule: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.sentence}"


def sentences(text: str) -> list[str]:
    """Return the sentences of a passage, code and links as one word each."""
    text = _LINK.sub(r"\1", _HTML.sub(" ", _CODE.sub("`code`", text)))
    found: list[str] = []
    for part in _SENTENCE_END.split(" ".join(text.split())):
        if found and _NO_END.search(found[-1]):
            found[-1] += f" {part}"
        else:
            found.append(part)
    return found


def check(passage: Passage, path: str) -> Iterator[Finding]:
    """Yield what a passage has against the rules, unless it has an excuse."""
    if _EXCUSED.search(passage.text):
        return
    for sentence in sentences(passage.text):
        bare = sentence.lstrip("\"'(*_[-> ")
        question = sentence.rstrip("\"')*_ ").endswith("?")
        if not question and (match := OPENINGS.match(bare)):
            yield Finding(path, passage.line, f"begins with {match[1]}", sentence)
        for pattern, say in BANNED.items():
            if match := pattern.search(sentence):
                yield Finding(path, passage.line, f'"{match[0]}" (rather: {say})', sentence)
        words = [word for word in re.split(r"[\s/]+|--+", sentence) if re.search(r"[\w`]", word)]
        if passage.counted and len(words) > MAX_WORDS:
            yield Finding(path, passage.line, f"{len(words)} words, at most {MAX_WORDS}", sentence)


def markdown(text: str) -> Iterator[Passage]:
    """Yield the paragraphs, list items and table cells of a page, without headings and code."""
    fenced = False
    paragraph: list[str] = []
    begin = 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        bare = line.strip()
        if bare.startswith(("```", "~~~")):
            fenced = not fenced
            bare = ""
        elif fenced:
            continue
        ends = not bare or bare.startswith(("#", "|")) or line.startswith("    ")
        item = re.match(r"([-*+]|\d+\.)\s+", bare)
        if (ends or item) and paragraph:
            yield Passage(begin, " ".join(paragraph))
            paragraph = []
        if bare.startswith("|"):
            if not _EXCUSED.search(bare):
                cells = re.split(r"(?<!\\)\|", bare.strip("|"))
                yield from (Passage(number, cell.strip()) for cell in cells)
        elif re.search(r"\S  +\S", bare):  # a list with columns
            yield Passage(number, re.split(r"  +", bare, maxsplit=1)[1])
        elif not ends or (line.startswith("    ") and item):
            if not paragraph:
                begin = number
            paragraph.append(bare[item.end() :] if item else bare)
    if paragraph:
        yield Passage(begin, " ".join(paragraph))


def comments(text: str, marker: str) -> Iterator[Passage]:
    """Yield the comments of a file whose comments run to the end of the line."""
    own_line = re.compile(rf"\s*{re.escape(marker)}+!?\s?(.*)")
    behind = re.compile(
        rf"[^\"'{re.escape(marker)}]*(?:\"[^\"]*\"|'[^']*'|[^\"'{re.escape(marker)}])*\s{re.escape(marker)}\s(.*)"
    )
    yield from _blocks(
        (number, match[1], own_line.match(line) is not None)
        for number, line in enumerate(text.splitlines(), 1)
        if not line.startswith("#!")
        if (match := own_line.match(line) or behind.fullmatch(line))
    )


def python(text: str, *, messages: bool) -> Iterator[Passage]:
    """Yield the comments, docstrings and messages of a module."""
    lines = text.splitlines()
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from _blocks(
        (
            token.start[0],
            token.string.lstrip("#! "),
            lines[token.start[0] - 1].lstrip().startswith("#"),
        )
        for token in tokens
        if token.type == tokenize.COMMENT and not token.string.startswith("#!")
    )
    tree = ast.parse(text)
    documented = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring is not None:
                inner = node.body[0]
                documented.add(id(inner.value))  # type: ignore[attr-defined]
                for passage in markdown(docstring):
                    yield Passage(inner.lineno + passage.line - 1, passage.text)
    for node in ast.walk(tree) if messages else ():
        if id(node) in documented:
            continue
        if isinstance(node, ast.JoinedStr):
            documented.update(map(id, node.values))
            message = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "`code`"
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            message = node.value
        else:
            continue
        if re.search(r"\b(SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|LOCK) ", message):
            yield from comments(message, "--")
        elif len(re.findall(r"[a-z]{2,} ", message)) >= 2 and not _EXCUSED.search(
            lines[node.lineno - 1]
        ):
            yield Passage(node.lineno, message, counted=False)


def _blocks(found: Iterator[tuple[int, str, bool]]) -> Iterator[Passage]:
    """Join comments on lines of their own that follow each other, as one page of text."""
    block: list[str] = []
    begin = last = 0
    for number, text, own_line in found:
        if _EXCUSED.search(text):
            text = ""
        if block and (not own_line or number != last + 1):
            yield from _page(begin, block)
            block = []
        if not own_line:
            yield Passage(number, text)
            continue
        if not block:
            begin = number
        block.append(text)
        last = number
    yield from _page(begin, block)


def _page(begin: int, lines: list[str]) -> Iterator[Passage]:
    for passage in markdown("\n".join(lines)):
        yield Passage(begin + passage.line - 1, passage.text)


def passages(path: str, text: str) -> Iterator[Passage]:
    """Yield the passages of a file."""
    match kind(path):
        case "md":
            yield from markdown(text)
        case "py":
            yield from python(text, messages=not path.startswith(("tests/", "benchmarks/")))
        case marker:
            yield from comments(text, marker)


def kind(path: str) -> str:
    """Return "md", "py", the characters that begin a comment, or nothing for other kinds."""
    suffix = Path(path).suffix
    if suffix in (".md", ".py"):
        return suffix[1:]
    return COMMENTS.get(suffix) or COMMENTS.get(Path(path).name, "")


def findings(path: str) -> Iterator[Finding]:
    """Yield what a file of the repository has against the rules."""
    text = (ROOT / path).read_text("utf-8")
    lines = text.splitlines()
    for passage in passages(path, text):
        if not _EXCUSED.search(lines[passage.line - 1]):
            yield from check(passage, path)


def files() -> list[str]:
    """Return the files under version control, and those that will be."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(  # noqa: S603 - these words
        command, cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [
        path
        for path in sorted(set(listed.stdout.splitlines()) - EXEMPT)
        if kind(path) and (ROOT / path).is_file() and not path.startswith(NOT_OURS)
    ]


def main(arguments: list[str]) -> int:
    found = [finding for path in arguments or files() for finding in findings(path)]
    for finding in found:
        print(finding)
    if found:
        print(f"{len(found)} sentences against the rules: CONTRIBUTING.md, Prose", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
