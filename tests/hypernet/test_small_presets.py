"""The presets mip, doh and stn: what they are made of, what the first weights are, that they learn, that they last."""

from __future__ import annotations

import json
import math
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.protocols import Episode, Site, Task
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.training.loop import Course, fit
from paramsmith.hypernet.training.tasks import Classification, FunctionTask
from paramsmith.params import validated
from paramsmith.parts import generators, objectives

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "mip_hyperlight_behaviour.json").read_text())
PLAIN = {"encoding": "raw", "base": "zeros", "init": "fan_in"}
SPEC = TargetSpec(  # the oracle's target
    (
        Slot("fc1.weight", (8, 4), "F32", "matrix", 4),
        Slot("fc1.bias", (8,), "F32", "bias", 4),
        Slot("fc2.weight", (3, 8), "F32", "head", 8, class_axis=0),
        Slot("fc2.bias", (3,), "F32", "bias", 8, class_axis=0),
    )
)
SITES = {"mip": Site(0, SPEC, {"vector": (1,)}), "doh": Site(0, SPEC), "stn": Site(0, SPEC, {"vector": (2,)})}
each = pytest.mark.parametrize("preset", SITES)


def mip(seed: int = 0, **options: Any) -> Hypernetwork:
    return Generator.build("mip", SITES["mip"], seed=seed, hidden=(16, 64), **options).hypernetwork


def asked(value: float) -> dict[str, Tensor]:
    return {"vector": torch.tensor([[value]])}


def objective_of(generator: Generator, task: Task) -> Any:
    chosen = generator.design().objective
    part = objectives.find(chosen.name)
    return part.make(validated(part.params, chosen.options, chosen.name), generator.hypernetwork.train(), task)


# All three


@each
def test_what_is_saved_is_what_was_built(preset: str, tmp_path: Path) -> None:
    site = SITES[preset]
    made = Generator.build(preset, site, seed=3)
    made.save_pretrained(tmp_path)
    again = Generator.from_pretrained(tmp_path)
    condition = {name: torch.full((2, *shape), 0.25) for name, shape in site.condition.items()}
    for (name, a), b in zip(made.hypernetwork(condition).items(), again.hypernetwork(condition).values(), strict=True):
        assert a.shape == (2 if condition else 1, *next(s.shape for s in SPEC.slots if s.name == name))
        assert torch.equal(a, b)
    assert again.design() == made.design()


