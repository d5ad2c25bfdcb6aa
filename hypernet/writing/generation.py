"""Generating checkpoints: a generator, what it is asked for, and folders that are published one by one."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from paramsmith.device import pick_device, pick_threads, resident_memory
from paramsmith.dtypes import parse_dtype
from paramsmith.errors import GenerateWarning, InvalidInput, Refused, printable
from paramsmith.hub import Reference
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.protocols import Condition
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.inputs import place
from paramsmith.lineage import local_names
from paramsmith.progress import Progress

from .conditions import batched
from .forms import form_of
from .job import Job, Named, Outlook, Report, Request
from .output import Sample, Written, check_apart, write_sample
from .provenance import Form
from .samples import count_samples
from .sources import source_of
from .stream import Outline, working_memory

__all__ = ["Job", "Named", "Outlook", "Report", "Request", "generate", "outlook", "prepare", "run", "told"]

if TYPE_CHECKING:
    from paramsmith.hypernet.targets.like import Like


def generate(
    generator: Named,
    output: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | TargetSpec | None = None,
    condition: Condition | None = None,
    n: int = 1,
    seed: int = 0,
    classes: int | None = None,
    dtype: str | None = None,
    shard_size: str | int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    base: str | os.PathLike[str] | None = None,
    form: Form = "checkpoint",
    alpha: float | None = None,
    steps: int | None = None,
    guidance: float = 1.0,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write what a generator makes: a folder that loads like any checkpoint, or a single .safetensors file.

    `generator` is a folder, `user/name` of the Hub, a preset that needs no training, or one in memory; `like` says
    which architecture it is for: a config, a checkpoint, `file.py:function`, or a spec. A condition with a leading axis
    of B makes B samples; several are OUT/0, OUT/1 and so on. Sample i is the same whatever n is. Same arguments, same
    bytes, whatever `threads` is; a run that was killed is gone on with. Raises InvalidInput, Refused or Failed.

    `form`: a "checkpoint" of what is generated; the `base` with a generated "head", or with generated differences
    added to it, "delta"; or an "adapter" for it, as PEFT has them, with `alpha` (see `forms`).

    `steps` and `guidance` are those of a sampler (see `latents.Sampling`), where its prior has any.
    """
    asked = (like, condition or {}, n, seed, classes, dtype, shard_size, threads, device, base, form, alpha)
    request = Request(*asked, steps=steps, guidance=guidance)
    return run(generator, Path(output), request, force=force, progress=progress)


def run(
    generator: Named, output: Path, request: Request, *, force: bool = False, progress: Progress | None = None
) -> Report:
    """Write what a generator makes for a request."""
    started, job = time.perf_counter(), prepare(generator, request)
    check_inputs(output, request, job, generator)
    nbytes = next(job.samples(output)).layout.nbytes
    made = _folder_of_several(output, job.count) if job.count > 1 else False
    tell = _Tally(job.count * nbytes, progress).add
    try:
        written = tuple(_written(sample, job, force, tell) for sample in job.samples(output))
    finally:
        if made and not any(output.iterdir()):
            output.rmdir()
    return Report(written, time.perf_counter() - started, told(job))


def check_inputs(output: Path, request: Request, job: Job, *named: object) -> None:
    """InvalidInput where the output overlaps the generator, which is named first, or anything else that is read."""
    paths = [_path(each) for each in (request.like, job.folder, request.base, *named[1:])]
    check_apart(output, [path for path in paths if path], _path(named[0]))


def outlook(job: Job, output: Path) -> Outlook:
    """What running a job will write and take."""
    first = next(job.samples(output))  # the others differ in what their metadata tells
    layout, tensors = first.layout, first.stored
    held = first.held + job.draws.held(job.outline.spec)
    return Outlook(
        samples=job.count,
        tensors=len(tensors),
        parameters=sum(tensor.count for tensor in tensors),
        bytes_written=job.count * layout.nbytes,
        files=tuple(file.name for file in layout.files),
        peak_memory=resident_memory() + working_memory(job.outline.spec, job.threads) + held,
        threads=job.threads,
        warnings=told(job),
    )


def told(job: Job) -> tuple[str, ...]:
    """The warnings about what is generated."""
    if not job.outline.left_out or job.form is not None:
        return job.warnings
    first, *others = job.outline.left_out
    more = f" and {len(others)} more" if others else ""
    return (*job.warnings, f"{printable(first)}{more}: left out, as the target's own code fills it")


