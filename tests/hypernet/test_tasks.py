"""Tasks: those of a user's file, of functions, of arrays of examples; and what is told of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.protocols import Condition, Episode
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.training.family import family
from paramsmith.hypernet.training.learning import source_digest
from paramsmith.hypernet.training.tasks import (
    Classification,
    FunctionTask,
    check_episode,
    load_task,
    scalar,
    site_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def target(width: int = 6) -> Target:
    return Target.of(nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3)), torch.zeros(1, 4))


X, Y = torch.arange(80.0).view(20, 4), torch.arange(20) % 3
TEST_X, TEST_Y = -torch.arange(24.0).view(6, 4), torch.arange(6) % 3


def examples(**options: object) -> Classification:
    return Classification(target(), X, Y, TEST_X, TEST_Y, **{"batch": 8, **options})  # type: ignore[arg-type]


def test_an_episode_of_training_is_a_batch() -> None:
    task = examples()
    episode, again, other = task.episode(rng()), task.episode(rng()), task.episode(rng(1))
    assert torch.equal(episode.query["x"], again.query["x"])
    assert not torch.equal(episode.query["x"], other.query["x"])
    assert episode.query["x"].shape == (8, 4)
    rows = (episode.query["x"][:, 0] / 4).long()
    assert len(set(rows.tolist())) == 8
    assert torch.equal(episode.query["y"], Y[rows])
    assert not episode.support
    assert len(examples(batch=100).episode(rng()).query["y"]) == 20


@pytest.mark.parametrize("split", ["test", "zoo"])
def test_any_other_episode_has_all_there_is(split: str) -> None:
    episode = examples().episode(rng(), split)
    assert torch.equal(episode.support["x"], X)
    assert torch.equal(episode.support["y"], Y)
    assert torch.equal(episode.query["x"], TEST_X)
    assert torch.equal(episode.query["y"], TEST_Y)


def test_a_condition_shows_in_the_examples() -> None:
    def drawn(generator: torch.Generator) -> Condition:
        return {"vector": torch.rand(1, generator=generator)}

    task = examples(condition=drawn, change=lambda x, condition: x + condition["vector"])
    for split in ("train", "test"):
        episode = task.episode(rng(), split)
        shift = float(episode.condition["vector"])
        whole = episode.query["x"] if split == "train" else episode.support["x"]
        assert bool(((whole - shift).round() - (whole - shift)).abs().max() < 1e-4)
        assert shift == pytest.approx(float(torch.rand(1, generator=rng())))
    assert site_of(task).condition == {"vector": (1,)}


def test_loss_and_score() -> None:
    """Cross-entropy and accuracy, of classes and of sequences of them; for several networks at once."""
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    batch = {"x": torch.zeros(2, 4), "y": torch.tensor([0, 2])}
    task = examples(smoothing=0.1)
    expected = nn.functional.cross_entropy(logits, batch["y"], label_smoothing=0.1)
    assert torch.equal(task.loss(lambda x: logits, batch), expected)
    assert float(task.score(lambda x: logits, batch)) == 0.5
    sequences = {"x": torch.zeros(1, 2), "y": torch.tensor([[0, 2]])}
    assert torch.equal(task.loss(lambda x: logits[None], sequences), expected)
    assert float(task.score(lambda x: logits[None], sequences)) == 0.5
    several = torch.stack([logits, 2 * logits])
    found = torch.vmap(lambda held: task.loss(lambda x: held, batch))(several)
    assert found.shape == (2,)
    assert torch.equal(found[0], expected)


def test_a_family_gives_seen_and_unseen_targets() -> None:
    pool = family(
        "mlp", inputs=4, classes=3, widths=(5, 8), layers=(1, 1), count=3, test_count=1, test={"widths": (9, 9)}
    )
    task = Classification(pool, X, Y, TEST_X, TEST_Y)
    for split, widths in (("train", {5, 6, 7, 8}), ("zoo", {5, 6, 7, 8}), ("test", {9})):
        found = {task.episode(rng(seed), split).target.spec.slots[0].shape[0] for seed in range(5)}
        assert found <= widths
    site = site_of(task)
    assert site.spec is None
    assert not site.condition


def test_functions() -> None:
    held = target()

    def draw(generator: torch.Generator, split: str) -> Episode:
        return Episode(held, {"set": torch.rand(2 if split == "train" else 3, 4, generator=generator)}, {"x": X})

    def measure(run: Callable[..., Tensor], batch: dict[str, Tensor]) -> Tensor:
        return run(batch["x"]).square().mean()

    task = FunctionTask(draw, measure)  # type: ignore[arg-type]
    weights = {slot.name: torch.ones(slot.shape) for slot in held.spec.slots}
    run = partial(held.call, weights)
    assert task.episode(rng(), "test").condition["set"].shape == (3, 4)
    assert torch.equal(task.score(run, {"x": X}), -task.loss(run, {"x": X}))
    judged = FunctionTask(draw, measure, lambda run, batch: torch.ones(()))  # type: ignore[arg-type]
    assert float(judged.score(run, {"x": X})) == 1
    assert site_of(task).spec == held.spec


def drawing(*conditions: Condition, tensors: object = None) -> FunctionTask:
    """Episodes with these conditions, in turn."""
    held, count = target(), iter(range(1000))

    def draw(generator: torch.Generator, split: str) -> Episode:
        return Episode(held, conditions[next(count) % len(conditions)], {"x": X})

    return FunctionTask(draw, lambda run, batch: run(batch["x"]).sum())


def test_what_episodes_have_in_common() -> None:
    task = drawing(
        {"set": torch.zeros(2, 4), "mask": torch.zeros(2)}, {"set": torch.zeros(3, 4), "mask": torch.zeros(3)}
    )
    assert site_of(task).condition == {"set": (0, 4), "mask": (0,)}
    with pytest.raises(InvalidInput, match="the conditions of the task's episodes differ: a and nothing"):
        site_of(drawing({"a": torch.zeros(2)}, {}))
    with pytest.raises(InvalidInput, match="the condition a has 1 dimensions in one episode and 2 in another"):
        site_of(drawing({"a": torch.zeros(2)}, {"a": torch.zeros(2, 2)}))


def test_hyperparameters_are_a_condition() -> None:
    class Tunable(FunctionTask):
        hyperparameters = {"dropout": 0.1, "noise": 0.2}  # noqa: RUF012

    held = drawing({})
    assert site_of(Tunable(held.draw, held.measure)).condition == {"vector": (2,)}


def test_what_is_drawn_from_the_global_generator_does_not_matter() -> None:
    def draw(rng: torch.Generator, split: str) -> Episode:
        x = torch.rand(2, 4)
        return Episode(target(), {"vector": torch.rand(int(torch.randint(1, 3, ())))}, {"x": x})

    task, state = FunctionTask(draw, lambda run, batch: run(batch["x"]).mean()), torch.random.get_rng_state()
    told = (site_of(task).condition, source_digest(task))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    assert (site_of(task).condition, source_digest(task)) == told


def test_examples_that_do_not_belong_together() -> None:
    with pytest.raises(InvalidInput, match="examples or labels for test are list"):
        Classification(target(), X, Y, TEST_X, TEST_Y.tolist())  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="there are 20 examples and 6 labels for training"):
        Classification(target(), X, TEST_Y, TEST_X, TEST_Y)
    with pytest.raises(InvalidInput, match="there are 0 examples and 0 labels for test"):
        Classification(target(), X, Y, TEST_X[:0], TEST_Y[:0])
    with pytest.raises(InvalidInput, match=r"the labels for training are torch\.float32"):
        Classification(target(), X, Y.float(), TEST_X, TEST_Y)
    with pytest.raises(InvalidInput, match="a batch of 0"):
        examples(batch=0)


FILE = """
import torch
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.protocols import Episode
from paramsmith.hypernet.training.tasks import Classification, FunctionTask

