"""The functions a caller uses: merge, run, plan, merge_state_dicts. The command line calls the same ones."""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import Failed, InvalidInput, MergeWarning, printable
from paramsmith.params import check_filters
from paramsmith.plan import Plan
from paramsmith.progress import Progress, part_of
from paramsmith.recipe import ModelEntry, Recipe, entries, method_for

from .options import Compile, Push, RunOptions

if TYPE_CHECKING:
    from torch import Tensor

    from paramsmith.upload import Pushed

    from .job import Job
    from .publishing import Publication


@dataclass(frozen=True)
class MergeReport:
    """What a merge did."""

    output: Path
    plan: Plan
    warnings: tuple[str, ...]
    seconds: float
    pushed: Pushed | None = None

    @property
    def path(self) -> str:
        """ "compiled" or "eager": how the arithmetic was done."""
        return self.plan.path

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        told = {"output": str(self.output), "seconds": self.seconds, "warnings": list(self.warnings)}
        if self.pushed is not None:
            told["pushed"] = asdict(self.pushed)
        return {**told, "plan": self.plan.to_json()}


def merge(
    models: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    method: str | None = None,
    statistics: Sequence[str | os.PathLike[str]] = (),
    coefficients: str | os.PathLike[str] | None = None,
    exclude: Sequence[str] = (),
    missing: Literal["error", "base", "skip"] = "error",
    dtype: str | None = None,
    out_dtype: str | None = None,
    shard_size: str | int | None = None,
    seed: int = 0,
    memory: str | int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    compile: Compile = "auto",  # noqa: A002 - named as the flag
    block: int | None = None,
    force: bool = False,
    strict: bool = False,
    stream: bool = False,
    progress: Progress | None = None,
    **parameters: object,
) -> MergeReport:
    """Merge checkpoints into one, written to `output` (a folder, or one .safetensors file).

    Arguments are named as the flags of `paramsmith merge`. `method` is linear unless told, by name or by what the
    `coefficients` are for; `statistics` are files of `paramsmith measure`, one a model. `parameters` are the method's
    own: one value, a list of one a model, or the other forms of `paramsmith.params`. Raises InvalidInput, Refused or
    Failed.
    """
    check_filters(exclude)
    learned = os.fspath(coefficients) if coefficients is not None else None
    recipe = Recipe(
        method=method or method_for(learned),
        models=entries([os.fspath(m) for m in models], [os.fspath(s) for s in statistics]),
        coefficients=learned,
        exclude=tuple(exclude),
        base=os.fspath(base) if base is not None else None,
        parameters=dict(parameters),
        missing=missing,
        dtype=dtype,
        out_dtype=out_dtype,
        shard_size=shard_size,
        seed=seed,
    )
    options = RunOptions(memory, device, threads, compile, block, force, strict, progress, stream)
    return run(recipe, output, options)


def run(recipe: Recipe, output: str | os.PathLike[str], options: RunOptions | None = None) -> MergeReport:
    """Run a recipe."""
    from paramsmith.staging import Writer

    from .arrival import bring
    from .engine import job_key, run_job
    from .outcome import layout_of, write_companions
    from .recording import recorded
    from .setup import make_plan, prepare_setup, with_kernels

    options, target, started = options or RunOptions(), Path(output), time.perf_counter()
    with ExitStack() as stack:
        job = _opened(recipe, stack)
        _check_apart(target, job)
        _strictly((*recipe.warnings, *job.warnings), options)
        setup, why = prepare_setup(job, options)
        setup, told = with_kernels(job, setup, options)
        plan = make_plan(job, setup, why)
        layout = layout_of(job, target)
        published = stack.enter_context(_publication(options.push, job, target)) if options.push else None
        key, tell = job_key(job, setup.compiled), published.file if published else None
        writer = stack.enter_context(Writer(target, layout, key, force=options.force, on_file=tell))
        progress = options.progress if options.stream else part_of(options.progress, plan.bytes_downloaded)
        bring(job, options, target)
        told_all = (*recipe.warnings, *job.warnings, *told, *run_job(job, setup, writer, progress))
        for model in (*job.models, *([job.base] if job.base else [])):
            model.check_unchanged()
        _strictly(told_all, options)
        write_companions(job, writer, target, recorded(job, setup, told_all, layout))
        writer.publish()
        pushed = published.finish(target) if published else None
        told_all += published.warnings if published else ()
    return MergeReport(target, plan, told_all, time.perf_counter() - started, pushed)


