"""`paramsmith generators [NAME]`: what weights can be generated with, from the registries alone."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from pydantic_core import PydanticUndefined

from paramsmith.errors import InvalidInput, printable

from .methods import cell, field_range, field_type, undented
from .output import json_option, show_json, show_table, wants_json

if TYPE_CHECKING:
    from paramsmith.parts import Part

COLUMNS = ("name", "summary", "paper")
FIELDS = ("name", "type", "default", "range", "description")


@click.command("generators", short_help="List the generators and their parts, or describe one.")
@click.argument("name", required=False)
@json_option
def command(name: str | None) -> None:
    """List the generators and what they are made of, or describe the generator, or the part, called NAME."""
    from paramsmith import parts

    kinds = {
        "generators": parts.generators,
        "condition encoders": parts.encoders,
        "decoders": parts.decoders,
        "codecs": parts.codecs,
        "priors": parts.priors,
        "bases": parts.bases,
        "scales": parts.scales,
        "objectives": parts.objectives,
        "families of architectures": parts.families,
    }
    known = {kind: list(registry.all().values()) for kind, registry in kinds.items()}
    if name is not None:
        return _show_one(name, known)
    if wants_json():
        return show_json({kind.replace(" ", "_"): [describe(part) for part in found] for kind, found in known.items()})
    for kind, found in known.items():
        if found:
            click.echo(f"{'' if kind == 'generators' else chr(10)}{kind}")
            show_table(COLUMNS, [[told[column] for column in COLUMNS] for told in map(describe, found)])
    return None


def describe(part: Part) -> dict[str, object]:
    """A generator, or a part, as plain data."""
    fields = part.params.model_fields.items()
    return {
        "name": part.name,
        "kind": part.kind,
        "summary": part.doc.partition("\n")[0],
        "paper": part.paper,
        "parameters": [
            {
                "name": field.alias or name,
                "type": field_type(field),
                "default": None if field.default is PydanticUndefined else field.default,
                "range": field_range(field),
                "description": field.description or "",
            }
            for name, field in fields
        ],
        "doc": part.doc,
    }


def _show_one(name: str, known: dict[str, list[Part]]) -> None:
    """The generator of that name; else every part of it, as one name may stand for parts of several kinds."""
    listed = [part for found in known.values() for part in found]
    wanted = [part for part in listed if part.name == name]
    if not wanted:
        near = difflib.get_close_matches(name.replace("-", "_").lower(), [part.name for part in listed], 1)
        hint = f"did you mean {near[0]!r}?" if near else "paramsmith generators lists them"
        raise InvalidInput(f"no generator, and no part of one, is called {printable(name)!r}", hint)
    if wants_json():
        return show_json(describe(wanted[0]) if len(wanted) == 1 else {"parts": [describe(part) for part in wanted]})
    for number, part in enumerate(wanted):
        click.echo("\n" * bool(number), nl=False)
        _show(part)
    return None


def _show(part: Part) -> None:
    told = describe(part)
    click.echo(f"{part.name} ({part.kind})\n\n{undented(part.doc)}\n")
    if part.paper:
        click.echo(f"paper: {part.paper}\n")
    fields: Sequence[dict[str, object]] = told["parameters"]  # type: ignore[assignment]
    if not fields:
        click.echo("no parameters")
        return
    show_table(("parameter", *FIELDS[1:]), [[cell(field[column]) for column in FIELDS] for field in fields])
