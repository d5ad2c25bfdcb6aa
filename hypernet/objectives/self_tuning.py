"""Self-tuning: weights that answer to hyperparameters, trained in turns with the hyperparameters themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.protocols import Batch, Task
from paramsmith.hypernet.training.adaptation import loss_of
from paramsmith.hypernet.training.hyperparameters import Hyperparameter, entropy, inverse_softplus
from paramsmith.params import Params
from paramsmith.parts import objectives

TRAIN, VALIDATION = "train", "validation"
WEIGHTS, HYPER = "weights", "hyperparameters"  # the turns


@runtime_checkable
class TunableTask(Task, Protocol):
    """A task with hyperparameters that act while it is trained: dropout, augmentation, noise, smoothing.

    They must enter as numbers that the loss reads: what an optimiser does, such as its learning rate, cannot be tuned.

    An episode is a batch, its query, of the split "train" or "validation", always for the same target; its condition
    is `vector`, a number for each hyperparameter, whatever it be. In training, `loss` gets a batch of some examples
    with, beside them, each hyperparameter under its name, a scalar. Without them it is validation, and nothing is
    dropped or altered. What is random in it draws from torch's own generator.
    """

    @property
    def hyperparameters(self) -> Mapping[str, Hyperparameter]:
        """By name, in the order of the condition."""
        ...


class SelfTuning(Params):
    """Options of the objective `self_tuning`."""

    train_steps: int = Field(2, ge=1, description="steps of the weights in a row")
    val_steps: int = Field(1, ge=1, description="steps of the hyperparameters in a row, after them")
    warmup: int = Field(0, ge=0, description="steps of the weights before the first of the hyperparameters")
    draws: int = Field(0, ge=0, description="perturbations a batch, each with weights of its own; 0: one an example")
    tune_scales: bool = Field(True, description="also learn how far the hyperparameters are perturbed")
    entropy_weight: float = Field(1e-3, ge=0, allow_inf_nan=False, description="pull towards wide perturbations")
    hyper_lr: float = Field(3e-3, gt=0, allow_inf_nan=False, description="learning rate of hyperparameters, by Adam")


@dataclass(frozen=True)
class Tuned:
    """What the hyperparameters came to."""

    values: Mapping[str, float]  # constrained: a dropout rate is one
    condition: Tensor  # (1, hyperparameters), what the generator is asked for to make the final weights
    scales: Mapping[str, float]  # standard deviations of the perturbations, unconstrained


@objectives("self_tuning", SelfTuning, paper="arXiv:1903.03088")
class SelfTuningObjective:
    """A self-tuning network: weights w(lam) that follow the hyperparameters, and lam that follows the validation loss.

    weights:          minimise over w    E_eps training loss(w(lam + softplus(sigma) eps), lam + softplus(sigma) eps)
    hyperparameters:  minimise over lam, sigma    E_eps validation loss(w(lam + softplus(sigma) eps)) - tau entropy

    lam and sigma are unconstrained, eps is standard normal and drawn anew for every example, so a batch of n examples
    needs memory for n times the target's parameters; with `draws` d it is cut into d parts of one draw each.
    MacKay et al., 2019, arXiv:1903.03088.
    """

    def __init__(self, options: SelfTuning, hypernetwork: Hypernetwork, source: object) -> None:
        if not isinstance(source, TunableTask):
            hint = "give the task hyperparameters: {name: Hyperparameter(start, low, high)}"
            raise InvalidInput("the objective 'self_tuning' learns from a task with hyperparameters", hint)
        self.options, self.hypernetwork, self.task = options, hypernetwork, source
        self.known = dict(source.hyperparameters)
        if not self.known:
            raise InvalidInput("the task has no hyperparameters to tune", "give it one, or train it as it is")
        device = next(hypernetwork.parameters()).device
        starts = [one.unconstrained() for one in self.known.values()]
        scales = torch.tensor([one.scale for one in self.known.values()], device=device)
        self.unconstrained = nn.Parameter(torch.tensor(starts, device=device))  # (hyperparameters)
        self.sigma = nn.Parameter(inverse_softplus(scales))  # (hyperparameters)

    def turns(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """The weights, and the hyperparameters with what they are perturbed by."""
        scales = [self.sigma] if self.options.tune_scales else []
        return {WEIGHTS: self.hypernetwork.parameters(), HYPER: [self.unconstrained, *scales]}

    def optimisers(self) -> Mapping[str, Mapping[str, object]]:
        """Adam for the hyperparameters, whatever the course is for the weights."""
        return {HYPER: {"optimizer": "adam", "lr": self.options.hyper_lr, "weight_decay": 0.0, "schedule": "constant"}}

    def turn(self, step: int) -> str:
        """The weights until the warm-up is over, then in turns."""
        past = step - self.options.warmup
        cycle = self.options.train_steps + self.options.val_steps
        return HYPER if past >= 0 and past % cycle >= self.options.train_steps else WEIGHTS

    def loss(self, step: int, rng: torch.Generator) -> Tensor:
        """The loss of whose turn it is."""
        if self.turn(step) == WEIGHTS:
            scales = functional.softplus(self.sigma.detach())
            return self._mean_loss(self.unconstrained.detach(), scales, TRAIN, rng)
        if not self.options.tune_scales:
            return self._mean_loss(self.unconstrained, None, VALIDATION, rng)
        scales = functional.softplus(self.sigma)
        wide = self.options.entropy_weight * entropy(scales)
        return self._mean_loss(self.unconstrained, scales, VALIDATION, rng) - wide

    def told(self) -> Mapping[str, float]:
        """The hyperparameters as they are now, for a line of metrics."""
        return self.result().values

    def result(self) -> Tuned:
        """The hyperparameters as they are now; `hypernetwork({"vector": condition})` are the weights that suit them."""
        held = self.unconstrained.detach()
        scales = functional.softplus(self.sigma.detach()).tolist()
        values = {name: one.item() for name, one in self._constrained(held).items()}
        return Tuned(values, held[None].clone(), dict(zip(self.known, scales, strict=True)))

    def _mean_loss(self, centre: Tensor, scales: Tensor | None, split: str, rng: torch.Generator) -> Tensor:
        """The mean over draws (one where nothing is perturbed), each with its part of the batch."""
        episode = self.task.episode(rng, split)
        device = centre.device
        draws = 1 if scales is None else self._draws(episode.query)
        asked = centre.expand(draws, -1)  # (draws, hyperparameters)
        if scales is not None:
            noise = torch.randn(draws, len(self.known), generator=rng, device=rng.device).to(device)
            asked = asked + scales * noise
        weights = self.hypernetwork({"vector": asked}, episode.target.spec)
        parts = {name: value.to(device).reshape(draws, -1, *value.shape[1:]) for name, value in episode.query.items()}
        if split == TRAIN:
            parts |= self._constrained(asked)

        def each(own: Mapping[str, Tensor], batch: Batch) -> Tensor:
            return loss_of(self.task.loss, episode.target, batch)(own)

        return torch.vmap(each, randomness="different")(weights, parts).mean()

    def _constrained(self, unconstrained: Tensor) -> dict[str, Tensor]:
        columns = unconstrained.unbind(-1)
        return {name: one.constrained(x) for (name, one), x in zip(self.known.items(), columns, strict=True)}

    def _draws(self, batch: Batch) -> int:
        """How many perturbations a batch is given."""
        name, first = next(iter(batch.items()))
        examples = len(first)
        draws = self.options.draws or examples
        if examples % draws:
            fact = f"a batch has {examples} examples ({printable(name)}), which {draws} draws cannot share evenly"
            raise InvalidInput(fact, "choose draws to divide the batch")
        return draws
