"""What samplers take, each job in a process of its own.

python -m tests.bench.sampling_child < JOB        JOB as JSON; the result is the last line of stdout, as JSON
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.child import Measured
from tests.bench.generating_child import rest
from tests.bench.learning_child import held_bytes

if TYPE_CHECKING:
    import torch

    from paramsmith.hypernet.generator import Generator
    from paramsmith.hypernet.targets.target import TargetSpec
    from paramsmith.hypernet.zoos.zoo import Zoo

CLASSES, FEATURES, EXAMPLES = 5, 96, 16  # of a head that is drawn
SIDE, MATRICES = 512, 4  # of a network of the zoo that is streamed: 4.2 MB
TOGETHER = 8  # networks in a batch of it


@dataclass(frozen=True)
class Job:
    """What to do; `folder` is that of the zoo. `memory`: bytes that a zoo may keep."""

    kind: str  # draw, draw_each, products, make, stream, read, steps
    folder: str = ""
    tasks: int = 64
    samples: int = 16
    memory: int = 1 << 26
    networks: int = 128
    size: str = "small"
    device: str = "cpu"
    steps: int = 60
    compile: bool = False


def do(job: Job) -> Measured:
    """Run a job."""
    return JOBS[job.kind](job)


def draw(job: Job) -> Measured:
    """Heads for all tasks: every sample asked for at once, or `draw_each`, a call a task."""
    generator, asked = heads(), conditions(job.tasks)
    several = asked.repeat_interleave(job.samples, 0)
    generator.sample({"classes": asked[0]})
    started, cpu = time.perf_counter(), time.process_time()
    if job.kind == "draw":
        made = generator.sample({"classes": several})
    else:
        made = [one for own in asked for one in generator.sample({"classes": own}, job.samples)]
    taken = time.perf_counter() - started, time.process_time() - cpu
    if len(made) != job.tasks * job.samples:
        raise RuntimeError(f"{len(made)} heads were drawn")
    return Measured(*taken)


def products(job: Job) -> Measured:
    """The multiply-adds of the same draws as products of two matrices that fit the cache, on one thread as they are."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(1)
    generator, asked = heads(), conditions(job.tasks)
    with FlopCounterMode(display=False) as counter:
        generator.sample({"classes": asked[0]}, job.samples)
    size = 256
    count = round(counter.get_total_flops() * job.tasks / (2 * size**3))
    left, right = torch.randn(2, size, size)
    made = left @ right
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        torch.mm(left, right, out=made)
    return Measured(time.perf_counter() - started, time.process_time() - cpu)


def make(job: Job) -> Measured:
    """A zoo of a file a network."""
    import torch
    from safetensors.torch import save_file

    folder = Path(job.folder)
    folder.mkdir(exist_ok=True)
    for i in range(job.networks):
        rng = torch.Generator().manual_seed(i)
        numbers = torch.randn(MATRICES, SIDE, SIDE, generator=rng)
        save_file({f"{n}.weight": matrix.clone() for n, matrix in enumerate(numbers)}, folder / f"{i:04d}.safetensors")
    return Measured(0.0, peak=sum(file.stat().st_size for file in folder.iterdir()))


def stream(job: Job) -> Measured:
    """Every network of the zoo once, in batches; of memory, what is held at most above what was held before.

    `path` is how many bytes the zoo keeps in the end.
    """
    import torch

    from paramsmith.hypernet.zoos.zoo import Zoo

    torch.set_num_threads(1)
    zoo = Zoo.open(job.folder, memory=job.memory)
    Zoo.open(job.folder, memory=0).batch(zoo.members[:1])  # what is loaded with the first network of all
    before, started = rest()
    cpu = time.process_time()
    seen = sum(len(members) for members, _ in zoo.batches(None, TOGETHER))
    taken = time.perf_counter() - started, time.process_time() - cpu
    if seen != len(zoo):
        raise RuntimeError(f"{seen} of {len(zoo)} networks were read")
    return Measured(*taken, held_bytes("VmHWM") - before, path=f"{zoo.reader.held}")


def read(job: Job) -> Measured:
    """The same files, each read into one buffer."""
    files = sorted(Path(job.folder).glob("*.safetensors"))
    buffer = bytearray(max(file.stat().st_size for file in files))
    started, cpu = time.perf_counter(), time.process_time()
    for file in files:
        with file.open("rb", buffering=0) as opened:
            opened.readinto(buffer)
    return Measured(time.perf_counter() - started, time.process_time() - cpu)


def steps(job: Job) -> Measured:
    """Training steps of `flow` on 64 networks of some 500 tokens, or few if tiny: seconds each, of the second half."""
    from paramsmith.hypernet.generator import Generator

    spec, times = body(32 if job.size == "tiny" else 256), [time.perf_counter()]
    zoo = stacked(Path(job.folder), spec)
    generator = Generator.build("flow", spec=spec, size=job.size)
    precision = "no" if job.device == "cpu" else "bf16"
    course = {"steps": job.steps, "device": job.device, "precision": precision, "compile": job.compile}
    generator.fit(zoo, course, progress=lambda done, total: times.append(time.perf_counter()))
    taken = [after - before for before, after in pairwise(times)]
    return Measured(median(taken[len(taken) // 2 :]))


def heads() -> Generator:
    """A fresh generator of heads: a trained one takes as long."""
    from paramsmith.hypernet.generator import Generator
    from paramsmith.hypernet.targets.target import Slot, TargetSpec

    weight = Slot("weight", (CLASSES, FEATURES), "F32", "head", FEATURES, 0.1, 0)
    bias = Slot("bias", (CLASSES,), "F32", "bias", FEATURES, 0.0, 0)
    condition = {"classes": (CLASSES, EXAMPLES, FEATURES)}
    return Generator.build("flow", spec=TargetSpec((weight, bias)), condition=condition)


def conditions(tasks: int) -> torch.Tensor:
    """Features of examples, (tasks, classes, examples, features)."""
    import torch

    return torch.randn(tasks, CLASSES, EXAMPLES, FEATURES, generator=torch.Generator().manual_seed(0))


def body(width: int) -> TargetSpec:
    """Two layers as wide as that, and a head."""
    from paramsmith.hypernet.targets.target import Slot, TargetSpec

    hidden = [Slot(f"{i}.weight", (width, width), "F32", "matrix", width) for i in range(2)]
    return TargetSpec((*hidden, Slot("head.weight", (10, width), "F32", "head", width, class_axis=0)))


def stacked(folder: Path, spec: TargetSpec) -> Zoo:
    """A zoo of 64 such networks, in one file."""
    import torch

    from paramsmith.hypernet.zoos.index import Entry
    from paramsmith.hypernet.zoos.writing import ZooWriter
    from paramsmith.hypernet.zoos.zoo import Zoo

    rng = torch.Generator().manual_seed(0)
    made = {slot.name: torch.randn(64, *slot.shape, generator=rng) / 16 for slot in spec.slots}
    with ZooWriter(folder / "stacked", force=True) as writer:
        writer.add(spec, made, [Entry(path="?", run=str(i)) for i in range(64)], [{} for _ in range(64)])
        return Zoo.open(writer.publish())


JOBS: dict[str, Callable[[Job], Measured]] = {
    "draw": draw,
    "draw_each": draw,
    "products": products,
    "make": make,
    "stream": stream,
    "read": read,
    "steps": steps,
}

if __name__ == "__main__":
    print(json.dumps(asdict(do(Job(**json.loads(sys.stdin.read()))))))
