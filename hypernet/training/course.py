"""How a generator is trained: how long, how fast, on what. Imports no torch, so that a command's help does not wait."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from paramsmith.errors import InvalidInput
from paramsmith.params import Params, validated

if TYPE_CHECKING:
    import torch

# What an objective may set for each of its turns.
PER_TURN = ("lr", "optimizer", "momentum", "weight_decay", "warmup", "schedule", "clip")


class Course(Params):
    """How long, how fast, on what."""

    steps: int = Field(1000, ge=0, description="steps, of all turns together")
    lr: float = Field(1e-3, gt=0, le=1e6, description="learning rate, the highest of the schedule")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="optimiser")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(0.0, ge=0, le=1e6, description="pull of every parameter towards 0")
    warmup: int = Field(0, ge=0, description="steps over which the learning rate grows from 0")
    schedule: Literal["constant", "cosine", "linear"] = Field("constant", description="learning rate after the warm-up")
    clip: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="largest norm of a gradient, which is scaled down to it"
    )
    ema: float | None = Field(None, gt=0, lt=1, description="decay of an average of the weights, which is kept instead")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="mixed precision; fp16 needs a GPU")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of all that is drawn")
    device: str = Field("cpu", description="where to train: cpu, cuda, cuda:1 or auto")
    threads: int = Field(1, ge=1, le=1024, description="of the CPU; small generators are slower with more")
    compile: bool = Field(False, description="compile what is trained: pays for one target and many steps")
    max_bad: int = Field(20, ge=1, description="steps in a row that may be skipped because a number is not finite")
    log_every: int = Field(10, ge=1, description="steps between two lines of metrics")
    tracker: str | None = Field(None, description="also tell metrics to tensorboard, wandb or the like")

    @property
    def identity(self) -> dict[str, object]:
        """What the trained weights depend on, as plain data."""
        return self.model_dump(mode="json", exclude={"log_every", "tracker"})

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by at a step, the first being 0.

        >>> course = Course(steps=6, warmup=2, schedule="linear")
        >>> [course.factor(step) for step in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        past = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.schedule == "constant":
            return 1.0
        return 1 - past if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * past))

    def for_turn(self, own: Mapping[str, object], turn: str) -> Course:
        """This course with what the objective sets for a turn."""
        other = next((name for name in own if name not in PER_TURN), None)
        if other is not None:
            raise InvalidInput(f"the turn {turn} sets {other}", f"a turn may set {', '.join(PER_TURN)}")
        return validated(Course, {**self.model_dump(), **own}, f"the turn {turn}")

    def optimiser(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimiser."""
        import torch

        listed, decay = list(parameters), self.weight_decay
        if self.optimizer == "sgd":
            return torch.optim.SGD(listed, lr=self.lr, momentum=self.momentum, weight_decay=decay)
        kind = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        fused = all(parameter.device.type == "cpu" for parameter in listed)  # tiny models wait for their optimiser most
        return kind(listed, lr=self.lr, weight_decay=decay, fused=fused)
