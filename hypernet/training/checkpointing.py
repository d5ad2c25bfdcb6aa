"""A training run as tensors and plain data, and back: everything that its next step depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from paramsmith.errors import Failed

from .course import Course

if TYPE_CHECKING:
    from accelerate import Accelerator

    from paramsmith.hypernet.protocols import Objective


@dataclass(frozen=True)
class Turn:
    """Parameters that are trained together, and how."""

    parameters: list[nn.Parameter]
    course: Course
    optimiser: torch.optim.Optimizer


@dataclass
class Counts:
    """Where a run is, and what came of its steps; a loss that was not finite is kept as it was."""

    step: int = 0
    bad: list[int] = field(default_factory=list)  # the steps that were skipped
    in_a_row: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0  # of training, those of interrupted runs included


class State:
    """What of a run changes: weights, moments, averages, counts, and the scale of mixed precision.

    An objective may have more, as `state() -> {name: tensor}`, which its `restore` takes back.
    """

    def __init__(
        self, hypernetwork: nn.Module, objective: Objective, turns: Mapping[str, Turn], accelerator: Accelerator
    ) -> None:
        self.hypernetwork, self.objective, self.turns = hypernetwork, objective, turns
        self.scaler = accelerator.scaler
        self.counts = Counts()
        listed = {id(p): p for turn in turns.values() for p in turn.parameters}
        self.parameters = list(listed.values())
        inside = {id(p) for p in hypernetwork.parameters()}
        self.others = [p for p in self.parameters if id(p) not in inside]
        self.averages: list[Tensor] = []
        self.settled: set[int] = set()  # ids of parameters that are what they will be
        self.updates = 0

    def average(self, decay: float) -> None:
        """a <- d a + (1 - d) w after an update, with d = min(decay, (1 + t) / (10 + t)) at the t-th."""
        held = [p.detach() for p in self.parameters]
        if not self.averages:
            self.averages = [p.clone() for p in held]
        self.updates += 1
        share = 1 - min(decay, (1 + self.updates) / (10 + self.updates))
        moving = [
            (a, w) for a, w, p in zip(self.averages, held, self.parameters, strict=True) if id(p) not in self.settled
        ]
        averages, weights = (list(column) for column in zip(*moving, strict=True))
        torch._foreach_lerp_(averages, weights, share)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def settle(self, over: Iterable[str]) -> None:
        """The averages take the place of the weights that only these turns train, and change no more.

        What is trained later sees them as they will be saved. After a resumption the same happens again, to the same
        numbers.
        """
        names = set(over)
        rest = {id(p) for name, turn in self.turns.items() if name not in names for p in turn.parameters}
        done = {id(p) for name in names & set(self.turns) for p in self.turns[name].parameters} - rest - self.settled
        for parameter, average in zip(self.parameters, self.averages, strict=False):
            if id(parameter) in done:
                parameter.copy_(average)
        self.settled |= done

    @torch.no_grad()
    def keep_averages(self) -> None:
        """The averages take the place of the weights."""
        for parameter, average in zip(self.parameters, self.averages, strict=False):
            parameter.copy_(average)

    def tensors(self) -> dict[str, Tensor]:
        """By name: those of the hypernetwork, parameters besides, moments, averages, the losses so far."""
        held = {f"model {name}": tensor for name, tensor in self.hypernetwork.state_dict().items()}
        held |= {f"parameter {i}": p.detach() for i, p in enumerate(self.others)}
        held |= {f"average {i}": a for i, a in enumerate(self.averages)}
        for name, turn in self.turns.items():
            for i, parameter in enumerate(turn.parameters):
                moments = turn.optimiser.state.get(parameter, {})
                held |= {f"{name} {i} {key}": m for key, m in moments.items() if isinstance(m, Tensor)}
        extra = getattr(self.objective, "state", None)
        more = cast(Mapping[str, Tensor], extra() if callable(extra) else {})
        held |= {f"objective {name}": tensor for name, tensor in more.items()}
        losses = torch.tensor(self.counts.losses, dtype=torch.float64)
        return {**held, "losses": losses, "bad": torch.tensor(self.counts.bad, dtype=torch.int64)}

    def plain(self) -> dict[str, object]:
        """The rest."""
        counts = self.counts
        told: dict[str, object] = {"step": counts.step, "in_a_row": counts.in_a_row}
        scale = None if self.scaler is None else self.scaler.state_dict()
        return {**told, "seconds": counts.seconds, "updates": self.updates, "scale": scale}

    @torch.no_grad()
    def restore(self, held: Mapping[str, Tensor], plain: Mapping[str, object]) -> None:
        """Put back what `tensors` and `plain` gave."""
        self.hypernetwork.load_state_dict(_under("model ", held))
        for i, parameter in enumerate(self.others):
            parameter.copy_(held[f"parameter {i}"])
        devices = [p.device for p in self.parameters]
        averages = [held[f"average {i}"] for i in range(len(_under("average ", held)))]
        self.averages = [a.to(device) for a, device in zip(averages, devices, strict=False)]
        for name, turn in self.turns.items():
            for i, parameter in enumerate(turn.parameters):
                moments = _under(f"{name} {i} ", held)
                if moments:
                    turn.optimiser.state[parameter] = {key: _placed(key, m, parameter) for key, m in moments.items()}
        extra = getattr(self.objective, "restore", None)
        if callable(extra):
            extra(_under("objective ", held))
        if self.scaler is not None and isinstance(plain["scale"], dict):
            self.scaler.load_state_dict(plain["scale"])
        self.updates = int(str(plain["updates"]))
        self.counts = Counts(
            step=int(str(plain["step"])),
            bad=held["bad"].tolist(),
            in_a_row=int(str(plain["in_a_row"])),
            losses=held["losses"].tolist(),
            seconds=float(str(plain["seconds"])),
        )


def make_turns(objective: Objective, course: Course) -> dict[str, Turn]:
    """The objective's turns with their optimisers: the course's own, or what `objective.optimisers()` changes of it."""
    special = getattr(objective, "optimisers", None)
    own = cast(Mapping[str, Mapping[str, object]], special() if callable(special) else {})
    turns: dict[str, Turn] = {}
    for name, parameters in objective.turns().items():
        listed = [p for p in parameters if p.requires_grad]
        if not listed:
            raise Failed(f"there is nothing to train in the turn {name!r}", "a base or a decoder with parameters helps")
        mine = course.for_turn(own.get(name, {}), name)
        turns[name] = Turn(listed, mine, mine.optimiser(listed))
    return turns


def _under(prefix: str, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in held.items() if name.startswith(prefix)}


def _placed(key: str, moment: Tensor, parameter: nn.Parameter) -> Tensor:
    """Moments live with their parameter; the count of steps stays on the CPU, as the optimisers have it."""
    return moment.clone() if key == "step" else moment.to(parameter.device)


def numbers(values: Sequence[Tensor]) -> list[float]:
    """Scalars as floats, fetched from the device at once."""
    return torch.stack([value.detach().double().reshape(()) for value in values]).tolist()
