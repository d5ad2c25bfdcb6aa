"""What generating takes, each job in a process of its own.

python -m tests.bench.generating_child < JOB        JOB as JSON; the result is the last line of stdout, as JSON
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.child import Measured
from tests.bench.learning_child import forget_peak, held_bytes
from tests.bench.parallel_copy import parallel_copy

if TYPE_CHECKING:
    import torch

    from paramsmith.hypernet.protocols import Target

SIZES = {  # GPT-2's: width, layers, heads
    "tiny": (64, 2, 4),
    "124M": (768, 12, 12),
    "774M": (1280, 36, 20),
}
TASKS, EXAMPLES, STEPS = 256, 64, 20


@dataclass(frozen=True)
class Job:
    """What to do; `folder` is where a generator and its output go, `size` what is generated."""

    kind: str  # train, generate, copy, sliced, full, vmapped, looped
    folder: str
    size: str = ""
    device: str = "cpu"
    steps: int = STEPS
    compile: bool = False


def do(job: Job) -> Measured:
    """Run a job; of memory, what it takes above what Python and the libraries hold, and a captured graph."""
    return JOBS[job.kind](job)


def train(job: Job) -> Measured:
    """A fresh logah T, saved: how long it was trained says nothing about how fast it generates."""
    from paramsmith.hypernet.generator import Generator

    Generator.build("logah", K=65_536).save(Path(job.folder) / "generator", force=True)
    return Measured(0.0)


def generate(job: Job) -> Measured:
    """Weights for a GPT-2 in shards on the disk; the model's graph is captured before."""
    from paramsmith.hypernet.generator import Generator
    from paramsmith.hypernet.writing.generation import generate

    generator, spec = Generator.from_pretrained(Path(job.folder) / "generator"), gpt2(job.size).spec
    before, started = rest()
    cpu = time.process_time()
    report = generate(generator, Path(job.folder) / job.size, like=spec, shard_size="500MB", force=True)
    taken = time.perf_counter() - started, time.process_time() - cpu
    return Measured(*taken, held_bytes("VmHWM") - before, path=f"{report.nbytes}")


def copy(job: Job) -> Measured:
    """A copy of the same shards, one after the other, by two threads."""
    files = sorted((Path(job.folder) / job.size).glob("*.safetensors"))
    target = Path(job.folder) / "copy"
    target.mkdir(exist_ok=True)
    seconds = sum(parallel_copy([file], target / file.name, os.cpu_count() or 1) for file in files)
    for file in target.iterdir():
        file.unlink()
    return Measured(seconds)


def factors(job: Job) -> Measured:
    """The factors of one matrix of GPT-2, of the rows of the code that reach them, or of all and then sliced."""
    import torch

    from paramsmith.hypernet.generator import Generator

    torch.set_num_threads(1)
    hypernetwork, spec = Generator.build("logah", K=65_536).hypernetwork, gpt2("124M").spec
    slot = next(slot for slot in spec.slots if slot.role == "matrix")
    codes = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    work = (lambda: hypernetwork.decoder(codes, [slot])) if job.kind == "sliced" else lambda: full(hypernetwork, codes)
    before, started = rest()
    with torch.no_grad():
        for _ in range(job.steps):
            work()
    return Measured((time.perf_counter() - started) / job.steps, peak=held_bytes("VmHWM") - before)


def full(hypernetwork: torch.nn.Module, codes: torch.Tensor) -> torch.Tensor:
    """Both factors at their full length, as the paper's equations have them, and then the product that is wanted."""
    import torch

    decoder, rank = hypernetwork.decoder, 32
    code = torch.relu(decoder.code(decoder.mlp(codes)).view(2 * rank, rank))  # type: ignore[operator, union-attr]
    long = decoder.expand(code).view(-1, rank)  # type: ignore[operator, union-attr]
    left, right = long.chunk(2)
    return left[:2304] @ right[:768].T


def targets(job: Job) -> Measured:
    """Losses and gradients of 256 perceptrons with weights of their own, as one batch or one after the other."""
    import torch

    from paramsmith.hypernet.targets.calling import Target

    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        target = Target.of(torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)))
    weights = {s.name: torch.randn(TASKS, *s.shape, generator=rng) / 8 for s in target.spec.slots}
    x = torch.randn(TASKS, EXAMPLES, 64, generator=rng)
    step = (lambda: target.call_many(weights, x)) if job.kind == "vmapped" else lambda: looped(target, weights, x)
    step()
    started = time.perf_counter()
    for _ in range(job.steps):
        step()
    return Measured((time.perf_counter() - started) / job.steps)


def looped(target: Target, weights: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """One target after the other."""
    return [target.call({name: w[i] for name, w in weights.items()}, x[i]) for i in range(TASKS)]


def steps(job: Job) -> Measured:
    """Training steps of logah T with four architectures a step: seconds each."""
    import torch

    from paramsmith.hypernet.generator import Generator
    from paramsmith.hypernet.training.family import family
    from paramsmith.hypernet.training.tasks import Classification

    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(512, 3, 32, 32, generator=rng), torch.randint(10, (512,), generator=rng)
    task = Classification(family("vit", count=8, seed=0), x, y, x[:64], y[:64])
    made = Generator.build("logah")
    precision = "bf16" if job.device != "cpu" else "no"
    course = {"steps": job.steps, "device": job.device, "precision": precision, "compile": job.compile}
    found = made.fit(task, course)
    return Measured(1 / found.rate)


def gpt2(size: str) -> Target:
    """A GPT-2 of this size, without memory."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from paramsmith.hypernet.targets.calling import Target

    width, layers, heads = SIZES[size]
    config = GPT2Config(n_embd=width, n_layer=layers, n_head=heads, use_cache=False)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
        return Target.of(model, input_ids=torch.zeros(1, 8, dtype=torch.long))


def rest() -> tuple[int, float]:
    """What is held now, from which the peak counts, and the time."""
    before = held_bytes("VmRSS")
    forget_peak()
    return before, time.perf_counter()


JOBS: dict[str, Callable[[Job], Measured]] = {
    "train": train,
    "generate": generate,
    "copy": copy,
    "sliced": factors,
    "full": factors,
    "vmapped": targets,
    "looped": targets,
    "steps": steps,
}

if __name__ == "__main__":
    print(json.dumps(asdict(do(Job(**json.loads(sys.stdin.read()))))))
