"""One pass over blocks: which program runs on a block, with which inputs, and the workers that run it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from paramsmith import gram, kernels, ops
from paramsmith.blocks import CUT, Block
from paramsmith.dtypes import torch_dtype
from paramsmith.kernels import Kernel
from paramsmith.order import Floats
from paramsmith.params import Resolved
from paramsmith.stream import Scratch, read_block, run_workers
from paramsmith.surveys import Extremes, OrderStatistic, Seen, Sum, Survey

from . import programs
from .job import Job, MergeTask
from .parameters import Common, Numbers
from .programs import Kind, Spec, as_plain, buffers, program, torch_named

T = TypeVar("T")
BUILDER = "paramsmith.merge.programs"
FIRST_OUT = "out 0"  # the scratch that holds a pass's first buffer


@dataclass(frozen=True)
class Setup:
    """How a job is run: where, by how many, in what cuts, and whether compiled."""

    device: torch.device
    threads: int
    block: int
    eager_block: int
    compiled: bool
    sample: int = 1 << 22  # most elements of a sample for order statistics


class Runner:
    """Runs passes of one job, and keeps what its surveys found."""

    def __init__(self, job: Job, setup: Setup, advance: Callable[[int], None]) -> None:
        self.job, self.setup, self.advance = job, setup, advance
        self.wide = torch_named(job.wide)
        self.numpy_wide = np.dtype(job.wide)
        self.block = setup.block if setup.compiled else setup.eager_block
        self.eager_block = setup.eager_block
        self.values: dict[str, dict[str, Tensor]] = {}  # {survey: {"" or tensor: value}}
        self._kernels: dict[Path, Kernel] = {}
        self._paths: dict[str, Path] = {}
        self._numbers: dict[Numbers, list[Tensor]] = {}

    @property
    def packable(self) -> bool:
        """Whether blocks of several tensors share all their inputs."""
        return not self.job.method.random and all(set(v) == {""} for v in self.values.values())

    def group(self, task: MergeTask) -> object:
        """What tensors must have in common to share a block."""
        return (tuple(p.dtype.code for p in task.sources), task.spec.dtype.code, task.numbers, task.otherwise)

    def rows(self, task: MergeTask) -> int:
        """Models in a tensor's block."""
        return len(task.sources) - self.job.deltas - task.statistics

    def raw_dtype(self, task: MergeTask) -> torch.dtype:
        """The dtype a block is read as: what is stored, or the arithmetic's where the sources differ."""
        first = task.sources[0].dtype
        return torch_dtype(first) if all(p.dtype == first for p in task.sources) else self.wide

    def over(
        self,
        items: Iterable[T],
        survey: Survey | None,
        kind: Kind | None,
        work: Callable[[T, Pass, Scratch], None],
        *,
        terms: int = 1,
    ) -> None:
        """Let the workers do `work` on every item."""
        run = Pass(self, kind or "order", survey, terms, compiled=self.setup.compiled and kind is not None)
        run_workers(items, lambda item, scratch: work(item, run, scratch), self.setup.threads, self.setup.device)

    def resolved(self, survey: Survey, tasks: Sequence[MergeTask] | None = None) -> Resolved[Any]:
        """The parameters as a survey's own functions see them: of one tensor, or what all tensors agree on."""
        about = self.job.surveyed if tasks is None else tasks
        listed = [task.numbers for task in (about if survey.scope == "model" else about[:1])]
        return Common(self.job.method, self.job.options, listed)

    def parameters(self, task: MergeTask) -> Resolved[Any]:
        """The parameters at one tensor, as tensors on the device and as numbers."""
        return Resolved(self.job.options, self._as_tensors(task.numbers, self.setup.device), dict(task.numbers))

    def terms(self, survey: Sum | Extremes) -> int:
        """How many terms a survey's function gives, from one element of zeros."""
        task = self.job.surveyed[0]
        rows = self.rows(task)
        uniform = (lambda: torch.zeros(rows, 1, dtype=torch.float32)) if self.job.method.random else None
        seen = {name: torch.zeros(shape, dtype=self.wide) for name, shape in self.shapes(survey.name).items()}
        p = Resolved(self.job.options, self._as_tensors(task.numbers, torch.device("cpu")), dict(task.numbers))
        measured = torch.zeros(task.statistics, 1, dtype=self.wide) if task.statistics else None
        return len(survey.of(torch.zeros(rows, 1, dtype=self.wide), Seen(seen, uniform, measured), p))

    def shapes(self, before: str = "") -> dict[str, tuple[int, ...]]:
        """The shapes of the surveys' values, up to the one named."""
        found: dict[str, tuple[int, ...]] = {}
        if not self.job.surveyed:
            return found
        rows = self.rows(self.job.surveyed[0])
        for survey in self.job.method.surveys(self.job.options):
            if survey.name == before:
                break
            if isinstance(survey, OrderStatistic):
                values = torch.zeros(rows, self.ranks(survey), dtype=self.wide)
                found[survey.name] = tuple((survey.then(values) if survey.then else values).shape)
            elif isinstance(survey, Extremes):
                found[survey.name] = (self.terms(survey), 2)
            else:
                zeros = torch.zeros(self.terms(survey), dtype=torch.float64)
                found[survey.name] = tuple(survey.then(zeros, self.resolved(survey)).shape)
        return found

    def ranks(self, survey: OrderStatistic) -> int:
        """How many ranks a survey wants of each row."""
        return len(survey.ranks(2, self.resolved(survey))[0])

    def spec(self, kind: Kind, survey: Survey | None, task: MergeTask, terms: int = 1) -> Spec:
        """What shapes the program for a tensor in a pass."""
        raw = self.raw_dtype(task)
        shapes = self.shapes(survey.name if survey else "")
        return Spec(
            kind,
            survey.name if survey else "",
            self.job.method.name,
            {k: v for k, v in self.job.recipe.parameters.items() if k not in dict(self._settings())},
            len(task.sources),
            str(raw).removeprefix("torch."),
            self.job.wide,
            str(torch_dtype(task.spec.dtype)).removeprefix("torch.") if kind == "output" else self.job.wide,
            self.job.deltas,
            {name: len(values) for name, values in task.numbers},
            {name: (shape, self.job.wide) for name, shape in shapes.items()},
            self.ranks(survey) if isinstance(survey, OrderStatistic) else 1,
            terms,
            task.statistics,
            task.otherwise,
        )

    def _settings(self) -> Iterable[tuple[str, str]]:
        fields = self.job.method.params.model_fields
        for name, kind in self.job.method.params.settings().items():
            yield fields[name].alias or name, kind
            yield name, kind

    def prepare_kernels(self) -> None:
        """Compile, side by side, every kernel the job will need and the cache does not hold; load them all."""
        wanted = self._wanted()
        kernels.build({path: as_plain(spec) for path, spec in wanted.items()}, BUILDER, self.setup.threads)
        for spec in wanted.values():
            self.kernel(spec)

    def kernels_missing(self) -> int:
        """How many kernels are still to be compiled."""
        return sum(not path.exists() for path in self._wanted())

    def _wanted(self) -> dict[Path, Spec]:
        kinds = {self.group(task): task for task in self.job.merged}
        return {self._kernel_path(spec): spec for task in kinds.values() for spec in self._specs(task)}

    def _specs(self, task: MergeTask) -> Iterator[Spec]:
        for survey in () if task.otherwise else self.job.method.surveys(self.job.options):
            if isinstance(survey, OrderStatistic):
                yield self.spec("order", survey, task)
            else:
                kind: Kind = "sum" if isinstance(survey, Sum) else "extremes"
                yield self.spec(kind, survey, task, self.terms(survey))
        yield self.spec("output", None, task)

    def _kernel_path(self, spec: Spec) -> Path:
        """Found once: the code on disk may change while this runs, the code in memory does not."""
        name = json.dumps(as_plain(spec), sort_keys=True)
        if name not in self._paths:
            code = _code(self.job.method.function)
            self._paths[name] = kernels.kernel_path(as_plain(spec), code)
        return self._paths[name]

    def kernel(self, spec: Spec) -> Kernel:
        """The compiled program of a spec."""
        path = self._kernel_path(spec)
        if path not in self._kernels:
            self._kernels[path] = Kernel(path, self.setup.threads)
        return self._kernels[path]

    def eager(self, spec: Spec) -> torch.nn.Module:
        """The program of a spec as it is."""
        return program(spec, self.job.method, self.job.options)

    def inputs(self, block: Block[MergeTask], survey: Survey | None, scratch: Scratch) -> list[Tensor]:
        """The raw block and what a program takes after it."""
        flat = [read_block(block, scratch, self.wide)]
        flat += self._as_tensors(block.task.numbers, scratch.device).values()
        for name, values in self.values.items():
            if survey is not None and name == survey.name:
                break
            value = values.get("", values.get(block.task.spec.name))
            # what was not surveyed takes any value of the right shape: it is not looked at
            flat.append(next(iter(values.values())) if value is None else value)
        return [*flat, *self._random(block, scratch)] if self.job.method.random else flat

    def _as_tensors(self, numbers: Numbers, device: torch.device) -> dict[str, Tensor]:
        if numbers not in self._numbers:
            kinds = self.job.method.params.settings()
            made = [torch.tensor(v, dtype=self.wide, device=device) for _, v in numbers]
            pairs = zip(made, numbers, strict=True)
            self._numbers[numbers] = [m[:, None] if kinds[n] == "model" else m for m, (n, _) in pairs]
        return dict(zip((name for name, _ in numbers), self._numbers[numbers], strict=True))

    def _random(self, block: Block[MergeTask], scratch: Scratch) -> list[Tensor]:
        span, seed = block.spans[0], self.job.recipe.seed
        rows = self.rows(span.task)
        name, page = span.task.spec.name, span.start >> 32
        words = [ops.stream_word(seed, page, name, model) for model in range(-1, rows)]
        low = (span.start & 0xFFFFFFFF) - ((span.start & 0x80000000) << 1)  # as a signed 32-bit number
        key = torch.tensor(words, dtype=torch.int32, device=scratch.device)
        start = torch.tensor([low], dtype=torch.int32, device=scratch.device)
        return [key, start, scratch.counting(block.count)]


