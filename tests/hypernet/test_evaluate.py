"""The evaluation finds what is there to be found: on a task whose best weights are known in closed form."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.evaluation.controls import wrong_condition
from paramsmith.hypernet.evaluation.evaluate import Arm, evaluate
from paramsmith.hypernet.evaluation.figure import check_format, figure
from paramsmith.hypernet.evaluation.finetune import (
    EpisodeData,
    Schedule,
    drawn_rows,
    finetune,
    finetune_together,
    row_count,
    scores,
    split,
)
from paramsmith.hypernet.evaluation.results import Budget, Evaluation, Row
from paramsmith.hypernet.evaluation.starts import Trained, distance, diversity, fresh, mean_of, nearest, transplanted
from paramsmith.hypernet.protocols import Episode
from paramsmith.hypernet.targets.calling import Target

pytestmark = pytest.mark.usefixtures("one_thread")
FEATURES = 4


class Net(nn.Module):
    """A layer, or more of them."""

    def __init__(self, width: int = 8, depth: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(FEATURES, width), nn.Tanh()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.Tanh()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def made(width: int, depth: int = 1) -> Target:
    """On the meta device, so that nothing is drawn."""
    with torch.device("meta"):
        return Target.of(Net(width, depth), torch.zeros(1, FEATURES), capture=False)


@dataclass
class Regression:
    """Fit a linear function: of the condition, or of the split."""

    width: int = 8
    broken: bool = False

    def episode(self, rng: torch.Generator, split: str = "train") -> Episode:
        target = made(self.width)
        slope = torch.randn(FEATURES, generator=rng)
        x = torch.randn(120, FEATURES, generator=rng)
        held = {"x": x, "y": (x @ slope)[:, None]}
        support = {} if self.broken else {name: values[:80] for name, values in held.items()}
        return Episode(target, {"vector": slope}, {name: values[80:] for name, values in held.items()}, support)

    def loss(self, run: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return (run(batch["x"]) - batch["y"]).pow(2).mean()

    def score(self, run: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return -self.loss(run, batch)


def oracle(episode: Episode, seed: int) -> dict[str, Tensor]:
    """Weights that compute the condition's function nearly: tanh is linear near 0."""
    first, last = (s.name for s in episode.target.spec.slots if s.role in ("matrix", "head"))
    weights = {s.name: torch.zeros(s.shape) for s in episode.target.spec.slots}
    weights[first][0] = episode.condition["vector"] / 100
    weights[last][0, 0] = 100.0
    return weights


QUICK = Budget(marks=(0, 5, 20), rates=(0.01, 0.1), targets=2, seeds=2, networks=2, batch_size=32)


@pytest.fixture(scope="module")
def found() -> Evaluation:
    task = Regression()
    arms = [
        Arm("oracle", oracle, 3.0, generated=True),
        Arm("oracle, asked wrong", wrong_condition(oracle, task, 0), None, True, of="oracle"),
    ]
    return evaluate(task, arms, QUICK)


def row(evaluation: Evaluation, name: str) -> Row:
    return next(r for r in evaluation.rows if r.name == name)


def same(a: Row, b: Row) -> bool:
    """Equal but for how long it took."""
    return replace(a, drawing=0.0) == replace(b, drawing=0.0)


def test_every_start_is_there(found: Evaluation) -> None:
    assert [r.name for r in found.rows] == ["random", "orthogonal", "mean", "nearest", "oracle", "oracle, asked wrong"]
    assert all(r.curve[0][0] == 0 and r.curve[-1][0] == 20 for r in found.rows)


def test_a_good_start_is_seen_and_a_wrong_condition_too(found: Evaluation) -> None:
    assert row(found, "oracle").at(0) > -0.1 > row(found, "random").at(0)
    assert row(found, "oracle").steps == 0
    assert row(found, "oracle, asked wrong").at(0) < row(found, "random").at(0)
    assert all("better" in sentence for sentence in found.verdicts() if "at step 0" in sentence)


def test_a_bad_start_is_told_first() -> None:
    bad = Arm("bad", lambda e, s: {k: v + 5 for k, v in fresh()(e, s).items()}, generated=True)
    found = evaluate(Regression(), [bad], replace_budget(networks=0))
    assert [r.name for r in found.rows] == ["random", "orthogonal", "bad"]
    assert "worse" in found.verdicts()[0]


def test_verdicts_on_equal_scores_and_on_none() -> None:
    def told(mine: float, other: float) -> tuple[str, ...]:
        curves = [((0, score, 0.0), (5, score, 0.0)) for score in (mine, other)]
        arms = (("gen", True, curves[0], mine), ("random", False, curves[1], other))
        rows = tuple(Row(n, made, None, 0.1, c, best, None, 0.0, None, 0.0, 0.0) for n, made, c, best in arms)
        return Evaluation(rows, replace_budget(marks=(0, 5)), 0.0, {}).verdicts()

    assert told(0.5, 0.5)[0] == "gen is as good as random at step 0"
    assert told(math.nan, math.nan)[0] == "gen is not to be compared with random at step 0"
    assert told(0.5, math.nan)[0] == "gen is inf better than random at step 0"


