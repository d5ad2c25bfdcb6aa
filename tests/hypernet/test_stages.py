"""Training samplers on a zoo: what happens in which order, what is refused, and that the condition is used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paramsmith.errors import Failed, GenerateWarning, InvalidInput
from paramsmith.hypernet.denoisers import token_dit
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.objectives.stages import Stages, StagesObjective
from paramsmith.hypernet.protocols import Batch, Chosen, Episode, Run, SamplerDesign
from paramsmith.hypernet.sampler import Sampler
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.training.course import Course
from paramsmith.hypernet.training.learning import train
from paramsmith.hypernet.training.loop import fit
from paramsmith.hypernet.zoos.build import build
from paramsmith.hypernet.zoos.index import Split
from paramsmith.hypernet.zoos.zoo import Zoo

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*some samples may be copies:paramsmith.errors.GenerateWarning"),
]

WIDTH = 4
HEADS = {k: Target.of(nn.Linear(WIDTH, k), torch.zeros(1, WIDTH), classes=k) for k in (2, 3)}


@dataclass(frozen=True)
class Directions:
    """Telling k directions apart: examples of a class lie about it, and a head for them is easily trained."""

    def episode(self, rng: torch.Generator, split: str = "train") -> Episode:
        """Two or three directions, as many as the draw says, with twelve examples each."""
        k = 2 + int(torch.randint(2, (), generator=rng))
        means = 2 * torch.randn(k, 1, WIDTH, generator=rng)
        shown, fitted, judged = (means + 0.3 * torch.randn(k, 12, WIDTH, generator=rng) for _ in range(3))
        y = torch.arange(k).repeat_interleave(12)
        query, support = ({"x": x.flatten(0, 1), "y": y} for x in (judged, fitted))
        return Episode(HEADS[k], {"classes": shown}, query=query, support=support)

    def loss(self, run: Run, batch: Batch) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(run(batch["x"]), batch["y"])

    def score(self, run: Run, batch: Batch) -> Tensor:
        """The share of right answers."""
        return (run(batch["x"]).argmax(-1) == batch["y"]).float().mean()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Zoo:
    """Sixty heads for two classes or three."""
    folder = tmp_path_factory.mktemp("zoos") / "zoo"
    build(Directions(), 60, folder, steps=60, lr=0.05)
    return Zoo.open(folder)


def design(codec: str = "identity", **options: object) -> SamplerDesign:
    tokens = {"layout": "row", "normaliser": "coord", "views": ["gauge"]}
    return SamplerDesign(
        WIDTH,
        tokens,
        Chosen("prototypes", {"shots": 5}),
        Chosen(codec, options),
        Chosen("flow", {}),
        condition={"classes": (0, 0, WIDTH)},
    )


def right(generator: Generator, wrong: bool = False) -> float:
    """The mean score of one sample for each of some new episodes, or for the conditions of others."""
    rng, task, scores = torch.Generator().manual_seed(5), Directions(), []
    for i in range(12):
        episode = task.episode(rng)
        shown = episode.condition["classes"]
        asked = {"classes": shown.roll(1, 0) if wrong else shown}
        (weights,) = generator.sample(asked, seed=i, classes=len(shown))
        scores.append(float(task.score(lambda x, w=weights: x @ w["weight"].T + w["bias"], episode.query)))
    return sum(scores) / len(scores)


def test_a_flow_does_what_it_is_asked(zoo: Zoo) -> None:
    """With the classes in another order it gives the head for that order."""
    generator = Generator.build("flow", zoo.site)
    report = generator.fit(zoo, {"steps": 150, "warmup": 10, "log_every": 50})
    assert report.losses[-1] < report.losses[0]
    assert right(generator) > 0.8
    assert right(generator, wrong=True) < 0.2


def test_stages_come_in_order(zoo: Zoo) -> None:
    model = Sampler.of(design("token_vae", latent=3, layers=1, width=8, heads=2), zoo.site)
    objective = StagesObjective(Stages(codec_steps=2, align_steps=0), model, zoo)
    assert [objective.turn(step) for step in range(4)] == ["codec", "codec", "prior", "prior"]
    before = {name: tensor.clone() for name, tensor in model.codec.state_dict().items()}
    fit(model, objective, Course(steps=2))
    trained = {name: tensor.clone() for name, tensor in model.codec.state_dict().items()}
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trained.items())
    objective = StagesObjective(Stages(codec_steps=0), model, zoo)
    fit(model, objective, Course(steps=2))
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.codec.state_dict().items())


def test_a_codec_that_loses_too_much_is_refused(zoo: Zoo) -> None:
    model = Sampler.of(design("pca", per="token", rank=1), zoo.site)
    judged = Zoo.open(zoo.folder)
    judged.task = Directions()
    with pytest.raises(Failed, match=r"the codec loses 0\.\d+ of the score"):
        fit(model, StagesObjective(Stages(margin=0.02), model, judged), Course(steps=1))
    objective = StagesObjective(Stages(margin=1.0), model, judged)
    fit(model, objective, Course(steps=1))
    told = objective.result()
    assert told is not None
    assert told.lost is not None
    assert told.lost > 0.02


def test_a_codec_is_judged_by_networks_to_choose_by_where_there_are_any(zoo: Zoo) -> None:
    """And never by those of the report, nor by those it was made from but for want of others."""
    splits: list[Split] = ["train", "validation", "test"]
    dealt = [replace(m, entry=m.entry.model_copy(update={"split": splits[i % 3]})) for i, m in enumerate(zoo.members)]
    for members, split in ((dealt, "validation"), ([m for m in dealt if m.entry.split != "validation"], "train")):
        judged = Zoo(zoo.folder, members)
        judged.task = Directions()
        objective = StagesObjective(
            Stages(margin=1.0), Sampler.of(design("pca", per="token", rank=1), zoo.site), judged
        )
        objective.finish()
        told = objective.result()
        assert told is not None
        assert told.split == split
        alike = [m for m in judged.of(told.split) if m.spec.hash == objective._judges()[1][0].spec.hash]
        assert told.networks == len(alike)


def test_networks_of_one_task_are_no_negatives_of_each_other(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = 2 * (WIDTH + 1)  # of a head for two classes, and of a code
    tasks = [("a", "b", None)[i % 3] for i in range(len(zoo))]
    told = [replace(m, entry=m.entry.model_copy(update={"task": t})) for m, t in zip(zoo.members, tasks, strict=True)]
    named = Zoo(zoo.folder, [m for m in told if len(m.condition["classes"]) == 2])
    made = design()
    wide = replace(made, width=numbers, encoder=Chosen("set_transformer", {"shots": 5, "hidden": 8}), condition=None)
    model = Sampler.of(wide, named.site)
    seen: list[Tensor] = []

    def compared(latents: Tensor, codes: Tensor, same: Tensor) -> Tensor:
        seen.append(same)
        return codes.sum()

    monkeypatch.setattr("paramsmith.hypernet.objectives.stages.siglip_loss", compared)
    objective = StagesObjective(Stages(align_steps=2, batch=9), model, named)
    rng = torch.Generator().manual_seed(3)
    _, chosen = objective._drawn(torch.Generator().manual_seed(3))
    objective.loss(0, rng)
    held = [named.members[i].entry.task for i in chosen]
    wanted = [[i == j or (a is not None and a == b) for j, b in enumerate(held)] for i, a in enumerate(held)]
    assert seen[0].tolist() == wanted
    assert 9 < int(seen[0].sum()) < 81


def test_codes_are_regressed_on_standardised_latents(zoo: Zoo) -> None:
    """So that their scale is that of what the prior works on, whatever the codec's is."""
    numbers = 2 * (WIDTH + 1)
    two = Zoo(zoo.folder, [member for member in zoo.members if len(member.condition["classes"]) == 2])
    wide = replace(design(), width=numbers, encoder=Chosen("set_transformer", {"hidden": 8}), condition=None)
    model = Sampler.of(wide, two.site)
    objective = StagesObjective(Stages(align_steps=80, align="regression", batch=len(two)), model, two)
    latents = model.encoded(two.batch(two.members), two.members[0].spec).flatten(1)
    shown = {"classes": torch.stack([member.condition["classes"] for member in two.members])}
    codes = model.asked(shown, two.members[0].spec)[:, 0]
    wanted = (latents - latents.mean()) / latents.std(correction=0)
    expected = (codes - wanted).square().mean().item()
    assert objective.loss(0, torch.Generator()).item() == pytest.approx(expected, rel=1e-4)
    losses = fit(model, objective, Course(steps=80, lr=5e-3)).losses
    assert losses[-1] < 0.7 * losses[0]


