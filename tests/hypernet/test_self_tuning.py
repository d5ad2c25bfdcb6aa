"""Self-tuning: hyperparameters as unconstrained numbers, whose turn it is, and where both turns lead."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.objectives.self_tuning import HYPER, WEIGHTS, SelfTuning, SelfTuningObjective
from paramsmith.hypernet.protocols import Batch, Episode, Run
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.training.hyperparameters import (
    Hyperparameter,
    entropy,
    inverse_softplus,
    inverse_stretched_sigmoid,
    stretched_sigmoid,
)
from paramsmith.hypernet.training.learning import objective_for, train
from paramsmith.hypernet.training.loop import Course, fit

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parent.parent / "oracles" / "stn_hyperlinear.json").read_text(encoding="utf-8"))


class Number(nn.Module):
    """A target that is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


@dataclass
class Follow:
    """Training pulls the number to the hyperparameter, validation to 0.3: so the hyperparameter has to be 0.3."""

    hyperparameters: Mapping[str, Hyperparameter] = field(
        default_factory=lambda: {"place": Hyperparameter(0.8, 0.0, 1.0)}
    )
    target: Target = field(default_factory=lambda: Target.of(Number()))

    def episode(self, rng: torch.Generator, split: str = "train") -> Episode:
        assert split in ("train", "validation")
        wanted = 0.3 + 0.1 * torch.randn(8, generator=rng)
        asked = {"vector": torch.zeros(len(self.hyperparameters))}
        return Episode(self.target, asked, {"wanted": wanted})

    def loss(self, run: Run, batch: Batch) -> Tensor:
        wanted = batch.get("place", batch["wanted"])
        return (run(torch.ones(())) - wanted).square().mean()

    def score(self, run: Run, batch: Batch) -> Tensor:
        return -self.loss(run, batch)


