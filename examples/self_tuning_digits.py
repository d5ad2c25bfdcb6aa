"""Dropout rates that tune themselves while the network is trained: a self-tuning network on few handwritten digits.

    python examples/self_tuning_digits.py            (three seeds, minutes; needs scikit-learn for its digits)
    python examples/self_tuning_digits.py --quick    (one seed, one start, trained for less long)

A perceptron learns from 150 digits, with dropout of its pixels and of its hidden units. The two rates are tuned on
validation digits in the same run, from a start that is low and from one that is high. Beside them the same network
with fixed rates, four runs. Of every run the step is kept that validates best; the table is about test digits.

What is found over three seeds: the test loss with tuned rates is 0.96 and 0.98 times that with the best fixed rate.
From 0.05 the rates have come to about 0.1, from 0.5 to about 0.2, where the best step is; the two do not meet, as the
loss hardly depends on the rates between 0.05 and 0.3.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from paramsmith.hypernet import Generator, Target
from paramsmith.hypernet.objectives.self_tuning import SelfTuningObjective
from paramsmith.hypernet.protocols import Batch, Episode, Run
from paramsmith.hypernet.training.hyperparameters import Hyperparameter
from paramsmith.hypernet.training.learning import objective_for
from paramsmith.hypernet.training.loop import Course, fit

FIXED, STARTS = (0.05, 0.3, 0.5, 0.7), (0.05, 0.5)
PARTS = {"train": slice(0, 150), "validation": slice(150, 450), "test": slice(450, None)}
BATCH, EVERY = 50, 100  # digits a step; steps between two judgements
CLOSE = 1.05  # times the test loss of the best fixed rate
NAMES = ("validation loss", "test loss", "accuracy", "pixels", "hidden")


class Reader(nn.Module):
    """Digits (n, 64) to logits (n, 10); `rates` (2) are those of dropout, of pixels and of hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 128), nn.Linear(128, 10)

    def forward(self, pixels: Tensor, rates: Tensor) -> Tensor:
        """Of digits to logits."""
        hidden = functional.relu(self.hidden(dropped(pixels, rates[..., 0])))
        return self.head(dropped(hidden, rates[..., 1]))


def dropped(values: Tensor, rate: Tensor) -> Tensor:
    """Dropout at a rate that is a tensor."""
    return values * (torch.rand_like(values) >= rate) / (1 - rate)


