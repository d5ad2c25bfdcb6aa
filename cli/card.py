"""`paramsmith card`: the card, the complete lineage and the picture of a merge, into its folder."""

from __future__ import annotations

from pathlib import Path

import click

from .output import json_option, show_json, show_warning, wants_json


@click.command("card", short_help="Write the model card and lineage of a merge.")
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--license", "licence", metavar="ID", help="Licence of the result, where the inputs do not state one.")
@click.option("--force", is_flag=True, help="Replace a README.md that was written or edited by somebody.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar and no closing line.")
@json_option
def command(folder: Path, licence: str | None, force: bool, quiet: bool) -> None:
    """Write README.md, merge.json with all hashes and, for a merge with a base, task_vectors.svg into OUT.

    The licence is the one that all inputs state in their cards; where they do not agree it is never guessed.
    """
    from paramsmith.merge.describe import write_card
    from paramsmith.progress import bar

    with bar(not quiet) as progress:
        made = write_card(folder, licence=licence, force=force, progress=progress)
    for warning in made.warnings:
        show_warning(warning)
    if wants_json():
        show_json({"folder": str(folder), "files": made.written, "warnings": list(made.warnings)})
    elif not quiet:
        click.echo(f"{folder}: {', '.join(made.written)}")
