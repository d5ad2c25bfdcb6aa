"""`paramsmith card`: the card, the complete lineage and the picture of a merge, into its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramsmith.errors import InvalidInput, printable
from paramsmith.lineage import NAME

from .output import json_option, show_json, show_warning, wants_json

if TYPE_CHECKING:
    from paramsmith.hypernet.writing.provenance import Generation
    from paramsmith.progress import Progress

GENERATION = "generation.json"


@click.command("card", short_help="Write the model card and lineage of a merge.")
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--license", "licence", metavar="ID", help="Licence of the result, where the inputs do not state one.")
@click.option("--force", is_flag=True, help="Replace a README.md that was written or edited by somebody.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar and no closing line.")
@json_option
def command(folder: Path, licence: str | None, force: bool, quiet: bool) -> None:
    """Write README.md, merge.json with all hashes and, for a merge with a base, task_vectors.svg into OUT.

    The licence is the one that all inputs state in their cards; where they do not agree it is never guessed.
    What was generated has its card; its generation.json gets all hashes.
    """
    from paramsmith.progress import bar

    with bar(not quiet) as progress:
        if generation_in(folder) is not None:
            written, told = _completed(folder, licence, progress), []
        else:
            from paramsmith.merge.describe import write_card

            made = write_card(folder, licence=licence, force=force, progress=progress)
            written, told = made.written, list(made.warnings)
    for warning in told:
        show_warning(warning)
    if wants_json():
        show_json({"folder": str(folder), "files": written, "warnings": told})
    elif not quiet:
        click.echo(f"{folder}: {', '.join(written)}")


def generation_in(folder: Path) -> Generation | None:
    """What a folder's generation.json tells of; None where there is none, or a merge. InvalidInput for a wrong one."""
    if not os.path.lexists(folder / GENERATION) or os.path.lexists(folder / NAME):
        return None
    from paramsmith.hypernet.writing.provenance import read_generation

    return read_generation(folder)


def _completed(folder: Path, licence: str | None, progress: Progress) -> tuple[str, ...]:
    from paramsmith.disk import replace_file
    from paramsmith.hypernet.writing.provenance import completed

    if licence is not None:
        fact = f"{printable(folder, 400)}: was generated, and its card is there already"
        raise InvalidInput(fact, "leave --license out, or set license: in its README.md")
    replace_file(folder / GENERATION, completed(folder, progress).to_bytes())
    return (GENERATION,)