def prepare(generator: Named, request: Request) -> Job:
    """Load the generator and hold what it is asked for against it; nothing is generated. Raises as `generate` does."""
    chosen, place_of = parse_dtype(request.dtype) if request.dtype else None, pick_device(request.device)
    if not 0 <= request.seed < 2**63:
        raise InvalidInput(f"the seed {request.seed} is out of range", "give a number from 0 to 2**63 - 1")
    how, source = request.how, source_of(generator, request.seed)
    source.generator.model.check_sampling(how)
    opened, warned = _opened(request, source.generator)
    spec = request.like if isinstance(request.like, TargetSpec) else opened.spec if opened else None
    wanted = source.generator.target(spec, None if opened else request.classes)
    held, many = batched(request.condition, source.generator.shapes)
    source.generator.to(place_of)
    form = form_of(request, wanted, chosen)
    return Job(
        source=source,
        outline=Outline(wanted, chosen, opened.own() if opened else None),
        condition=held,
        count=count_samples(request.n, many),
        seed=request.seed,
        threads=pick_threads(request.threads),
        target=_name(opened),
        classes=request.classes,
        dtype=chosen.code if chosen else None,
        folder=opened.folder if opened else None,
        shard_size=request.shard_size,
        warnings=warned,
        form=form,
        how=how,
    )


def _name(opened: Like | None) -> str:
    """What the architecture is called, without a path of this machine."""
    if opened is None:
        return "the generator's own"
    return opened.label if Reference.parse(opened.label) else local_names([opened.label])[0]


def _opened(request: Request, generator: Generator) -> tuple[Like | None, tuple[str, ...]]:
    """The architecture that is meant, and warnings about it."""
    if request.like is None or isinstance(request.like, TargetSpec):
        return None, ()
    from paramsmith.hypernet.targets.like import open_like

    # an encoder that looks at its target before it begins may go by the graph; for others it is not captured
    graph = callable(getattr(generator.model.encoder, "check", None))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GenerateWarning)
        opened = open_like(os.fspath(request.like), classes=request.classes, capture=graph)
    told = [str(each.message) for each in caught if issubclass(each.category, GenerateWarning)]
    return opened, tuple(dict.fromkeys(told))


def _path(named: object) -> Path | None:
    """The file or folder that is meant, if it is one of this machine."""
    return Path(named) if isinstance(named, str | os.PathLike) and os.path.lexists(named) else None


def _written(sample: Sample, job: Job, force: bool, tell: Callable[[int], None]) -> Written:
    """Of several samples, those that an interrupted run has published are not made again."""
    if job.count > 1 and not force and sample.is_done():
        tell(sample.layout.nbytes)
        names = (*(file.name for file in sample.layout.files), *sample.beside)
        return Written(sample.path, sample.generation.asked.index, sample.layout.nbytes, names, sample.layout.nbytes)
    return write_sample(sample, job.threads, force, tell)


def _folder_of_several(target: Path, count: int) -> bool:
    """Make the folder; whether it was missing. Refused where it holds anything but samples of this run."""
    if target.suffix == ".safetensors":
        raise InvalidInput(f"{place(target)}: is one file, and {count} samples are made", "name a folder: -o OUT")
    if not os.path.lexists(target):
        try:
            target.mkdir()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise Refused(f"{place(target)}: cannot be made: {reason}", "create the folder it lies in first") from None
        return True
    if not target.is_dir():
        raise Refused(f"{place(target)} is a file, and {count} samples go into a folder", "choose another name")
    mine = {str(index) for index in range(count)}
    known = {*mine, *(f".{name}.partial" for name in mine), *(f".{name}.replaced" for name in mine)}
    for entry in sorted(os.listdir(target)):
        if entry not in known:
            fact = f"{place(target / entry)} is in the way: {place(target)} is to hold {count} samples"
            raise Refused(fact, "choose another output, or remove it yourself")
    return False


class _Tally:
    """Counts the bytes of all samples, for the progress bar."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._done, self._lock = total, progress, 0, threading.Lock()

    def add(self, nbytes: int) -> None:
        """That many more bytes."""
        if self._progress is not None:
            with self._lock:
                self._done += nbytes
                self._progress(self._done, self._total)
