"""The experts and their merges, judged on texts from files that nothing was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from real_text.encoder import Classifier, accuracy, batches, paramsmith_task
from real_text.tasks import TextTask
from safetensors.torch import load_file
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.merge import merge
from paramsmith.merge.learn.adamerging import learn_adamerging
from paramsmith.merge.learn.atlas import learn_atlas
from paramsmith.merge.measure import measure_fisher, measure_gram
from paramsmith.merge.task import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

HEADS = ("head.",)  # stay with their tasks
GRIDS: Mapping[str, Sequence[Mapping[str, float]]] = {
    "task_arithmetic": [{"lambda": x} for x in (0.2, 0.3, 0.4, 0.55, 0.75, 1.0)],
    "ties": [{"density": 0.2, "lambda": x} for x in (0.7, 1.0, 1.5, 2.0)],
    "pcb": [{"ratio": 0.2, "lambda": x} for x in (0.7, 1.0, 1.5, 2.0)],
}


@dataclass(frozen=True)
class Row:
    """What a model gets right: the share of each task's texts."""

    name: str
    shares: tuple[float, ...]
    settings: str = ""

    @property
    def mean(self) -> float:
        """Over the tasks."""
        return sum(self.shares) / len(self.shares)


@dataclass(frozen=True)
class Lab:
    """The published model, its fine-tunes, all with one encoder between them, and where their files lie."""

    base: Path
    folder: Path
    tokenizer: Tokenizer
    tasks: Sequence[TextTask]
    experts: Sequence[Classifier]
    quick: bool
    seed: int

    @property
    def files(self) -> list[Path]:
        """The experts' files."""
        return [self.folder / f"{task.name}.safetensors" for task in self.tasks]

    def texts(self, number: int, part: str) -> list[Batch]:
        """The texts of a task: those for training, `validation` to choose settings by, `test` to tell."""
        return batches(self.tokenizer, getattr(self.tasks[number], part))

    def share(self, number: int, weights: Mapping[str, Tensor], part: str = "test") -> float:
        """What an encoder gets right of one task, with that task's own head."""
        return accuracy(self.experts[number], weights, self.texts(number, part))

    def shares(self, file: Path, part: str = "test") -> tuple[float, ...]:
        """What the encoder in a file gets right of every task."""
        weights = load_file(file)
        return tuple(self.share(number, weights, part) for number in range(len(self.tasks)))

    def merge(self, based: bool = True, **settings: object) -> Path:
        """Merge the experts' encoders into one file; the heads are left out."""
        output = self.folder / "merged.safetensors"
        base = {"base": self.base, "missing": "base"} if based else {}
        # the budget counts the whole process, in which the experts have just been trained
        merge(self.files, output, exclude=HEADS, memory="16GB", compile="never", force=True, **base, **settings)
        return output


def all_rows(lab: Lab) -> Iterator[Row]:
    """Every row of the table, as soon as it is known."""
    yield Row("published, no tuning", lab.shares(lab.base / "model.safetensors"))
    yield Row("experts", tuple(lab.share(number, load_file(file)) for number, file in enumerate(lab.files)))
    yield Row("mean", lab.shares(lab.merge(based=False, method="linear")))
    for method in GRIDS:
        settings = chosen(lab, method)
        told = ", ".join(f"{key} {value:g}" for key, value in settings.items())
        yield Row(method, lab.shares(lab.merge(method=method, **settings)), told)
    yield from measured_rows(lab)
    yield from learned_rows(lab)


def chosen(lab: Lab, method: str) -> Mapping[str, float]:
    """The settings that are best on the texts for choosing; the first of equals."""
    grid = GRIDS[method]
    if lab.quick:
        return grid[1]
    return max(grid, key=lambda settings: sum(lab.shares(lab.merge(method=method, **settings), "validation")))


def measured_rows(lab: Lab) -> Iterator[Row]:
    """Fisher merging and RegMean: every expert is measured on texts that it was trained on, labels unused."""
    limit = 8 if lab.quick else 256
    fishers, grams = [], []
    for number, (task, file) in enumerate(zip(lab.tasks, lab.files, strict=True)):
        lab.experts[number].encoder.load_state_dict(load_file(file), strict=False)
        known = paramsmith_task(lab.experts[number], lab.texts(number, "train"))
        fishers.append(lab.folder / f"{task.name}.fisher.safetensors")
        grams.append(lab.folder / f"{task.name}.gram.safetensors")
        with Checkpoint.open(file) as model:
            measure_fisher(known, model, fishers[-1], estimator="sampled", limit=limit, seed=lab.seed, force=True)
            measure_gram(known, model, grams[-1], limit=limit, force=True)
    merged = lab.merge(based=False, method="fisher", statistics=fishers, favor_target=False)
    yield Row("fisher", lab.shares(merged), f"{limit} texts a task")
    yield Row("regmean", lab.shares(lab.merge(method="regmean", statistics=grams)), f"{limit} texts a task")


def learned_rows(lab: Lab) -> Iterator[Row]:
    """AdaMerging without labels and aTLAS with them, on the texts for choosing."""
    steps = 2 if lab.quick else 60
    known = [paramsmith_task(model, lab.texts(number, "validation")) for number, model in enumerate(lab.experts)]
    with ExitStack() as stack:
        base = stack.enter_context(Checkpoint.open(lab.base))
        models = [stack.enter_context(Checkpoint.open(file)) for file in lab.files]
        ada, atlas = (lab.folder / f"{name}.json" for name in ("adamerging", "atlas"))
        learn_adamerging(known, base, models, ada, steps=steps, lr=0.01, exclude=HEADS, force=True)
        yield Row("adamerging", lab.shares(lab.merge(coefficients=ada)), f"{steps} steps")
        learn_atlas(known, base, models, atlas, preset="few-shot", steps=steps, exclude=HEADS, force=True)
        yield Row("atlas", lab.shares(lab.merge(coefficients=atlas)), f"{steps} steps")
