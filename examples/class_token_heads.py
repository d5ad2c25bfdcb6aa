"""Heads for classes nobody trained on: one token a class, drawn by flow matching, beside what a line and a mean know.

Eighty classes are made of the scikit-learn digits: ten digits in eight orientations. Over frozen random features,
linear heads are trained for 3 to 6 classes out of 64, those of the digits 0 to 7. From a zoo of them `flow` learns to
draw a head for any classes, shown five examples of each. It is asked for classes in combinations that were never
trained, for 7 or 8 classes where 6 were the most, and for the orientations of 8 and 9, of which it has seen none.

    paramsmith zoo build examples/class_token_heads.py:heads -n 1500 --steps 300 -o ZOO       the same from the shell
    paramsmith train flow --zoo ZOO -o GEN
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from paramsmith.hypernet.evaluation.novelty import novelty
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.protocols import Batch, Episode, Run
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.zoos.build import build
from paramsmith.hypernet.zoos.zoo import Zoo

FEATURES = 96  # of an image
TRAINED_ON, KNOWN, SHOTS = 100, 20, 5  # images of a class: to train on, to choose from, shown
SEEN, UNSEEN = list(range(64)), list(range(64, 80))
AXES = {"new subsets": (SEEN, (3, 6)), "7 or 8 classes": (SEEN, (7, 8)), "unseen classes": (UNSEEN, (3, 6))}
BASELINES: dict[str, dict[str, int]] = {
    "mean": {},
    "nearest": {"members": 1500},
    "nearest of 8": {"members": 1500, "neighbours": 8},
    "prototype": {},
    "ridge": {},
}


@dataclass(frozen=True)
class Heads:
    """The task: a linear head for a few of the classes, over features that are the same for all."""

    def episode(self, rng: torch.Generator, split: str = "train") -> Episode:
        """Three to six classes, seen ones; all their training images to train on, the test images to be judged by."""
        return asked(SEEN, (3, 6), rng, KNOWN)

    def loss(self, run: Run, batch: Batch) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(run(batch["x"]), batch["y"])

    def score(self, run: Run, batch: Batch) -> Tensor:
        """The share of right answers."""
        return (run(batch["x"]).argmax(-1) == batch["y"]).float().mean()


def heads() -> Heads:
    """For `paramsmith zoo build`."""
    return Heads()


@cache
def features() -> tuple[Tensor, Tensor]:
    """Frozen features of the images of each class: (80, TRAINED_ON, F) to train on, and (80, 70, F) for tests."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    rng = torch.Generator().manual_seed(0)
    layer = torch.randn(64, FEATURES, generator=rng) / 4
    shift = torch.randn(FEATURES, generator=rng) / 4
    train, test = [], []
    for digit in range(10):
        own = images[torch.tensor(digits.target == digit)]
        own = own[torch.randperm(len(own), generator=rng)]
        for turns in range(4):
            for flip in (False, True):
                turned = torch.rot90(own, turns, (1, 2))
                found = torch.relu((turned.flip(2) if flip else turned).flatten(1) @ layer + shift)
                train.append(found[:TRAINED_ON])
                test.append(found[TRAINED_ON : TRAINED_ON + 70])
    return torch.stack(train), torch.stack(test)


@cache
def target(classes: int) -> Target:
    """A linear head."""
    return Target.of(nn.Linear(FEATURES, classes), torch.zeros(2, FEATURES), classes=classes)


def asked(classes: Sequence[int], counts: tuple[int, int], rng: torch.Generator, known: int) -> Episode:
    """Some of these classes, in any order."""
    count = int(torch.randint(counts[0], counts[1] + 1, (), generator=rng))
    chosen = torch.tensor(classes)[torch.randperm(len(classes), generator=rng)[:count]]
    train, test = features()
    shown = torch.stack([train[c][torch.randperm(TRAINED_ON, generator=rng)[:known]] for c in chosen])
    sides = {
        side: {"x": held[chosen].flatten(0, 1), "y": torch.arange(count).repeat_interleave(held.shape[1])}
        for side, held in (("support", train), ("query", test))
    }
    return Episode(target(count), {"classes": shown}, query=sides["query"], support=sides["support"])


def accuracy(heads: Sequence[Mapping[str, Tensor]], query: Batch) -> float:
    """The mean over heads of the share of right answers."""
    right = [
        (query["x"] @ head["weight"].T + head["bias"]).argmax(1).eq(query["y"]).double().mean().item() for head in heads
    ]
    return mean(right)


Draw = Callable[[Episode, int], Sequence[Mapping[str, Tensor]]]


def drawn(made: Generator, n: int = 1) -> Draw:
    """Heads of a generator for an episode and a seed."""

    def draw(episode: Episode, seed: int) -> Sequence[Mapping[str, Tensor]]:
        return made.sample(dict(episode.condition), n, seed=seed, classes=len(episode.condition["classes"]))

    return draw


def remembered(draw: Draw) -> Draw:
    """What was drawn last is not drawn again."""
    last: list[tuple[Episode, int, Sequence[Mapping[str, Tensor]]]] = []

    def again(episode: Episode, seed: int) -> Sequence[Mapping[str, Tensor]]:
        if not last or last[0][0] is not episode or last[0][1] != seed:
            last[:] = [(episode, seed, draw(episode, seed))]
        return last[0][2]

    return again