@each
def test_seeds_and_torchs_own_generator(preset: str) -> None:
    state = torch.random.get_rng_state()
    a, b, c = (Generator.build(preset, SITES[preset], seed=seed).hypernetwork.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


@each
def test_a_preset_without_a_target_says_so(preset: str) -> None:
    with pytest.raises(InvalidInput, match="one target"):
        Generator.build(preset, Site(0, None, SITES[preset].condition))


@each
def test_every_option_is_documented_and_changes_nothing_by_being_said(preset: str) -> None:
    part = generators.find(preset)
    assert all(field.description for field in part.params.model_fields.values())
    said = part.params.model_validate(part.params().model_dump())
    assert part.make(said, SITES[preset]) == part.make(part.params(), SITES[preset])


# MIP


def test_mip_has_the_tensors_of_the_reference() -> None:
    """theta0 is our base, where the reference has the bias of its last layer; each tensor has a head of its own."""
    made, told = mip(), ORACLE["module_state"]
    assert sum(p.numel() for p in made.parameters()) == ORACLE["n_params"]
    body = [list(p.shape) for p in made.encoder.parameters()]
    assert body == [shape for name, shape in told.items() if "output" not in name]
    heads = list(made.decoder.parameters())
    assert sum(head.numel() for head in heads) == prod(told["backbone.output.weight"])
    assert {head.shape[-1] for head in heads} == {told["backbone.output.weight"][1]}
    assert sum(p.numel() for p in made.base.parameters()) == told["backbone.output.bias"][0]


@cache
def spreads(plain: bool = False) -> dict[tuple[str, float], tuple[float, float]]:
    """Of each tensor and condition the standard deviation: its mean over 64 seeds, and the error of that."""
    values = [0.0, 0.1, 0.5, 1.0]
    found: dict[tuple[str, float], list[Tensor]] = {}
    for seed in range(64):
        made = mip(seed, **(PLAIN if plain else {}))({"vector": torch.tensor(values)[:, None]})
        for name, tensor in made.items():
            for value, own in zip(values, tensor, strict=True):
                found.setdefault((name, value), []).append(own.detach().std())
    stacked = {key: torch.stack(stds) for key, stds in found.items()}
    return {key: (v.mean().item(), v.std().item() / 8) for key, v in stacked.items()}


@pytest.mark.parametrize("value", ORACLE["weight_std_vs_gamma_MIP"])
def test_mip_weights_have_the_spread_of_the_reference(value: str) -> None:
    for name, want in ORACLE["weight_std_vs_gamma_MIP"][value].items():
        mean, error = spreads()[name, float(value)]
        assert abs(mean - want) < 3.5 * math.sqrt(2) * error, name  # both are means over 64 seeds


@pytest.mark.parametrize("value", ORACLE["weight_std_vs_gamma_default"])
def test_plain_weights_have_the_spread_of_the_reference(value: str) -> None:
    """Times sqrt(2): its last layer has no gain."""
    for name, want in ORACLE["weight_std_vs_gamma_default"][value].items():
        mean, error = spreads(plain=True)[name, float(value)]
        assert abs(mean - want * math.sqrt(2)) <= 3.5 * math.sqrt(2) * error, name


def test_plain_weights_grow_with_the_condition_and_mips_do_not() -> None:
    ratio = ORACLE["proportionality_check_no_encoding"]["expected"]
    for seed in range(3):
        plain, made = mip(seed, **PLAIN), mip(seed)
        for name, tensor in plain(asked(0.8)).items():
            torch.testing.assert_close(tensor, ratio * plain(asked(0.2))[name])
            assert not plain(asked(0.0))[name].any()
        together = [torch.cat([t.flatten() for t in made(asked(g)).values()]) for g in (0.0, 0.2, 0.5, 0.8, 1.0)]
        norms = torch.stack(together).detach().norm(dim=1)
        assert norms.max() / norms.min() < 1.5


@pytest.mark.parametrize(
    ("options", "learned"),
    [({"encoding": "pair"}, 5491), ({"encoding": "unit"}, 5475), ({"base": "zeros"}, 5491), (PLAIN, 5475)],
)
def test_ablations_are_an_option_each(options: dict[str, Any], learned: int) -> None:
    """A raw input has one number in place of two; without theta0 the heads have a bias, as many numbers."""
    made = mip(**options)
    assert sum(p.numel() for p in made.parameters()) == learned
    assert all(tensor.isfinite().all() for tensor in made(asked(0.5)).values())


def test_mip_on_a_checkpoint(tmp_path: Path) -> None:
    told = {slot.name: torch.full(slot.shape, 3.0) for slot in SPEC.slots}
    save_file(told, tmp_path / "model.safetensors")
    made = mip(base="checkpoint", checkpoint=str(tmp_path / "model.safetensors"))
    assert str(tmp_path) not in json.dumps(made.config, default=str)
    for name, tensor in mip()(asked(0.3)).items():
        other = made(asked(0.3))[name] - tensor
        assert other.isfinite().all()
    assert all(p.requires_grad and torch.equal(p, torch.full_like(p, 3.0)) for p in made.base.parameters())
    with pytest.raises(InvalidInput, match="is given no checkpoint"):
        mip(base="checkpoint")


def rotated(x: Tensor, condition: Any) -> Tensor:
    """Digits (n, 64) turned by up to 180 degrees."""
    angle = condition["vector"][0] * math.pi
    turn = torch.stack([angle.cos(), -angle.sin(), 0 * angle, angle.sin(), angle.cos(), 0 * angle]).view(1, 2, 3)
    grid = nn.functional.affine_grid(turn.expand(len(x), 2, 3), (len(x), 1, 8, 8), align_corners=False)
    return nn.functional.grid_sample(x.view(-1, 1, 8, 8), grid, align_corners=False).flatten(1)


def digits() -> Classification:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    target = Target.of(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), capture=False)
    drawn = lambda rng: {"vector": torch.rand(1, generator=rng)}  # noqa: E731
    return Classification(target, x[:1400], y[:1400], x[1400:], y[1400:], 16, condition=drawn, change=rotated)


