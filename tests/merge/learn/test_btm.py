"""Branch-train-merge: posteriors against the reference values, and weights learned from experts on text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paramsmith.coefficients import Coefficients
from paramsmith.errors import Failed, InvalidInput, ParamsmithError, Refused
from paramsmith.merge import merge
from paramsmith.merge.learn.btm import domain_posterior, keep_largest, learn_btm
from paramsmith.merge.task import Batch, ModelTask, Task

ORACLE = json.loads((Path(__file__).parents[2] / "oracles" / "btm.json").read_text())
PROBS = torch.tensor(ORACLE["observed_token_probs"], dtype=torch.float64)  # (experts, blocks, tokens)
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64)
WORDS = 7


def close(found: Tensor, wanted: object) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_token_weights_with_a_cached_prior() -> None:
    cached = ORACLE["cached_prior_block0"]
    weights = domain_posterior(PROBS[:, 0].log(), torch.tensor(cached["prior"], dtype=torch.float64), "previous_token")
    close(weights, cached["token_weights"])
    mixture = (weights * PROBS[:, 0]).sum(0)
    close(mixture, cached["mixture_prob"])
    close(mixture.log().sum(), cached["sum_log_prob"])


@pytest.mark.parametrize("name", ["paper_prefix_block0_cached_prior", "paper_prefix_block0_uniform_prior"])
def test_token_weights_given_the_whole_prefix(name: str) -> None:
    cached = torch.tensor(ORACLE["cached_prior_block0"]["prior"], dtype=torch.float64)
    prior = cached if "cached" in name else UNIFORM
    weights = domain_posterior(PROBS[:, 0].log(), prior)
    close(weights, ORACLE[name]["token_weights"])
    close((weights * PROBS[:, 0]).sum(0), ORACLE[name]["mixture_prob"])
    batched = domain_posterior(PROBS.log(), prior)
    assert torch.equal(batched[:, 0], weights)


def test_updating_prior_and_its_largest_entries() -> None:
    now = UNIFORM
    wanted = ORACLE["updating_prior"]
    for block, (posterior, average) in enumerate(
        zip(wanted["posterior_last_position_per_block"], wanted["ema_after_each_block"], strict=True)
    ):
        found = domain_posterior(PROBS[:, block].log(), now, "previous_token")[:, -1]
        close(found, posterior)
        now = found if block == 0 else 0.3 * found + 0.7 * now
        close(now, average)
    close(keep_largest(now, 2), ORACLE["top2_renormalised_prior"])
    assert keep_largest(torch.tensor([0.2, 0.4, 0.4]), 1).tolist() == [0.0, 1.0, 0.0]


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 999), st.sampled_from([1.0, 500.0]))
def test_posteriors_are_distributions(experts: int, tokens: int, seed: int, scale: float) -> None:
    """Also where the product of the probabilities is far below the least float."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = -scale * torch.rand(experts, 2, tokens, generator=generator)
    prior = torch.rand(experts, generator=generator) + 0.01
    prior /= prior.sum()
    for mode in ("full_prefix", "previous_token"):
        weights = domain_posterior(log_probs, prior, mode)
        torch.testing.assert_close(weights.sum(0), torch.ones(2, tokens, dtype=torch.float64))
    prefix = domain_posterior(log_probs, prior)
    torch.testing.assert_close(prefix[..., 0], prior.double()[:, None].expand(-1, 2))
    for t in range(tokens):
        exact = [
            math.log(p) + float(row[0, :t].double().sum()) for p, row in zip(prior.tolist(), log_probs, strict=True)
        ]
        wanted = torch.tensor(exact, dtype=torch.float64).softmax(0)
        torch.testing.assert_close(prefix[:, 0, t], wanted, rtol=1e-6, atol=1e-12)


def test_text_that_no_expert_thinks_possible_says_nothing() -> None:
    log_probs = torch.tensor([[-math.inf, -1.0], [-math.inf, -2.0]])
    assert domain_posterior(log_probs, torch.tensor([0.25, 0.75]))[:, 1].tolist() == pytest.approx([0.25, 0.75])
    one = torch.tensor([[-math.inf, -1.0], [-5.0, -2.0]])
    assert domain_posterior(one, torch.tensor([0.25, 0.75]))[:, 1].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("log_probs", "prior"),
    [
        (torch.full((2, 3), math.nan), torch.tensor([0.5, 0.5])),
        (torch.zeros(2, 3), torch.tensor([0.5, math.nan])),
        (torch.zeros(2, 3), torch.tensor([1.5, -0.5])),
        (torch.zeros(2, 3), torch.zeros(2)),
        (torch.zeros(2, 3), torch.ones(3)),
        (torch.zeros(2), torch.ones(2)),
    ],
)
def test_what_is_no_posterior(log_probs: Tensor, prior: Tensor) -> None:
    with pytest.raises(InvalidInput):
        domain_posterior(log_probs, prior)


