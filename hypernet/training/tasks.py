"""Tasks: from a file of the user's, from functions, or from arrays of examples.

    def task():                                                     # paramsmith train … --tasks file.py:task
        return Classification(Target.of(net, x[:1]), x, y, x_test, y_test)

Any object with the methods of `protocols.Task` will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard, cast

import torch
from torch import Tensor
from torch.nn import functional

from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.hypernet.protocols import Batch, Condition, Episode, Run, Site, Target, Task
from paramsmith.hypernet.seeding import seeded
from paramsmith.userfile import call_user, named_function

from .family import TEST, TRAIN, Family

_MEMBERS = ("episode", "loss")
_LONGEST, _LONGEST_TASK = 200, 4000  # names, as generators and zoos keep them
_LOOKED_AT = 6  # draws from which one tells what a task's episodes have in common

Score: TypeAlias = Callable[[Run, Batch], Tensor]


@dataclass(frozen=True)
class FunctionTask:
    """A task of functions: `draw(rng, split)` gives an Episode, `measure(run, batch)` the loss.

    The score is minus the loss, unless `judge` is given. For example signals to be learned by a network that starts
    from shared weights:

        def draw(rng, split):
            y = signals[split][torch.randint(100, (), generator=rng)]
            return Episode(target, {}, query={"x": grid, "y": y})

        FunctionTask(draw, lambda run, batch: (run(batch["x"]) - batch["y"]).square().mean())
    """

    draw: Callable[[torch.Generator, str], Episode]
    measure: Score
    judge: Score | None = None

    def episode(self, rng: torch.Generator, split: str = TRAIN) -> Episode:
        """What `draw` gives."""
        return self.draw(rng, split)

    def loss(self, run: Run, batch: Batch) -> Tensor:
        """What `measure` gives."""
        return self.measure(run, batch)

    def score(self, run: Run, batch: Batch) -> Tensor:
        """What `judge` gives, or minus the loss."""
        return -self.measure(run, batch) if self.judge is None else self.judge(run, batch)


@dataclass(frozen=True)
class Classification:
    """Examples `x` (n, ...) with labels `y` (n) or (n, positions), for one target, or for those of a family.

    An episode of training has `batch` examples; any other all of them, to train on, and the test examples, to be
    judged by. `condition(rng)` draws what is asked for, which `change(x, condition)` makes visible in the examples:

        Classification(target, x, y, x_test, y_test, condition=lambda rng: {"vector": torch.rand(1, generator=rng)},
                       change=lambda x, condition: rotated(x, 90 * condition["vector"]))

    The loss is the cross-entropy with the labels smoothed by `smoothing`, the score the share of right answers.
    """

    target: Target | Family
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    batch: int = 64
    smoothing: float = 0.0
    condition: Callable[[torch.Generator], Condition] | None = None
    change: Callable[[Tensor, Condition], Tensor] | None = None

    def __post_init__(self) -> None:
        """InvalidInput for examples and labels that do not belong together."""
        for x, y, which in ((self.x, self.y, "training"), (self.x_test, self.y_test, "test")):
            other = next((type(each).__name__ for each in (x, y) if not isinstance(each, Tensor)), None)
            if other is not None:
                raise InvalidInput(f"examples or labels for {which} are {other}", "give tensors: torch.as_tensor(x)")
            if len(x) != len(y) or not len(x):
                fact = f"there are {len(x):,} examples and {len(y):,} labels for {which}"
                raise InvalidInput(fact, "give a label an example, and at least one of them")
            if y.is_floating_point() or y.dtype == torch.bool:
                raise InvalidInput(f"the labels for {which} are {y.dtype}", "labels are integers: y.long()")
        if self.batch < 1:
            raise InvalidInput(f"a batch of {self.batch} examples", "give 1 or more")

    def episode(self, rng: torch.Generator, split: str = TRAIN) -> Episode:
        """A target, a condition, and examples."""
        sample = getattr(self.target, "sample", None)
        target = sample(rng, TEST if split == TEST else TRAIN) if callable(sample) else self.target
        condition = {} if self.condition is None else self.condition(rng)
        if split == TRAIN:
            chosen = torch.randperm(len(self.x), generator=rng)[: self.batch]
            query = self._examples(self.x[chosen], self.y[chosen], condition)
            return Episode(cast(Target, target), condition, query)
        query = self._examples(self.x_test, self.y_test, condition)
        return Episode(cast(Target, target), condition, query, self._examples(self.x, self.y, condition))

    def loss(self, run: Run, batch: Batch) -> Tensor:
        """Cross-entropy, the mean over all labels."""
        logits = run(batch["x"]).flatten(0, -2)  # (examples, classes)
        return functional.cross_entropy(logits, batch["y"].flatten().long(), label_smoothing=self.smoothing)

    def score(self, run: Run, batch: Batch) -> Tensor:
        """The share of right answers."""
        return (run(batch["x"]).argmax(-1) == batch["y"]).float().mean()

    def logits(self, run: Run, batch: Batch) -> Tensor:
        """(examples, classes)."""
        return run(batch["x"])

    def _examples(self, x: Tensor, y: Tensor, condition: Condition) -> Batch:
        return {"x": x if self.change is None else self.change(x, condition), "y": y}


def load_task(reference: str, *, judged: bool = True) -> Task:
    """The task that `file.py:function`, called without arguments, gives. InvalidInput or Failed says what is wrong.

    One episode is drawn and looked at. A task that is only trained on, not `judged`, needs no score. What the function
    draws from torch's own generator, such as the weights of a module, is the same every time.
    """
    with seeded(0):
        made = call_user(named_function(reference, "task"), reference.rpartition(":")[0])
    wanted = (*_MEMBERS, "score") if judged else _MEMBERS
    lacking = next((name for name in wanted if not callable(getattr(made, name, None))), None)
    if lacking is not None:
        fact = f"{printable(reference)} gave {type(made).__name__}, which has no {lacking}"
        raise InvalidInput(fact, "give a paramsmith.hypernet.training.tasks.Classification or FunctionTask")
    task = cast(Task, made)
    check_episode(call_user(task.episode, reference, torch.Generator().manual_seed(0), TRAIN), reference)
    return task


def is_task(source: object) -> TypeGuard[Task]:
    """Whether it has what tasks have for training."""
    return all(callable(getattr(source, name, None)) for name in _MEMBERS)


def check_episode(found: object, where: str) -> None:
    """InvalidInput for what is no episode."""
    if not isinstance(found, Episode):
        fact = f"{printable(where)}: an episode of the task is {type(found).__name__}"
        raise InvalidInput(fact, "give a paramsmith.hypernet.protocols.Episode(target, condition, query)")
    for name, part in (("condition", found.condition), ("query", found.query), ("support", found.support)):
        wrong = next(_wrong(part), None)
        if wrong is not None:
            fact = f"{printable(where)}: the {name} of an episode {wrong}"
            raise InvalidInput(fact, "it is a dict of tensors by name")
    _check_names(found, printable(where))
    if not hasattr(found.target, "spec") or not callable(getattr(found.target, "call", None)):
        fact = f"{printable(where)}: the target of an episode is {type(found.target).__name__}"
        raise InvalidInput(fact, "make it of a module: paramsmith.hypernet.targets.calling.Target.of(module, inputs)")
    if not found.query:
        raise InvalidInput(f"{printable(where)}: the query of an episode is empty", "give it a batch to learn from")


def drawn(task: Task, rng: torch.Generator, split: str = TRAIN) -> Episode:
    """An episode, looked at. Failed where the task raises, InvalidInput where it gives something else."""
    episode = call_user(task.episode, "the task", rng, split)
    check_episode(episode, "the task")
    return cast(Episode, episode)


def scalar(found: object, what: str) -> Tensor:
    """What a task's loss or score gave for one network, (). Failed where that is not one number."""
    if not isinstance(found, Tensor) or found.numel() != 1:
        told = f"a tensor of {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise Failed(f"the task's {what} is {told}", "give the mean over the batch, a scalar")
    if found.is_complex():
        raise Failed(f"the task's {what} is a complex number", "give a real one: its .abs(), say")
    return found.reshape(())


