"""The diagonal of a model's Fisher information on data, as a statistics file."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from paramsmith.checkpoint import Checkpoint
from paramsmith.device import parse_bytes
from paramsmith.errors import Failed, InvalidInput, Refused, printable
from paramsmith.merge.task import IGNORED, Batch, Task, examples_in
from paramsmith.statistics import About, weights_digest

from .calls import recorded
from .cotangents import Draws, Estimator, cotangents
from .passes import Data, Progress, Seen, measure
from .probe import probe
from .squares import Outputs, SquaredGradients, as_rows, task_outputs
from .subject import Report, at_rest, not_measured, targets

# Examples that go through the model at once: up to a few, as those bytes of activations hold; up to many, as these do.
_FEW, _AMPLE = 8, 1 << 30
_MANY, _SPARE = 64, 1 << 27
# Sums are kept in float64, so that they do not depend on how many examples there are.
_WIDE = torch.float64
_LARGEST = torch.finfo(torch.float32).max


def measure_fisher(
    task: Task,
    checkpoint: Checkpoint,
    output: str | os.PathLike[str],
    *,
    estimator: Estimator = "exact",
    limit: int | None = None,
    seed: int = 0,
    draws: int = 1,
    memory: int | str | None = None,
    chunk: int | None = None,
    include: str | None = None,
    device: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure F_p = 1/n Σ_x E_y (∂ log P(y|x) / ∂θ_p)² for every parameter p, and write it as float32.

    The expectation is over the model's own prediction, for each input x: `exact` sums over all classes, `sampled` takes
    the mean over `draws` samples, `empirical` takes the label of x instead, which estimates another quantity. Squares
    are taken of each example's gradient by itself. For a sequence the log-likelihood is the sum over its positions;
    for regression the likelihood is normal with variance 1, and `exact` sums the squared Jacobian over the outputs.

    memory   bytes for the sums (8 a parameter) and the activations, beside the model itself: where the sums of all
             parameters do not fit, the data is gone over again for the next ones
    chunk    examples that go through the model at once: up to 64, as their activations allow; fewer where memory is
             short. Another chunk may change the last bits
    include  a filter of tensor names: what to measure
    device   where to work; where the model is, unless given

    InvalidInput for data and labels that cannot be used and when all values are zero, Refused when one tensor alone
    does not fit, Failed for what is not finite. Nothing is written then; killed, the same call resumes.

    Paper: Matena & Raffel, Merging Models with Fisher-Weighted Averaging, arXiv:2111.09832.
    """
    began = time.monotonic()
    _check(estimator, draws, limit, chunk, seed)
    parameters = targets(task, checkpoint, include)
    budget = None if memory is None else parse_bytes(memory)
    groups = _groups(parameters, budget)
    digest = weights_digest(checkpoint)
    key = {"fisher": estimator, "seed": seed, "draws": draws, "limit": limit, "chunk": [chunk, budget], "of": digest}

    def about(seen: Seen) -> Mapping[str, str]:
        about = About(
            kind="fisher", estimator=estimator, examples=seen.examples, seed=seed, model=digest, data=seen.data
        )
        return about.metadata()

    with at_rest(task.model, device, parameters) as here:
        collector = _Fisher(task, parameters, estimator, Draws(seed, draws), _Chunks(chunk, budget))
        data = Data(task, limit, here)
        examples = measure(Path(output), key, data, groups, collector, about, force=force, progress=progress)
    warnings = not_measured(checkpoint, task, parameters) if include is None else ()
    seconds = time.monotonic() - began
    return Report(Path(output), "fisher", examples, seconds, (*warnings, *collector.warnings()))


def _check(estimator: str, draws: int, limit: int | None, chunk: int | None, seed: int) -> None:
    if estimator not in get_args(Estimator):
        raise InvalidInput(f"no estimator is called {printable(estimator)!r}", "exact, sampled or empirical")
    for name, value in {"draws": draws, "limit": limit, "chunk": chunk}.items():
        if value is not None and value < 1:
            raise InvalidInput(f"{name} is {value}", "give 1 or more")
    if draws > 1 and estimator != "sampled":
        raise InvalidInput(f"draws are {draws} for the estimator {estimator}", "only sampled draws anything")
    if not 0 <= seed < 2**64:
        raise InvalidInput(f"the seed is {seed}", "from 0 to 2^64 - 1")


def _groups(parameters: Mapping[str, nn.Parameter], memory: int | None) -> list[list[str]]:
    """The parameters of each pass: as many as the sums of which fill three quarters of the memory."""
    if memory is None:
        return [list(parameters)]
    room, groups, filled = memory * 3 // 4, list[list[str]](), math.inf
    for name, parameter in parameters.items():
        size = _WIDE.itemsize * parameter.numel()
        if size > room:
            fact = f"{printable(name)}: its sums take {size:,} bytes, and {room:,} of the memory are for sums"
            raise Refused(fact, f"--memory {math.ceil(size * 4 / 3e6)}MB, or leave the tensor out: --include")
        if filled + size > room:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


