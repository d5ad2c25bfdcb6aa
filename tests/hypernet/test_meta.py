"""Learned initialisations: gradients of MAML, FOMAML and Reptile against what they are on paper, and in training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.objectives.maml import MAML, MAMLObjective
from paramsmith.hypernet.objectives.reptile import Reptile, ReptileObjective
from paramsmith.hypernet.protocols import Batch, Condition, Episode, Run, Site
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.training.adaptation import adapt, gather, held_out, loss_of
from paramsmith.hypernet.training.loop import Course, fit

pytestmark = pytest.mark.usefixtures("one_thread")

CURVES = torch.tensor([[1.0, 3.0], [2.0, 0.5], [0.5, 1.5]])  # (tasks, 2), second derivatives
MIDDLES = torch.tensor([[1.0, -2.0], [0.0, 4.0], [-3.0, 1.0]])
LR, STEPS = 0.1, 3


class Point(nn.Module):
    """A target that is its two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.7]))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


@dataclass
class Bowls:
    """Task i: sum of curve_i (w - middle_i)^2 / 2. Episodes come in order."""

    target: Target = field(default_factory=lambda: Target.of(Point()))
    count: int = 0

    def episode(self, rng: torch.Generator, split: str = "train") -> Episode:
        i = self.count % len(CURVES)
        self.count += 1
        batch = {"curve": CURVES[i], "middle": MIDDLES[i]}
        return Episode(self.target, {}, batch, batch)

    def loss(self, run: Run, batch: Batch) -> Tensor:
        return (batch["curve"] * (run(torch.ones(2)) - batch["middle"]).square()).sum() / 2

    def score(self, run: Run, batch: Batch) -> Tensor:
        return -self.loss(run, batch)


class Net(nn.Module):
    """A curve of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layers(x)
        return made


@dataclass
class Waves:
    """Sines of any phase, 10 points to adapt on, 10 to be judged by."""

    target: Target = field(default_factory=lambda: Target.of(Net()))
    asked: bool = False  # whether the phase is told

    def episode(self, rng: torch.Generator, split: str = "train") -> Episode:
        phase = torch.rand(1, generator=rng)
        x = 6 * torch.rand(20, 1, generator=rng) - 3
        y = torch.sin(x + 3 * phase)
        told: Condition = {"vector": phase} if self.asked else {}
        return Episode(self.target, told, {"x": x[10:], "y": y[10:]}, {"x": x[:10], "y": y[:10]})

    def loss(self, run: Run, batch: Batch) -> Tensor:
        return (run(batch["x"]) - batch["y"]).square().mean()

    def score(self, run: Run, batch: Batch) -> Tensor:
        return -self.loss(run, batch)


def start(preset: str, target: Target, **options: Any) -> Hypernetwork:
    return Generator.build(preset, spec=target.spec, **options).hypernetwork


def weight_of(hypernetwork: Hypernetwork) -> Tensor:
    return hypernetwork({})["weight"][0]


def slope(objective: MAMLObjective | ReptileObjective, weights: Tensor) -> Tensor:
    """Of the objective's loss by the generated weights."""
    loss = objective.loss(0, torch.Generator().manual_seed(0))
    parameters = [p for p in objective.hypernetwork.parameters() if p.shape == weights.shape]
    (found,) = torch.autograd.grad(loss, parameters)
    return found


def test_adapting_is_gradient_descent() -> None:
    weights = {"w": torch.tensor([2.0, -1.0])}
    found = adapt(lambda held: (CURVES[0] * held["w"].square()).sum() / 2, weights, LR, STEPS)
    torch.testing.assert_close(found["w"], weights["w"] * (1 - LR * CURVES[0]) ** STEPS)