def drawn():
    return Classification(Target.of(net, X[:1]), torch.rand(9, 4), Y, X, Y)

X, Y = torch.rand(9, 4), torch.arange(9) % 3
net = torch.nn.Linear(4, 3)

def good():
    return Classification(Target.of(net, X[:1]), X, Y, X, Y)

def number():
    return 3

def raises():
    raise RuntimeError("no data")

def of(**changed):
    parts = {"target": Target.of(net, X[:1]), "condition": {}, "query": {"x": X}, **changed}
    return FunctionTask(lambda rng, split: Episode(**parts), lambda run, batch: run(batch["x"]).sum())

no_episode = lambda: FunctionTask(lambda rng, split: 3, len)
draw_raises = lambda: FunctionTask(lambda rng, split: [][1], len)
no_mapping = lambda: of(condition=torch.zeros(1))
no_tensor = lambda: of(query={"x": [1, 2]})
not_finite = lambda: of(query={"x": X / 0})
no_name = lambda: of(query={3: X})
no_query = lambda: of(query={})
no_target = lambda: of(target=net)

class Blind:
    episode = loss = print
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.py"
    path.write_text(FILE)
    return path


def test_a_task_of_a_file(file: Path) -> None:
    task = load_task(f"{file}:good")
    assert task.episode(rng()).query["x"].shape == (9, 4)


