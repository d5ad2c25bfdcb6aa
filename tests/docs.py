"""Writes the generated tables of the two manuals, from the registry and the table of mergekit's methods.

    python -m tests.docs            rewrite what is stale
    python -m tests.docs --check    change nothing; exit with 1 when something is stale

A table stands between `<!-- name -->` and `<!-- /name -->`, in each file that has these marks.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from paramsmith.cli.methods import describe
from paramsmith.mergekit import MERGEKIT_METHODS
from paramsmith.parts import bases, codecs, decoders, encoders, families, generators, objectives, priors, scales
from paramsmith.registry import MergeMethod, methods

ROOT = Path(__file__).resolve().parent.parent
MANUALS = (
    ROOT / "README.md",
    ROOT / "merge" / "README.md",
    ROOT / "merge" / "DATA.md",
    ROOT / "hypernet" / "README.md",
)


def ours() -> list[MergeMethod]:
    """The methods of this repository, not those of plug-ins that happen to be installed."""
    return [m for m in methods().values() if m.function.__module__.startswith("paramsmith.merge.methods")]


def methods_table() -> str:
    """One line a method."""
    rows = []
    for method in ours():
        told = describe(method)
        measured = f"`{method.statistics}`" if method.statistics else ""
        rows.append([f"`{method.name}`", told["base"], told["models"], measured, told["summary"], paper(method.paper)])
    return table(["method", "base", "models", "statistics", "what it does", "paper"], rows)


def generators_table() -> str:
    """One line a generator that comes with paramsmith."""
    found = [p for p in generators.all().values() if p.make.__module__.startswith("paramsmith.hypernet.generators")]
    rows = [[f"`{part.name}`", part.doc.partition("\n")[0], paper(part.paper)] for part in found]
    return table(["generator", "what it does", "paper"], rows)


def parts_table() -> str:
    """The parts that generators are made of, a line a kind."""
    kinds = {"encoder": encoders, "decoder": decoders, "codec": codecs, "prior": priors, "base": bases, "scale": scales}
    kinds |= {"objective": objectives, "family": families}
    rows = [[kind, ", ".join(f"`{name}`" for name in registry.all())] for kind, registry in kinds.items()]
    return table(["part", "there are"], rows)


def parameters_table() -> str:
    """One line a parameter of a method."""
    rows = []
    for method in ours():
        for field in describe(method)["parameters"]:
            default = str(field["default"]).lower() if isinstance(field["default"], bool) else field["default"]
            words = [f"`{word}`" if "," in field["type"] else word for word in field["type"].split(", ")]
            kind = ", ".join(words) + (f", {field['range']}" if field["range"] else "")
            varies = field["varies"].removeprefix("by ") or "no"
            cells = [f"`{method.name}`", f"`{field['name']}`", kind, f"`{default}`", varies, field["description"]]
            rows.append(cells)
    return table(["method", "parameter", "values", "default", "varies by", "meaning"], rows)


def mergekit_table() -> str:
    """mergekit's methods that run, what they become, and those that do not run yet."""
    known, rows, lacking = methods(), [], []
    for name, rule in MERGEKIT_METHODS.items():
        if rule.method not in known:
            lacking.append(f"`{name}`")
            continue
        pins = [f"`{key}: {str(value).lower()}`" for key, value in rule.pins.items()]
        base = "a model like the others" if rule.base_is_input else known[rule.method].base
        if rule.base_first:
            base += ", the one at `t` 0"
        rows.append([f"`{name}`", f"`{rule.method}`", ", ".join(pins) or "none", base])
    told = table(["mergekit", "here", "set unless the recipe does", "`base_model` is"], rows)
    rest = f"Not there yet, and refused by name: {', '.join(lacking)}."
    return f"{told}\n\n{textwrap.fill(rest, 118, break_on_hyphens=False)}"


def paper(text: str) -> str:
    """A link to an arXiv paper."""
    number = text.removeprefix("arXiv:")
    return f"[{text}](https://arxiv.org/abs/{number})" if number != text else text


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods_table,
    "parameters": parameters_table,
    "mergekit": mergekit_table,
    "generators": generators_table,
    "parts": parts_table,
}


def renewed(text: str) -> str:
    """The text of a manual with its tables as they should be."""
    for name, made in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda found, made=made: f"{found[1]}\n{made()}\n\n{found[2]}", text)
    return text


def stale() -> dict[Path, str]:
    """The manuals that are out of date, with what they should be."""
    texts = {path: path.read_text(encoding="utf-8") for path in MANUALS}
    wanted = {path: renewed(text) for path, text in texts.items()}
    return {path: text for path, text in wanted.items() if text != texts[path]}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when `--check` found something stale."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 when something is stale")
    check = parser.parse_args(arguments).check
    found = stale()
    for path, text in found.items():
        print(f"{path.relative_to(ROOT)}: {'stale: run make docs' if check else 'rewritten'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