def test_steps_may_differ_by_tensor_and_be_learned() -> None:
    lr = {"a": torch.tensor(0.5, requires_grad=True), "b": torch.tensor([0.0, 1.0])}
    weights = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([1.0, 1.0])}
    found = adapt(lambda held: (held["a"].square() + held["b"].square()).sum() / 2, weights, lr, 2)
    torch.testing.assert_close(found["a"], torch.tensor([0.25, 0.25]))
    torch.testing.assert_close(found["b"], torch.tensor([1.0, 0.0]))
    (by_lr,) = torch.autograd.grad(found["a"].sum(), lr["a"])
    torch.testing.assert_close(by_lr, torch.tensor(2 * -2 * 0.5))  # of 2 (1 - lr)^2
    with pytest.raises(InvalidInput, match="no step size for b"):
        adapt(lambda held: held["b"].sum(), weights, {"a": torch.tensor(1.0)}, 1)


def test_the_gradient_of_maml_is_that_on_paper() -> None:
    task = Bowls()
    made = start("maml", task.target)
    weights = weight_of(made)
    found = slope(MAMLObjective(MAML(lr=LR, steps=STEPS, meta_batch=3), made, task), weights)
    expected = (CURVES * (1 - LR * CURVES) ** (2 * STEPS) * (weights - MIDDLES)).mean(0)
    torch.testing.assert_close(found, expected)


def test_the_first_order_gradient_lacks_the_derivative_of_the_steps() -> None:
    task = Bowls()
    made = start("fomaml", task.target)
    weights = weight_of(made)
    found = slope(MAMLObjective(MAML(lr=LR, steps=STEPS, meta_batch=3, first_order=True), made, task), weights)
    expected = (CURVES * (1 - LR * CURVES) ** STEPS * (weights - MIDDLES)).mean(0)
    torch.testing.assert_close(found, expected)


def test_reptile_moves_towards_the_mean_of_what_tasks_lead_to() -> None:
    task = Bowls()
    made = start("reptile", task.target)
    weights = weight_of(made)
    found = slope(ReptileObjective(Reptile(lr=LR, steps=STEPS, meta_batch=3), made, task), weights)
    adapted = MIDDLES + (1 - LR * CURVES) ** STEPS * (weights - MIDDLES)
    torch.testing.assert_close(found, weights.detach() - adapted.mean(0).detach())


