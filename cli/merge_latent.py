"""`paramsmith merge --space latent`: models averaged in the latent space of a generator's codec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramsmith.errors import InvalidInput, printable

from .merge_options import PREFIX
from .output import show_json, show_warning, size_text, wants_json

if TYPE_CHECKING:
    from paramsmith.hypernet.selection.latent import LatentMerge

_KEPT = {"space", "codec", "shard_size", "force", "device", "compile", f"{PREFIX}weight"}


def is_latent(options: Mapping[str, object]) -> bool:
    """Whether a merge is asked for in a latent space. InvalidInput for a codec that nothing would be done with."""
    if options["space"] == "latent":
        return True
    if options["codec"] is not None:
        raise InvalidInput("--codec is of a merge in a latent space", "add --space latent")
    return False


def merge_latent(
    models: Sequence[str], output: Path | None, dry_run: bool, quiet: bool, options: Mapping[str, object]
) -> None:
    """Encode, average, decode, write. InvalidInput for options that mean nothing there."""
    if options["codec"] is None:
        raise InvalidInput("a latent space is that of a generator", "name it: --codec GENERATOR")
    if output is None or dry_run:
        raise InvalidInput("a merge in a latent space has no plan to show", "add -o OUT, and leave --dry-run out")
    _check(options)
    from paramsmith.hypernet.selection.latent import latent_merge

    given = options.get(f"{PREFIX}weight")
    weights = None if given in (None, ()) else _weights(given, len(models))
    size = options["shard_size"]
    report = latent_merge(
        str(options["codec"]),
        models,
        output,
        weights=weights,
        shard_size=None if size is None else str(size),
        force=bool(options["force"]),
    )
    _show(report, models, quiet)


def _check(options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if name not in _KEPT and value not in (None, (), False):
            word = name.removeprefix(PREFIX).replace("_", "-")
            raise InvalidInput(f"--{word} does not go with --space latent", "leave it out")
    if options["device"] != "cpu" or options["compile"] != "auto":
        word = "device" if options["device"] != "cpu" else "compile"
        raise InvalidInput(f"--{word} does not go with --space latent", "leave it out")


def _weights(given: object, count: int) -> list[float]:
    """One number a model: `--weight 0.3,0.7`, or one for all."""
    from paramsmith.params import parse_option

    texts = [str(text) for text in given] if isinstance(given, list | tuple) else [str(given)]
    parsed = parse_option(texts[0]) if len(texts) == 1 else None
    numbers = parsed if isinstance(parsed, list) else [parsed] * count
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        fact = f"the weight {printable(' and '.join(texts))} is not one number a model"
        raise InvalidInput(fact, "in a latent space tensors have no weights of their own: --weight 0.3,0.7")
    return [float(number) for number in numbers]  # type: ignore[arg-type]


def _show(report: LatentMerge, models: Sequence[str], quiet: bool) -> None:
    if wants_json():
        told = {"path": str(report.written.path), "nbytes": report.written.nbytes, "weights": list(report.weights)}
        return show_json({**told, "lost": list(report.lost), "warnings": list(report.warnings)})
    for warning in report.warnings:
        show_warning(warning)
    if not quiet:
        lost = ", ".join(f"{share:.2%}" for share in report.lost)
        size = size_text(report.written.nbytes)
        click.echo(
            f"{printable(report.written.path, 2000)}: {size} from {len(models)} models; their codec loses {lost}"
        )
    return None
