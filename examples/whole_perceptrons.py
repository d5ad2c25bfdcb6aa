"""Whole networks for tasks nobody trained on, and when they are copies: what order of units and how many it takes.

A perceptron 64-16-5 reads five of the ten digits, in any order of labels. 600 of them are trained for 200 of the 252
sets of five, once from one initialisation, once each from its own, and the latter also brought into one order of
hidden units. From each zoo `flow` learns to draw a network, shown five images of each class; so does what can be
computed. They are asked for sets of digits that no network of the zoo was trained for, and trained on with the 25
images that were shown.

    --part order        the three zoos, at 0, 1, 5, 20 and 100 steps
    --part memory       what is drawn, asked for nothing, from 20, 100 and 600 networks: copies or not
    --part published    d2nwg, igpg and pdiff at tiny size beside the same
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from paramsmith.errors import GenerateWarning
from paramsmith.hypernet.evaluation.controls import controls_of
from paramsmith.hypernet.evaluation.copying import copying
from paramsmith.hypernet.evaluation.evaluate import Arm, evaluate
from paramsmith.hypernet.evaluation.generated import Generated, best_of
from paramsmith.hypernet.evaluation.page import page
from paramsmith.hypernet.evaluation.results import Budget, Evaluation
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.protocols import Batch, Episode, Run, Site
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.zoos.align import align
from paramsmith.hypernet.zoos.build import build
from paramsmith.hypernet.zoos.zoo import Zoo

CLASSES, KNOWN, SHOTS = 5, 20, 5  # of a task; images of a class: to choose from, shown
PDIFF: dict[str, object] = {"steps": 100}  # of sampling; the paper's are 1000
PARTS = ("order", "memory", "published")


@dataclass(frozen=True)
class Perceptrons:
    """Read five digits. With `shots`, the test episodes show so many images of each, and these are all there are.

    `ordered`: the labels are in the order of the digits, not in any.
    """

    shots: int | None = None
    ordered: bool = False

    def episode(self, rng: torch.Generator, split: str = "train") -> Episode:
        """A set of digits, of those for tests or of the others."""
        sets = known_sets()[200:] if split == "test" else known_sets()[:200]
        digits = torch.tensor(sets[int(torch.randint(len(sets), (), generator=rng))])
        if not self.ordered:
            digits = digits[torch.randperm(CLASSES, generator=rng)]
        x, y, x_test, y_test = images()
        few = self.shots if self.shots is not None and split == "test" else KNOWN
        shown = torch.stack([x[y == d][torch.randperm(int((y == d).sum()), generator=rng)[:few]] for d in digits])
        if few == KNOWN:
            support = told(x, y, digits)
        else:
            support = {"x": shown.flatten(0, 1), "y": torch.arange(CLASSES).repeat_interleave(few)}
        name = " ".join(map(str, sorted(digits.tolist())))
        return Episode(target(), {"classes": shown}, told(x_test, y_test, digits), support, task=name)

    def loss(self, run: Run, batch: Batch) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(run(batch["x"]), batch["y"])

    def score(self, run: Run, batch: Batch) -> Tensor:
        """The share of right answers."""
        return (run(batch["x"]).argmax(-1) == batch["y"]).float().mean()

    def logits(self, run: Run, batch: Batch) -> Tensor:
        """By which mistakes are compared."""
        return run(batch["x"])


@cache
def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits to train on, with labels, and others."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32)[order], torch.tensor(digits.target)[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


@cache
def known_sets() -> list[tuple[int, ...]]:
    """All sets of five digits in an order that never changes; the last 52 are for tests."""
    sets = list(combinations(range(10), CLASSES))
    return [sets[i] for i in torch.randperm(len(sets), generator=torch.Generator().manual_seed(1))]


@cache
def target() -> Target:
    """The network."""
    net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    return Target.of(net, torch.zeros(2, 64), classes=CLASSES)


def told(x: Tensor, y: Tensor, digits: Tensor) -> Batch:
    """The images of these digits; their labels are the places in the list."""
    row, label = (y[:, None] == digits).nonzero().T
    return {"x": x[row], "y": label}


def zoo_of(folder: Path, task: Perceptrons, n: int, init: str, steps: int) -> Zoo:
    """A zoo of n networks, and 64 more for the sets that are for tests."""
    built = build(task, n, folder, test=64, init=init, steps=steps)
    print(f"\n{n} networks and 64 for tests, {init} init: {built.metrics['score']:.1%}, {built.seconds:.0f} s")
    return Zoo.open(folder)


def arms_of(name: str, made: Generator, task: Perceptrons, best: int) -> Iterator[Arm]:
    """One sample, the best of some on the 25 images, and what is drawn when it is asked for something else."""
    start, seen = Generated(made.model), made.model.encoded
    yield Arm(name, start, made.seconds, generated=True, seen=seen, learned_from=made.learned_from)
    if best:
        yield Arm(f"{name}, best of {best}", best_of(start, task, best), made.seconds, generated=True, seen=seen)
    for kind, other in controls_of(made.model, start, task, 0).items():
        yield Arm(f"{name}, {kind}", other, None, of=name)


def trained(preset: str, zoo: Zoo, long: int | None, site: Site | None = None, **options: object) -> Generator:
    """A generator of a preset, trained on a zoo for so many steps, or its own number."""
    made = Generator.build(preset, site or zoo.site, **options)  # type: ignore[arg-type]  # options are the preset's
    report = made.fit(zoo, {} if long is None else {"steps": long})
    print(f"{preset}: {report.seconds:.0f} s")
    return made


def shown(found: Evaluation) -> None:
    """The table, and what is to be said of it."""
    print(f"{'right answers, %, after steps':34s}" + "".join(f"{mark:>7d}" for mark in found.budget.marks))
    for row in found.rows:
        print(f"{row.name:34s}" + "".join(f"{100 * row.at(mark):7.1f}" for mark in found.budget.marks))
    for name, copied in found.copying.items():
        new = copied.novelty
        print(
            f"{name}: d1/d2 {new.ratio:.2f}, copies {new.copies:.0%}, distance {new.distance:.2f}"
            f" (held out {new.held_out or 0:.2f}), mistakes in common {copied.overlap or 0:.2f}"
        )
    print("\n".join(found.verdicts()[:4]))


def judged(arms: Sequence[Arm], zoo: Zoo, task: Perceptrons, budget: Budget, page_to: Path | None) -> Evaluation:
    """Beside what is computed from the zoo, on sets of digits it has no network for; printed, and written as a page."""
    found = evaluate(task, arms, budget, zoo=zoo)
    shown(found)
    if page_to is not None:
        page_to.write_bytes(page(found))
    return found


def order(folder: Path, budget: Budget, sizes: Mapping[str, int], pages: Path | None) -> None:
    """The three zoos."""
    few = Perceptrons(SHOTS)
    zoos = {init: zoo_of(folder / init, Perceptrons(), sizes["n"], init, 400) for init in ("shared", "independent")}
    made = align(zoos["independent"], folder / "aligned")
    print(f"aligned: {made.before:.3f} of their square is their difference before, {made.after:.3f} after")
    zoos["aligned"] = Zoo.open(folder / "aligned")
    for name, zoo in zoos.items():
        print(f"\n-- {name}")
        flow = trained("flow", zoo, sizes["steps"], codec="pca", rank=min(128, sizes["n"] // 4))
        judged(list(arms_of("flow", flow, few, 16)), zoo, few, budget, pages and pages / f"{name}.html")


def memory(folder: Path, sizes: Mapping[str, int]) -> None:
    """What is drawn from few networks, and from many."""
    whole = zoo_of(folder / "memory", Perceptrons(), sizes["n"], "shared", 400)
    train, rest = whole.of("train"), [member for member in whole.members if member.entry.split != "train"]
    episode = Perceptrons(SHOTS).episode(torch.Generator().manual_seed(0), "test")
    nothing = Episode(episode.target, {}, episode.query, episode.support)
    for n in (20, 100, sizes["n"]):
        zoo = Zoo(whole.folder, [*train[:n], *rest])
        site = Site(0, zoo.site.spec, {})
        for preset, options in (("flow", {"codec": "pca"}), ("gaussian", {"codec": "pca"}), ("pdiff", PDIFF)):
            steps = None if preset == "gaussian" else sizes["steps"]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", GenerateWarning)  # of few networks it warns of what is to be shown
                made = trained(preset, zoo, steps, site, rank=min(128, n // 2), **options)
            start = Generated(made.model)
            found = copying(zoo, [(nothing, [start(nothing, i) for i in range(64)])], made.model.encoded)
            if found is not None:
                new = found.novelty
                print(
                    f"  {n:4d} networks, {preset:9s} d1/d2 {new.ratio:.2f}, copies {new.copies:4.0%}, "
                    f"distance {new.distance:.2f}, held-out networks {new.held_out or 0:.2f}"
                )


def published(folder: Path, budget: Budget, sizes: Mapping[str, int], pages: Path | None) -> None:
    """The presets of papers; the labels are in the order of the digits, as d2nwg cannot be told of another."""
    task, few = Perceptrons(ordered=True), Perceptrons(SHOTS, ordered=True)
    zoo = zoo_of(folder / "published", task, sizes["n"], "shared", 400)
    quick = sizes["n"] < 600
    arms: list[Arm] = []
    presets: dict[str, dict[str, object]] = {
        "d2nwg": {},
        "igpg": {},
        "pdiff": PDIFF,
        "flow": {"codec": "pca", "rank": min(128, sizes["n"] // 4)},
    }
    for preset, options in presets.items():
        if quick and preset == "d2nwg":
            continue
        made = trained(preset, zoo, sizes["steps"] if quick or preset == "flow" else None, **options)
        arms += arms_of(preset, made, few, 0)
    judged(arms, zoo, few, budget, pages and pages / "published.html")


def main() -> None:
    """Build, train, judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be repeated")
    parser.add_argument("--quick", action="store_true", help="small zoos, short training")
    parser.add_argument("--steps", type=int, default=2000, help="of training flow and pdiff")
    parser.add_argument("--pages", type=Path, help="a folder for reports in HTML")
    asked = parser.parse_args()
    sizes = {"n": 60, "steps": 20} if asked.quick else {"n": 600, "steps": asked.steps}
    marks = (0, 5) if asked.quick else (0, 1, 5, 20, 100)
    budget = Budget(marks=marks, targets=2 if asked.quick else 32, seeds=1, every=max(marks))
    torch.set_num_threads(1)
    if asked.pages is not None:
        asked.pages.mkdir(parents=True, exist_ok=True)
    if asked.quick:
        warnings.simplefilter("ignore", GenerateWarning)  # that there are few networks
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder, parts = Path(name), asked.part or PARTS
        if "order" in parts:
            order(folder, budget, sizes, asked.pages)
        if "memory" in parts:
            memory(folder, sizes)
        if "published" in parts:
            published(folder, budget, sizes, asked.pages)
    print(f"\nin all {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
