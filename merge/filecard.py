"""The card of a statistics file or of coefficients: what it is, what it is about, how a merge takes it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_args

from paramsmith.coefficients import Coefficients
from paramsmith.errors import InvalidInput
from paramsmith.hashing import sha256_of
from paramsmith.header import parse_header
from paramsmith.inputs import open_regular, place
from paramsmith.licences import check_id
from paramsmith.markdown import code, fenced, front_matter, table
from paramsmith.statistics import KEY, Kind, Statistics


def described_file(path: Path, *, licence: str | None = None) -> bytes:
    """README.md for statistics or coefficients. InvalidInput for any other file."""
    kind = _kind(path)
    tags, lines = _statistics(path, kind) if kind else _coefficients(path)
    keys = {"license": check_id(licence)} if licence is not None else {}
    head = front_matter({"library_name": "paramsmith", "tags": ["paramsmith", *tags], **keys})
    return f"{head}\n{chr(10).join(lines)}\n".encode()


def _kind(path: Path) -> Kind | None:
    """Which statistics a file says that it holds; None for another file."""
    if path.suffix != ".safetensors":
        return None
    fd, _ = open_regular(path)
    try:
        said = parse_header(path, fd).metadata.get(KEY)
    finally:
        os.close(fd)
    if said is None:
        return None
    try:
        plain = json.loads(said)
    except (ValueError, RecursionError):
        plain = None
    named = plain.get("kind") if isinstance(plain, dict) else None
    for kind in get_args(Kind):
        if named == kind:
            return kind  # type: ignore[no-any-return]
    raise InvalidInput(f"{place(path)}: the header is damaged", "measure it again")


def _statistics(path: Path, kind: Kind) -> tuple[list[str], list[str]]:
    with Statistics.open(path, kind) as file:
        about, count = file.about, len(file.names)
    rows = [
        ["kind", code(about.kind)],
        ["estimator", code(about.estimator)],
        ["examples", f"{about.examples:,}"],
        ["seed", str(about.seed)],
        ["tensors", f"{count:,}"],
        ["model", code(about.model) if about.model else "not said"],
        ["data", code(about.data) if about.data else "not said"],
        ["sha256", code(sha256_of([path])[path])],
    ]
    use = "A merge takes one such file a model, in model order, and refuses one that was measured on another model:"
    example = f"paramsmith merge MODEL... -o OUT --method {_user(kind)} --statistics hf://USER/NAME/{path.name} ..."
    return ["statistics", kind], [
        f"# {code(path.name)}",
        f"\nStatistics of a model on data ({code(kind)}), measured with paramsmith. Model and data are digests.\n",
        table(["", ""], rows),
        f"\n{use}\n",
        fenced(example, "sh"),
    ]


def _user(kind: Kind) -> str:
    """A method that takes such statistics."""
    from paramsmith.registry import methods

    return next((name for name, method in methods().items() if method.statistics == kind), "NAME")


def _coefficients(path: Path) -> tuple[list[str], list[str]]:
    found = Coefficients.load(path)
    rows = [
        ["method", code(found.method)],
        ["parameter", code(found.parameter)],
        ["models", ", ".join(code(digest) for digest in found.models[:20])],
        ["base", code(found.base) if found.base else ""],
        ["tensors with values of their own", f"{len(found.values):,}"],
        *([[f"learned: {code(key)}", code(json.dumps(value))] for key, value in list(found.learned.items())[:20]]),
        ["sha256", code(sha256_of([path])[path])],
    ]
    example = f"paramsmith merge MODEL... -o OUT --base BASE --coefficients hf://USER/NAME/{path.name}"
    return ["coefficients", found.method], [
        f"# {code(path.name)}",
        "\nCoefficients of a merge, learned with paramsmith. Models and base are digests, in the order to give them:\n",
        table(["", ""], rows),
        "",
        fenced(example, "sh"),
    ]