@pytest.mark.parametrize("first_order", [False, True])
def test_side_by_side_is_one_after_another(first_order: bool) -> None:
    task = Waves()
    options = MAML(lr=0.1, steps=2, meta_batch=3, first_order=first_order)
    objective = MAMLObjective(options, start("maml", task.target), task)
    together = objective.loss(0, torch.Generator().manual_seed(5))
    rng, one_by_one = torch.Generator().manual_seed(5), []
    for _ in range(3):
        episode = task.episode(rng)
        weights = {name: value[0] for name, value in objective.hypernetwork({}).items()}
        adapted = adapt(loss_of(task.loss, task.target, episode.support), weights, 0.1, 2, first_order)
        one_by_one.append(loss_of(task.loss, task.target, episode.query)(adapted))
    apart = torch.stack(one_by_one).mean()
    torch.testing.assert_close(together, apart)
    parameters = [p for name, p in objective.hypernetwork.named_parameters() if name.startswith("base")]
    for found, expected in zip(
        torch.autograd.grad(together, parameters), torch.autograd.grad(apart, parameters), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_a_generator_with_a_condition_is_adapted_from_what_it_makes_of_it() -> None:
    task = Waves(asked=True)
    site = Site(0, task.target.spec, {"vector": (1,)})
    made = Generator.build("mip", site).hypernetwork
    objective = MAMLObjective(MAML(lr=0.1, steps=1, meta_batch=2), made, task)
    together = objective.loss(0, torch.Generator().manual_seed(1))
    rng, apart = torch.Generator().manual_seed(1), []
    for episode in (task.episode(rng), task.episode(rng)):
        asked = {name: value[None] for name, value in episode.condition.items()}
        weights = {name: value[0] for name, value in made(asked).items()}
        adapted = adapt(loss_of(task.loss, task.target, episode.support), weights, 0.1, 1)
        apart.append(loss_of(task.loss, task.target, episode.query)(adapted))
    torch.testing.assert_close(together, torch.stack(apart).mean())


def test_the_tail_of_the_support_judges_in_place_of_the_query() -> None:
    task = Waves()
    (group,) = gather(task, torch.Generator().manual_seed(0), 3)
    seen, unseen = held_out(group, 4)
    assert seen["x"].shape == (3, 6, 1)
    torch.testing.assert_close(torch.cat([seen["x"], unseen["x"]], 1), group.support["x"])
    with pytest.raises(InvalidInput, match="no more than 10 examples"):
        held_out(group, 10)
    objective = MAMLObjective(
        MAML(lr=0.1, steps=2, meta_batch=1, first_order=True, tail=4), start("maml", task.target), task
    )
    found = objective.loss(0, torch.Generator().manual_seed(0))
    support = task.episode(torch.Generator().manual_seed(0)).support
    head, tail = ({name: value[part] for name, value in support.items()} for part in (slice(6), slice(6, None)))
    weights = {name: value[0] for name, value in objective.hypernetwork({}).items()}
    adapted = adapt(loss_of(task.loss, task.target, head), weights, 0.1, 2)
    torch.testing.assert_close(found, loss_of(task.loss, task.target, tail)(adapted))
    design = Generator.build("fomaml", spec=task.target.spec, tail=4).design()
    assert design.objective.options["tail"] == 4
    assert design.objective.options["first_order"] is True


def test_episodes_of_unlike_shapes_are_gathered_apart() -> None:
    task, sizes = Waves(), iter((3, 5, 3))

    class Ragged(Waves):
        def episode(self, rng: torch.Generator, split: str = "train") -> Episode:
            found, n = task.episode(rng, split), next(sizes)
            return Episode(found.target, {}, found.query, {k: v[:n] for k, v in found.support.items()})

    groups = gather(Ragged(), torch.Generator().manual_seed(0), 3)
    assert [(group.count, group.support["x"].shape[1]) for group in groups] == [(2, 3), (1, 5)]


def after(task: Waves, hypernetwork: Hypernetwork, steps: int) -> float:
    """The mean loss of unseen waves after some steps of adapting."""
    objective = MAMLObjective(MAML(lr=0.05, steps=steps, meta_batch=64), hypernetwork, task)
    return objective.loss(0, torch.Generator().manual_seed(77)).item()


@pytest.mark.parametrize(("preset", "objective"), [("maml", "maml"), ("fomaml", "maml"), ("reptile", "reptile")])
def test_training_makes_a_start_that_adapts_better(preset: str, objective: str) -> None:
    task = Waves()
    generator = Generator.build(preset, spec=task.target.spec, lr=0.05, steps=3, meta_batch=8)
    design = generator.design()
    assert design.objective.name == objective
    before = after(task, generator.hypernetwork, 3)
    made: MAMLObjective | ReptileObjective
    if objective == "maml":
        made = MAMLObjective(MAML(**design.objective.options), generator.hypernetwork, task)  # type: ignore[arg-type]
    else:
        made = ReptileObjective(Reptile(**design.objective.options), generator.hypernetwork, task)  # type: ignore[arg-type]
    fit(generator.hypernetwork, made, Course(**{**design.course, "steps": 60, "lr": 0.01}))  # type: ignore[arg-type]
    assert after(task, generator.hypernetwork, 3) < 0.6 * before


def test_what_is_no_task_or_no_one_target_is_told() -> None:
    task = Waves()
    with pytest.raises(InvalidInput, match="'maml' learns from tasks"):
        MAMLObjective(MAML(), start("maml", task.target), object())
    with pytest.raises(InvalidInput, match="'reptile' learns from tasks"):
        ReptileObjective(Reptile(), start("reptile", task.target), object())
    for preset in ("maml", "fomaml", "reptile"):
        with pytest.raises(InvalidInput, match="for one target"):
            Generator.build(preset)
