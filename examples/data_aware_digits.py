"""Six specialists of one digit reader, merged without data and with: a table of accuracies on unseen digits.

    python examples/data_aware_digits.py               (three seeds, minutes; needs scikit-learn for its digits)
    python examples/data_aware_digits.py --quick       (one seed, trained for less long)

What each merge may see: the statistics of Fisher and RegMean are measured on digits that the specialist was trained on,
without labels; settings are chosen, and coefficients learned, on validation digits, AdaMerging's without labels. The
table is about test digits, which choose nothing. The specialists are those of digits_zoo.py.

What is found: data helps, and most of what the papers report holds. What does not, and why. TIES and PCB drop small
changes as superfluous, of which a network this small has few: a specialist that keeps the largest fifth of its changes
loses about 15 points on its own task. AdaMerging makes the predictions on every task more certain, but of tilted and
mirrored digits certain and wrong, since any of the ten digits will do: what it gains on some tasks it loses on these.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from digits_zoo import TASKS, accuracies, load, make_zoo, show, task_of

from paramsmith.checkpoint import Checkpoint
from paramsmith.merge import merge
from paramsmith.merge.learn import learn_adamerging, learn_atlas
from paramsmith.merge.measure import measure_fisher, measure_gram, measure_sequential_grams

Settings = Mapping[str, object]
Scores = list[float]  # per cent, task by task

EXAMPLES = 256  # that a statistic is measured on
PLAIN = "linear"  # the row that is the mean of the models

# What is tried for each method. The mean and Fisher are taken as they are.
TRIED: Mapping[str, Sequence[Settings]] = {
    PLAIN: [{}],
    "task_arithmetic": [{"lambda": tenths / 20} for tenths in range(2, 13)],
    "ties": [{"lambda": a, "density": b} for a, b in product((0.6, 0.8, 1.0, 1.2, 1.5), (0.2, 0.5, 1.0))],
    "pcb": [{"lambda": a, "ratio": b} for a, b in product((0.6, 0.8, 1.0, 1.2, 1.5), (0.2, 0.5, 0.8))],
    "fisher": [{}],
    "regmean": [{"off_diagonal": share} for share in (0.5, 0.9, 0.95, 1.0)],
}

# What the papers report: the first does better than the second.
EXPECTED = (
    ("task_arithmetic", PLAIN),
    ("ties", "task_arithmetic"),
    ("pcb", "ties"),
    ("fisher", PLAIN),
    ("regmean", "fisher"),
    ("regmean_plusplus", "regmean"),
    ("adamerging", "task_arithmetic"),
    ("atlas", "task_arithmetic"),
)


@dataclass(frozen=True)
class Lab:
    """The models of one seed, as files, and where to write."""

    folder: Path
    seed: int
    quick: bool
    base: Path
    experts: Mapping[str, Path]

    @property
    def models(self) -> list[Path]:
        """The specialists' files, in the order of the tasks."""
        return list(self.experts.values())


def rows(lab: Lab) -> Iterator[tuple[str, Scores, str]]:
    """Every row of a table: its name, its accuracies on test digits, the settings that were chosen."""
    yield "base", accuracies(lab.base, "test", lab.seed), ""
    own = []
    for index, (task, file) in enumerate(lab.experts.items()):
        scores = accuracies(file, "test", lab.seed)
        own.append(scores[index])
        yield f"expert {task}", scores, ""
    yield "experts, own task", own, ""
    measured = {"fisher": measure_all(lab, "fisher"), "regmean": measure_all(lab, "gram")}
    for method, tried in TRIED.items():
        yield method, *merged(lab, method, tried, measured.get(method, ()))
    yield "regmean_plusplus", *plus_plus(lab)
    yield "adamerging", adamerging(lab), ""
    yield "atlas", atlas(lab), ""


def merged(lab: Lab, method: str, tried: Sequence[Settings], measured: Sequence[Path] = ()) -> tuple[Scores, str]:
    """Merge in every setting and tell of the best."""
    base = None if method in (PLAIN, "fisher") else lab.base
    made = {}
    for number, settings in enumerate(tried):
        file = lab.folder / f"{method}-{number}.safetensors"
        merge(lab.models, file, base=base, method=method, statistics=measured, **settings)
        made[" ".join(f"{name} {value}" for name, value in settings.items())] = file
    return best(lab, made)


def best(lab: Lab, made: Mapping[str, Path]) -> tuple[Scores, str]:
    """Of merged models, by setting, the one that is best on validation digits: its test accuracies and setting."""
    chosen = max(made, key=lambda setting: sum(accuracies(made[setting], "validation", lab.seed)))
    return accuracies(made[chosen], "test", lab.seed), chosen