@pytest.mark.slow
def test_mip_learns_in_half_the_steps() -> None:
    """Rotated digits: after 100 steps MIP has 80 %, which takes a plain hypernetwork more than 150."""
    task = digits()
    found = {}
    for name, options, steps in (("mip", {}, 100), ("plain", PLAIN, 150)):
        made = Generator.build(
            "mip", spec=task.target.spec, condition={"vector": (1,)}, hidden=(16, 64), meta_batch=16, **options
        )
        fit(made.hypernetwork, objective_of(made, task), Course(steps=steps, **made.design().course))
        found[name] = accuracy(made.hypernetwork, task)
    assert found["mip"] > 0.8
    assert found["plain"] < 0.8


@torch.no_grad()
def accuracy(hypernetwork: Hypernetwork, task: Classification) -> float:
    scores = []
    for turn in torch.linspace(0, 1, 5):
        weights = {name: tensor[0] for name, tensor in hypernetwork(asked(turn.item())).items()}
        right = task.target.call(weights, rotated(task.x_test, {"vector": turn.view(1)})).argmax(-1) == task.y_test
        scores.append(right.float().mean())
    return torch.stack(scores).mean().item()


# D'OH


@pytest.mark.parametrize(
    ("options", "latents"), [({}, 20), ({"budget": 1.0}, 67), ({"latents": 5}, 5), ({"budget": 1e-6}, 1)]
)
def test_doh_learns_a_code_and_nothing_else(options: dict[str, Any], latents: int) -> None:
    made = Generator.build("doh", SITES["doh"], **options).hypernetwork
    assert [p.numel() for p in made.parameters()] == [latents]
    assert [tensor.numel() for tensor in made.state_dict().values()] == [latents]
    assert all(tensor.isfinite().all() for tensor in made({}).values())


def test_doh_begins_with_the_spread_of_its_target() -> None:
    spec = TargetSpec((Slot("a", (100, 50), "F32", "matrix", 50), Slot("b", (100, 50), "F32", "matrix", 50, 0.3)))
    made = Generator.build("doh", spec=spec, latents=2000).hypernetwork({})
    assert made["a"].std().item() == pytest.approx(1 / math.sqrt(150), rel=0.04)
    assert made["b"].std().item() == pytest.approx(0.3, rel=0.04)


def test_doh_of_a_target_too_large_for_its_budget() -> None:
    spec = TargetSpec((Slot("a", (1000, 1000), "F32", "matrix", 1000),))
    with pytest.raises(InvalidInput, match=r"a budget of 0\.3 of 1,000,000 numbers is a code of 300,000"):
        Generator.build("doh", spec=spec)


@pytest.mark.parametrize("kind", ["dense", "rademacher", "sparse"])
def test_doh_learns_a_signal(kind: str) -> None:
    """100 numbers for a network of 337 follow a sine, which the first weights do not."""
    x = torch.linspace(-1, 1, 64)[:, None]
    y = torch.sin(4 * x)
    target = Target.of(
        nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)), capture=False
    )
    task = FunctionTask(
        lambda rng, split: Episode(target, {}, {"x": x, "y": y}),
        lambda run, batch: (run(batch["x"]) - batch["y"]).square().mean(),
    )
    made = Generator.build("doh", spec=target.spec, kind=kind)
    told = fit(made.hypernetwork, objective_of(made, task), Course(steps=150, **made.design().course))
    assert told.losses[0] > 0.3
    assert told.losses[-1] < 0.02


# STN


def test_stn_is_its_layers() -> None:
    made = Generator.build("stn", SITES["stn"], draws=4, std=0.02)
    numbers = sum(prod(slot.shape) for slot in SPEC.slots)
    rows = sum(slot.shape[0] for slot in SPEC.slots)
    assert sum(p.numel() for p in made.hypernetwork.parameters()) == 2 * numbers + 2 * rows + 2  # two layers' s
    design = made.design()
    assert design.objective.name == "self_tuning"
    assert design.objective.options["draws"] == 4
    assert "std" not in design.objective.options
