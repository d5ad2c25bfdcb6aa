"""The objectives `tasks` and `regression`: what a step minimises, side by side and one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.objectives.regression import Regression, RegressionObjective
from paramsmith.hypernet.objectives.tasks import Tasks, TasksObjective
from paramsmith.hypernet.protocols import Chosen, Condition, Design, Episode, Site
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.training.course import Course
from paramsmith.hypernet.training.family import family
from paramsmith.hypernet.training.loop import fit
from paramsmith.hypernet.training.tasks import Classification, FunctionTask, site_of
from paramsmith.hypernet.zoos.zoo import Zoo

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def by_a_number() -> Classification:
    """Asked for a number, which the inputs are multiplied by."""

    def drawn(generator: torch.Generator) -> Condition:
        return {"vector": torch.rand(1, generator=generator)}

    held = Target.of(network(), X[:1])
    return Classification(held, X, Y, X, Y, batch=8, condition=drawn, change=lambda x, c: x * (0.5 + c["vector"]))


def by_architecture(**options: object) -> Classification:
    held = family("mlp", inputs=4, classes=3, layers=(1, 2), widths=(5, 6), count=3, **options)
    return Classification(held, X, Y, X, Y, batch=8)


TASKS = {
    "numbers": (by_a_number, "mip", {"hidden": (4, 8)}),
    "architectures": (by_architecture, "logah", {"width": 8, "layers": 1, "heads": 2, "rank": 2, "K": 32}),
    "fresh bases": (
        by_architecture,
        "logah",
        {"width": 8, "layers": 1, "heads": 2, "rank": 2, "K": 32, "base": "standard"},
    ),
}
each_task = pytest.mark.parametrize(("make", "preset", "options"), TASKS.values(), ids=TASKS)


def generator(task: Classification, preset: str, options: Mapping[str, object]) -> Hypernetwork:
    return Generator.build(preset, site_of(task), **options).hypernetwork.train()


def slopes(hypernetwork: nn.Module, loss: Tensor) -> list[Tensor]:
    held = [p for p in hypernetwork.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, held, allow_unused=True)
    return [torch.zeros_like(p) if s is None else s for p, s in zip(held, found, strict=True)]


@pytest.mark.parametrize("name", ["numbers", "architectures"])
def test_episodes_of_one_target_are_generated_in_one_forward_pass(name: str) -> None:
    """And where nothing but the target is asked for, there is one set of weights for all of them."""
    make, preset, options = TASKS[name]
    task = make()
    hypernetwork, passes = generator(task, preset, options), list[int]()
    hypernetwork.encoder.register_forward_hook(lambda encoder, given, codes: passes.append(len(codes)))
    TasksObjective(Tasks(meta_batch=7), hypernetwork, task).loss(0, rng())
    again = rng()
    targets = {id(task.episode(again).target) for _ in range(7)}
    assert passes == ([7] if name == "numbers" else [1] * len(targets))


@each_task
def test_side_by_side_is_one_after_the_other(make: type, preset: str, options: Mapping[str, object]) -> None:
    """And both are the mean over the episodes, drawn and generated for by hand."""
    task = make()
    hypernetwork = generator(task, preset, options)
    found = [
        TasksObjective(Tasks(meta_batch=7, vmap=vmap, norm_penalty=0.01), hypernetwork, task).loss(0, rng())
        for vmap in (True, False)
    ]
    again = rng()
    episodes = [task.episode(again) for _ in range(7)]
    expected = torch.zeros(())
    groups: dict[int, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(id(episode.target), []).append(episode)
    for group in groups.values():
        seeds = torch.randint(2**62, (len(group),), generator=again).tolist()
        for episode, seed in zip(group, seeds, strict=True):
            condition = {name: tensor[None] for name, tensor in episode.condition.items()}
            made = {n: w[0] for n, w in hypernetwork(condition, episode.target.spec, [seed]).items()}
            penalty = sum((w.norm() for w in made.values()), torch.zeros(()))
            expected = expected + (task.loss(partial(episode.target.call, made), episode.query) + 0.01 * penalty) / 7
    for loss in found:
        torch.testing.assert_close(loss, expected)
    for a, b, c in zip(*(slopes(hypernetwork, loss) for loss in (*found, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(a, c, atol=1e-6, rtol=1e-4)


def test_one_generation_serves_all_episodes_of_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing but the target is asked for."""
    task = by_architecture()
    hypernetwork = generator(task, "logah", TASKS["architectures"][2])
    calls: list[str] = []
    forward = type(hypernetwork).forward

    def counted(self: Hypernetwork, condition: Condition, spec: object, seeds: object) -> object:
        calls.append("generated")
        return forward(self, condition, spec, seeds)  # type: ignore[arg-type]

    monkeypatch.setattr(type(hypernetwork), "forward", counted)
    TasksObjective(Tasks(meta_batch=12), hypernetwork, task).loss(0, rng())
    drawn = rng()
    assert len(calls) == len({id(task.episode(drawn).target) for _ in range(12)})