def averaged(draw: Draw) -> Draw:
    """The mean of what is drawn: sound for linear heads, which are all aligned."""

    def one(episode: Episode, seed: int) -> Sequence[Mapping[str, Tensor]]:
        found = draw(episode, seed)
        return [{name: torch.stack([head[name] for head in found]).mean(0) for name in found[0]}]

    return one


def trained(episode: Episode, seed: int) -> Sequence[Mapping[str, Tensor]]:
    """What training on all images gives: the most that can be hoped for."""
    weight = torch.zeros(len(episode.condition["classes"]), FEATURES + 1, requires_grad=True)
    x = functional.pad(episode.support["x"], (0, 1), value=1.0)
    optimiser = torch.optim.Adam([weight], 0.03)
    for _ in range(150):
        optimiser.zero_grad()
        functional.cross_entropy(x @ weight.T, episode.support["y"]).backward()
        optimiser.step()
    found = weight.detach()
    return [{"weight": found[:, :FEATURES], "bias": found[:, FEATURES]}]


def rows(arms: Mapping[str, Draw], seeds: int, tasks: int) -> dict[str, dict[str, list[float]]]:
    """Accuracy by arm and axis, one number a seed: of the tasks and of what is drawn."""
    found: dict[str, dict[str, list[float]]] = {name: {axis: [] for axis in AXES} for name in arms}
    for axis, (classes, counts) in AXES.items():
        for seed in range(seeds):
            rng = torch.Generator().manual_seed(1000 + seed)
            episodes = [asked(classes, counts, rng, SHOTS) for _ in range(tasks)]
            for name, draw in arms.items():
                right = [accuracy(draw(each, 100 * seed + i), each.query) for i, each in enumerate(episodes)]
                found[name][axis].append(mean(right))
    return found


def controls(made: Generator, tasks: int) -> dict[str, float]:
    """Accuracy when asked for other classes, with the classes one place further on, and with none of their features."""
    rng = torch.Generator().manual_seed(7)
    episodes = [asked(SEEN, (5, 5), rng, SHOTS) for _ in range(tasks)]
    draw, found = drawn(made), {"chance": [], "right": [], "wrong": [], "rotated": []}  # type: ignore[var-annotated]
    for i, episode in enumerate(episodes):
        shown = {"right": episode, "wrong": episodes[i - 1]}
        found["chance"].append(1 / 5)
        for name, other in shown.items():
            found[name].append(accuracy(draw(other, i), episode.query))
        turned = Episode(episode.target, {"classes": episode.condition["classes"].roll(1, 0)}, {})
        found["rotated"].append(accuracy(draw(turned, i), episode.query))
    return {name: mean(values) for name, values in found.items()}


def shown(found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """The table."""
    print(f"\n{'right answers, %, no training':30s}" + "".join(f"{axis:>18s}" for axis in AXES))
    for name, by_axis in found.items():
        cells = [f"{100 * mean(v):6.1f} ± {100 * stdev(v) if len(v) > 1 else 0:3.1f}" for v in by_axis.values()]
        print(f"{name:30s}" + "".join(f"{cell:>18s}" for cell in cells))


def new(made: Generator, zoo: Zoo) -> None:
    """Whether rows that are drawn are copies of rows of the zoo: for heads of five classes."""
    five = [member for member in zoo.of("train") if member.spec.slots[0].shape[0] == 5]
    half = len(five) // 8
    seen, unseen = (zoo.batch(part)["weight"] for part in (five[half:], five[:half]))
    rng = torch.Generator().manual_seed(3)
    heads = [drawn(made)(asked(SEEN, (5, 5), rng, SHOTS), i)[0]["weight"] for i in range(32)]
    centred = [held - held.mean(1, keepdim=True) for held in (torch.stack(heads), seen, unseen)]
    found = novelty(*(held.flatten(1) for held in centred))
    print(f"\nheads of five classes: d1/d2 {found.ratio:.2f}, copies {found.copies:.0%},", end=" ")
    print(f"distance {found.distance:.2f} of that within the zoo; of other trained heads {found.held_out:.2f}")


def main() -> None:
    """Build the zoo, train, judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small zoo, a short training")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    told = parser.parse_args()
    n, steps, seeds, tasks = (200, 10, 1, 2) if told.quick else (1500, told.steps, told.seeds, 24)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        built = build(heads(), n, Path(folder) / "zoo", steps=60 if told.quick else 300, lr=0.03)
        zoo = Zoo.open(Path(folder) / "zoo")
        print(f"{n:,} heads in {built.seconds:.0f} s, right on their own classes: {built.metrics['score']:.1%}")
        arms = {**BASELINES, "flow": {}}
        made = {name: Generator.build(name.split()[0], zoo.site, **options) for name, options in arms.items()}
        for name in BASELINES:
            made[name].fit(zoo)
        report = made["flow"].fit(zoo, {"steps": steps})
        print(f"flow: {steps:,} steps in {report.seconds:.0f} s, loss {report.losses[-1]:.3f}")
        draws = {name: drawn(one) for name, one in made.items()}
        eight = remembered(drawn(made["flow"], 8))  # the first of which is the one sample that `flow` is
        draws |= {"flow": lambda episode, seed: eight(episode, seed)[:1], "flow, mean of 8": averaged(eight)}
        draws["trained on all images"] = trained
        found = rows(draws, seeds, tasks)
        shown(found)
        print("\nflow, asked for 5 classes:", {k: f"{v:.1%}" for k, v in controls(made["flow"], tasks).items()})
        new(made["flow"], zoo)
        print(f"in all {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
