"""`paramsmith methods [NAME]`: what can be merged how, from the registry alone."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from paramsmith.params import Setting
from paramsmith.registry import MergeMethod, find_method, methods

from .output import json_option, show_json, show_table, wants_json


@click.command("methods", short_help="List the merge methods, or describe one.")
@click.argument("name", required=False)
@json_option
def command(name: str | None) -> None:
    """List the merge methods, or describe the one called NAME: its equation, its parameters, its surveys."""
    if name is not None:
        method = find_method(name)
        return show_json(describe(method)) if wants_json() else _show(method)
    known = [describe(method) for method in methods().values()]
    if wants_json():
        return show_json({"methods": known})
    columns = ("name", "base", "models", "summary", "paper")
    show_table(columns, [[m[column] for column in columns] for m in known])
    return None


def describe(method: MergeMethod) -> dict[str, object]:
    """A method as plain data."""
    least, most = method.models
    return {
        "name": method.name,
        "summary": method.doc.partition("\n")[0],
        "base": method.base,
        "takes": {"required": "deltas", "optional": "models, or deltas with a base", "unused": "models"}[method.base],
        "statistics": method.statistics,
        "models": f"{least}+" if most is None else str(least) if least == most else f"{least}-{most}",
        "symmetric": method.symmetric,
        "random": method.random,
        "paper": method.paper,
        "parameters": [_parameter(method, name, field) for name, field in method.params.model_fields.items()],
        "surveys": _surveys(method),
        "doc": method.doc,
    }


def field_type(field: FieldInfo) -> str:
    """What values a parameter takes, in a word: `number`, `whole number`, `true or false`, or the words themselves."""
    annotation: object = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Setting):
        annotation = annotation.__pydantic_generic_metadata__["args"][0]
    while get_origin(annotation) is not Literal and hasattr(annotation, "__metadata__"):
        annotation = get_args(annotation)[0]
    if type(None) in get_args(annotation) and get_origin(annotation) is not Literal:
        kinds = [_word(kind) for kind in get_args(annotation) if kind is not type(None)]
        return f"{' or '.join(kinds)}, or none"
    return _word(annotation)


def _word(annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(str(word) for word in get_args(annotation))
    known: dict[object, str] = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return known.get(annotation, getattr(annotation, "__name__", str(annotation)))


def field_range(field: FieldInfo) -> str:
    """The bounds of a parameter, `> 0, <= 1`, or nothing."""
    marks: list[object] = list(field.metadata)
    annotation: object = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Setting):
        inner = annotation.__pydantic_generic_metadata__["args"][0]
        for mark in getattr(inner, "__metadata__", ()):
            marks += getattr(mark, "metadata", [mark])
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return ", ".join(f"{sign} {getattr(m, key):g}" for m in marks for key, sign in signs.items() if hasattr(m, key))


def _parameter(method: MergeMethod, name: str, field: FieldInfo) -> dict[str, object]:
    varies = method.params.settings().get(name)
    return {
        "name": field.alias or name,
        "type": field_type(field),
        "varies": {"model": "by model, layer, tensor", "tensor": "by layer, tensor"}.get(varies or "", ""),
        "default": None if field.default is PydanticUndefined else field.default,
        "range": field_range(field),
        "description": field.description or "",
    }


def _surveys(method: MergeMethod) -> list[str]:
    """The names of the surveys of the method at its defaults, in the order they run."""
    try:
        return [survey.name for survey in method.surveys(method.params())]
    except ValueError:  # a parameter without a default decides which surveys are needed
        return []


def _show(method: MergeMethod) -> None:
    told = describe(method)
    click.echo(f"{method.name}\n\n{undented(method.doc)}\n")
    click.echo(f"base: {told['base']}; models: {told['models']}; takes {told['takes']}")
    if method.statistics:
        click.echo(f"statistics: {method.statistics}, of every model; from: paramsmith measure {method.statistics}")
    click.echo(f"surveys: {', '.join(_surveys(method)) or 'none, one pass'}")
    if method.paper:
        click.echo(f"paper: {method.paper}")
    click.echo()
    columns = ("parameter", "type", "default", "range", "varies", "description")
    fields = [_parameter(method, name, field) for name, field in method.params.model_fields.items()]
    if not fields:
        click.echo("no parameters")
        return
    show_table(columns, [[f["name"], *(cell(f[column]) for column in columns[1:])] for f in fields])


def cell(value: object) -> str:
    """A value as a table shows it."""
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def undented(doc: str) -> str:
    """A docstring without the margin of its code."""
    first, _, rest = doc.partition("\n")
    lines = rest.splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join([first, *(line[margin:] for line in lines)])
