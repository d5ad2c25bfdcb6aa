"""RegMean++: Gram matrices of each model's inputs as the layers before, already merged, produce them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput, printable
from paramsmith.gram import regmean_solve
from paramsmith.merge.task import Batch, Task, code_digest, examples_in
from paramsmith.resumable import Resumable
from paramsmith.statistics import About, weights_digest
from paramsmith.userfile import call_user

from .activations import Activations
from .gram import GRAM
from .passes import Data, Progress, Seen, read_through
from .subject import Report, at_rest, stored_tensor, targets
from .weights import Weights, find_weights


def measure_sequential_grams(
    tasks: Sequence[Task],
    checkpoints: Sequence[Checkpoint],
    outputs: Sequence[str | os.PathLike[str]],
    *,
    weight: Sequence[float] | None = None,
    off_diagonal: float = 0.9,
    limit: int | None = None,
    device: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Report]:
    """Measure the Grams of RegMean++, a file for each model; merging with method regmean and these files finishes it.

    Layer by layer: the Grams of model i are those of its own weights' inputs on its own data, where all layers before
    are the merged ones: W = (sum_i w_i W_i G_i)(sum_i w_i G_i)^+ for linear layers and convolutions, the weighted mean
    for the rest. A layer is what shares the first number in its name, or a module of its own. `weight` (one a model, 1
    if not given) and `off_diagonal` must be those of the merge. As each layer takes a pass over the data up to there,
    the time grows with the square of their number. The models in memory, one a task, are put back as they were.

    InvalidInput when the models or what they use differ. Killed, the same call resumes at the layer it was at.

    Paper: Nguyen et al., RegMean++, arXiv:2508.03121.
    """
    began = time.monotonic()
    candidates = _candidates(tasks, checkpoints, outputs, weight, limit)
    with ExitStack() as stack:
        for one in candidates:
            one.data = Data(one.task, limit, stack.enter_context(at_rest(one.task.model, device, {})))
            one.seen = read_through(one.data)
            one.weights = find_weights(one.task, one.parameters, one.data.first())
            stack.callback(one.put_back)
        stages = _stages(candidates)
        each = ([one.digest, one.share, one.seen.data, code_digest(one.task)] for one in candidates)
        key = json.dumps(["sequential", off_diagonal, *each])
        kept = [stack.enter_context(Resumable(c.output, key, force=force)) for c in candidates]
        part = 0
        for number, stage in enumerate(stages):
            grams = [_measured(c, k, stage, part) for c, k in zip(candidates, kept, strict=True)]
            part += bool(stage.kept)
            _merge(candidates, stage, grams, off_diagonal)
            if progress is not None:
                progress(number + 1, len(stages))
        for one, its in zip(candidates, kept, strict=True):
            its.publish(one.metadata(stages))
    seconds = time.monotonic() - began
    return [Report(c.output, "gram", c.seen.examples, seconds, c.weights.warnings) for c in candidates]


@dataclass
class _Candidate:
    """One of the models, with its data."""

    task: Task
    checkpoint: Checkpoint
    output: Path
    share: float
    parameters: dict[str, nn.Parameter]
    digest: str
    data: Data = field(init=False)
    seen: Seen = field(init=False)
    weights: Weights = field(init=False)

    def tensors(self) -> dict[str, Tensor]:
        """What the model holds of the checkpoint: parameters, and buffers of floating-point numbers."""
        names, stored = self.task.names, self.checkpoint.tensors
        buffers = {names.get(name, name): tensor for name, tensor in self.task.model.named_buffers()}
        return self.parameters | {n: t for n, t in buffers.items() if t.is_floating_point() and n in stored}

    def put_back(self) -> None:
        """Give the model its own weights again."""
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(stored_tensor(self.checkpoint, name))

    def metadata(self, stages: Sequence[_Stage]) -> Mapping[str, str]:
        """Of the file."""
        about = About(
            kind="gram",
            estimator="sequential",
            examples=self.seen.examples,
            model=self.digest,
            data=self.seen.data,
            transposed=self.weights.transposed(),
        )
        return {name: kept for stage in stages for name, kept in stage.same.items()} | about.metadata()


@dataclass
class _Stage:
    """What is merged at once: all its tensors, those with a Gram of their own, and which share another's."""

    tensors: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    same: dict[str, str] = field(default_factory=dict)