def plan(recipe: Recipe, output: str | os.PathLike[str], options: RunOptions | None = None) -> Plan:
    """What running a recipe will read, write and take; from headers alone, and nothing is written."""
    from .setup import make_plan, prepare_setup

    options = options or RunOptions()
    with ExitStack() as stack:
        job = _opened(recipe, stack)
        _check_apart(Path(output), job)
        warnings = (*recipe.warnings, *job.warnings)
        _strictly(warnings, options)
        setup, why = prepare_setup(job, options)
        made = make_plan(job, setup, why)
    return replace(made, warnings=warnings)


def merge_state_dicts(
    models: Sequence[Mapping[str, Tensor]],
    *,
    base: Mapping[str, Tensor] | None = None,
    method: str = "linear",
    statistics: Sequence[Mapping[str, Tensor]] = (),
    exclude: Sequence[str] = (),
    missing: Literal["error", "base", "skip"] = "error",
    dtype: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    compile: Compile = "never",  # noqa: A002 - named as the flag
    block: int | None = None,
    **parameters: object,
) -> dict[str, Tensor]:
    """Merge dicts of tensors in memory, by the same engine; the result is on the CPU, warnings are Python's.

    >>> import torch
    >>> merge_state_dicts([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], weight=[1, 3])["w"].tolist()
    [0.75, 0.75]
    """
    from paramsmith.memory import MemorySink, StateDict

    from .engine import run_job
    from .job import prepare
    from .measured import held_statistics
    from .setup import prepare_setup, with_kernels

    labels = tuple(ModelEntry(model=f"model {i + 1}") for i in range(len(models)))
    recipe = Recipe(
        method=method,
        models=labels,
        parameters=dict(parameters),
        missing=missing,
        exclude=tuple(exclude),
        dtype=dtype,
        seed=seed,
    )
    held = [StateDict(m, e.model) for m, e in zip(models, labels, strict=True)]
    measured = held_statistics(method, statistics)
    job = prepare(recipe, held, None if base is None else StateDict(base, "the base"), measured)
    options = RunOptions(memory=1 << 40, device=device, threads=threads, compile=compile, block=block)
    setup, told = with_kernels(job, prepare_setup(job, options)[0], options)
    sink = MemorySink(task.spec for task in job.tasks)
    for warning in (*job.warnings, *told, *run_job(job, setup, sink, None)):
        warnings.warn(warning, MergeWarning, stacklevel=2)
    tied = {a: n for a, n in job.reference.aliases.items() if a not in sink.tensors and n in sink.tensors}
    return sink.tensors | {alias: sink.tensors[name] for alias, name in tied.items()}


def _opened(recipe: Recipe, stack: ExitStack) -> Job:
    from paramsmith.remote import pin

    from .job import prepare
    from .measured import open_statistics

    if recipe.coefficients:
        recipe = recipe.model_copy(update={"coefficients": pin(recipe.coefficients)})
    # headers become hundreds of thousands of objects, all of which stay: collecting garbage would only walk them
    if gc.isenabled():
        gc.disable()
        stack.callback(gc.enable)
    listed = [e.model for e in recipe.models]
    listed += [s.model for part in recipe.slices or () for s in part.sources if s.model not in listed]
    unique = list(dict.fromkeys(listed)) if recipe.slices else listed
    base = stack.enter_context(Checkpoint.open(recipe.base)) if recipe.base else None
    models = [stack.enter_context(Checkpoint.open(m)) for m in unique]
    return prepare(recipe, models, base, [stack.enter_context(s) for s in open_statistics(recipe)])


def _publication(push: Push, job: Job, target: Path) -> AbstractContextManager[Publication]:
    from .publishing import publication  # with all that a card needs, which most merges do not

    return publication(push, job, target)


def _check_apart(target: Path, job: Job) -> None:
    """The output must not lie in an input, nor an input in the output, wherever links lead."""
    place = target.resolve()
    for model in (*job.models, *([job.base] if job.base else [])):
        files = {info.file for info in model.tensors.values()}
        home = model.path if isinstance(model, Checkpoint) else Path(model.label)
        homes = {home.resolve(), *(file.resolve() for file in files)}
        if any(place == home or home in place.parents or place in home.parents for home in homes):
            fact = f"the output {printable(target)} and the input {printable(model.label)} lie in one another"
            raise InvalidInput(fact, "write to a folder of its own")


def _strictly(warnings: Sequence[str], options: RunOptions) -> None:
    if options.strict and warnings:
        more = f" (and {len(warnings) - 1} more warnings)" if len(warnings) > 1 else ""
        raise Failed(f"{warnings[0]}{more}", "warnings are errors under --strict")