def test_a_codec_is_its_average_once_its_stage_is_over(zoo: Zoo) -> None:
    """What the prior learned latents of is what is saved, to the bit."""
    model = Sampler.of(design("token_vae", latent=3, layers=1, width=8, heads=2), zoo.site)
    objective = StagesObjective(Stages(codec_steps=8, batch=8), model, zoo)
    course = Course(steps=14, ema=0.9)
    held: list[dict[str, Tensor]] = []
    whole = objective.loss

    def watched(step: int, rng: torch.Generator) -> Tensor:
        held.append({name: tensor.clone() for name, tensor in model.codec.state_dict().items()})
        return whole(step, rng)

    objective.loss = watched  # type: ignore[method-assign]
    fit(model, objective, course)
    saved = model.codec.state_dict()
    for step in range(8, 14):
        assert all(torch.equal(tensor, saved[name]) for name, tensor in held[step].items()), step
    assert any(not torch.equal(tensor, held[7][name]) for name, tensor in saved.items())


def test_few_networks_are_warned_of(zoo: Zoo) -> None:
    few = Zoo(zoo.folder, zoo.members[:8])
    with pytest.warns(GenerateWarning, match="8 networks are few .* expect copies"):
        Generator.build("mean", zoo.site).fit(few)


@pytest.mark.parametrize("cut", [17, 8])
def test_the_same_numbers_after_an_interruption(
    cut: int, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of a stage, and at the step at which the codec's is over."""
    monkeypatch.setitem(token_dit.SIZES, "tiny", (16, 1, 2))
    course = {"steps": 22, "log_every": 5, "ema": 0.9}
    options = {"codec": "token_vae", "codec_steps": 8, "batch": 8}
    whole = train("flow", zoo, tmp_path / "whole", options=options, course=course)
    seen = 0

    def stop(done: int, total: int) -> None:
        nonlocal seen
        seen = done
        if done == cut:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paramsmith.resumable.Resumable.due", lambda self: True)
        patch.setattr("paramsmith.hypernet.training.loop.SAVING", 1e9)
        with pytest.raises(KeyboardInterrupt):
            train("flow", zoo, tmp_path / "cut", options=options, course=course, progress=stop)
    again = train("flow", zoo, tmp_path / "cut", options=options, course=course)
    assert seen == cut
    assert again.fit.losses == whole.fit.losses
    held, other = (each.generator.model.state_dict() for each in (whole, again))
    assert all(torch.equal(tensor, other[name]) for name, tensor in held.items())


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda zoo: Generator.build("flow", condition={"classes": (0, 5, WIDTH)}), "a sampler makes one architecture"),
        (lambda zoo: Generator.build("flow", zoo.site).fit(Directions()), "learns from a zoo"),
        (lambda zoo: Generator.build("flow", zoo.site).sample(), "lacks 'classes'"),
        (
            lambda zoo: Generator.build("flow", zoo.site).sample({"classes": torch.zeros(3, 5, WIDTH)}, classes=2),
            "the condition is for 3 classes",
        ),
        (
            lambda zoo: Generator.build("flow", zoo.site).sample({"classes": torch.zeros(2, 5, 7)}, classes=2),
            "has the shape 2x5x7",
        ),
        (lambda zoo: Generator.build("gaussian", zoo.site, codec="pca").fit(zoo), "the codec .pca. was made for"),
    ],
)
def test_what_does_not_fit(zoo: Zoo, made: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        made(zoo)  # type: ignore[operator]


def test_no_steps_for_what_is_computed(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.warns(GenerateWarning), pytest.raises(InvalidInput, match="nothing is trained in 5 steps"):
        train("ridge", zoo, tmp_path / "gen", course={"steps": 5})
    assert not any(tmp_path.iterdir())
