"""Sentences and lines of manual pages, as they lie in a folder tree of `man` directories (roff, gzipped or not)."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PLACE = re.compile(r"/(?:(?P<language>[a-z]{2}(?:_[A-Z]{2})?)/)?man(?P<section>[1-8])/[^/]+\.[1-8](?:\.gz)?$")
_SENTENCE = re.compile(r"(?<=[a-zà-ÿ)][.!?]) +(?=[A-ZÀ-ÖØ-Þ])")
_INLINE = re.compile(r'\\f(?:\[\w*\]|\(..|.)|\\s[-+]?\d+|\\[&/,|^%:)c]|\\".*')
_GLYPHS = {"\\-": "-", "\\(aq": "'", "\\(cq": "'", "\\(dq": '"', "\\(bu": "", "\\(en": "-", "\\(em": "-", "\\ ": " "}
_FONTS = {"B": " ", "I": " ", "SM": " ", "SB": " ", "BR": "", "RB": "", "IR": "", "RI": "", "BI": "", "IB": ""}
_BREAKS = {"PP", "P", "LP", "IP", "TP", "HP", "TQ", "SH", "SS", "RS", "RE", "sp", "br", "TH"}


@dataclass(frozen=True)
class Piece:
    """A paragraph (`prose`), what an item of a list is about (`item`), or a line of `code`."""

    kind: str
    text: str


@dataclass(frozen=True)
class Page:
    """A manual page: where it lies tells its language and its section."""

    path: Path
    language: str
    section: str

    def pieces(self) -> list[Piece]:
        """Everything the page says, in order; nothing of a page in a coding or a macro language of its own."""
        data = self.path.read_bytes()
        try:
            text = (gzip.decompress(data) if self.path.suffix == ".gz" else data).decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError):
            return []
        return [] if re.search(r"^\.(Dd|so) ", text, re.MULTILINE) else list(_pieces(text))


def find_pages(folder: Path) -> list[Page]:
    """The pages below a folder, links left out, sorted by their path."""
    found = []
    for path in sorted(folder.rglob("man[1-8]/*")):
        place = _PLACE.search(path.as_posix())
        if place and path.is_file() and not path.is_symlink():
            found.append(Page(path, place["language"] or "en", place["section"]))
    return found


def sentences(pieces: list[Piece]) -> list[str]:
    """The sentences of the prose: six words or more, most of it letters."""
    found = [s for piece in pieces if piece.kind == "prose" for s in _SENTENCE.split(piece.text)]
    return [s for s in found if len(s.split()) >= 6 and sum(c.isalpha() for c in s) > 0.6 * len(s)]


def _pieces(text: str) -> Iterator[Piece]:
    held: list[str] = []
    kind, code, defining = "prose", False, False
    for line in text.splitlines():
        macro, rest = _macro(line)
        if macro in ("de", "ig", "TS") or defining:
            defining = macro not in (".", "TE")
            continue
        if macro in _BREAKS or macro in ("nf", "EX", "fi", "EE"):
            yield from _paragraph(kind, held)
            code = macro in ("nf", "EX") or (code and macro not in ("fi", "EE", "SH"))
            kind = "item" if macro in ("TP", "TQ") else "prose"
            continue
        said = _plain(_spoken(macro, rest) if macro else rest)
        if code:
            yield from [Piece("code", said.strip())] if said.strip() else []
        elif kind == "item" and said.strip():
            yield Piece("item", " ".join(said.split()))
            kind = "prose"
        else:
            held.append(said)
    yield from _paragraph(kind, held)


def _macro(line: str) -> tuple[str, str]:
    """The request and its arguments, or no request and the line."""
    if not line.startswith((".", "'")):
        return "", line
    name, _, rest = line[1:].lstrip().partition(" ")
    return name or "-", rest


def _spoken(macro: str, rest: str) -> str:
    """The text in a font macro's arguments; other requests say nothing."""
    if macro not in _FONTS:
        return ""
    words = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', rest)]
    return _FONTS[macro].join(words)


def _plain(text: str) -> str:
    for glyph, character in _GLYPHS.items():
        text = text.replace(glyph, character)
    text = _INLINE.sub("", text)
    return re.sub(r"\\\(..|\\\[\w+\]|\\\*\(..|\\\*.", "", text).replace("\\e", "\\").replace("\\(rs", "\\")


def _paragraph(kind: str, held: list[str]) -> Iterator[Piece]:
    text = " ".join(" ".join(held).split())
    held.clear()
    if text:
        yield Piece("prose" if kind == "item" else kind, text)
