"""The parts of the report about the engine itself: speed, memory, cold, tiny, gpu."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.bench import runs
from tests.bench.child import Facts, Measured, Spec
from tests.bench.models import Unusable, tiny_models
from tests.bench.report import WITHIN, Column, Table, within
from tests.bench.runs import RunFailed, side_by_side


@dataclass(frozen=True)
class Case:
    """A merge, and the most it may take in times of a parallel copy of its inputs."""

    name: str
    method: str
    models: tuple[str, ...]
    base: str | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    target: float | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """All it reads."""
        return (*([self.base] if self.base else []), *self.models)


THREE, PAIR = ("a", "b", "c"), ("a", "b")
LINEAR = Case("linear, 4 inputs", "linear", ("base", *THREE), None, {}, 1.4)
ARITHMETIC = Case("task_arithmetic, 3 and base", "task_arithmetic", THREE, "base", {"weight": 0.3}, 1.4)
TIES = Case("ties, 3 and base", "ties", THREE, "base", {}, 3)
PCB = Case("pcb, 3 and base", "pcb", THREE, "base", {}, 11)
SPEED = (
    LINEAR,
    ARITHMETIC,
    Case("slerp, 2", "slerp", PAIR, None, {}, 2.8),
    Case("slerp, 2 and base", "slerp", PAIR, "base", {}, 2.8),
    TIES,
    Case("ties as mergekit, 3 and base", "ties", THREE, "base", {"flavour": "mergekit"}, 3),
    Case("dare with election, 3 and base", "dare", THREE, "base", {"elect": True}, 2.5),
    PCB,
)
MEMORY = (LINEAR, ARITHMETIC, TIES, PCB)
COLD = (LINEAR, ARITHMETIC)
GPU = (LINEAR, TIES, PCB)
EAGER = 3  # times the target, without compiled kernels
DEFAULT_PEAK, SMALL, COLD_RATIO, MICROSECONDS = 600e6, "256MB", 1.15, 50
TINY = 36_000


@dataclass(frozen=True)
class Bench:
    """What all parts share: where the models lie, how often to run, what the machine has."""

    folder: Path
    models: Mapping[str, Path]
    scratch: Path
    facts: Facts
    runs: int = 3
    quick: bool = False
    mergekit: Path | None = None

    def target(self, value: float | None) -> float | None:
        """A target holds for the full size only."""
        return None if self.quick else value

    def spec(self, case: Case, compile_as: str = "auto", **more: object) -> Spec:
        """The merge of a case."""
        models = [str(self.models[name]) for name in case.models]
        base = str(self.models[case.base]) if case.base else None
        output, parameters = str(self.scratch / "out"), dict(case.parameters)
        return Spec(models, output, case.method, base, parameters, compile_as, **more)  # type: ignore[arg-type]

    def merge(self, case: Case, compile_as: str = "auto", **more: object) -> Callable[[], Measured]:
        """A merge to time."""
        return lambda: runs.merge_apart(self.spec(case, compile_as, **more))

    def command(self, case: Case) -> list[str]:
        """The merge of a case as a command line."""
        flags = [word for key, value in case.parameters.items() for word in (f"--{key}", str(value))]
        base = ["--base", str(self.models[case.base])] if case.base else []
        models = [str(self.models[name]) for name in case.models]
        output = ["-o", str(self.scratch / "out"), "--quiet"]
        return [*runs.paramsmith(), "merge", *models, "--method", case.method, *base, *flags, *output]

    def copy(self, case: Case, *, cold: bool = False) -> Callable[[], Measured]:
        """The yardstick for a case."""
        models = [str(self.models[name]) for name in case.inputs]
        output, drop = self.scratch / "copy", cold and not self.quick
        return lambda: runs.copy(models, output, self.facts.threads, cold=cold, drop=drop)


@contextmanager
def row_of(table: Table, name: str) -> Iterator[None]:
    """A row that fails is reported, and the others go on."""
    try:
        yield
    except (RunFailed, Unusable, OSError) as problem:
        table.fail(name, problem)


def speed(bench: Bench) -> Table:
    """Merges against a copy of the same inputs, all in the page cache; with compiled kernels, and without."""
    columns = [Column("case", "merge", "name"), Column("path", "path"), Column("seconds", "seconds", "seconds")]
    columns += [
        Column("copy", "copy", "seconds"),
        Column("ratio", "ratio", "times"),
        Column("target", "target", "target"),
    ]
    columns += [WITHIN, Column("cpu", "CPU s", "seconds"), Column("copy_cpu", "copy CPU s", "seconds")]
    columns += [Column("peak", "peak RSS", "megabytes"), Column("disk", "disk", "megabytes")]
    table = Table("speed", "merges against a parallel copy, warm: nothing should come from the disk", columns)
    bench.copy(ARITHMETIC)()  # into the page cache
    modes = [("always", 1.0), ("never", float(EAGER))]
    if bench.facts.no_compiler:
        table.note(f"eager only: {bench.facts.no_compiler}")
        del modes[0]
    for compile_as, times in modes:
        for case in SPEED:
            with row_of(table, case.name):
                uncounted = [1] if compile_as == "always" else []  # the first run may compile
                copied, merged = side_by_side([bench.copy(case), bench.merge(case, compile_as)], bench.runs, uncounted)
                ratio, target = merged.seconds / copied.seconds, bench.target(case.target and case.target * times)
                table.add(
                    case=case.name,
                    path=merged.path,
                    seconds=merged.seconds,
                    copy=copied.seconds,
                    ratio=ratio,
                    target=target,
                    within=within(ratio, target),
                    cpu=merged.cpu,
                    copy_cpu=copied.cpu,
                    peak=merged.peak,
                    disk=max((t.disk for t in (copied, merged) if t.disk is not None), default=None),
                )
    return table


def memory(bench: Bench) -> Table:
    """The most a whole process holds, with the budget left alone and with a small one."""
    columns = [Column("case", "merge", "name"), Column("budget", "budget"), Column("peak", "peak RSS", "megabytes")]
    columns += [Column("target", "target", "megabytes"), WITHIN, Column("seconds", "seconds", "seconds")]
    table = Table("memory", "peak of a whole process, paramsmith merge", columns)
    small = float(SMALL.removesuffix("MB")) * 1e6
    for flags, budget, target in (
        ([], "default", DEFAULT_PEAK),
        (["--memory", SMALL, "--compile", "never"], SMALL, small),
    ):
        for case in MEMORY:
            with row_of(table, f"{case.name}, {budget}"):
                command = [*bench.command(case), *flags]

                def run(command: list[str] = command) -> Measured:
                    return runs.whole_process(command, bench.scratch / "out")

                # the compiler's own memory is its children's, but only in the first run
                (taken,) = side_by_side([run], 1, [] if flags else [0])
                wanted = bench.target(target)
                row = {"peak": taken.peak, "target": wanted, "within": within(taken.peak, wanted)}
                table.add(case=case.name, budget=budget, seconds=taken.seconds, **row)
    return table


def cold(bench: Bench) -> Table:
    """Merges against a copy, the inputs dropped from the page cache before each."""
    columns = [
        Column("case", "merge", "name"),
        Column("seconds", "seconds", "seconds"),
        Column("copy", "copy", "seconds"),
    ]
    columns += [Column("ratio", "ratio", "times"), Column("target", "target", "target"), WITHIN]
    columns += [Column("from_disk", "from disk", "share"), Column("copy_from_disk", "copy's", "share")]
    table = Table("cold", "merges against a parallel copy, inputs out of the page cache", columns)
    for case in COLD:
        with row_of(table, case.name):
            merge = bench.merge(case, cold=True, drop=not bench.quick)
            uncounted = [] if bench.quick or bench.facts.no_compiler else [1]
            copied, merged = side_by_side([bench.copy(case, cold=True), merge], bench.runs, uncounted)
            nbytes = sum(file.stat().st_size for n in case.inputs for file in bench.models[n].glob("*.safetensors"))
            ratio, target = merged.seconds / copied.seconds, bench.target(COLD_RATIO)
            table.add(
                case=case.name,
                seconds=merged.seconds,
                copy=copied.seconds,
                ratio=ratio,
                target=target,
                within=within(ratio, target),
                from_disk=None if merged.disk is None else merged.disk / nbytes,
                copy_from_disk=None if copied.disk is None else copied.disk / nbytes,
            )
    return table


def tiny(bench: Bench) -> Table:
    """What a tensor costs that has next to nothing in it."""
    columns = [Column("case", "merge", "name"), Column("tensors", "tensors"), Column("seconds", "seconds", "seconds")]
    columns += [Column("one", "of one", "seconds"), Column("micro", "µs/tensor", "micro")]
    table = Table("tiny", "4 x 4 float32 tensors", [*columns, Column("target", "target", "target"), WITHIN])
    count = TINY // 20 if bench.quick else TINY
    for case in COLD:
        with row_of(table, case.name):
            sets = [tiny_models(bench.folder, n) for n in (1, count)]
            things = [replace(bench, models=models).merge(case) for models in sets]
            one, many = side_by_side(things, bench.runs)
            micro, target = (many.seconds - one.seconds) / (count - 1) * 1e6, bench.target(MICROSECONDS)
            row = {"seconds": many.seconds, "one": one.seconds, "micro": micro}
            table.add(case=case.name, tensors=f"{count:,}", target=target, within=within(micro, target), **row)
    return table


def gpu(bench: Bench) -> Table:
    """A GPU against this machine's processor with compiled kernels."""
    columns = [
        Column("case", "merge", "name"),
        Column("seconds", "GPU s", "seconds"),
        Column("cpu", "CPU s", "seconds"),
    ]
    columns += [Column("ratio", "CPU/GPU", "times"), Column("copy", "copy", "seconds")]
    table = Table("gpu", f"on {bench.facts.gpu}", [*columns, Column("memory", "GPU peak", "megabytes")])
    compile_as = "never" if bench.facts.no_compiler else "always"
    for case in GPU:
        with row_of(table, case.name):
            things = [bench.copy(case), bench.merge(case, compile_as), bench.merge(case, device="cuda")]
            copied, cpu, taken = side_by_side(things, bench.runs, [1, 2])
            row = {"cpu": cpu.seconds, "ratio": cpu.seconds / taken.seconds, "copy": copied.seconds}
            table.add(case=case.name, seconds=taken.seconds, memory=taken.gpu, **row)
    return table
