"""The diagonal Fisher: against the oracle, against one backward pass an example and class, and what must hold of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput, Refused
from paramsmith.merge.measure import Report, measure_fisher
from paramsmith.merge.measure.cotangents import Draws, cotangents
from paramsmith.merge.task import Batch
from paramsmith.statistics import Statistics
from tests.merge.folders import leftovers
from tests.merge.measure.nets import CLASSES, KINDS, by_hand, cut, examples, net, saved, task_of

ORACLE = json.loads((Path(__file__).parents[2] / "oracles" / "fisher.json").read_text())


class Oracle(nn.Module):
    """logits = tanh(x W1 + b1) W2 + b2."""

    def __init__(self, weights: dict[str, list[float]]) -> None:
        super().__init__()
        for name, values in weights.items():
            setattr(self, name, nn.Parameter(torch.tensor(values, dtype=torch.float64)))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = torch.tanh(x @ self.W1 + self.b1)
        return hidden @ self.W2 + self.b2


def fisher(model: nn.Module, batches: list[Batch], folder: Path, **how: object) -> dict[str, Tensor]:
    """What the measurement writes."""
    likelihood = how.pop("likelihood", "categorical")
    out = folder / "fisher.safetensors"
    task = task_of(model, batches, likelihood=likelihood)
    measure_fisher(task, saved(model, folder / "model"), out, force=True, **how)  # type: ignore[arg-type]
    return load_file(out)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        scale = rtol * max(float(values.abs().max()), 1e-12)
        torch.testing.assert_close(found[name].double(), values.double(), rtol=rtol, atol=scale, msg=name)


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_the_oracle(which: str, estimator: str, tmp_path: Path) -> None:
    """The authors' program, and its independent recomputation, to 1e-6."""
    told = ORACLE["estimators"][which]
    exact = told["exact_expectation_over_model_predictive"]
    labelled = told["empirical_with_labels"]
    x = torch.tensor(ORACLE["inputs"][which], dtype=torch.float64)
    batch = {"x": x, "labels": torch.tensor(labelled["labels"])}
    found = fisher(Oracle(ORACLE["models"][which]), cut(batch, 2), tmp_path, estimator=estimator)
    for name, values in (exact if estimator == "exact" else labelled["values"]).items():
        torch.testing.assert_close(found[name], torch.tensor(values), rtol=1e-6, atol=1e-7)


def test_it_is_not_the_square_of_a_sum(tmp_path: Path) -> None:
    """The trap of third-party ports, which the oracle holds the values of."""
    told = ORACLE["estimators"]["a"]["mergelm_fusion_bench_sqrt_trick_batch_of_5_NOT_a_fisher"]["b1"]
    x = torch.tensor(ORACLE["inputs"]["a"], dtype=torch.float64)
    found = fisher(Oracle(ORACLE["models"]["a"]), [{"x": x}], tmp_path)["b1"]
    assert float((found - torch.tensor(told)).abs().max()) > 0.4


@pytest.mark.parametrize("size", [11, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_nets(kind: str, size: int, tmp_path: Path) -> None:
    """Every way to a gradient gives what a backward pass an example gives, to float32's last digits."""
    model, batch = net(kind), examples(kind)
    estimator = "empirical" if kind in ("words", "tied") else "exact"
    found = fisher(model, cut(batch, size), tmp_path, estimator=estimator)
    assert_equal(found, dict(by_hand(model, batch, estimator)))


@pytest.mark.parametrize("kind", ["mlp", "pooled", "convolutions", "recurrent"])
def test_single_precision_and_examples_one_by_one(kind: str, tmp_path: Path) -> None:
    batch = {name: t.float() if t.is_floating_point() else t for name, t in examples(kind).items()}
    expected = dict(by_hand(net(kind), examples(kind), "empirical"))
    found = fisher(net(kind).float(), cut(batch, 1), tmp_path, estimator="empirical")
    assert_equal(found, expected, rtol=1e-4)


@settings(max_examples=6)
@given(st.integers(0, 1000), st.sampled_from(["mlp", "pooled", "encoder", "tied"]), st.integers(1, 11))
def test_samples_depend_on_the_example_only(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kind: str, size: int
) -> None:
    model, batch, folder = net(kind), examples(kind), tmp_path_factory.mktemp("f")
    whole = fisher(model, [batch], folder, estimator="sampled", seed=seed, draws=2)
    assert_equal(fisher(model, cut(batch, size), folder, estimator="sampled", seed=seed, draws=2), whole)
    assert any(
        not torch.equal(values, whole[name])
        for name, values in fisher(model, [batch], folder, estimator="sampled", seed=seed + 1, draws=2).items()
    )


def test_many_samples_come_close_to_the_exact_value(tmp_path: Path) -> None:
    """The covariance of what is pulled back is that of the exact sum; and so is what comes out."""
    outputs = torch.tensor([[1.0, 0.0, -1.0]]).expand(3000, 3)
    chances = outputs[0].softmax(0)
    drawn = next(cotangents("sampled", "categorical", outputs, {}, 0, Draws(3)))
    expected = chances.diag() - chances.outer(chances)
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), expected, rtol=0, atol=0.02)
    summed = sum(v.T @ v for v in cotangents("exact", "categorical", outputs[:1], {}, 0, Draws(3)))
    torch.testing.assert_close(summed, expected)
    model, batch = net("mlp"), examples("mlp", 3)
    exact, sampled = fisher(model, [batch], tmp_path), fisher(model, [batch], tmp_path, estimator="sampled", draws=150)
    ratio = sum(float(v.sum()) for v in sampled.values()) / sum(float(v.sum()) for v in exact.values())
    assert ratio == pytest.approx(1, rel=0.15)


