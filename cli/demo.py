"""`paramsmith demo`: a merge one can judge, on networks small enough to train here."""

from __future__ import annotations

from pathlib import Path

import click

from .output import json_option, show_json, wants_json


@click.command("demo", short_help="Train small networks, merge them, and compare.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("paramsmith-demo"),
    show_default=True,
    help="Folder for the models.",
)
@click.option("--quick", is_flag=True, help="Train for less long.")
@click.option("--force", is_flag=True, help="Replace what an earlier demo left there.")
@json_option
def command(output: Path, quick: bool, force: bool) -> None:
    """Train small networks on different tasks, merge them by every method, and say which did best."""
    from .digits import run

    as_json = wants_json()
    run(output, quick, lambda text: click.echo(text, err=as_json), force=force)
    if as_json:
        show_json({"output": str(output)})