class _Chunks:
    """How many examples go through the model at once."""

    def __init__(self, chunk: int | None, memory: int | None) -> None:
        self._chunk, self._memory = chunk, memory
        self._example = 0.0  # bytes of activations for a byte of data

    def learn(self, task: Task, batch: Batch) -> None:
        """See what the first example makes, unless that was seen before."""
        if self._example or self._chunk is not None:
            return
        first = {name: tensor[:1] for name, tensor in batch.items()}
        with recorded(list(task.model.modules())) as calls:
            outputs = task_outputs(task, first, 1)
        held = [call for made in calls.values() for call in made]
        count = sum(t.numel() for call in held for t in call.tensors) + sum(s.numel() for c in held for s in c.shapes)
        self._example = outputs.element_size() * (count + 8 * outputs.numel()) / max(1, _bytes(first))

    def of(self, batch: Batch, examples: int) -> int:
        """For this batch."""
        if self._chunk is not None:
            return self._chunk
        each = max(1.0, self._example * _bytes(batch) / examples)
        most = max(1, min(_FEW, int(_AMPLE / each)), min(_MANY, int(_SPARE / each)))
        if self._memory is not None:
            most = min(most, max(1, int(self._memory / 4 / each)))
        return 1 << (most.bit_length() - 1)


class _Fisher:
    """Sums of squared gradients."""

    def __init__(
        self,
        task: Task,
        parameters: Mapping[str, nn.Parameter],
        estimator: Estimator,
        draws: Draws,
        chunks: _Chunks,
    ) -> None:
        self._task, self._parameters = task, parameters
        self._estimator: Estimator = estimator
        self._draws, self._chunks = draws, chunks
        self._engine = SquaredGradients(task, {})
        self._sums: dict[str, Tensor] = {}
        self._probed = 0
        self._classes: set[float] = set()

    def warnings(self) -> tuple[str, ...]:
        """What to know of the data."""
        one = len(self._classes) == 1
        return (f"all labels are {min(self._classes):g}: what is measured is about one class",) if one else ()

    def begin(self, names: Sequence[str]) -> None:
        """Start a pass for these tensors, from zero."""
        wanted = {name: self._parameters[name] for name in names}
        self._engine, self._sums, self._probed = SquaredGradients(self._task, wanted), {}, 0

    def prepare(self, batch: Batch) -> None:
        """Find out, with the first batch that shows it, how the model is to be gone through."""
        if self._estimator == "empirical" and len(self._classes) < 2 and self._task.likelihood == "categorical":
            labels = batch.get("labels", torch.zeros(0))
            self._classes |= set(torch.unique(labels[labels != IGNORED]).tolist())
        if self._probed < min(examples_in(batch, 0), 2):
            self._chunks.learn(self._task, batch)
            self._probed = probe(self._engine, batch)

    def add(self, batch: Batch, first: int) -> None:
        """Take in a batch."""
        examples = examples_in(batch, 0)
        step = self._chunks.of(batch, examples)
        for start in range(0, examples, step):
            self._add({name: t[start : start + step] for name, t in batch.items()}, first + start)

    def _add(self, batch: Batch, first: int) -> None:
        outputs = self._engine.outputs(batch)
        for cotangent in self._cotangents(outputs, first):
            for piece in self._engine.squares(outputs, cotangent):
                values = piece.values.to(_WIDE)
                if not math.isfinite(float(values.sum())):
                    raise self._not_finite(batch, cotangent, piece.name, first)
                sums = self._sum(piece.name)
                if isinstance(piece.rows, Tensor):
                    sums.index_add_(0, piece.rows, values)
                else:
                    sums[piece.rows] += values

    def _cotangents(self, outputs: Outputs, first: int) -> Iterator[Tensor]:
        values, likelihood = outputs.values, self._task.likelihood
        return cotangents(self._estimator, likelihood, values, outputs.batch, first, self._draws)

    def _sum(self, name: str) -> Tensor:
        """The sums of one tensor as (rows, columns)."""
        if name not in self._sums:
            self._sums[name] = torch.zeros_like(self._parameters[name], dtype=_WIDE, requires_grad=False)
        return as_rows(self._sums[name])

    def _not_finite(self, batch: Batch, cotangent: Tensor, name: str, first: int) -> Failed:
        where = f"examples {first:,} to {first + len(cotangent) - 1:,}"
        for row in range(len(cotangent)):
            found = self._engine.alone({n: t[row : row + 1] for n, t in batch.items()}, cotangent[row : row + 1], name)
            if found is not None and not bool(torch.isfinite(found.square()).all()):
                where = f"example {first + row:,}"
                break
        fact = f"{printable(name)}: the gradient of {where} is not finite"
        return Failed(fact, "look at the example, and at the model's weights")

    def state(self) -> dict[str, Tensor]:
        """The sums so far."""
        return self._sums or {"nothing": torch.zeros(1)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from these sums."""
        self._sums = {n: t.to(self._parameters[n].device) for n, t in state.items() if n in self._parameters}

    def result(self, examples: int) -> dict[str, Tensor]:
        """The means, as float32."""
        found = {}
        for name in self._engine.parameters:
            self._sum(name)
            mean = self._sums.pop(name).div_(examples)
            if float(mean.amax()) > _LARGEST:
                raise Failed(f"{printable(name)}: the mean square is larger than float32 holds", "scale the loss down")
            found[name] = mean.float().cpu()
        return found


def _bytes(batch: Batch) -> int:
    return sum(t.numel() * t.element_size() for t in batch.values())
