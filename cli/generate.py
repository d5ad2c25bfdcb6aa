"""`paramsmith generate`: weights that did not exist before, as checkpoints that load like any other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramsmith.errors import InvalidInput, printable

from .generate_select import SelectOptions, plan_selection, run_selection, select_options
from .output import json_option, show_json, show_warning, size_text, wants_json

if TYPE_CHECKING:
    from paramsmith.hypernet.writing.generation import Outlook, Report
    from paramsmith.hypernet.writing.provenance import Form


@click.command("generate", short_help="Generate the weights of a network.")
@click.argument("generator", metavar="GENERATOR")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the weights go.")
@click.option("--like", metavar="ARCHITECTURE", help="A config, a checkpoint, or file.py:function that makes a module.")
@click.option("--task", multiple=True, metavar="NAME=1,2|FILE", help="What is asked for: numbers, .json, .safetensors.")
@click.option("-n", "count", type=click.IntRange(1, 100_000), default=1, show_default=True, help="How many samples.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="What they are drawn by.")
@click.option("--steps", type=click.IntRange(1, 10_000), help="Of a sampler: how many steps draw a sample.")
@click.option("--guidance", type=float, help="Of a sampler: w in null + w (asked - null).  [1: none]")
@click.option("--classes", type=click.IntRange(1), help="How many classes the head tells apart.")
@click.option("--dtype", metavar="DTYPE", help="Type of the weights, the architecture's own unless told.")
@click.option("--shard-size", metavar="SIZE", help="Most bytes of one output file: 5GB, 500MB.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Worker threads.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 or auto.")
@click.option("--base", metavar="MODEL", help="The model that what is generated belongs to.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["checkpoint", "head", "adapter", "delta"]),
    default="checkpoint",
    show_default=True,
    help="The base with a generated head, or with differences added to it; or an adapter for it, as PEFT has them.",
)
@click.option("--alpha", type=float, help="Of low rank pairs: the update is B A alpha / rank, and B A unless told.")
@click.option(
    "--vocabulary", metavar="TOKENIZER", help="Rows for the tokens of this tokenizer, in the model of --like."
)
@click.option("--words", type=click.Path(path_type=Path), help="With --vocabulary: the word vectors.")
@select_options
@click.option("--dry-run", is_flag=True, help="Say what would be written, write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar and no closing line.")
@json_option
def command(
    generator: str,
    output: Path | None,
    like: str | None,
    task: tuple[str, ...],
    count: int,
    seed: int,
    steps: int | None,
    guidance: float | None,
    classes: int | None,
    dtype: str | None,
    shard_size: str | None,
    threads: int | None,
    device: str,
    base: str | None,
    form: Form,
    alpha: float | None,
    vocabulary: str | None,
    words: Path | None,
    choice: SelectOptions,
    dry_run: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Generate weights with GENERATOR: its folder, user/name of the hub, or one that needs no training.

    \b
    paramsmith generate GEN -o OUT                             for the one architecture it was trained for
    paramsmith generate GEN -o OUT --like gpt2/config.json     for an architecture of yours
    paramsmith generate GEN -o OUT --task lr=0.1,0.3 -n 4      asked for something; OUT/0 to OUT/3
    paramsmith generate random -o OUT --like net.py:make       a fresh start, to compare with
    paramsmith generate GEN -o OUT --base MODEL --as head      the model, with a generated head
    paramsmith generate GEN -o OUT --select best_of --tasks net.py:task -k 8
    paramsmith generate GEN -o OUT --like MODEL --vocabulary TOKENIZER --words words.vec
    """
    if output is None and not dry_run:
        raise InvalidInput("no output given", "add -o OUT, or --dry-run to see what would be written")
    _check_words(dtype, shard_size)
    choice.check()
    if vocabulary is not None:
        useless = (("--task", task), ("-n", count > 1), ("--classes", classes), ("--dtype", dtype))
        others = (("--base", base), ("--as", form != "checkpoint"), ("--alpha", alpha), ("--dry-run", dry_run))
        sampling = (("--steps", steps), ("--guidance", guidance is not None), *choice.given)
        _check_alone([*useless, *others, *sampling], like)
        return _generate_vocabulary(
            generator, str(like), vocabulary, words, str(output), shard_size, seed, force, quiet
        )
    if words is not None:
        raise InvalidInput("--words goes with --vocabulary", "give the new tokenizer: --vocabulary FOLDER")
    from paramsmith.device import keep_freed_memory
    from paramsmith.hypernet.writing.conditions import read_condition
    from paramsmith.hypernet.writing.generation import Request, outlook, prepare, run
    from paramsmith.progress import bar

    keep_freed_memory()
    told, weight = read_condition(task), 1.0 if guidance is None else guidance
    asked = (like, told, count, seed, classes, dtype, shard_size, threads, device, base, form, alpha)
    request = Request(*asked, steps=steps, guidance=weight)
    if choice.select is not None:
        plan = plan_selection(generator, request, choice)
        if output is None or dry_run:
            return _show_outlook(outlook(plan.job, output or Path("generated")))
        return run_selection(plan, output, force, quiet)
    if output is None or dry_run:
        return _show_outlook(outlook(prepare(generator, request), output or Path("generated")))
    with bar(not quiet) as progress:
        report = run(generator, output, request, force=force, progress=progress)
    return _show(report, quiet)


