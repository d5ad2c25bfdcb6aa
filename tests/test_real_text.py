"""What the example about real texts takes from manual pages and from Python's own sources."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from examples.real_text.pages import Piece, find_pages, sentences

PAGE = r""".\" a comment
.de Sp
.if n .sp
..
.TH LS 1 "September 2022" "GNU"
.SH NAME
ls \- list \fBdirectory\fP contents
.SH DESCRIPTION
.PP
List information about the FILEs,
.BR open (2)
and
.I others .
Sort entries alphabetically if none of \fB\-cftuvSUX\fP is given.
.TP
\fB\-a\fR, \fB\-\-all\fR
do not ignore entries \(aqstarting\(aq with a dot
.EX
int x = 1;
.EE
"""


def lay(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def test_a_page_is_prose_items_and_code(tmp_path: Path) -> None:
    lay(tmp_path, "man/man1/ls.1.gz", PAGE)
    (page,) = find_pages(tmp_path)
    assert page.pieces() == [
        Piece("prose", "ls - list directory contents"),
        Piece(
            "prose",
            "List information about the FILEs, open(2) and others . "
            "Sort entries alphabetically if none of -cftuvSUX is given.",
        ),
        Piece("item", "-a, --all"),
        Piece("prose", "do not ignore entries 'starting' with a dot"),
        Piece("code", "int x = 1;"),
    ]
    assert sentences(page.pieces())[-1] == "do not ignore entries 'starting' with a dot"


@pytest.mark.parametrize(
    ("name", "language", "section"),
    [("man1/ls.1", "en", "1"), ("man/de/man5/x.5.gz", "de", "5"), ("usr/share/man/pt_BR/man8/y.8", "pt_BR", "8")],
)
def test_the_place_tells_language_and_section(tmp_path: Path, name: str, language: str, section: str) -> None:
    lay(tmp_path, name, PAGE)
    (tmp_path / "man1").mkdir(exist_ok=True)
    (tmp_path / "man1" / "link.1").symlink_to(tmp_path / name)
    lay(tmp_path, "man1/notes.txt", "no page")
    assert [(page.language, page.section) for page in find_pages(tmp_path)] == [(language, section)]


@pytest.mark.parametrize("text", [".so man1/ls.1\n", ".Dd today\n.Nm x\n"])
def test_links_and_pages_in_other_macros_say_nothing(tmp_path: Path, text: str) -> None:
    lay(tmp_path, "man1/x.1", text)
    assert find_pages(tmp_path)[0].pieces() == []


def test_damaged_pages_say_nothing(tmp_path: Path) -> None:
    lay(tmp_path, "man1/x.1", "").write_bytes(b"\xff\xfe\x00")
    lay(tmp_path, "man1/y.1.gz", PAGE).write_bytes(gzip.compress(PAGE.encode())[:40])
    assert [page.pieces() for page in find_pages(tmp_path)] == [[], []]
