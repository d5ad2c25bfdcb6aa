"""`paramsmith merge`: models and options, or a recipe, into one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramsmith.errors import InvalidInput, printable

from .merge_latent import is_latent, merge_latent
from .merge_options import PREFIX, MergeCommand, given_parameters
from .output import json_option, show_json, show_warning, size_text, wants_json

if TYPE_CHECKING:
    from paramsmith.merge import MergeReport, Push, RunOptions
    from paramsmith.recipe import ModelEntry, Recipe

RECIPE_FLAGS = ("method", "base", "missing", "dtype", "out_dtype", "shard_size", "seed", "coefficients", "exclude")


@click.command("merge", cls=MergeCommand, short_help="Merge checkpoints into one.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL... | RECIPE.yaml")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the result goes.")
@click.option("--method", metavar="NAME", help="Merge method, linear unless told; see: paramsmith methods.")
@click.option("--base", metavar="MODEL", help="The model the others were tuned from.")
@click.option(
    "--statistics", multiple=True, metavar="FILE", help="What was measured on a model; once a model, in order."
)
@click.option("--coefficients", metavar="FILE", help="What was learned about these models; gives the method too.")
@click.option("--exclude", multiple=True, metavar="FILTER", help="Tensors to copy from the base or first model.")
@click.option("--missing", type=click.Choice(["error", "base", "skip"]), help="Tensors that not all models have.")
@click.option("--dtype", metavar="DTYPE", help="Type of the result; arithmetic is in float32.")
@click.option("--out-dtype", metavar="DTYPE", help="Type of the result, over --dtype.")
@click.option("--shard-size", metavar="SIZE", help="Most bytes of one output file: 5GB, 500MB.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of methods that draw random numbers.")
@click.option("--memory", metavar="SIZE", help="Most memory the run may hold: 2GB.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 or auto.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Worker threads.")
@click.option("--compile", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
@click.option("--stream", is_flag=True, help="Keep no weights of the hub: each file is on the disk only while read.")
@click.option("--strict", is_flag=True, help="Make warnings errors.")
@click.option("--dry-run", is_flag=True, help="Print the plan, write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--push", metavar="USER/NAME", help="Put the result on the hub, in one commit.")
@click.option("--private", is_flag=True, help="With --push: make the repository private.")
@click.option("--create-pr", is_flag=True, help="With --push: open a pull request instead of committing.")
@click.option("--revision", metavar="BRANCH", help="With --push: the branch, main unless told.")
@click.option("--license", "licence", metavar="ID", help="With --push: licence of the result, where it is not clear.")
@click.option(
    "--space",
    type=click.Choice(["weights", "latent"]),
    default="weights",
    show_default=True,
    help="What is averaged: weights, or their codes.",
)
@click.option("--codec", metavar="GENERATOR", help="With --space latent: the generator whose codec is used.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar and no closing line.")
@json_option
def command(models: tuple[str, ...], output: Path | None, dry_run: bool, quiet: bool, **options: object) -> None:
    """Merge MODELs into one checkpoint, or run a RECIPE.

    \b
    paramsmith merge A B -o OUT --weight 0.3,0.7
    paramsmith merge A B -o OUT --method ties --base BASE --density 0.2
    paramsmith merge recipe.yaml -o OUT --density 0.3     options override the recipe
    """
    if is_latent(options):
        return merge_latent(models, output, dry_run, quiet, options)
    recipe = _recipe(models, options)
    if output is None and not dry_run:
        raise InvalidInput("no output given", "add -o OUT, or --dry-run to see the plan")
    from paramsmith.device import keep_freed_memory
    from paramsmith.merge import plan, run
    from paramsmith.progress import bar

    keep_freed_memory()
    for warning in recipe.warnings:
        show_warning(warning)
    if dry_run:
        planned = plan(recipe, output or Path("merged"), _run_options(options))
        for warning in planned.warnings:
            if warning not in recipe.warnings:
                show_warning(warning)
        show_json(planned.to_json()) if wants_json() else click.echo(planned.describe())
        return None
    with bar(not quiet) as progress:
        report = run(recipe, output or Path("merged"), _run_options(options, progress))
    return _show(report, recipe, quiet)


def _recipe(models: tuple[str, ...], options: Mapping[str, object]) -> Recipe:
    """What to merge: the recipe with the flags laid over it, or the models with the flags."""
    from paramsmith.recipe import Recipe, entries, load_recipe, method_for
    from paramsmith.recipe_schema import reference_problem

    _check_words(options)
    flags = {key: options[key] for key in RECIPE_FLAGS if options.get(key) not in (None, ())}
    parameters = {key: value for key, value in options.items() if key.startswith(PREFIX)}
    recipes = [m for m in models if m.lower().endswith((".yaml", ".yml"))]
    if recipes and len(models) > 1:
        raise InvalidInput(f"{printable(recipes[0])} is a recipe, which names its models itself", "give it alone")
    for model in [*models, *([str(flags["base"])] if "base" in flags else [])]:
        wrong = reference_problem(model)
        if wrong:
            raise InvalidInput(wrong, "give a local folder, a .safetensors file, or user/name of the hub")
    if recipes:
        recipe = load_recipe(Path(recipes[0]))
    else:
        learned = flags.get("coefficients")
        method = flags.get("method") or method_for(str(learned) if learned else None)
        recipe = Recipe(method=str(method), models=entries(models))
    recipe = recipe.with_statistics(options.get("statistics") or ())  # type: ignore[arg-type]
    given = given_parameters(str(flags.get("method", recipe.method)), parameters)
    return _overridden(recipe, flags, given)


def _check_words(options: Mapping[str, object]) -> None:
    """Words that have a grammar of their own."""
    from paramsmith.device import parse_bytes
    from paramsmith.dtypes import parse_dtype
    from paramsmith.params import check_filters

    for key, parse in (("dtype", parse_dtype), ("out_dtype", parse_dtype), ("shard_size", parse_bytes)):
        if options.get(key) is not None:
            parse(str(options[key]))
    check_filters(options.get("exclude") or ())  # type: ignore[arg-type]


def _overridden(recipe: Recipe, flags: Mapping[str, object], given: Mapping[str, object]) -> Recipe:
    """A flag beats the recipe everywhere, so what it sets must go from the entries, which would beat the root."""

    def freed(entry: ModelEntry) -> ModelEntry:
        kept = {name: value for name, value in entry.parameters.items() if name not in given}
        return entry.model_copy(update={"parameters": kept})

    def freed_slice(part: Slice) -> Slice:
        kept = {name: value for name, value in part.parameters.items() if name not in given}
        return part.model_copy(update={"parameters": kept, "sources": tuple(freed(s) for s in part.sources)})

    from paramsmith.recipe import Slice

    slices = recipe.slices and tuple(freed_slice(part) for part in recipe.slices)
    models, parameters = tuple(map(freed, recipe.models)), {**recipe.parameters, **given}
    return recipe.model_copy(update={**flags, "models": models, "slices": slices, "parameters": parameters})


def _run_options(options: Mapping[str, object], progress: object = None) -> RunOptions:
    from paramsmith.merge import RunOptions

    names = ("memory", "device", "threads", "compile", "strict", "force", "stream")
    named = {name: options[name] for name in names if options[name] is not None}
    return RunOptions(**named, progress=progress, push=_push(options))  # type: ignore[arg-type]


def _push(options: Mapping[str, object]) -> Push | None:
    said = {name: options[name] for name in ("private", "create_pr", "revision", "licence") if options[name]}
    if options["push"] is None:
        if said:
            word = "license" if "licence" in said else min(said).replace("_", "-")
            raise InvalidInput(f"--{word} is about a push, and there is none", "add --push user/name")
        return None
    from paramsmith.merge import Push
    from paramsmith.target import Target

    licence = said.pop("licence", None)
    target = Target(str(options["push"]), **said)  # type: ignore[arg-type]
    target.check()
    return Push(target, licence)  # type: ignore[arg-type]


def _show(report: MergeReport, recipe: Recipe, quiet: bool) -> None:
    if wants_json():
        return show_json(report.to_json())
    for warning in report.warnings:
        if warning not in recipe.warnings:  # those were shown before the work began
            show_warning(warning)
    if not quiet:
        models = len({*(e.model for e in recipe.models), *(s.model for p in recipe.slices or () for s in p.sources)})
        nbytes = report.plan.bytes_written
        speed = f"{size_text(nbytes / max(report.seconds, 1e-9))}/s"
        what = f"{size_text(nbytes)} from {models} model{'s' * (models != 1)}"
        told = f"{what} in {report.seconds:.1f} s, {speed}, {report.path}"
        click.echo(f"{printable(report.output, 2000)}: {told}")
    if report.pushed:
        click.echo(report.pushed.url)
    return None