def _check_words(dtype: str | None, shard_size: str | None) -> None:
    """Words that have a grammar of their own, before torch is waited for."""
    from paramsmith.device import parse_bytes
    from paramsmith.dtypes import parse_dtype

    if dtype is not None and parse_dtype(dtype).kind != "float":
        raise InvalidInput(f"generated weights cannot be {printable(dtype)}", "float32, bfloat16 or float16")
    if shard_size is not None:
        parse_bytes(shard_size)


def _check_alone(given: list[tuple[str, object]], like: str | None) -> None:
    """InvalidInput for options that do not go with a vocabulary."""
    useless = next((name for name, value in given if value), None)
    if useless is not None:
        raise InvalidInput(f"{useless} does not go with --vocabulary", "leave it out")
    if like is None:
        raise InvalidInput("a vocabulary is for a model, and none is given", "add --like MODEL")


def _generate_vocabulary(
    generator: str,
    like: str,
    tokenizer: str,
    words: Path | None,
    output: str,
    shard_size: str | None,
    seed: int,
    force: bool,
    quiet: bool,
) -> None:
    from paramsmith.hypernet.vocabulary.expand import generate_vocabulary
    from paramsmith.progress import bar

    with bar(not quiet) as progress:
        report = generate_vocabulary(
            generator,
            like,
            tokenizer,
            words,
            output,
            shard_size=shard_size,
            seed=seed,
            force=force,
            progress=progress,
        )
    if wants_json():
        return show_json(report.to_json())
    for warning in report.warnings:
        show_warning(warning)
    if not quiet:
        rows = ", ".join(f"{count:,} {what}" for what, count in report.counts.items())
        click.echo(f"{printable(report.path, 2000)}: {report.rows:,} rows: {rows}")
    return None


def _show_outlook(found: Outlook) -> None:
    if wants_json():
        return show_json(asdict(found))
    for warning in found.warnings:
        show_warning(warning)
    samples = f"{found.samples:,} samples of " if found.samples > 1 else ""
    lines = (
        ("write", f"{samples}{found.tensors:,} tensors ({found.parameters:,} parameters)"),
        ("bytes", size_text(found.bytes_written)),
        ("files", f"{found.files[0]}{f' and {len(found.files) - 1} more' if len(found.files) > 1 else ''}"),
        ("peak memory", f"about {size_text(found.peak_memory)}, {found.threads} threads"),
    )
    for name, value in lines:
        click.echo(f"{name:12} {value}")
    return None


def _show(report: Report, quiet: bool) -> None:
    if wants_json():
        samples = [{**asdict(sample), "path": str(sample.path)} for sample in report.samples]
        return show_json({"samples": samples, "seconds": report.seconds, "warnings": list(report.warnings)})
    for warning in report.warnings:
        show_warning(warning)
    if quiet:
        return None
    for sample in report.samples:
        click.echo(f"{printable(sample.path, 2000)}: {size_text(sample.nbytes)}")
    speed = size_text(report.nbytes / max(report.seconds, 1e-9))
    click.echo(f"{size_text(report.nbytes)} in {report.seconds:.1f} s, {speed}/s")
    return None