def site_of(task: Task) -> Site:
    """What is always the same in the task's episodes: the target, or None where it varies, and the condition's shapes.

    A size that varies is 0. It is told from a few draws. Of a task with hyperparameters, they are the condition.
    """
    with seeded(0):  # for what a task draws from torch's own generator
        return _site(task, torch.Generator().manual_seed(0))


def _site(task: Task, rng: torch.Generator) -> Site:
    first = drawn(task, rng)
    shapes = {name: tuple(tensor.shape) for name, tensor in first.condition.items()}
    same = True
    for _ in range(_LOOKED_AT - 1):
        episode = drawn(task, rng)
        if set(episode.condition) != set(shapes):
            told = " and ".join(", ".join(sorted(found)) or "nothing" for found in (shapes, episode.condition))
            fact = f"the conditions of the task's episodes differ: {printable(told)}"
            raise InvalidInput(fact, "ask for the same every time")
        for name, tensor in episode.condition.items():
            shapes[name] = _in_common(name, shapes[name], tuple(tensor.shape))
        same = same and episode.target.spec.hash == first.target.spec.hash
        if not same and not shapes:
            break  # architectures of a family take a while to draw, and nothing more can be learned from them
    tuned = getattr(task, "hyperparameters", None)  # what a self-tuning network is asked for
    if isinstance(tuned, Mapping) and not shapes:
        shapes = {"vector": (len(tuned),)}
    return Site(0, first.target.spec if same else None, shapes)


def _in_common(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    if len(a) != len(b):
        fact = f"the condition {printable(name)} has {len(a)} dimensions in one episode and {len(b)} in another"
        raise InvalidInput(fact, "give it the same number every time")
    return tuple(size if size == other else 0 for size, other in zip(a, b, strict=True))


def _check_names(found: Episode, where: str) -> None:
    """InvalidInput for a condition or a task's name that no generator and no zoo could keep."""
    for name, tensor in found.condition.items():
        if not 0 < len(name) <= _LONGEST:
            fact = f"{where}: a condition of an episode has a name of {len(name):,} characters"
            raise InvalidInput(fact, f"call it something of 1 to {_LONGEST}")
        if tensor.is_complex():
            fact = f"{where}: the condition {printable(name)} of an episode is complex"
            raise InvalidInput(fact, "give real numbers: torch.view_as_real")
    if not isinstance(found.task, str) or len(found.task) > _LONGEST_TASK:
        told = f"of {len(found.task):,} characters" if isinstance(found.task, str) else f"{type(found.task).__name__}"
        raise InvalidInput(f"{where}: the task of an episode is {told}", f"a text of at most {_LONGEST_TASK:,}")


def _wrong(part: object) -> Iterator[str]:
    if not isinstance(part, Mapping):
        yield f"is {type(part).__name__}"
        return
    for name, tensor in part.items():
        if not isinstance(name, str):
            yield f"has the name {printable(name, 40)}, which is no text"
        elif not isinstance(tensor, Tensor):
            yield f"has no tensor as {printable(name, 40)!r}, but {type(tensor).__name__}"
        elif tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            yield f"holds values in {printable(name, 40)!r} that are not finite"
