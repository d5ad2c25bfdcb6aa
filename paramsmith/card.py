"""What a model's card says of it: the front matter of its README.md, which anyone may have written.

A card that cannot be read for certain states nothing; `problem` says why, and nothing is raised.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.inputs import open_regular, read_at
from paramsmith.lineage import README
from paramsmith.located_yaml import Problems, read_located

if TYPE_CHECKING:
    from paramsmith.hub import Snapshot

MAX_CARD = 1_000_000
_MAX_WANTED = 8_000  # bytes of the keys below, which are short; results of evaluations, which are not, are skipped
_WANTED = ("license", "license_name", "license_link", "language", "pipeline_tag")
_OPENING = re.compile(r"---[ \t]*\n")
_CLOSING = re.compile(r"^(?:---|\.\.\.)[ \t]*$", re.MULTILINE)
_KEY = re.compile(r"([A-Za-z_][\w.-]*)[ \t]*:(?=\s|$)", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,99}")


@dataclass(frozen=True, slots=True)
class Card:
    """What a card states; None or nothing where it does not."""

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    problem: str = ""


def card_of(folder: Path | None, snapshot: Snapshot | None) -> Card:
    """The card of a model: of the repository for one of the Hub, else of its folder; a bare file has none."""
    if snapshot is not None:
        from paramsmith.download import fetch

        file = snapshot.files.get(README)
        if file is None:
            return Card(problem="" if snapshot.complete else "README.md is not in the cache")
        if file.size > MAX_CARD:
            return Card(problem=f"README.md is {file.size:,} bytes long")
        return read_card(fetch(snapshot, [README])[README])
    return Card() if folder is None else read_card(folder / README)


def read_card(path: Path) -> Card:
    """The front matter of a README.md; nothing where there is no such file."""
    if not os.path.lexists(path):
        return Card()
    try:
        fd, status = open_regular(path)
        try:
            if status.st_size > MAX_CARD:
                return Card(problem=f"README.md is {status.st_size:,} bytes long")
            data = read_at(path, fd, 0, status.st_size)
        finally:
            os.close(fd)
        return parse_card(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Card(problem="README.md is not UTF-8 text")
    except (InvalidInput, Failed):
        return Card(problem="README.md cannot be read")


def parse_card(text: str) -> Card:
    """What the text of a README.md states.

    >>> parse_card("---\\nlicense: mit\\nlanguage: [no, en]\\n---\\n# Title\\n")
    Card(license='mit', license_name=None, license_link=None, language=('no', 'en'), pipeline_tag=None, problem='')
    """
    text = text.replace("\r\n", "\n")
    opening = _OPENING.match(text)
    closing = _CLOSING.search(text, opening.end()) if opening else None
    if opening is None or closing is None:
        return Card()
    wanted = _wanted(text[opening.end() : closing.start()])
    if len(wanted) > _MAX_WANTED:
        return Card(problem="the front matter of README.md is too long to be read")
    problems = Problems(README)
    try:
        found = read_located(wanted, problems).plain()
        problems.raise_if_any()
    except (InvalidInput, RecursionError) as problem:
        told = problem.fact.partition("\n")[0] if isinstance(problem, InvalidInput) else "nested too deeply"
        return Card(problem=f"the front matter of README.md cannot be read: {told}")
    if not isinstance(found, dict):
        return Card(problem="" if found is None else "the front matter of README.md is not a mapping")
    return _card(found)


def _wanted(front: str) -> str:
    """The entries of a front matter that count here, if it is written line by line as all are; else the whole."""
    starts = [match for line in re.finditer(r"^\S.*$", front, re.MULTILINE) if (match := _KEY.match(line[0]))]
    odd = re.search(r"^(?![A-Za-z_#\s-]|\Z)", front, re.MULTILINE)
    if odd or not starts:
        return front
    entries = re.split(r"^(?=[A-Za-z_])", front, flags=re.MULTILINE)
    return "".join(e for e in entries if (key := _KEY.match(e)) is None or key[1] in _WANTED)


def _card(found: dict[str, object]) -> Card:
    problems = []

    def word(key: str) -> str | None:
        value = found.get(key)
        if value is None:
            return None
        if isinstance(value, str) and _WORD.fullmatch(value.strip()):
            return value.strip()
        problems.append(f"README.md states a {key} that is none: {printable(value, 40)}")
        return None

    def text(key: str) -> str | None:
        value = found.get(key)
        return value.strip() if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 300 else None

    stated = word("license")
    spoken = found.get("language")
    listed = spoken if isinstance(spoken, list) else [spoken]
    language = tuple(dict.fromkeys(w for w in listed if isinstance(w, str) and _WORD.fullmatch(w)))
    tag = word("pipeline_tag")
    name, link = text("license_name"), text("license_link")
    return Card(stated and stated.lower(), name, link, language, tag, "; ".join(problems))