class Bigrams(nn.Module):
    """The least language model: logits of the next word given this one."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, words: Tensor) -> Tensor:
        return self.table[words]


@pytest.fixture
def experts(tmp_path: Path) -> list[Path]:
    made = []
    for seed in range(3):
        table = 2 * torch.randn(WORDS, WORDS, generator=torch.Generator().manual_seed(seed))
        made.append(tmp_path / f"expert{seed}.safetensors")
        save_file({"table": table}, made[-1])
    return made


def texts(count: int = 9, length: int = 6) -> Tensor:
    return torch.randint(0, WORDS, (count, length + 1), generator=torch.Generator().manual_seed(11))


def batches(size: int, words: Tensor) -> list[Batch]:
    """The last position is padding in every third text."""
    labels = words[:, 1:].clone()
    labels[::3, -1] = -100
    return [{"words": words[i : i + size, :-1], "labels": labels[i : i + size]} for i in range(0, len(words), size)]


def task_of(
    expert: Path,
    size: int = 4,
    forward: Callable[[nn.Module, Batch], Tensor] | None = None,
    words: Tensor | None = None,
) -> Task:
    data = batches(size, texts() if words is None else words)
    return ModelTask(
        Bigrams(load_file(expert)["table"]), lambda: data, forward or (lambda model, batch: model(batch["words"]))
    )


def weights_of(path: Path) -> list[float]:
    return [row[0] for row in Coefficients.load(path).default]


def wanted_weights(experts: list[Path], mode: str, prior: str) -> list[float]:
    """By plain probabilities, one text and token after the other."""
    tables = [load_file(path)["table"].double().softmax(-1) for path in experts]
    words = texts()
    now, posteriors = [1 / 3] * 3, []
    for block, row in enumerate(words.tolist()):
        end = len(row) - 1 - (block % 3 == 0)
        observed = [[float(t[row[i], row[i + 1]]) for i in range(end)] for t in tables]
        likelihoods = [math.prod(each) if mode == "full_prefix" else each[-2] for each in observed]
        joint = [p * each for p, each in zip(now if prior == "ema" else [1] * 3, likelihoods, strict=True)]
        posterior = [j / sum(joint) for j in joint]
        posteriors.append(posterior)
        now = posterior if block == 0 else [0.3 * a + 0.7 * b for a, b in zip(posterior, now, strict=True)]
    mean = [sum(column) / len(posteriors) for column in zip(*posteriors, strict=True)]
    return now if prior == "ema" else mean


@pytest.mark.parametrize("mode", ["full_prefix", "previous_token"])
@pytest.mark.parametrize("prior", ["ema", "mean"])
def test_weights_are_those_of_the_formula(experts: list[Path], tmp_path: Path, mode: str, prior: str) -> None:
    report = learn_btm(map(task_of, experts), experts, tmp_path / "w.json", prior=prior, mode=mode)  # type: ignore[arg-type]
    assert report.weights == pytest.approx(wanted_weights(experts, mode, prior), rel=1e-5)
    assert report.blocks == 9
    assert weights_of(tmp_path / "w.json") == list(report.weights)


def test_the_average_that_follows(experts: list[Path], tmp_path: Path) -> None:
    report = learn_btm([task_of(e) for e in experts], experts, tmp_path / "w.json", top_k=2)
    assert sorted(report.weights)[0] == 0.0
    assert sum(report.weights) == pytest.approx(1)
    merge(experts, tmp_path / "m.safetensors", coefficients=tmp_path / "w.json")
    wanted = sum(w * load_file(e)["table"] for w, e in zip(report.weights, experts, strict=True))
    torch.testing.assert_close(load_file(tmp_path / "m.safetensors")["table"], wanted)
    uniform = learn_btm([], experts, tmp_path / "u.json", prior="uniform")
    assert uniform.weights == pytest.approx([1 / 3] * 3)
    average = ORACLE["parameter_average"]
    for i, row in enumerate(average["expert_vectors"]):
        save_file({"v": torch.tensor(row)}, tmp_path / f"v{i}.safetensors")
    rows = [tmp_path / f"v{i}.safetensors" for i in range(3)]
    merge(rows, tmp_path / "v.safetensors", weight=average["weights"])
    torch.testing.assert_close(load_file(tmp_path / "v.safetensors")["v"], torch.tensor(average["average"]))


def test_the_size_of_batches_makes_no_difference(experts: list[Path], tmp_path: Path) -> None:
    for size in (1, 9):
        learn_btm([task_of(e, size) for e in experts], experts, tmp_path / f"{size}.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "9.json").read_bytes()


def test_interrupted_it_goes_on_with_the_next_expert(experts: list[Path], tmp_path: Path) -> None:
    learn_btm([task_of(e) for e in experts], experts, tmp_path / "whole.json")
    asked: list[int] = []

    def forward(number: int, stop: bool) -> Callable[[nn.Module, Batch], Tensor]:
        def run(model: nn.Module, batch: Batch) -> Tensor:
            asked.append(number)
            if stop and number == 2:
                raise KeyboardInterrupt
            return model(batch["words"])  # type: ignore[no-any-return]

        return run

    def tasks(stop: bool) -> Iterator[Task]:
        return (task_of(e, forward=forward(i, stop)) for i, e in enumerate(experts))

    with pytest.raises(KeyboardInterrupt):
        learn_btm(tasks(True), experts, tmp_path / "cut.json")
    assert not (tmp_path / "cut.json").exists()
    asked.clear()
    learn_btm(tasks(False), experts, tmp_path / "cut.json")
    assert set(asked) == {2}
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def nan_outputs(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch["words"]) * math.nan  # type: ignore[no-any-return]


def raising(model: nn.Module, batch: Batch) -> Tensor:
    raise OSError("no such dictionary")


WRONG: dict[str, tuple[type[ParamsmithError], str, Callable[[list[Path]], list[Task]], dict[str, object]]] = {
    "nan": (Failed, "not finite", lambda e: [task_of(e[0], forward=nan_outputs)], {}),
    "raises": (Failed, "no such dictionary", lambda e: [task_of(e[0], forward=raising)], {}),
    "other words": (InvalidInput, "other tokens", lambda e: [task_of(e[0]), task_of(e[1], words=texts() * 0)], {}),
    "fewer texts": (InvalidInput, "other tokens", lambda e: [task_of(e[0]), task_of(e[1], words=texts(3))], {}),
    "a task too few": (InvalidInput, "2 tasks are given for 3 experts", lambda e: [task_of(e[0]), task_of(e[1])], {}),
    "a task too many": (InvalidInput, "for 3 experts", lambda e: [task_of(e[0])] * 4, {}),
    "too few examples": (InvalidInput, "the data has 9", lambda e: [task_of(e[0])], {"limit": 10}),
    "no data": (InvalidInput, "empty", lambda e: [task_of(e[0], words=texts(0))], {}),
    "labels outside": (InvalidInput, "outside the model", lambda e: [task_of(e[0], words=texts() + WORDS)], {}),
    "decay": (InvalidInput, "decay", lambda e: [], {"decay": 0.0}),
    "top_k": (InvalidInput, "largest", lambda e: [], {"top_k": 4}),
    "mode": (InvalidInput, "unknown", lambda e: [], {"mode": "suffix"}),
    "prior": (InvalidInput, "unknown", lambda e: [], {"prior": "posterior"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_leaves_nothing(experts: list[Path], tmp_path: Path, name: str) -> None:
    kind, said, tasks, how = WRONG[name]
    if name == "labels outside":
        forward = lambda model, batch: model(batch["words"] % WORDS)  # noqa: E731
        tasks = lambda e: [task_of(e[0], forward=forward, words=texts() + WORDS)]  # noqa: E731
    with pytest.raises(kind, match=said) as problem:
        learn_btm(tasks(experts), experts, tmp_path / "w.json", **how)  # type: ignore[arg-type]
    assert type(problem.value) is kind
    assert sorted(tmp_path.iterdir()) == experts


def test_an_output_that_stands_there_stays(experts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text("mine")
    with pytest.raises(Refused):
        learn_btm([], experts, tmp_path / "w.json", prior="uniform")
    assert (tmp_path / "w.json").read_text() == "mine"
    learn_btm([], experts, tmp_path / "w.json", prior="uniform", force=True)
    assert len(weights_of(tmp_path / "w.json")) == 3