def _candidates(
    tasks: Sequence[Task],
    checkpoints: Sequence[Checkpoint],
    outputs: Sequence[str | os.PathLike[str]],
    weight: Sequence[float] | None,
    limit: int | None,
) -> list[_Candidate]:
    shares = [1.0] * len(tasks) if weight is None else [float(share) for share in weight]
    if len(tasks) < 2 or {len(checkpoints), len(outputs), len(shares)} != {len(tasks)}:
        fact = f"{len(tasks)} tasks, {len(checkpoints)} models, {len(outputs)} outputs and {len(shares)} weights"
        raise InvalidInput(fact, "give as many of each, and two or more")
    if min(shares) < 0 or sum(shares) <= 0:
        raise InvalidInput(f"the weights are {shares}", "not negative, nor all zero")
    if limit is not None and limit < 1:
        raise InvalidInput(f"limit is {limit}", "give 1 or more")
    if len({id(task.model) for task in tasks}) < len(tasks):
        raise InvalidInput("two tasks share one model in memory", "each model has its own weights: load each by itself")
    found = [
        _Candidate(task, checkpoint, Path(output), share, targets(task, checkpoint, None), weights_digest(checkpoint))
        for task, checkpoint, output, share in zip(tasks, checkpoints, outputs, shares, strict=True)
    ]
    for one in found[1:]:
        differing = set(one.parameters) ^ set(found[0].parameters)
        differing |= {
            n for n, p in found[0].parameters.items() if n in one.parameters and one.parameters[n].shape != p.shape
        }
        if differing:
            fact = f"{printable(one.checkpoint.label)} and {printable(found[0].checkpoint.label)} differ in "
            raise InvalidInput(f"{fact}{printable(min(differing))}", "merge models of one architecture")
    return found


def _stages(candidates: Sequence[_Candidate]) -> list[_Stage]:
    """The layers in the order they are called in; what belongs to no module that is called goes with the one around it.

    A tensor of several layers is merged with the first of them.
    """
    first = candidates[0]
    for one in candidates[1:]:
        if list(one.weights.modules) != list(first.weights.modules) or one.weights.same != first.weights.same:
            fact = f"{printable(one.checkpoint.label)}: its task uses other layers, or in another order"
            raise InvalidInput(fact, "the tasks must run the same network")
    called = _call_order(first.task, first.data.first())
    stages = {layer: _Stage() for layer in dict.fromkeys(["", *(_layer(path) for path in called)])}
    order = {layer: number for number, layer in enumerate(stages)}
    named = {id(tensor): name for name, tensor in first.tensors().items()}
    at: dict[str, str] = {}
    for path, module in first.task.model.named_modules():
        here = path
        while _layer(here) not in stages:
            here = here.rpartition(".")[0]
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            name = named.get(id(tensor))
            if name is not None and (name not in at or order[_layer(here)] < order[at[name]]):
                at[name] = _layer(here)
    for name, layer in at.items():
        stages[layer].tensors.append(name)
    for name in first.weights.modules:
        kept = first.weights.same.get(name)
        if kept is not None and at[kept] == at[name]:
            stages[at[name]].same[name] = kept
        else:
            stages[at[name]].kept.append(name)
    return [stage for stage in stages.values() if stage.tensors]


def _layer(path: str) -> str:
    """A module's name up to the first number in it; the whole name where it has none.

    >>> _layer("encoder.layer.3.attention.1"), _layer("pooler.dense")
    ('encoder.layer.3', 'pooler.dense')
    """
    parts = path.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else path


def _call_order(task: Task, batch: Batch) -> list[str]:
    """The modules in the order they are first called in."""
    order: dict[str, None] = {}

    def note(path: str, *_: object) -> None:
        order[path] = None

    hooks = [m.register_forward_pre_hook(partial(note, path)) for path, m in task.model.named_modules()]
    try:
        with torch.no_grad():
            call_user(task.outputs, "the task's outputs", task.model, {name: t[:1] for name, t in batch.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return list(order)


def _measured(one: _Candidate, kept: Resumable, stage: _Stage, part: int) -> dict[str, Tensor]:
    """The Grams of one model at one stage, whose number among those with any is `part`."""
    if not stage.kept:
        return {}
    if kept.parts > part:
        return kept.finished(part)
    modules = {name: one.weights.modules[name] for name in (*stage.kept, *stage.same)}
    collector, examples = Activations(one.task, Weights(modules, stage.same), GRAM, partly=True), 0
    collector.begin(stage.kept)
    for batch in one.data.batches():
        collector.add(batch, examples)
        examples += examples_in(batch, 0)
    found = collector.result(examples)
    kept.add_part(found)
    return found


def _merge(
    candidates: Sequence[_Candidate], stage: _Stage, grams: Sequence[Mapping[str, Tensor]], off_diagonal: float
) -> None:
    """Give all models the merged tensors of a stage."""
    shares = torch.tensor([one.share for one in candidates], dtype=torch.float64)
    for name in stage.tensors:
        stored = torch.stack([stored_tensor(one.checkpoint, name) for one in candidates])
        measured = [gram.get(stage.same.get(name, name)) for gram in grams]
        known = [gram for gram in measured if gram is not None]
        if len(known) == len(candidates):
            matrices = stored.mT if name in candidates[0].weights.transposed() else stored.flatten(2)
            weighted = shares.view(-1, *[1] * known[0].ndim) * torch.stack(known)
            solved = regmean_solve(matrices, weighted, off_diagonal)
            merged = solved.mT if name in candidates[0].weights.transposed() else solved.view(stored.shape[1:])
        else:
            merged = torch.tensordot(shares / shares.sum(), stored.double(), 1)
        with torch.no_grad():
            for one in candidates:
                one.tensors()[name].copy_(merged.to(stored.dtype))