def test_what_a_task_draws_from_the_global_generator_is_the_same_every_time() -> None:
    class Careless(Regression):
        def episode(self, rng: torch.Generator, split: str = "train") -> Episode:
            return super().episode(torch.Generator().manual_seed(int(torch.randint(99, ()))), split)

    budget, state = replace_budget(networks=0, marks=(0, 1), rates=(0.1,), seeds=1), torch.random.get_rng_state()
    first = evaluate(Careless(), [], budget)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert same(evaluate(Careless(), [], budget).rows[0], first.rows[0])


def replace_budget(**more: Any) -> Budget:
    return Budget(**{**QUICK.model_dump(), **more})


def test_the_same_evaluation_twice_gives_the_same_numbers(found: Evaluation) -> None:
    state = torch.random.get_rng_state()
    again = evaluate(Regression(), [], replace_budget(networks=0))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(row(again, "random"), row(found, "random"))


def test_a_task_without_data_to_train_on() -> None:
    with pytest.raises(InvalidInput, match="no support to train on"):
        evaluate(Regression(broken=True), [], QUICK)


def test_budgets_that_make_no_sense() -> None:
    for wrong in ({"rates": ()}, {"rates": (0.0,)}, {"marks": (-1,)}, {"rates": (math.inf,)}):
        with pytest.raises(ValueError, match="validation error"):
            replace_budget(**wrong)


def test_numbers_are_plain(found: Evaluation) -> None:
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert len(plain["starts"]) == 6
    assert plain["budget"]["threshold"] == found.threshold


# -- training on -----------------------------------------------------------------------------


def test_runs_side_by_side_are_what_torch_does_one_by_one() -> None:
    task = Regression()
    episode = task.episode(torch.Generator().manual_seed(0))
    start = fresh()(episode, 0)
    data = EpisodeData(episode.support, episode.query, episode.query)
    rates = [0.003, 0.03]
    stacked = {name: w.expand(2, *w.shape) for name, w in start.items()}
    found = finetune(task, episode.target, stacked, torch.tensor(rates), data, Schedule((0, 7), None))
    for i, rate in enumerate(rates):
        net = Net()
        net.load_state_dict(start)
        optimiser = torch.optim.Adam(net.parameters(), rate)
        for _ in range(7):
            optimiser.zero_grad()
            task.loss(net, episode.support).backward()
            optimiser.step()
        for name, value in net.state_dict().items():
            torch.testing.assert_close(found.weights[name][i], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.report[i, 1], task.score(net, episode.query), rtol=1e-4, atol=1e-6)


