"""The loop that learns coefficients: compose, go forward and back, stream the gradients, take a step; resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paramsmith.errors import Failed
from paramsmith.resumable import Resumable

from .composition import Composition
from .feeds import check_finite
from .objectives import Objective
from .scores import strongest
from .selection import Selection

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Course:
    """How long and how fast: AdamW, with the norm of all coefficients' gradients clipped to `clip`.

    `shared`: one coefficient for all tensors of a model. `penalty` p adds half the mean over the tensors of the p-norm
    across the models. `budget` b: at each tensor only the b models count whose coefficients' gradients over the first
    epoch are the largest at the start.
    """

    steps: int
    epoch: int  # steps
    lr: float
    cosine: bool = False
    weight_decay: float = 0.0
    clip: float | None = None
    shared: bool = False
    penalty: float | None = None
    budget: int | None = None


@dataclass
class Learned:
    """Coefficients (models, tensors, partitions), and how they came about; also the state of the loop."""

    coefficients: Tensor
    scores: tuple[float, ...] = ()
    best_step: int = 0
    history: list[dict[str, object]] = field(default_factory=list)


class Training:
    """One run of the loop."""

    def __init__(
        self,
        composition: Composition,
        objective: Objective,
        course: Course,
        start: Tensor,
        *,
        selection: Selection | None = None,
    ) -> None:
        self._composition, self._objective, self._course = composition, objective, course
        self._selection = selection
        self._free = start[:, :1].clone() if course.shared else start.clone()  # (models, tensors or 1, partitions)
        self._free.requires_grad_(True)
        self._optimiser = torch.optim.AdamW([self._free], lr=course.lr, weight_decay=course.weight_decay)
        self._mask = torch.ones_like(self._free, requires_grad=False)
        self._step, self._stopped, self._loss = 0, False, 0.0
        self._best: Tensor | None = None
        self._best_value, self._best_step = -math.inf, 0
        self._history: list[dict[str, object]] = []

    def run(self, keeper: Resumable, progress: Progress | None) -> Learned:
        """Learn, from where an earlier run was interrupted; at the end the models have the coefficients found."""
        saved, course = keeper.load(), self._course
        if saved is not None:
            self._restore(*saved)
        self._compose()
        if saved is None:
            if course.budget is not None:
                self._choose(course.budget)
            self._judge()
            self._save(keeper)
        once = self._composition.nbytes * 2
        while self._step < course.steps and not self._stopped:
            if self._step % course.epoch == 0:
                self._objective.begin(self._step)
            self._take_step()
            if self._step % course.epoch == 0 or self._step == course.steps:
                self._judge()
            if progress is not None:
                progress(self._step * once, course.steps * once)
            if keeper.due():
                self._save(keeper)
        return self._finished()

    def _choose(self, budget: int) -> None:
        self._objective.begin(0)
        for step in range(self._course.epoch):
            self._backward(step)
        slopes = self._slopes().sum(2)
        self._mask = strongest(slopes, budget)[:, :, None].expand_as(self._free).to(self._free.dtype).contiguous()

    def _backward(self, step: int) -> float:
        total = 0.0
        for loss in self._objective.losses(step):
            total += check_finite(loss, f"at step {step + 1}")
            loss.backward()  # type: ignore[no-untyped-call]
        return total

    def _slopes(self) -> Tensor:
        slopes = self._composition.gradients()
        self._composition.forget()
        return slopes.sum(1, keepdim=True) if self._course.shared else slopes

    def _take_step(self) -> None:
        course, where = self._course, f"at step {self._step + 1}"
        self._loss += self._backward(self._step)
        self._free.grad = self._slopes().to(self._free.dtype)
        if course.penalty is not None:
            norms = 0.5 * torch.linalg.vector_norm(self._free, course.penalty, dim=0).mean()
            self._free.grad += torch.autograd.grad(norms, self._free)[0]
        self._free.grad *= self._mask
        if not torch.isfinite(self._free.grad).all():
            raise Failed(f"a gradient is not finite {where}", "look at the data and the models")
        if course.clip is not None:
            torch.nn.utils.clip_grad_norm_([self._free], course.clip)
        share = 0.5 * (1 + math.cos(math.pi * self._step / course.steps)) if course.cosine else 1.0
        self._optimiser.param_groups[0]["lr"] = course.lr * share
        self._optimiser.step()
        self._step += 1
        self._compose()

    def _compose(self) -> None:
        self._composition.compose(self._free.detach().expand(self._composition.shape))

    def _judge(self) -> None:
        """Note the epoch; keep its coefficients if they are the best so far, or if nothing judges."""
        past = (self._step - 1) % self._course.epoch + 1
        told: dict[str, object] = {"step": self._step}
        if self._step:
            told["loss"] = self._loss / past
        self._loss = 0.0
        value: float | None = float(self._step)
        if self._selection is not None:
            found = self._selection.judge(self._scores(0) if self._history else None)
            told["scores"], value, self._stopped = list(found.scores), found.value, found.stop
        self._history.append(told)
        if value is not None and value > self._best_value:
            self._best_value, self._best_step = value, self._step
            self._best = self._free.detach().clone()

    def _scores(self, entry: int) -> Sequence[float]:
        scores = self._history[entry].get("scores", ())
        return scores if isinstance(scores, list) else ()

    def _finished(self) -> Learned:
        best = self._free.detach() if self._best is None else self._best
        whole = best.expand(self._composition.shape).clone()
        self._composition.compose(whole)
        entry = next(i for i, told in enumerate(self._history) if told["step"] == self._best_step)
        return Learned(whole, tuple(self._scores(entry)), self._best_step, self._history)

    def _save(self, keeper: Resumable) -> None:
        held = {"free": self._free, "mask": self._mask, "best": self._free if self._best is None else self._best}
        held |= {f"adam {name}": tensor for name, tensor in self._optimiser.state[self._free].items()}
        held |= {f"objective {name}": tensor for name, tensor in self._objective.state().items()}
        plain = {"step": self._step, "stopped": self._stopped, "loss": self._loss, "history": self._history}
        keeper.save(held, {**plain, "best_value": self._best_value, "best_step": self._best_step})

    def _restore(self, held: dict[str, Tensor], plain: dict[str, object]) -> None:
        with torch.no_grad():
            self._free.copy_(held["free"])
        self._mask, self._best = held["mask"], held["best"]
        moments = {name.removeprefix("adam "): t for name, t in held.items() if name.startswith("adam ")}
        self._optimiser.state[self._free] = moments
        kept = {name.removeprefix("objective "): t for name, t in held.items() if name.startswith("objective ")}
        self._objective.restore(kept)
        self._step, self._stopped = int(str(plain["step"])), bool(plain["stopped"])
        self._loss, self._best_value = float(str(plain["loss"])), float(str(plain["best_value"]))
        self._best_step = int(str(plain["best_step"]))
        history = plain["history"]
        self._history = list(history) if isinstance(history, list) else []
