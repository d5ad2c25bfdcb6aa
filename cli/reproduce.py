"""`paramsmith reproduce`: a merge again, from its lineage, compared byte by byte."""

from __future__ import annotations

from pathlib import Path

import click

from paramsmith.errors import printable

from .output import json_option, show_json, show_warning, wants_json


@click.command("reproduce", short_help="Run a published merge again and compare the bytes.")
@click.argument("merged", metavar="OUT | user/name[@revision]")
@click.option("-o", "--output", metavar="DIR", type=click.Path(path_type=Path), help="Where the result goes, to stay.")
@click.option("--keep", is_flag=True, help="Keep the result, NAME.reproduced here, where no -o is given.")
@click.option("--memory", metavar="SIZE", help="Most memory the run may hold: 2GB.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Worker threads.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar; only what is not the same.")
@json_option
def command(merged: str, output: Path | None, keep: bool, memory: str | None, threads: int | None, quiet: bool) -> None:
    """Merge again what OUT or a repository was merged from, and compare: a line a file, exit code 1 when one differs.

    Inputs of the Hub are taken at the commits that merge.json names, local ones from their paths, with hashes checked.
    """
    from paramsmith.device import keep_freed_memory
    from paramsmith.merge import RunOptions
    from paramsmith.merge.reproduce import reproduce
    from paramsmith.progress import bar

    keep_freed_memory()
    with bar(not quiet) as progress:
        options = RunOptions(memory=memory, threads=threads, progress=progress)
        found = reproduce(merged, output, keep=keep, options=options)
    for warning in found.warnings:
        show_warning(warning)
    if wants_json():
        files = [{"name": name, "status": status} for name, status in found.files]
        show_json({"merged": merged, "reproduced": found.same, "files": files, "warnings": list(found.warnings)})
    else:
        for name, status in found.files:
            if status != "same" or not quiet:
                click.echo(f"{status:9} {printable(name, 400)}")
    if not found.same:
        click.get_current_context().exit(1)