class Pass:
    """One kind of program over blocks: call it with a block for the filled buffers."""

    def __init__(self, runner: Runner, kind: Kind, survey: Survey | None, terms: int, *, compiled: bool) -> None:
        self.runner, self.survey, self.terms, self.compiled = runner, survey, terms, compiled
        self.kind: Kind = kind
        self._specs: dict[object, tuple[Spec, Callable[..., object]]] = {}

    def __call__(self, block: Block[MergeTask], scratch: Scratch, *brackets: Tensor) -> list[Tensor]:
        """The buffers the program fills, on the device; they last until the next call with this scratch."""
        spec, run = self._program(block)
        made = buffers(spec, block.count)
        filled = [scratch.take(f"out {i}", shape, dtype) for i, (shape, dtype, _) in enumerate(made)]
        run(*self.runner.inputs(block, self.survey, scratch), *(b.to(scratch.device) for b in brackets), *filled)
        self.runner.advance(sum(p.dtype.itemsize for p in block.task.sources) * block.count)
        return filled

    def _program(self, block: Block[MergeTask]) -> tuple[Spec, Callable[..., object]]:
        lone_rest = self.kind == "sum" and block.count % CUT != 0
        key = (self.runner.group(block.task), lone_rest)
        if key not in self._specs:
            spec = self.runner.spec(self.kind, self.survey, block.task, self.terms)
            compiled = self.compiled and not lone_rest
            self._specs[key] = (spec, self.runner.kernel(spec) if compiled else self.runner.eager(spec))
        return self._specs[key]


def scores(runner: Runner, survey: OrderStatistic, block: Block[MergeTask], scratch: Scratch) -> Floats:
    """A block's scores (rows, n), by the eager program."""
    run = Pass(runner, "order", survey, 1, compiled=False)
    ends = torch.zeros(runner.rows(block.task), runner.ranks(survey), dtype=runner.wide)
    return run(block, scratch, ends, ends)[0].cpu().numpy().copy()


def _code(function: Callable[..., object]) -> list[Path]:
    """The files whose text decides what a method's kernels compute: its own, its neighbours it uses, and ours."""
    home = sys.modules[function.__module__]
    package = home.__name__.rpartition(".")[0]
    used = {getattr(v, "__module__", None) or getattr(v, "__name__", "") for v in vars(home).values()}
    near = sorted(name for name in used if isinstance(name, str) and name.startswith(f"{package}.") and package)
    modules = [home, *(sys.modules[name] for name in near if name in sys.modules), ops, gram, programs]
    return [Path(str(module.__file__)) for module in modules]
