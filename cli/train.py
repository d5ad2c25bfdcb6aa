"""`paramsmith train PRESET`: a generator, trained on tasks or on a zoo of checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from paramsmith.errors import GenerateWarning, InvalidInput, printable
from paramsmith.hypernet.training.course import Course

from .output import json_option, show_json, show_warning, told_warnings, wants_json
from .task_options import check_apart

if TYPE_CHECKING:
    from paramsmith.hypernet.training.learning import Trained
    from paramsmith.progress import Progress

Command = Callable[..., None]
_FOLDER = click.Path(path_type=Path)


def course_options(command: Command) -> Command:
    """An option for each field of the course; what is not given is the preset's."""
    for name, field in reversed(Course.model_fields.items()):
        kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
        word = f"--{name.replace('_', '-')}"
        told = f"{str(field.description)[:1].upper()}{str(field.description)[1:]}."
        if field.annotation is bool:
            command = click.option(word, is_flag=True, default=None, help=told)(command)
            continue
        kind: Any = click.Choice(kinds) if get_origin(field.annotation) is Literal else kinds[0]
        shown = "" if field.default is None else f"  [{field.default}]"
        command = click.option(word, name, type=kind, help=told + shown)(command)
    return command


@click.command("train", short_help="Train a generator of weights.")
@click.argument("preset", metavar="GENERATOR")
@click.option("--tasks", metavar="FILE.PY:FUNCTION", help="What the networks are for; see the manual.")
@click.option("--zoo", type=_FOLDER, metavar="FOLDER", help="Trained checkpoints to learn to make; see the manual.")
@click.option("--words", type=_FOLDER, metavar="FILE", help="hyperofa: word vectors; with --like, whose rows to learn.")
@click.option("--like", metavar="MODEL", help="With --zoo: the network that they are of, for its graph.")
@click.option("-o", "--output", type=_FOLDER, help="The folder to write.")
@click.option("-p", "--option", "pairs", multiple=True, metavar="NAME=VALUE", help="Of the generator; may be repeated.")
@course_options
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar and no closing line.")
@json_option
def command(
    preset: str,
    tasks: str | None,
    zoo: Path | None,
    words: Path | None,
    like: str | None,
    output: Path | None,
    pairs: tuple[str, ...],
    force: bool,
    quiet: bool,
    **course: object,
) -> None:
    """Train GENERATOR on tasks, or on a zoo of checkpoints, and save it in a folder.

    Interrupted, the same command goes on where it was. `paramsmith generators` lists what there is,
    `paramsmith generators GENERATOR` its options. Defaults in brackets hold where a generator has none of its own.

    \b
    paramsmith train mip --tasks digits.py:task -o GEN --steps 1000 -p hidden=16,64
    paramsmith generate GEN --task vector=0.3 -o OUT
    """
    target = _checked(output, tasks, zoo, words, like)
    options = [_pair(text) for text in pairs]
    given = {name: value for name, value in course.items() if value is not None}
    from paramsmith.hypernet.training.learning import train
    from paramsmith.progress import bar

    with told_warnings(GenerateWarning), bar(not quiet, "steps") as progress:
        values = _values(preset, options)
        if words is not None:
            found, said = _of_words(preset, words, str(like), target, values, given, force, progress)
        else:
            source = _source(tasks, zoo, like)
            found = train(preset, source, target, options=values, course=given, force=force, progress=progress)
            said = found.fit.warnings
    _show(found, said, quiet)


def _checked(output: Path | None, tasks: str | None, zoo: Path | None, words: Path | None, like: str | None) -> Path:
    """The output. InvalidInput, before anything is loaded, for options that do not go together."""
    if output is None:
        raise InvalidInput("no output given", "add -o FOLDER")
    given = [name for name, value in (("--tasks", tasks), ("--zoo", zoo), ("--words", words)) if value is not None]
    if len(given) != 1 and given != ["--tasks", "--zoo"]:
        fact = f"{' and '.join(given)} are given" if given else "there is nothing to learn from"
        raise InvalidInput(fact, "give --tasks file.py:function, or --zoo FOLDER")
    if like is not None and given == ["--tasks"]:
        raise InvalidInput("--like goes with --zoo", "tasks say themselves which network they are for")
    if like is None and words is not None:
        raise InvalidInput("--words needs the model whose embeddings are learned from", "give --like MODEL")
    if output.suffix == ".safetensors":
        raise InvalidInput(f"{printable(output, 400)}: a generator is a folder, not a file", "leave .safetensors out")
    check_apart(output, tasks, like, *(str(path) for path in (zoo, words) if path is not None))
    return output


def _pair(text: str) -> tuple[str, object]:
    from paramsmith.params import parse_option

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidInput(f"{printable(text)!r} is no option of a generator", "write it as -p name=value")
    return name.replace("-", "_"), parse_option(value)


def _values(preset: str, pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """The options of a generator; one number may stand for a list of one."""
    from paramsmith.parts import generators

    fields = generators.find(preset).params.model_fields
    lists = {name for name, field in fields.items() if get_origin(field.annotation) is tuple}
    return {name: [value] if name in lists and not isinstance(value, list) else value for name, value in pairs}


def _source(tasks: str | None, zoo: Path | None, like: str | None) -> object:
    task = None
    if tasks is not None:
        from paramsmith.hypernet.training.tasks import load_task

        task = load_task(tasks, judged=zoo is not None)
        if zoo is None:
            return task
    from paramsmith.hypernet.targets.like import open_like
    from paramsmith.hypernet.zoos.zoo import Zoo

    opened = Zoo.open(str(zoo), None if like is None else open_like(like).spec)
    opened.task = task
    return opened


def _of_words(
    preset: str,
    words: Path,
    like: str,
    output: Path,
    options: Mapping[str, object],
    course: Mapping[str, object],
    force: bool,
    progress: Progress,
) -> tuple[Trained, tuple[str, ...]]:
    """Train on the embeddings of a model, and judge on tokens kept apart."""
    from paramsmith.hypernet.training.learning import train
    from paramsmith.hypernet.vocabulary.train import prepare_hyperofa, told

    if preset != "hyperofa":
        raise InvalidInput(f"{printable(preset)} does not learn from word vectors", "hyperofa does")
    made = prepare_hyperofa(like, words, seed=int(str(course.get("seed", 0))), options=options)
    said = made.generator.preset
    chosen = {} if said is None else said[1]
    found = train(preset, made.vocabulary, output, options=chosen, course=course, force=force, progress=progress)
    nearness = replace(made, generator=found.generator).judge()
    return found, (*told(nearness), *found.fit.warnings)


def _show(found: Trained, said: tuple[str, ...], quiet: bool) -> None:
    if wants_json():
        return show_json({**found.to_json(), "warnings": list(said)})
    for warning in said:
        show_warning(warning)
    for name, value in (found.result or {}).items():
        click.echo(f"{printable(name)}: {printable(json.dumps(value), 2000)}")
    if not quiet:
        fit = found.fit
        last = f", loss {fit.losses[-1]:.4g}" if fit.losses else ""
        how = f"{fit.steps:,} steps in {fit.seconds:.0f} s{last}"
        click.echo(f"{printable(found.output, 2000)}: {found.preset}, {found.parameters:,} parameters, {how}")
    return None