def test_targets_of_equal_shapes_are_not_mixed_up() -> None:
    """Two networks that differ in an activation alone have equal specs, and each is run as itself."""
    targets = [Target.of(nn.Sequential(nn.Linear(4, 5), act, nn.Linear(5, 3)), X[:1]) for act in (nn.Tanh(), nn.ReLU())]
    assert targets[0].spec.hash == targets[1].spec.hash

    def draw(generator: torch.Generator, split: str) -> Episode:
        which = int(torch.randint(2, (), generator=generator))
        return Episode(targets[which], {}, {"x": X, "y": Y})

    task = FunctionTask(draw, lambda run, batch: nn.functional.cross_entropy(run(batch["x"]), batch["y"]))
    hypernetwork = Generator.build("mip", Site(0, targets[0].spec, {"vector": (1,)})).hypernetwork

    def asked(generator: torch.Generator, split: str) -> Episode:
        found = draw(generator, split)
        return Episode(found.target, {"vector": torch.ones(1)}, found.query)

    task = FunctionTask(asked, task.measure)
    loss = TasksObjective(Tasks(meta_batch=6), hypernetwork, task).loss(0, rng())
    made = {n: w[0] for n, w in hypernetwork({"vector": torch.ones(1, 1)}).items()}
    drawn = rng()
    picks = [asked(drawn, "train").target for _ in range(6)]
    each = [task.loss(partial(pick.call, made), {"x": X, "y": Y}) for pick in picks]
    torch.testing.assert_close(loss, torch.stack(each).mean())


def test_a_task_is_learned() -> None:
    task = by_a_number()
    hypernetwork = generator(task, "mip", {"hidden": (8, 16)})
    objective = TasksObjective(Tasks(meta_batch=4), hypernetwork, task)
    report = fit(hypernetwork, objective, Course(steps=60, lr=0.01, optimizer="adam"))
    assert sum(report.losses[-5:]) < 0.6 * sum(report.losses[:5])


def run_with(measure: object, **options: object) -> Tensor:
    held = Target.of(network(), X[:1])
    task = FunctionTask(lambda generator, split: Episode(held, {}, {"x": X}), measure)  # type: ignore[arg-type]
    design = Design(4, Chosen("empty"), Chosen("none"), Chosen("learned"), Chosen("none"), Chosen("tasks"))
    hypernetwork = Hypernetwork.of(design, Site(4, held.spec))
    return TasksObjective(Tasks(meta_batch=3, **options), hypernetwork, task).loss(0, rng())  # type: ignore[arg-type]


def test_wrong_losses() -> None:
    """What the user's function gives or raises is said, side by side or not."""
    with pytest.raises(Failed, match=r"the task's loss is a tensor of \[40, 3\]"):
        run_with(lambda run, batch: run(batch["x"]))
    with pytest.raises(Failed, match="the task's loss is float"):
        run_with(lambda run, batch: 3.0, vmap=False)
    with pytest.raises(Failed, match=r"the task's loss, run for several episodes by torch\.vmap, raised"):
        run_with(lambda run, batch: torch.tensor(run(batch["x"]).sum().item()))
    with pytest.raises(Failed, match="the task's loss raised KeyError: 'z'"):
        run_with(lambda run, batch: run(batch["z"]).sum(), vmap=False)
    other = Target.of(nn.Linear(4, 2))
    with pytest.raises(InvalidInput, match="the weights for the target"):
        run_with(lambda run, batch: other.call({"weight": torch.zeros(2, 4)}, batch["x"]))


def test_sources_that_are_none() -> None:
    hypernetwork = generator(by_a_number(), "mip", {})
    with pytest.raises(InvalidInput, match="learns from tasks"):
        TasksObjective(Tasks(), hypernetwork, 3)
    with pytest.raises(InvalidInput, match="learns from a zoo"):
        RegressionObjective(Regression(), hypernetwork, by_a_number())