@cache
def digits(part: str, seed: int) -> Mapping[str, Tensor]:
    """A part of scikit-learn's digits; every seed shuffles them anew."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[PARTS[part]]
    return {"pixels": torch.tensor(pixels, dtype=torch.float32)[order] / 16, "labels": torch.tensor(labels)[order]}


@dataclass(frozen=True)
class Reading:
    """A batch of digits an episode, and two rates to tune."""

    target: Target
    seed: int
    start: float

    @property
    def hyperparameters(self) -> Mapping[str, Hyperparameter]:
        """Both from the same start, below 0.9."""
        return {name: Hyperparameter(self.start, 0.0, 0.9) for name in ("pixel_rate", "hidden_rate")}

    def episode(self, rng: torch.Generator, split: str = "train") -> Episode:
        """Some digits of training or of validation."""
        return Episode(self.target, {"vector": torch.zeros(2)}, batch_of(digits(split, self.seed), rng))

    def loss(self, run: Run, batch: Batch) -> Tensor:
        """Cross-entropy; where the batch has no rates, nothing is dropped."""
        rates = torch.stack([batch.get(name, torch.zeros(())) for name in self.hyperparameters])
        return functional.cross_entropy(run(batch["pixels"], rates), batch["labels"])

    def score(self, run: Run, batch: Batch) -> Tensor:
        """Accuracy."""
        return (run(batch["pixels"], torch.zeros(2)).argmax(-1) == batch["labels"]).float().mean()


def batch_of(known: Batch, rng: torch.Generator) -> Batch:
    """Some of the digits."""
    chosen = torch.randperm(len(known["labels"]), generator=rng)[:BATCH]
    return {name: values[chosen] for name, values in known.items()}


@dataclass
class Best:
    """The judgement of the step that validates best: loss of validation and test, accuracy in per cent, the rates."""

    figures: tuple[float, ...] = (float("inf"),)

    @torch.no_grad()
    def judge(self, task: Reading, weights: Mapping[str, Tensor], rates: Sequence[float]) -> None:
        """Look at a step."""

        def run(*inputs: Tensor) -> Tensor:
            return task.target.call(weights, *inputs)

        validation, test = digits("validation", task.seed), digits("test", task.seed)
        loss = task.loss(run, validation).item()
        if loss < self.figures[0]:
            self.figures = (loss, task.loss(run, test).item(), 100 * task.score(run, test).item(), *rates)


def tuned(task: Reading, steps: int) -> Best:
    """A self-tuning network, judged as it is trained."""
    generator = Generator.build("stn", spec=task.target.spec, condition={"vector": (2,)}, seed=task.seed)
    objective, best = objective_for(generator.design(), generator, task), Best()
    assert isinstance(objective, SelfTuningObjective)

    def judge(line: Mapping[str, float]) -> None:
        now = objective.result()
        weights = {name: values[0] for name, values in generator.hypernetwork({"vector": now.condition}).items()}
        best.judge(task, weights, list(now.values.values()))

    course = {**generator.design().course, "steps": steps, "seed": task.seed, "log_every": EVERY}
    fit(generator.hypernetwork, objective, Course.model_validate(course), log=judge)
    return best


def fixed(target: Target, seed: int, rates: Sequence[float], steps: int) -> Iterator[tuple[float, Best]]:
    """The same network trained with fixed rates, all of them side by side on the same batches."""
    task, found = Reading(target, seed, 0.5), [Best() for _ in rates]
    start = Generator.build("random").sample(like=target.spec, seed=seed)[0]
    weights = {name: values.repeat(len(rates), *[1] * values.dim()).requires_grad_() for name, values in start.items()}
    optimizer = torch.optim.SGD(weights.values(), lr=0.01, momentum=0.9)
    both = torch.tensor(rates)[:, None].expand(-1, 2)  # (rates, 2)
    rng = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        batch = batch_of(digits("train", seed), rng)
        pixels = batch["pixels"].expand(len(rates), -1, -1)
        logits = target.call_many(weights, pixels, both)  # (rates, digits, 10)
        labels = batch["labels"].repeat(len(rates))
        loss = functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum") / len(batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % EVERY == 0:
            for i, (rate, best) in enumerate(zip(rates, found, strict=True)):
                best.judge(task, {name: values[i] for name, values in weights.items()}, [rate, rate])
    yield from zip(rates, found, strict=True)


def told(runs: Sequence[Sequence[float]]) -> str:
    """Mean and standard deviation over the seeds, of each figure."""
    columns = list(zip(*runs, strict=True))
    spread = [f" ±{statistics.stdev(c):.3f}" if len(c) > 1 else "" for c in columns]
    return "".join(f"{f'{statistics.mean(c):.3f}{s}':>16}" for c, s in zip(columns, spread, strict=True))


def main() -> None:
    """Train with fixed rates and with tuned ones, seed after seed; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one start, trained for less long")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, target, steps = time.perf_counter(), Target.of(Reader(), capture=False), 200 if options.quick else 3000
    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(1 if options.quick else options.seeds):
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # of dropout
            for rate, best in fixed(target, seed, FIXED, steps):
                found.setdefault(f"fixed at {rate}", []).append(best.figures)
        for start in STARTS[: 1 if options.quick else None]:
            found.setdefault(f"tuned from {start}", []).append(tuned(Reading(target, seed, start), steps).figures)
    print(f"{'dropout':16}" + "".join(f"{n:>16}" for n in NAMES))
    print("\n".join(f"{name:16}{told(runs)}" for name, runs in found.items()))
    means = {name: [statistics.mean(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
    best = min((name for name in means if name.startswith("fixed")), key=lambda name: means[name][0])
    for name in (name for name in means if name.startswith("tuned")):
        times = means[name][1] / means[best][1]
        word = "" if options.quick else f"; {CLOSE} or less: {'holds' if times <= CLOSE else 'does not hold'}"
        print(f"{name}: {times:.2f} times the test loss of {best}{word}")
    print(f"{time.perf_counter() - began:.0f} seconds")


if __name__ == "__main__":
    main()
