"""`paramsmith verify`: whether the files of a merge are those that its merge.json tells of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramsmith.errors import InvalidInput, printable

from .card import GENERATION, generation_in
from .output import json_option, show_json, show_warning, wants_json

if TYPE_CHECKING:
    from paramsmith.progress import Progress
    from paramsmith.verifying import Checked


@click.command("verify", short_help="Hold the files of a merge against its lineage.")
@click.argument("merged", metavar="OUT | user/name[@revision]")
@click.option("--read", is_flag=True, help="Of a repository, fetch and hash the large files too.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar; only what is not ok.")
@json_option
def command(merged: str, read: bool, quiet: bool) -> None:
    """Hash the files of a merge and compare with its merge.json: a line a file, exit code 1 when anything differs.

    The files of a folder that was generated are compared with its generation.json, once `paramsmith card` has put
    their hashes there.

    Of a repository the hashes that the Hub lists are taken for large files, unless --read. Card, picture and
    merge.json itself are not covered. Where the Hub cannot be reached, what the cache has is hashed.
    """
    from paramsmith.progress import bar

    with bar(not quiet) as progress:
        found, warnings = _checked(merged, read, progress)
    for warning in warnings:
        show_warning(warning)
    wrong = [each for each in found if each.wrong]
    if wants_json():
        files = [{"name": each.name, "status": each.status} for each in found]
        verified = not wrong and all(each.status != "not here" for each in found)
        show_json({"merged": merged, "verified": verified, "files": files, "warnings": list(warnings)})
    else:
        for each in found:
            if each.status != "ok" or not quiet:
                click.echo(f"{each.status:8} {printable(each.name, 400)}")
    if wrong:
        click.get_current_context().exit(1)


def _checked(merged: str, read: bool, progress: Progress) -> tuple[list[Checked], tuple[str, ...]]:
    from paramsmith.hub import Reference
    from paramsmith.verifying import verify_folder, verify_outputs, verify_repository

    reference = Reference.parse(merged)
    if reference is None:
        generated = generation_in(Path(merged))
        if generated is not None:
            return verify_outputs(Path(merged), generated.outputs, GENERATION, progress=progress), ()
        return verify_folder(Path(merged), progress), ()
    if reference.path:
        raise InvalidInput(f"{printable(merged)}: names a part of a repository", "give the whole: user/name@revision")
    return verify_repository(reference, read=read, progress=progress)