def test_a_file_draws_the_same_every_time(file: Path) -> None:
    """Also what it draws from torch's own generator, which is left as it was."""
    before = torch.get_rng_state()
    first, second = (load_task(f"{file}:drawn").episode(rng()).query["x"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("number", "gave int, which has no episode"),
        ("Blind", "gave Blind, which has no score"),
        ("no_episode", "an episode of the task is int"),
        ("no_mapping", "the condition of an episode is Tensor"),
        ("no_tensor", "the query of an episode has no tensor as 'x', but list"),
        ("not_finite", "the query of an episode holds values in 'x' that are not finite"),
        ("no_name", "the query of an episode has the name 3, which is no text"),
        ("no_query", "the query of an episode is empty"),
        ("no_target", "the target of an episode is Linear"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_wrong_tasks(file: Path, name: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told) as wrong:
        load_task(f"{file}:{name}")
    assert wrong.value.hint


def test_tasks_that_raise(file: Path) -> None:
    with pytest.raises(Failed, match="raised RuntimeError: no data"):
        load_task(f"{file}:raises")
    with pytest.raises(Failed, match="raised IndexError"):
        load_task(f"{file}:draw_raises")
    with pytest.raises(InvalidInput, match="is no task"):
        load_task("tasks.py")


def test_a_task_that_is_only_trained_on_needs_no_score(file: Path) -> None:
    with pytest.raises(InvalidInput, match="an episode of the task is NoneType"):
        load_task(f"{file}:Blind", judged=False)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"task": 3.5}, "the task of an episode is float"),
        ({"task": "x" * 5000}, "the task of an episode is of 5,000 characters"),
        ({"condition": {"": torch.ones(2)}}, "a name of 0 characters"),
        ({"condition": {"v" * 300: torch.ones(2)}}, "a name of 300 characters"),
        ({"condition": {"v": torch.ones(2, dtype=torch.complex64)}}, "the condition v of an episode is complex"),
    ],
)
def test_episodes_that_could_not_be_kept(more: dict[str, Any], told: str) -> None:
    known = examples().episode(rng())
    with pytest.raises(InvalidInput, match=told):
        check_episode(replace(known, **more), "t.py:t")
    check_episode(known, "t.py:t")


def test_a_complex_loss() -> None:
    with pytest.raises(Failed, match="the task's loss is a complex number"):
        scalar(torch.tensor(1j), "loss")