def zoo_of(folder: Path, count: int = 12) -> Zoo:
    """Networks whose weights follow the number they are known by; the last layer's bias is the same in all."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base, direction = network().state_dict(), network().state_dict()
    lines = []
    for i in range(count):
        level = i / (count - 1)
        held = {name: base[name] + level * direction[name] for name in base}
        held["2.bias"] = torch.full((3,), 2.0)
        save_file(held, folder / f"{i}.safetensors")
        lines.append(
            f'{{"path": "{i}.safetensors", "condition": [{level}], "split": "{"test" if i == 5 else "train"}"}}'
        )
    (folder / "zoo.jsonl").write_text("\n".join(lines))
    return Zoo.open(folder)


def test_regression_is_the_error_in_units_of_the_zoo(tmp_path: Path) -> None:
    zoo = zoo_of(tmp_path)
    hypernetwork = Generator.build("mip", zoo.site, hidden=(4, 8)).hypernetwork
    members = zoo.of("train")
    held = [zoo.load(member) for member in members]
    for normalise in ("tensor", "none"):
        options = Regression(meta_batch=3, normalise=normalise)  # type: ignore[arg-type]
        loss = RegressionObjective(options, hypernetwork, zoo).loss(0, rng())
        chosen = torch.randperm(11, generator=rng())[:3].tolist()
        expected = []
        for i in chosen:
            made = hypernetwork({"vector": members[i].condition["vector"][None]})
            for name in held[0]:
                every = torch.stack([tensors[name] for tensors in held]).double()
                variance = float((every - every.mean(0)).square().mean())
                scale = variance if variance > 1e-9 else float(every.square().mean())
                error = (made[name][0] - held[i][name]).square().mean()
                expected.append(error / (scale if normalise == "tensor" else 1))
        torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_regression_learns_the_zoo_and_what_lies_between(tmp_path: Path) -> None:
    zoo = zoo_of(tmp_path)
    hypernetwork = Generator.build("mip", zoo.site, hidden=(8, 16)).hypernetwork
    objective = RegressionObjective(Regression(meta_batch=5), hypernetwork, zoo)
    report = fit(hypernetwork, objective, Course(steps=400, lr=0.03, optimizer="adam", schedule="cosine"))
    assert report.losses[-1] < 0.01 * report.losses[0]
    (unseen,) = zoo.of("test")
    wanted, held = zoo.load(unseen), zoo.batch(zoo.of("train"))
    with torch.no_grad():
        made = hypernetwork({"vector": unseen.condition["vector"][None]})
    gap = sum(float((made[name][0] - wanted[name]).square().sum()) for name in wanted)
    spread = sum(float((tensor - tensor.mean(0)).square().sum()) for tensor in held.values())
    assert gap < 0.1 * spread / len(zoo.of("train"))


def test_regression_onto_several_architectures(tmp_path: Path) -> None:
    """A generator for any architecture learns them together; one for one refuses the others."""
    pool = family("mlp", inputs=4, classes=3, layers=(1, 1), widths=(5, 8), count=3, test_count=1)
    specs = [pool.sample(rng(seed)).spec for seed in range(8)]
    first, second = specs[0], next(spec for spec in specs if spec.hash != specs[0].hash)
    for i, spec in enumerate((first, first, second)):
        save_file(
            {s.name: 0.1 * torch.randn(s.shape, generator=rng(i)) for s in spec.slots}, tmp_path / f"{i}.safetensors"
        )
    zoo = Zoo.open(tmp_path, first)
    assert zoo.site.spec is None
    with pytest.raises(InvalidInput, match="another target"):
        RegressionObjective(Regression(), Generator.build("mip", Site(0, first, {"vector": (1,)})).hypernetwork, zoo)
    design = Design(
        4,
        Chosen("empty"),
        Chosen("lowrank", {"rank": 2, "K": 32}),
        Chosen("zeros"),
        Chosen("std"),
        Chosen(""),
        fixed=False,
    )
    hypernetwork = Hypernetwork.of(design, Site(4))
    loss = RegressionObjective(Regression(meta_batch=3), hypernetwork, zoo).loss(0, rng())
    assert math.isfinite(loss.item())
    assert all(bool((slope != 0).any()) for slope in slopes(hypernetwork, loss)[:1])
