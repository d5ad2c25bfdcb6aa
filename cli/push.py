"""`paramsmith push OUT user/name`: a folder or a file to the Hub, in one commit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramsmith.errors import InvalidInput, printable

from .output import json_option, show_json, show_warning, size_text, wants_json

if TYPE_CHECKING:
    from paramsmith.upload import Pushed

LOOSE = (".safetensors", ".json")
CARD, RECIPE, GENERATION = "README.md", "recipe.yaml", "generation.json"


@click.command("push", short_help="Put a model, or statistics, on the Hub in one commit.")
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.argument("repository", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--revision", metavar="BRANCH", help="Push to this branch, main unless told; made where it is missing.")
@click.option("--force", is_flag=True, help="Replace the model that is there.")
@click.option("--license", "licence", metavar="ID", help="Licence for the card, where one is to be written.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, and nothing but the address.")
@json_option
def command(
    output: Path,
    repository: str,
    private: bool,
    create_pr: bool,
    revision: str | None,
    force: bool,
    licence: str | None,
    quiet: bool,
) -> None:
    """Put OUT on the Hub as USER/NAME, complete or not at all: one commit, whose address is printed.

    \b
    paramsmith push OUT user/name                      the folder of a model, or of a merge
    paramsmith push fisher.safetensors user/name       statistics, or learned coefficients (.json), beside what is there
    Log in first: hf auth login. The same command again sends only what is missing.
    """
    from paramsmith.progress import bar
    from paramsmith.upload import Target, push_files

    target = Target(repository, revision, private, create_pr, force, beside=not output.is_dir())
    target.check()
    files = _with_card(output, repository, licence)
    with bar(not quiet) as progress:
        pushed = push_files(files, target, f"Upload {printable(output.resolve().name)} with paramsmith", progress)
    _show(pushed, quiet)


def _with_card(output: Path, repository: str, licence: str | None) -> dict[str, Path | bytes]:
    """What is pushed, by name; a card is written where there is none and it is known what to say."""
    from paramsmith.upload import files_of

    files: dict[str, Path | bytes] = {}
    if not output.is_dir():
        files[output.name] = _loose(output)
        from paramsmith.merge.describe import described_file

        return {**files, CARD: described_file(output, licence=licence)}
    files.update(files_of(output))
    if RECIPE in files:
        from paramsmith.merge.publishing import to_publish

        files, warnings = to_publish(output, repository, licence)
        for warning in warnings:
            show_warning(warning)
        return files
    if CARD not in files:
        fact = f"{printable(output, 400)}: has no {CARD}, and no {RECIPE} to write one from"
        raise InvalidInput(fact, f"write a {CARD} that says what this is")
    if licence is not None:
        fact = f"{printable(output / CARD, 400)}: is there already, and says the licence itself"
        raise InvalidInput(fact, "leave --license out, or set license: in the file")
    if GENERATION in files:  # what was generated is told with the hashes of its files
        from paramsmith.hypernet.writing.provenance import completed

        files[GENERATION] = completed(output).to_bytes()
    return files


def _loose(path: Path) -> Path:
    if path.suffix not in LOOSE:
        fact = f"{printable(path, 400)}: is neither a folder nor statistics (.safetensors) or coefficients (.json)"
        raise InvalidInput(fact, "give the folder of a model, or one such file")
    if not path.is_file():
        raise InvalidInput(f"{printable(path, 400)}: is not there, or not a regular file", "check the name")
    return path


def _show(pushed: Pushed, quiet: bool) -> None:
    if wants_json():
        return show_json(dataclasses.asdict(pushed))
    if not quiet:
        count = f"{pushed.files} file{'s' * (pushed.files != 1)}, {size_text(pushed.nbytes)}"
        click.echo(f"{pushed.repo}: {'unchanged, ' if pushed.unchanged else ''}{count}")
        if pushed.pull_request:
            click.echo(f"pull request: {pushed.pull_request}")
    click.echo(pushed.url)
    return None
