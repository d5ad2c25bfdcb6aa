"""Sentences and lines of Python's own standard library: texts that every machine with Python has."""

from __future__ import annotations

import ast
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from real_text.pages import Piece

AREAS = {
    "network": ("email", "http", "urllib", "xmlrpc", "wsgiref", "smtplib.py", "socket.py", "ssl.py", "ftplib.py"),
    "processes": ("asyncio", "multiprocessing", "concurrent", "threading.py", "subprocess.py", "sched.py", "queue.py"),
    "tools": ("unittest", "importlib", "logging", "doctest.py", "pdb.py", "inspect.py", "ast.py", "typing.py"),
}


@dataclass(frozen=True)
class Module:
    """A file of the standard library and the area of work it belongs to."""

    path: Path
    area: str

    def pieces(self) -> list[Piece]:
        """What its documentation strings say (`prose`), its comments (`comment`) and its lines of `code`."""
        try:
            text = self.path.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (OSError, SyntaxError, ValueError):
            return []
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docs = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
        paragraphs = [" ".join(part.split()) for doc in docs for part in doc.split("\n\n") if ">>>" not in part]
        lines = [line.strip() for line in text.splitlines()]
        said = {line.strip() for doc in docs for line in doc.splitlines()}
        comments = [Piece("comment", line.lstrip("#: ")) for line in lines if line.startswith("#")]
        code = [Piece("code", line) for line in lines if line and line[0] not in "#\"'" and line not in said]
        return [*(Piece("prose", part) for part in paragraphs if part), *comments, *code]


def find_modules() -> list[Module]:
    """The modules of the areas, sorted by path, without their tests."""
    home = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for area, names in AREAS.items():
        for place in (home / name for name in names):
            files = [place] if place.suffix == ".py" else sorted(place.rglob("*.py"))
            found += [Module(f, area) for f in files if f.is_file() and "/test" not in f.relative_to(home).as_posix()]
    return found
