"""What reaches the terminal: errors, warnings, tables, JSON. Results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import click

from paramsmith.errors import printable

json_option = click.option(
    "--json", "as_json", is_flag=True, expose_value=False, help="One JSON document on stdout, errors included."
)


def wants_json() -> bool:
    """Whether `--json` stands anywhere on the command line: the root context's object, put there by App."""
    return bool(click.get_current_context().find_root().obj)


def show_error(fact: str, hint: str, exit_code: int, as_json: bool) -> None:
    """One `error:` line for each line of the fact, one `hint:` line; as JSON one document on stdout."""
    if as_json:
        show_json({"error": {"fact": fact, "hint": hint, "exit_code": exit_code}})
        return
    for line in fact.splitlines() or [""]:
        _label("error", line, "red")
    if hint:
        _label("hint", hint, "cyan")


def show_warning(text: str) -> None:
    """One `warning:` line on stderr."""
    _label("warning", text, "yellow")


@contextmanager
def told_warnings(kind: type[Warning]) -> Iterator[None]:
    """Show warnings of a kind of ours as the commands do, each sentence once; all others as Python does."""
    seen: set[str] = set()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *rest: object) -> None:
            if not issubclass(category, kind):
                show(message, category, *rest)  # type: ignore[arg-type]
            elif str(message) not in seen:
                seen.add(str(message))
                show_warning(str(message))

        warnings.showwarning = tell  # type: ignore[assignment]
        warnings.simplefilter("always", kind)
        yield


def show_json(document: Mapping[str, object]) -> None:
    """One JSON document on stdout; numbers JSON does not know (NaN, infinity) become null."""
    click.echo(json.dumps(finite(document), indent=2, allow_nan=False))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = ()) -> None:
    """Aligned columns without frames, so that cut, sort and grep work on them; `right` names the columns of numbers."""
    cells = [[printable(cell) for cell in row] for row in rows]
    numbers = {columns.index(name) for name in right}
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    for row in [list(columns), *cells]:
        parts = [c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        click.echo("  ".join(parts).rstrip())


def colored() -> bool:
    """Whether stderr takes colours: a terminal, and NO_COLOR unset or empty."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _label(label: str, text: str, color: str) -> None:
    name = click.style(f"{label}:", fg=color, bold=True) if colored() else f"{label}:"
    safe = "".join(c if c.isprintable() else printable(c) for c in text)
    click.echo(f"{name} {safe}", err=True, color=colored())


def finite(value: object) -> object:
    """Plain data for JSON: numbers that it does not know become null, what is no plain data text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value if isinstance(value, str | int | bool | None) else str(value)


def size_text(nbytes: float) -> str:
    """Bytes for people, in decimal units.

    >>> size_text(999), size_text(1_500), size_text(5_000_000_000)
    ('999 B', '1.5 kB', '5.0 GB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{int(nbytes)} B"