class Noisy(nn.Module):
    """A perceptron with a dropout rate that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, rate: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        kept = torch.rand_like(hidden) >= rate
        made: Tensor = self.second(hidden * kept / (1 - rate))
        return made


@dataclass
class Drop:
    """Random labels, and a rate."""

    hyperparameters: Mapping[str, Hyperparameter] = field(
        default_factory=lambda: {"rate": Hyperparameter(0.2, 0.0, 0.9)}
    )
    target: Target = field(default_factory=lambda: Target.of(Noisy(), capture=False))
    seen: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def episode(self, rng: torch.Generator, split: str = "train") -> Episode:
        x = torch.randn(6, 3, generator=rng)
        return Episode(self.target, {"vector": torch.zeros(1)}, {"x": x, "y": (x[:, 0] > 0).long()})

    def loss(self, run: Run, batch: Batch) -> Tensor:
        self.seen.append(("rate" if "rate" in batch else "", tuple(batch["x"].shape)))
        rate = batch.get("rate", torch.zeros(()))
        return functional.cross_entropy(run(batch["x"], rate), batch["y"])

    def score(self, run: Run, batch: Batch) -> Tensor:
        return -self.loss(run, batch)


def objective(task: Any, **options: Any) -> SelfTuningObjective:
    shapes = {"vector": (len(task.hyperparameters),)}
    generator = Generator.build("stn", spec=task.target.spec, condition=shapes, **options)
    made = objective_for(generator.design(), generator, task)
    assert isinstance(made, SelfTuningObjective)
    return made


def test_the_transforms_are_those_of_the_paper() -> None:
    told = ORACLE["stretched_sigmoid"]
    found = stretched_sigmoid(torch.tensor(told["x"], dtype=torch.float32), *told["range"])
    torch.testing.assert_close(found, torch.tensor(told["y"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        inverse_softplus(torch.tensor([0.5])), torch.tensor(ORACLE["inv_softplus_of_0_5"]), atol=1e-6, rtol=0
    )
    (told_entropy,) = ORACLE["entropy_at_scale_0_5_two_hparams"]
    assert entropy(torch.tensor([0.5, 0.5])).item() == pytest.approx(told_entropy, abs=1e-6)
    normal = torch.distributions.Normal(0.0, torch.tensor([0.1, 3.0]))
    torch.testing.assert_close(entropy(torch.tensor([0.1, 3.0])), normal.entropy().sum())


@given(st.floats(0.02, 0.98), st.floats(-5, 5), st.floats(0.1, 20))
def test_a_range_comes_back_from_unconstrained_numbers(share: float, low: float, width: float) -> None:
    value = torch.tensor(low + share * width, dtype=torch.float64)
    x = inverse_stretched_sigmoid(value, low, low + width)
    assert stretched_sigmoid(x, low, low + width).item() == pytest.approx(value.item(), abs=1e-9)
    assert inverse_softplus(functional.softplus(x)).item() == pytest.approx(x.item(), abs=1e-6)


@given(st.floats(-60, 60))
def test_no_unconstrained_number_leaves_what_is_allowed(x: float) -> None:
    at = torch.tensor(x)
    low, high = torch.tensor([0.1, 0.9])
    assert low <= Hyperparameter(0.5, 0.1, 0.9).constrained(at) <= high
    assert Hyperparameter(0.5, 0.1, kind="positive").constrained(at) >= 0.1
    whole = Hyperparameter(3, 0, 24, kind="integer").constrained(at).item()
    assert whole == int(whole)
    assert 0 <= whole <= 24


@pytest.mark.parametrize("start", range(5))
def test_every_whole_number_can_be_started_from(start: int) -> None:
    one = Hyperparameter(start, 0, 4, kind="integer")
    assert one.constrained(torch.tensor(one.unconstrained())).item() == start


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"start": 0.9, "low": 0.0, "high": 0.9}, "starts at 0.9"),
        ({"start": 0.0, "kind": "positive"}, "above 0"),
        ({"start": 5, "high": 4, "kind": "integer"}, "from 0 to 4"),
        ({"start": math.inf, "kind": "positive"}, "starts at inf"),
        ({"start": 0.5, "kind": "word"}, "no kind"),
        ({"start": 0.5, "scale": 0.0}, "a scale of 0"),
    ],
)
def test_a_hyperparameter_that_cannot_be_is_told(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        Hyperparameter(**wrong)


def test_turns_are_taken_after_the_warm_up() -> None:
    made = objective(Follow(), train_steps=2, val_steps=1, warmup=3)
    turns = "".join(made.turn(step)[0] for step in range(10))
    assert turns == "www" + "wwh" * 2 + "w"
    listed = {name: list(parameters) for name, parameters in made.turns().items()}
    assert len(listed[HYPER]) == 2
    assert not {id(p) for p in listed[HYPER]} & {id(p) for p in listed[WEIGHTS]}
    assert len(list(objective(Follow(), tune_scales=False).turns()[HYPER])) == 1


def test_each_turn_has_a_gradient_for_what_it_trains() -> None:
    made = objective(Follow(), entropy_weight=0.0)
    made.loss(0, torch.Generator().manual_seed(0)).backward()
    assert made.unconstrained.grad is None
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in made.hypernetwork.parameters())
    made.loss(2, torch.Generator().manual_seed(0)).backward()
    assert made.unconstrained.grad is not None
    assert made.unconstrained.grad.abs().sum() > 0


def test_the_loss_is_the_mean_over_examples_each_with_weights_of_its_own() -> None:
    task = Follow()
    made = objective(task, std=0.5)
    found = made.loss(0, torch.Generator().manual_seed(3))
    rng = torch.Generator().manual_seed(3)
    examples = task.episode(rng).query["wanted"]
    apart = []
    for noise in torch.randn(len(examples), 1, generator=rng):
        asked = made.unconstrained.detach() + 0.5 * noise
        weight = made.hypernetwork({"vector": asked[None]})["weight"][0]
        apart.append((weight - torch.sigmoid(asked)).square().mean())
    torch.testing.assert_close(found, torch.stack(apart).mean())


def test_validation_drops_nothing_and_training_does() -> None:
    task = Drop()
    made = objective(task, draws=3)
    made.loss(0, torch.Generator().manual_seed(0))
    made.loss(2, torch.Generator().manual_seed(0))
    assert task.seen == [("rate", (2, 3)), ("", (2, 3))]
    made = objective(task, draws=4)
    with pytest.raises(InvalidInput, match="6 examples"):
        made.loss(0, torch.Generator().manual_seed(0))


def test_scales_are_pulled_by_their_entropy() -> None:
    wide, narrow = (objective(Follow(), entropy_weight=tau) for tau in (0.7, 0.0))
    with torch.no_grad():
        for each in (wide, narrow):
            for name, parameter in each.hypernetwork.named_parameters():
                if "gates" in name:
                    parameter.zero_()  # weights that do not answer: the validation loss says nothing on the scales
    losses = [each.loss(2, torch.Generator().manual_seed(1)) for each in (wide, narrow)]
    assert (losses[1] - losses[0]).item() == pytest.approx(0.7 * entropy(torch.tensor([0.5])).item())
    (slope,) = torch.autograd.grad(losses[0], wide.sigma)
    assert slope.item() == pytest.approx(-0.7 / 0.5 * torch.sigmoid(wide.sigma).item())


@pytest.mark.parametrize("tune_scales", [True, False])
def test_the_hyperparameter_comes_to_where_validation_wants_the_weights(tune_scales: bool) -> None:
    task = Follow()
    made = objective(task, hyper_lr=0.06, tune_scales=tune_scales, std=0.3)
    before = torch.get_rng_state()
    fit(made.hypernetwork, made, Course(steps=450, optimizer="sgd", lr=0.05, momentum=0.9))
    assert torch.equal(torch.get_rng_state(), before)
    result = made.result()
    assert result.values["place"] == pytest.approx(0.3, abs=0.05)
    final = made.hypernetwork({"vector": result.condition})["weight"].item()
    assert final == pytest.approx(0.3, abs=0.05)
    assert (result.scales["place"] == pytest.approx(0.5)) is not tune_scales


def test_a_preset_is_trained_to_a_saved_generator_and_what_was_tuned(tmp_path: Path) -> None:
    course = {"steps": 9, "log_every": 3}
    made = [train("stn", Drop(), tmp_path / name, course=course, options={"draws": 3}) for name in ("a", "b")]
    assert made[0].result is not None
    assert made[0].result == made[1].result
    told = json.loads((tmp_path / "a" / "result.json").read_text(encoding="utf-8"))
    lines = (tmp_path / "a" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["rate"] == told["values"]["rate"]
    assert 0 < told["values"]["rate"] < 0.9
    saved = [Generator.from_pretrained(tmp_path / name) for name in ("a", "b")]
    weights = [generator.sample({"vector": torch.tensor(told["condition"])})[0] for generator in saved]
    assert weights[0].keys() == {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_cannot_be_tuned_is_told() -> None:
    task = Follow()
    hypernetwork = objective(task).hypernetwork
    with pytest.raises(InvalidInput, match="a task with hyperparameters"):
        SelfTuningObjective(SelfTuning(), hypernetwork, object())
    with pytest.raises(InvalidInput, match="no hyperparameters to tune"):
        SelfTuningObjective(SelfTuning(), hypernetwork, Follow(hyperparameters={}))
