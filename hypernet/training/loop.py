"""The training loop, the only one: whatever the objective, the same steps, savings, averages and metrics.

What an objective is, and what it may have besides, is in protocols.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from paramsmith.device import threads_an_operation
from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.protocols import Objective
from paramsmith.progress import Progress
from paramsmith.resumable import Resumable

from .checkpointing import Counts, State, Turn, make_turns, numbers
from .compiling import compiled
from .course import Course
from .metrics import FILE, Log, Metrics, check_tracker, tracking
from .processes import accelerated, begin_alike, from_first, mean, share_gradients

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Course", "FitReport", "fit"]

SAVING = 0.05  # the share of the time that saving may take, where it takes long


@dataclass(frozen=True)
class FitReport:
    """What a training was: the loss of every step, the steps skipped, all lines of metrics, and what it cost.

    `seconds` are those of all its processes, were it interrupted; `rate` is the steps a second of the last one.
    """

    losses: tuple[float, ...]
    bad: tuple[int, ...]
    metrics: str
    seconds: float
    rate: float

    @property
    def steps(self) -> int:
        """How many there were."""
        return len(self.losses)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the user."""
        if not self.bad:
            return ()
        which = ", ".join(str(step + 1) for step in self.bad[:3]) + (", ..." if len(self.bad) > 3 else "")
        return (f"{len(self.bad):,} of {self.steps:,} steps were skipped, their numbers not finite: {which}",)

    def to_json(self) -> dict[str, object]:
        """Plain data; the loss is that of the last step, None where there was none."""
        last = self.losses[-1] if self.losses else None
        told: dict[str, object] = {"steps": self.steps, "loss": last, "skipped": len(self.bad)}
        return {**told, "seconds": self.seconds, "steps_per_second": self.rate, "warnings": list(self.warnings)}


def fit(
    hypernetwork: nn.Module,
    objective: Objective,
    course: Course,
    *,
    keeper: Resumable | None = None,
    progress: Progress | None = None,
    log: Log | None = None,
    logs: Path | None = None,
) -> FitReport:
    """Train, or go on where `keeper` has what an earlier run saved: with the same numbers, so the same bytes.

    What a step draws depends on (seed, step) alone; torch's global generator is as it was afterwards. A step whose
    loss or gradient is not finite is skipped; `course.max_bad` of them in a row are Failed. At the end the weights are
    the averages, if the course has any. `logs` is the folder of a tracker that needs one.

    Started by torchrun or accelerate, each process takes its own draws, and gradients are averaged; only the first
    may have a keeper.
    """
    check_tracker(course.tracker)
    check_steps(objective, course)
    with (
        threads_an_operation(course.threads),
        accelerated(course, logs) as accelerator,
        tracking(accelerator, course.model_dump()) as track,
    ):
        run = _Run(hypernetwork, objective, course, accelerator, keeper)
        return run.to_the_end(progress, [track, *([log] if log else [])])


def check_steps(objective: Objective, course: Course) -> None:
    """InvalidInput for no steps where something is trained, and for steps where everything is computed at once."""
    trained = bool(objective.turns())
    if not course.steps and trained:
        raise InvalidInput("there is something to train, and 0 steps to do it in", "give --steps 1 or more")
    if course.steps and not trained:
        raise InvalidInput(f"nothing is trained in {course.steps:,} steps: all is computed", "leave --steps out")