def test_classes_are_drawn_from_the_prediction() -> None:
    outputs = torch.tensor([[2.0, 0.0, -1.0, -torch.inf]]).expand(4000, 4)
    drawn = next(cotangents("sampled", "categorical", outputs, {}, 0, Draws(5)))
    taken = (drawn > 0).double().mean(0)
    torch.testing.assert_close(taken, outputs[0].double().softmax(0), rtol=0, atol=0.03)
    assert float(taken[3]) == 0


def test_a_sequence_is_one_example_and_padding_is_none(tmp_path: Path) -> None:
    """Draws differ from place to place; where the labels or the mask say so nothing is drawn."""
    outputs = torch.zeros(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    labels = torch.where(mask == 1, 1, -100)
    for batch in ({"attention_mask": mask}, {"labels": labels}):
        drawn = next(cotangents("sampled", "categorical", outputs, batch, 0, Draws(1)))
        assert bool((drawn[mask == 0] == 0).all())
        assert bool((drawn[mask == 1].abs().sum(-1) > 1).all())
    many = next(cotangents("sampled", "categorical", torch.zeros(1, 300, 3), {}, 0, Draws(1)))[0]
    assert len({int(v.argmax()) for v in many}) == 3
    model, batch = net("tied"), examples("tied")
    with pytest.raises(InvalidInput, match="cannot be summed exactly") as caught:
        fisher(model, [batch], tmp_path, estimator="exact")
    assert "sampled" in caught.value.hint


@pytest.mark.parametrize("shape", [(), (1,), (2,), (2, 3)])
def test_regression(shape: tuple[int, ...], tmp_path: Path) -> None:
    """exact: the squared Jacobian, summed over outputs; empirical: times the residual, summed inside."""
    count = int(np.prod(shape))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, count)).double()
        batch = {"x": torch.randn(6, 4).double(), "labels": torch.randn(6, *shape).double()}
    model = nn.Sequential(inner, Shaped(shape))
    parameters = dict(model.named_parameters())
    exact = {name: torch.zeros_like(p) for name, p in parameters.items()}
    empirical = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x, label in zip(batch["x"], batch["labels"], strict=True):
        values = inner(x)
        for value in values:
            for name, g in zip(exact, torch.autograd.grad(value, parameters.values(), retain_graph=True), strict=True):
                exact[name] += g.square() / 6
        loss = -0.5 * (label.reshape(-1) - values).square().sum()
        for name, g in zip(empirical, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            empirical[name] += g.square() / 6
    how = {"likelihood": "regression"}
    assert_equal(fisher(model, cut(batch, 4), tmp_path, estimator="exact", **how), exact)
    assert_equal(fisher(model, cut(batch, 4), tmp_path, estimator="empirical", **how), empirical)
    sampled = fisher(model, cut(batch, 4), tmp_path, estimator="sampled", draws=120, **how)
    ratio = sum(float(v.sum()) for v in sampled.values()) / sum(float(v.sum()) for v in exact.values())
    assert ratio == pytest.approx(1, rel=0.2)


class Shaped(nn.Module):
    """Values of each example in another shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


@pytest.mark.parametrize("kind", ["mlp", "tied", "encoder", "recurrent", "convolutions"])
def test_memory_and_chunks_change_nothing_that_matters(kind: str, tmp_path: Path) -> None:
    """Passes over the data for some tensors at a time give the same bytes; another chunk, but for rounding."""
    model, batches = net(kind), cut(examples(kind), 8)
    how = {"estimator": "sampled", "seed": 4}
    whole = fisher(model, batches, tmp_path, chunk=8, **how)
    largest = 8 * max(p.numel() for p in model.parameters())
    few = fisher(model, batches, tmp_path, chunk=8, memory=largest * 4 // 3 + 4, **how)
    assert all(torch.equal(values, few[name]) for name, values in whole.items())
    assert_equal(fisher(model, batches, tmp_path, chunk=3, **how), whole)
    assert_equal(fisher(model, batches, tmp_path, **how), whole)
    with pytest.raises(Refused, match="its sums take") as caught:
        fisher(model, batches, tmp_path, memory=largest, **how)
    assert caught.value.hint.startswith("--memory")


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    model, batch = net("mlp"), examples("mlp")
    checkpoint, out = saved(model, tmp_path), tmp_path / "f.safetensors"
    told: list[tuple[int, int]] = []
    report = measure_fisher(
        task_of(model, cut(batch, 4)),
        checkpoint,
        out,
        estimator="sampled",
        seed=7,
        limit=10,
        progress=lambda done, total: told.append((done, total)),
    )
    assert report == Report(out, "fisher", 10, report.seconds, ())
    assert told == [(4, 10), (8, 10), (10, 10)]
    with Statistics.open(out, "fisher") as found:
        found.check_model(checkpoint)
        found.check_values()
        about = found.about
        assert {name: info.shape for name, info in found.tensors.items()} == {
            name: tuple(p.shape) for name, p in model.named_parameters()
        }
    assert (about.estimator, about.examples, about.seed) == ("sampled", 10, 7)
    again = tmp_path / "g.safetensors"
    measure_fisher(task_of(model, cut(batch, 5)), checkpoint, again, estimator="sampled", seed=7, limit=10, chunk=2)
    with Statistics.open(again, "fisher") as found:
        assert found.about.data == about.data  # the same data, in other batches
    assert leftovers(tmp_path) == []


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = net("convolutions")
    model.train()
    model.body[0].eval()
    frozen = next(model.parameters()).requires_grad_(False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    found = fisher(model, cut(examples("convolutions"), 4), tmp_path, estimator="empirical")
    assert modes == [module.training for module in model.modules()]
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in list(model.parameters())[1:])
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in before.items())
    assert not [m for m in model.modules() if m._forward_hooks]
    assert set(found) == {name for name, _ in model.named_parameters()}
    frozen.requires_grad_(True)
    assert_equal(found, dict(by_hand(model, examples("convolutions"), "empirical")))


def test_parts_of_a_model_by_filter(tmp_path: Path) -> None:
    model, batches = net("tied"), cut(examples("tied"), 4)
    whole = fisher(model, batches, tmp_path, estimator="empirical")
    found = fisher(model, batches, tmp_path, estimator="empirical", include="/^(qkv|embed).weight/")
    assert set(found) == {"qkv.weight", "embed.weight"}
    assert all(torch.equal(values, whole[name]) for name, values in found.items())
    with pytest.raises(InvalidInput, match="no parameter of the model matches 'attention'"):
        fisher(model, batches, tmp_path, include="attention")
    with pytest.raises(InvalidInput, match="include"):
        fisher(model, batches, tmp_path, include="/(/")


def test_a_checkpoint_that_keeps_the_other_name_of_tied_weights(tmp_path: Path) -> None:
    """The file has the name that its model stores; the task's model calls it otherwise."""
    model, file = net("tied"), tmp_path / "model.safetensors"
    stored = {name: p.detach().clone() for name, p in model.named_parameters() if name != "embed.weight"}
    save_file({**stored, "head.weight": model.embed.weight.detach().clone()}, file, {"embed.weight": "head.weight"})
    batch, out = examples("tied"), tmp_path / "fisher.safetensors"
    measure_fisher(task_of(model, [batch]), Checkpoint.open(file), out, estimator="empirical")
    expected = dict(by_hand(model, batch, "empirical"))
    expected["head.weight"] = expected.pop("embed.weight")
    assert_equal(load_file(out), expected)


def test_names_of_a_task_that_differ_from_the_checkpoints(tmp_path: Path) -> None:
    model, batch, file = net("mlp"), examples("mlp"), tmp_path / "model.safetensors"
    save_file({f"body.{name}": p.detach().clone() for name, p in model.named_parameters()}, file)
    names = {name: f"body.{name}" for name, _ in model.named_parameters()}
    out = tmp_path / "fisher.safetensors"
    measure_fisher(task_of(model, [batch], names=names), Checkpoint.open(file), out)
    assert_equal(load_file(out), {f"body.{name}": t for name, t in by_hand(model, batch, "exact").items()})


def test_half_precision(tmp_path: Path) -> None:
    """As good as the gradients are; the sums are wide."""
    for kind in ("mlp", "tied"):
        batch = {name: t.bfloat16() if t.is_floating_point() else t for name, t in examples(kind).items()}
        found = fisher(net(kind).bfloat16(), cut(batch, 4), tmp_path, estimator="empirical")
        expected = dict(by_hand(net(kind), examples(kind), "empirical"))
        assert_equal(found, expected, rtol=0.1)


def test_one_class_is_told(tmp_path: Path) -> None:
    batch = {**examples("mlp"), "labels": torch.full((11,), CLASSES - 1)}
    report = measure_fisher(
        task_of(net("mlp"), cut(batch, 4)),
        saved(net("mlp"), tmp_path),
        tmp_path / "fisher.safetensors",
        estimator="empirical",
    )
    assert report.warnings == ("all labels are 2: what is measured is about one class",)
