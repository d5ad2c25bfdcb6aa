"""UFM: learning from unlabelled examples by what the model already says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from paramsmith.errors import InvalidInput
from paramsmith.merge.task import IGNORED, Batch, Task

from .feeds import Data, batches_of, on_device, outputs_of

MOST_TRUSTED = 100  # examples a class
THRESHOLDS = (0.9, 1.0)  # of the sharpened probability, at the first step and the last
_QUARTER = 4


class PseudoLabels:
    """Cross-entropy on pseudo-labels; a quarter of each batch is trusted.

    Trusted, found anew each epoch: per class the min(N/C, 100) examples of the highest probability. The others count
    where the largest of p^0.5, normalised, exceeds ω, which rises from 0.9 to 1. Labels are those of the plain view,
    the loss is that of the strong one: a tensor `strong` of the batch, in place of the first of its shape.

    Paper: Zhang et al., Knowledge composition using task vectors with learned anisotropic scaling, arXiv:2407.02880.
    """

    def __init__(self, tasks: Sequence[Task], looked: Sequence[Data], steps: int, epoch: int, seed: int) -> None:
        self._tasks, self._steps, self._epoch, self._seed = tasks, steps, epoch, seed
        self._rows = [[row for batch in batches_of(task) for row in _rows(batch)] for task in tasks]
        self._sizes = [-(-data.examples // data.batches) for data in looked]
        self._trusted = [torch.empty(0, dtype=torch.int64)] * len(tasks)  # a label each, or IGNORED

    @torch.no_grad()
    def begin(self, step: int) -> None:
        """Find the trusted examples."""
        for number, task in enumerate(self._tasks):
            found = [outputs_of(task, _plain(on_device(task, batch))) for batch in batches_of(task)]
            if found[0].ndim != 2:
                raise InvalidInput("ufm is of one prediction an example", "for predictions at positions use entropy")
            self._trusted[number] = trusted_labels(torch.cat([logits.float().softmax(-1).cpu() for logits in found]))

    def losses(self, step: int) -> Iterator[Tensor]:
        """One scalar a task."""
        low, high = THRESHOLDS
        threshold = low + (high - low) * step / max(1, self._steps - 1)
        for number, task in enumerate(self._tasks):
            sure, rest = self._drawn(number, step)
            labels = self._trusted[number][sure]
            both = on_device(task, _stacked([self._rows[number][i] for i in (*sure, *rest)]))
            plain, strong = _plain(both), _strong(both)
            outputs = outputs_of(task, strong)  # (sure + rest, classes)
            if strong is plain or not rest:
                told = outputs.detach()[len(sure) :]
            else:
                with torch.no_grad():
                    told = outputs_of(task, {name: tensor[len(sure) :] for name, tensor in plain.items()})
            labels = torch.cat([labels.to(told.device), confident_labels(told, threshold)])
            losses = functional.cross_entropy(outputs.float(), labels, ignore_index=IGNORED, reduction="none")
            yield losses.sum() / len(labels)

    def state(self) -> dict[str, Tensor]:
        """The trusted labels."""
        return {f"trusted {number}": labels for number, labels in enumerate(self._trusted)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self._trusted = [state[f"trusted {number}"] for number in range(len(self._tasks))]

    def _drawn(self, number: int, step: int) -> tuple[list[int], list[int]]:
        """The trusted examples of a step, more than a quarter where the others are too few, and the others."""
        is_trusted = self._trusted[number] != IGNORED
        rest, sure = torch.nonzero(~is_trusted).flatten(), torch.nonzero(is_trusted).flatten()
        others = min(self._sizes[number] - max(1, self._sizes[number] // _QUARTER), len(rest))
        generator = torch.Generator().manual_seed(_mixed(self._seed, number, step // self._epoch))
        chosen = []
        for pool, wanted in ((sure, min(self._sizes[number] - others, len(sure))), (rest, others)):
            order = pool[torch.randperm(len(pool), generator=generator)]
            first = (step % self._epoch) * wanted
            chosen.append([int(order[(first + i) % len(pool)]) for i in range(wanted)])
        return chosen[0], chosen[1]


def trusted_labels(scores: Tensor) -> Tensor:
    """Of each example the class that is sure of it, or -100: (N, C) -> (N,).

    Each class trusts its min(N/C, 100) examples of the highest score, at least one; an example that several classes
    trust has the one with the highest score.

    >>> trusted_labels(torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.4, 0.6]])).tolist()
    [0, 0, 1, 1]
    """
    examples, classes = scores.shape
    count = max(1, min(examples // classes, MOST_TRUSTED))
    best = torch.full((examples, classes), -torch.inf)
    order = scores.argsort(dim=0, descending=True, stable=True)[:count]  # (count, classes)
    best.scatter_(0, order, scores.gather(0, order))
    return torch.where(best.amax(1) > -torch.inf, best.argmax(1), IGNORED)


def confident_labels(outputs: Tensor, threshold: float) -> Tensor:
    """The likeliest class where the largest p^0.5, normalised over the classes, exceeds the threshold; else -100.

    (n, C) -> (n,)

    >>> confident_labels(torch.tensor([[8.0, 0.0], [1.0, 0.0]]), 0.9).tolist()
    [0, -100]
    """
    shares, labels = (0.5 * outputs.float()).softmax(-1).max(-1)  # p^0.5, normalised
    return torch.where(shares > threshold, labels, IGNORED)


def _rows(batch: Batch) -> Iterator[dict[str, Tensor]]:
    for index in range(len(next(iter(batch.values())))):
        yield {name: tensor[index].clone() for name, tensor in batch.items() if name != "labels"}


def _stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of examples, of which shorter ones are filled with zeros at the end."""
    made = {}
    for name in rows[0]:
        tensors = [row[name] for row in rows]
        if len({tensor.shape for tensor in tensors}) > 1 and tensors[0].ndim:
            made[name] = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        else:
            made[name] = torch.stack(tensors)
    return made


def _plain(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "strong"} if "strong" in batch else batch


def _strong(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    strong = batch.get("strong")
    if strong is None:
        return batch
    replaced = next((n for n, t in batch.items() if n != "strong" and t.shape == strong.shape), None)
    if replaced is None:
        fact = f"no tensor of the batch has the shape of strong, {list(strong.shape)}"
        raise InvalidInput(fact, "strong is another view of one of them")
    return {**_plain(batch), replaced: strong}


def _mixed(*numbers: int) -> int:
    """One seed of several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 0x9E3779B97F4A7C15 + number + 1) % (1 << 63)
    return mixed