class _Run:
    """The loop and its state."""

    def __init__(
        self,
        hypernetwork: nn.Module,
        objective: Objective,
        course: Course,
        accelerator: Accelerator,
        keeper: Resumable | None,
    ) -> None:
        self.objective, self.course, self.accelerator, self.keeper = objective, course, accelerator, keeper
        self.hypernetwork = hypernetwork.to(accelerator.device)
        turns = make_turns(objective, course)
        for parameter in (p for turn in turns.values() for p in turn.parameters):
            parameter.data = parameter.data.to(accelerator.device)
        self.state = State(self.hypernetwork, objective, turns, accelerator)
        saved = from_first(accelerator, None if keeper is None else keeper.load())
        if saved is not None:
            self.state.restore(*saved)
        begin_alike(accelerator, [*self.hypernetwork.state_dict().values(), *self.state.others])
        text = b"" if saved is None else saved[0]["metrics"].numpy().tobytes()
        self.metrics = Metrics(None if keeper is None else keeper.folder / FILE, text.decode())
        self.next_saving = 0.0

    @property
    def counts(self) -> Counts:
        """Where the run is."""
        return self.state.counts

    def to_the_end(self, progress: Progress | None, logs: list[Log]) -> FitReport:
        """All steps that are left."""
        course, first, before = self.course, self.counts.step, self.counts.seconds
        started = time.perf_counter()
        self.hypernetwork.train()
        with compiled(self.hypernetwork) if course.compile else nullcontext():
            while self.counts.step < course.steps:
                line = self._step()
                if line is not None:
                    self.metrics.add(line)
                    for log in logs:
                        log(line)
                self.counts.seconds = before + time.perf_counter() - started
                if progress is not None:
                    progress(self.counts.step, course.steps)
                self._save_if_due()
        self.hypernetwork.eval()
        self.state.keep_averages()
        finish = getattr(self.objective, "finish", None)
        if callable(finish):
            finish()
        seconds = time.perf_counter() - started
        rate = (course.steps - first) / seconds if course.steps > first else 0.0
        counts = self.counts
        return FitReport(tuple(counts.losses), tuple(counts.bad), self.metrics.text, counts.seconds, rate)

    def _step(self) -> Mapping[str, float] | None:
        """One step; a line of metrics where one is due."""
        step, course = self.counts.step, self.course
        over: Callable[[int], Iterable[str]] | None = getattr(self.objective, "over", None)
        self.state.settle(() if over is None else over(step))
        name = self.objective.turn(step)
        turn = self.state.turns[name]
        rate = turn.course.lr * turn.course.factor(step)
        with self._drawing(step) as rng:
            with self.accelerator.autocast():
                loss = self.objective.loss(step, rng)
            if loss.numel() != 1 or not loss.requires_grad:
                raise Failed("the objective gave no scalar that depends on what is trained", "see the task's loss")
            self.accelerator.backward(loss)
        norm = self._taken(turn, rate, loss)
        self.counts.step += 1
        if self.counts.step % course.log_every and self.counts.step != course.steps:
            return None
        return {"step": self.counts.step, **self._means(), "lr": rate, "norm": norm, **self._told()}

    def _taken(self, turn: Turn, rate: float, loss: Tensor) -> float:
        """Let the optimiser take its step, unless a number is not finite; the gradient's norm, before it is clipped."""
        scaler, parameters = self.accelerator.scaler, turn.parameters
        if scaler is not None:
            scaler.unscale_(turn.optimiser)
        share_gradients(self.accelerator, parameters)
        largest = turn.course.clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, largest)
        value, length = numbers([mean(self.accelerator, loss.detach()), norm])
        self.counts.losses.append(value)
        good = bool(np.isfinite([value, length]).all())
        if good:
            turn.optimiser.param_groups[0]["lr"] = rate
            turn.optimiser.step() if scaler is None else scaler.step(turn.optimiser)
            if self.course.ema is not None:
                self.state.average(self.course.ema)
        if scaler is not None:
            scaler.update()
        for each in self.state.turns.values():
            each.optimiser.zero_grad(set_to_none=True)
        self._judge(good)
        return length

    def _judge(self, good: bool) -> None:
        counts = self.counts
        counts.in_a_row = 0 if good else counts.in_a_row + 1
        if not good:
            counts.bad.append(counts.step)
        if counts.in_a_row >= min(self.course.max_bad, self.course.steps):
            which = f"{counts.in_a_row} steps in a row, up to step {counts.step + 1}"
            raise Failed(
                f"the loss or its gradient was not finite in {which}",
                "a lower --lr, --clip 1 or a --warmup may help; else look at the data",
            )

    def _means(self) -> dict[str, float]:
        """The mean loss since the last line, by turn where there are several; skipped steps do not count."""
        counts, every = self.counts, self.course.log_every
        first = (counts.step - 1) // every * every
        found: dict[str, list[float]] = {}
        for step in range(first, counts.step):
            name = self.objective.turn(step)
            if step not in counts.bad[-every:]:
                found.setdefault(name, []).append(counts.losses[step])
        several = len(self.state.turns) > 1
        return {f"loss {name}" if several else "loss": sum(v) / len(v) for name, v in found.items()}

    def _told(self) -> dict[str, float]:
        told = getattr(self.objective, "told", None)
        more = cast(Mapping[str, float], told() if callable(told) else {})
        return {**({"skipped": len(self.counts.bad)} if self.counts.bad else {}), **more}

    @contextmanager
    def _drawing(self, step: int) -> Iterator[torch.Generator]:
        """The step's generator; the global ones, which dropout draws from, begin with the step too."""
        words = np.random.SeedSequence((self.course.seed, step, self.accelerator.process_index))
        own, others = (int(word) for word in words.generate_state(2, np.uint64))
        device = self.accelerator.device
        with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(others)
            if device.type == "cuda":
                torch.cuda.manual_seed(others)
            yield torch.Generator().manual_seed(own)

    def _save_if_due(self) -> None:
        if self.keeper is None or not self.keeper.due() or time.monotonic() < self.next_saving:
            return
        started = time.monotonic()
        text = np.frombuffer(self.metrics.text.encode(), np.uint8).copy()
        self.keeper.save({**self.state.tensors(), "metrics": torch.from_numpy(text)}, self.state.plain())
        self.next_saving = time.monotonic() + (time.monotonic() - started) / SAVING