def test_episodes_of_one_target_are_trained_on_side_by_side_as_apart() -> None:
    task, target = Regression(), made(8)
    episodes = [task.episode(torch.Generator().manual_seed(seed)) for seed in range(3)]
    data = [EpisodeData(*split(episode.support, 0.2, 0), episode.query) for episode in episodes]
    rates = torch.tensor([0.01, 0.1])
    starts = [{name: w.expand(2, *w.shape) for name, w in fresh()(e, i).items()} for i, e in enumerate(episodes)]
    schedules = [Schedule((0, 5), 16, seed) for seed in range(3)]
    together = finetune_together(task, target, starts, rates, data, schedules)
    for found, start, held, schedule in zip(together, starts, data, schedules, strict=True):
        alone = finetune(task, target, start, rates, held, schedule)
        torch.testing.assert_close(found.report, alone.report, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.validation, alone.validation, rtol=1e-4, atol=1e-6)
        for name, w in alone.weights.items():
            torch.testing.assert_close(found.weights[name], w, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(together[0].report, together[1].report)


def test_a_run_that_diverges_leaves_the_others_alone() -> None:
    task = Regression()
    episode = task.episode(torch.Generator().manual_seed(0))
    start = {name: w.expand(2, *w.shape) for name, w in fresh()(episode, 0).items()}
    data = EpisodeData(episode.support, episode.query, episode.query)
    both, alone = (
        finetune(task, episode.target, start, torch.tensor([0.01, rate]), data, Schedule((0, 3)))
        for rate in (1e38, 0.01)
    )
    assert torch.equal(both.report[0], alone.report[0])
    assert all(w.isfinite().all() for w in both.weights.values())


def test_rows_are_drawn_without_repetition() -> None:
    batch = {"x": torch.arange(10), "y": torch.arange(10) * 2}
    drawn = drawn_rows(batch, 6, torch.Generator().manual_seed(0))
    assert len(set(drawn["x"].tolist())) == 6
    assert torch.equal(drawn["y"], drawn["x"] * 2)
    assert drawn_rows(batch, 11, torch.Generator()) is batch
    kept, apart = split(batch, 0.2, 1)
    assert sorted([*kept["x"].tolist(), *apart["x"].tolist()]) == list(range(10))
    assert len(apart["x"]) == 2


@pytest.mark.parametrize("batch", [{"a": torch.zeros(2), "b": torch.zeros(3)}, {"a": torch.tensor(1.0)}, {}])
def test_batches_without_an_axis_of_rows(batch: dict[str, Tensor]) -> None:
    if batch and all(t.ndim == 0 for t in batch.values()):
        assert row_count(batch) == 0
        return
    with pytest.raises(InvalidInput, match="rows"):
        row_count(batch)


def test_scores_are_those_of_each_model() -> None:
    task = Regression()
    episode = task.episode(torch.Generator().manual_seed(0))
    weights = [fresh()(episode, seed) for seed in range(3)]
    together = scores(
        task, episode.target, {n: torch.stack([w[n] for w in weights]) for n in weights[0]}, episode.query
    )
    for value, held in zip(together, weights, strict=True):
        apart = task.score(lambda x, held=held: episode.target.call(held, x), episode.query)
        torch.testing.assert_close(value, apart)


# -- starts ----------------------------------------------------------------------------------


def spec(width: int, depth: int = 1) -> Any:
    return made(width, depth).spec


def trained(width: int, depth: int = 1, fill: float = 1.0) -> Trained:
    made = spec(width, depth)
    return Trained(made, {s.name: torch.full(s.shape, fill) for s in made.slots})


def test_the_mean_is_that_of_the_same_architecture() -> None:
    episode = Regression().episode(torch.Generator())
    zoo = [trained(8, fill=1.0), trained(8, fill=3.0), trained(16, fill=100.0)]
    assert {float(w.unique()) for w in mean_of(zoo)(episode, 0).values()} == {2.0}
    with pytest.raises(InvalidInput, match="no trained network has the architecture"):
        mean_of(zoo[2:])(episode, 0)


def test_distances_order_architectures() -> None:
    assert distance(spec(8), spec(8)) == 0
    assert distance(spec(8), spec(16)) < distance(spec(8), spec(64))
    assert distance(spec(8), spec(8, 2)) > 0
    episode = Regression(width=12).episode(torch.Generator())
    zoo = [trained(128, fill=5.0), trained(8, fill=1.0), trained(8, 4, fill=7.0)]
    assert {float(w.unique()) for w in nearest(zoo)(episode, 0).values()} == {1.0}


@pytest.mark.parametrize(("source", "target"), [((4, 1), (9, 1)), ((9, 1), (4, 1)), ((6, 3), (6, 1)), ((6, 1), (6, 3))])
def test_transplanting_fits_any_shape(source: tuple[int, int], target: tuple[int, int]) -> None:
    wanted, held = spec(*target), trained(*source)
    held = replace(held, weights={k: torch.arange(w.numel()).view(w.shape).float() for k, w in held.weights.items()})
    made = transplanted(held, wanted)
    assert {name: tuple(w.shape) for name, w in made.items()} == {s.name: s.shape for s in wanted.slots}
    assert all(w.numel() == 1 or w.std() > 0 for w in made.values())
    if source == target:
        assert made == held.weights


def test_diversity_of_copies_and_of_strangers() -> None:
    made = spec(8, 3)
    same = {s.name: torch.ones(s.shape) for s in made.slots}
    assert diversity([same, same], made) == pytest.approx(0, abs=1e-9)
    rng = torch.Generator().manual_seed(0)
    other = [{s.name: torch.randn(s.shape, generator=rng) for s in made.slots} for _ in range(2)]
    assert 0.8 < (diversity(other, made) or 0) < 1
    assert diversity([same], spec(8)) is None  # no two tensors of equal shape


# -- the picture -----------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "head"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_the_picture_is_the_same_every_time(found: Evaluation, suffix: str, head: bytes) -> None:
    drawn = figure(found, suffix)
    assert drawn.startswith(head)
    assert drawn == figure(found, suffix)
    if suffix == ".svg":
        assert b"oracle, asked wrong" in drawn


def test_names_of_starts_stay_text(found: Evaluation) -> None:
    nasty = replace(found, rows=(replace(found.rows[0], name="$x^{$ <script>alert(1)</script>"),))
    assert b"<script>" not in figure(nasty, ".svg")


def test_other_pictures_are_refused(found: Evaluation) -> None:
    with pytest.raises(InvalidInput, match=r"is no .*jpg"):
        figure(found, ".jpg")


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidInput) as caught:
        check_format(".png")
    assert "paramsmith[plot]" in caught.value.hint