def plus_plus(lab: Lab) -> tuple[Scores, str]:
    """RegMean++, whose Grams depend on its setting: each layer's inputs come from the layers merged before it."""
    made = {}
    for settings in TRIED["regmean"]:
        share = settings["off_diagonal"]
        files = [lab.folder / f"{task}.sequential-{share}.safetensors" for task in TASKS]
        tasks = [task_of(load(model), show(task, "train", lab.seed)) for task, model in lab.experts.items()]
        with ExitStack() as opened:
            models = [opened.enter_context(Checkpoint.open(model)) for model in lab.models]
            measure_sequential_grams(tasks, models, files, limit=EXAMPLES, **settings)
        made[f"off_diagonal {share}"] = file = lab.folder / f"plus-plus-{share}.safetensors"
        merge(lab.models, file, base=lab.base, method="regmean", statistics=files, **settings)
    return best(lab, made)


def measure_all(lab: Lab, kind: str) -> list[Path]:
    """A statistics file for each specialist, about digits of its own task; no labels are used."""
    measure = {"fisher": measure_fisher, "gram": measure_gram}[kind]
    files = []
    for task, model in lab.experts.items():
        files.append(lab.folder / f"{task}.{kind}.safetensors")
        with Checkpoint.open(model) as checkpoint:
            measure(task_of(load(model), show(task, "train", lab.seed)), checkpoint, files[-1], limit=EXAMPLES)
    return files


def adamerging(lab: Lab) -> Scores:
    """Coefficients that make the predictions certain, with the authors' settings; sees validation images, no label."""
    return learned(lab, "adamerging", batch=16, learn=learn_adamerging, steps=100 if lab.quick else 500)


def atlas(lab: Lab) -> Scores:
    """A coefficient for each specialist and tensor, learned from labelled validation digits."""
    return learned(lab, "atlas", batch=32, learn=learn_atlas, lr=0.02, epochs=15 if lab.quick else 60)


def learned(lab: Lab, name: str, batch: int, learn: Callable[..., object], **settings: object) -> Scores:
    """Learn a file of coefficients, merge with it, and tell how that does on test digits."""
    found, merged = lab.folder / f"{name}.json", lab.folder / f"{name}.safetensors"
    network = load(lab.base)  # one for all tasks: learning gives it other weights at every step
    tasks = [task_of(network, show(task, "validation", lab.seed), batch) for task in TASKS]
    with ExitStack() as opened:
        base, *models = [opened.enter_context(Checkpoint.open(file)) for file in (lab.base, *lab.models)]
        learn(tasks, base, models, found, **settings)
    merge(lab.models, merged, base=lab.base, coefficients=found)  # the file says by which method
    return accuracies(merged, "test", lab.seed)


def table(found: Sequence[Mapping[str, tuple[Scores, str]]]) -> Iterator[str]:
    """One line a row: each task's accuracy and their mean, mean and standard deviation over the seeds."""
    yield f"{'':18}" + "".join(f"{task:>12}" for task in (*TASKS, "mean"))
    for name in found[0]:
        columns = zip(*([*scores, statistics.mean(scores)] for scores, _ in (one[name] for one in found)), strict=True)
        cells = (
            f"{statistics.mean(c):6.1f}" + (f" ±{statistics.stdev(c):4.1f}" if len(c) > 1 else "") for c in columns
        )
        yield f"{name:18}" + "".join(f"{cell:>12}" for cell in cells)


def directions(found: Sequence[Mapping[str, tuple[Scores, str]]]) -> Iterator[str]:
    """For each order that the papers report, whether it holds here."""
    for better, worse in EXPECTED:
        gains = [statistics.mean(one[better][0]) - statistics.mean(one[worse][0]) for one in found]
        held = "holds" if statistics.mean(gains) > 0 else "DOES NOT HOLD"
        won = sum(gain > 0 for gain in gains)
        yield f"{better} > {worse}: {held}, {statistics.mean(gains):+.1f} points, in {won} of {len(gains)} seeds"


def main() -> None:
    """Train, measure, learn, merge and judge, seed after seed; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, trained for less long")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    found, started = list[dict[str, tuple[Scores, str]]](), time.perf_counter()
    for seed in range(1 if quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            base, experts = make_zoo(Path(folder), seed, epochs=6 if quick else 15)
            lab = Lab(Path(folder), seed, quick, base, experts)
            found.append({name: (scores, chosen) for name, scores, chosen in rows(lab)})
        chosen = "; ".join(f"{name} {told}" for name, (_, told) in found[-1].items() if told)
        print(f"seed {seed}, chosen on validation digits: {chosen}")
    print("\naccuracy on test digits, per cent" + ("" if quick else f", mean and deviation over {len(found)} seeds"))
    print("\n".join(table(found)) + "\n")
    print("what the papers report, and what is found here:")
    print("\n".join(f"  {line}" for line in directions(found)))
    print(f"{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()
