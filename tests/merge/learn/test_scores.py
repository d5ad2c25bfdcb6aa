"""Gradient scores at the base, and the linearised model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from paramsmith.coefficients import Coefficients
from paramsmith.errors import InvalidInput
from paramsmith.merge.learn.objectives import accuracy
from paramsmith.merge.learn.scores import gradient_scores, linearised, strongest
from paramsmith.merge.task import ModelTask
from paramsmith.statistics import weights_digest
from tests.merge.learn.toys import Opened, data, on_x, oracle, oracle_models, oracle_task, task_of


def test_the_authors_gradients_at_the_base() -> None:
    """Theirs in float16: 1e-4."""
    base, models = oracle_models()
    found = gradient_scores([oracle_task()], base, models)
    said = oracle()["zero_coef"]
    assert list(found.names) == oracle()["blocks"]
    torch.testing.assert_close(found.values, torch.tensor(said["grad_wrt_coef"]).double(), atol=1e-4, rtol=0)
    assert found.loss == pytest.approx(said["loss"], abs=1e-6)
    torch.testing.assert_close(found.whole, found.values.abs().sum(1))


def test_gradients_are_of_the_mean_over_all_the_data(opened: Opened) -> None:
    """Tasks are summed; how the data is cut into batches does not matter; `limit` takes the first examples."""
    found = gradient_scores(opened.tasks, opened.base, opened.models)
    base = opened.tensors(opened.base)
    free = torch.zeros(2, len(found.names), requires_grad=True)
    tuned = [opened.tensors(model) for model in opened.models]
    whole = {
        n: base[n] + sum(free[i, j] * (w[n] - base[n]) for i, w in enumerate(tuned)) for j, n in enumerate(found.names)
    }
    loss = torch.zeros(())
    for seed in (1, 2):
        x, labels = data(seed)
        loss = loss + nn.functional.cross_entropy(torch.func.functional_call(opened.net.eval(), whole, (x,)), labels)
    loss.backward()
    assert free.grad is not None
    torch.testing.assert_close(found.values.float(), free.grad, atol=1e-5, rtol=1e-4)
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    whole_at_once = [task_of(opened.net, *data(seed), size=96) for seed in (1, 2)]
    other = gradient_scores(whole_at_once, opened.base, opened.models)
    torch.testing.assert_close(other.values, found.values, atol=1e-5, rtol=1e-4)
    cut = [task_of(opened.net, *(t[:20] for t in data(1)))]
    limited = gradient_scores(opened.tasks[:1], opened.base, opened.models, limit=20)
    torch.testing.assert_close(limited.values, gradient_scores(cut, opened.base, opened.models).values)
    # a task's own model helps it more than the other does
    alone = gradient_scores(opened.tasks[:1], opened.base, opened.models).values.sum(1)
    assert alone[0] < alone[1]


def test_too_few_examples_are_told(opened: Opened) -> None:
    with pytest.raises(InvalidInput, match="1,000 examples are asked for, the data has 96"):
        gradient_scores(opened.tasks, opened.base, opened.models, limit=1000)
    assert all(p.grad is None for p in opened.net.parameters())


@given(
    values=st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=6),
    budget=st.integers(1, 6),
)
def test_the_strongest_are_chosen_tensor_by_tensor(values: list[list[int]], budget: int) -> None:
    scores = torch.tensor(values).double()
    chosen = strongest(scores, budget)
    assert (chosen.sum(0) == min(budget, len(values))).all()
    for column, kept in zip(scores.abs().T, chosen.T.bool(), strict=True):
        assert kept.all() or column[kept].min() >= column[~kept].max()


def coefficients(values: Tensor, names: list[str], models: list[str], base: str) -> Coefficients:
    listed = values.T[:, :, None].tolist()
    return Coefficients(
        method="atlas",
        models=tuple(models),
        base=base,
        values=dict(zip(names, listed, strict=True)),
        default=((0.0,),) * len(models),
    )


def test_the_authors_linearised_outputs() -> None:
    said, (base, models), task = oracle()["linearised"], oracle_models(), oracle_task()
    digests = [weights_digest(model) for model in models]
    made = coefficients(torch.tensor(said["coef"]), oracle()["blocks"], digests, weights_digest(base))
    batch = next(iter(task.batches()))
    outputs = linearised(task, base, models, made)(batch)
    torch.testing.assert_close(outputs, torch.tensor(said["output"]), atol=2e-6, rtol=0)
    assert float(nn.functional.cross_entropy(outputs, batch["labels"])) == pytest.approx(said["loss"], abs=1e-6)
    with pytest.raises(InvalidInput, match="was not learned with"):
        linearised(task, base, models[::-1], made)


def test_linearised_is_the_slope_at_the_base_and_exact_in_the_last_layer(opened: Opened) -> None:
    """Attention runs too, in the only form that has a forward mode."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3))
    weights = [{n: torch.randn_like(t) * 0.3 for n, t in net.state_dict().items()} for _ in range(3)]
    from paramsmith.memory import StateDict

    base, *models = [StateDict(w, f"{i}") for i, w in enumerate(weights)]
    x = torch.randn(4, 3, 8)
    task = ModelTask(net, lambda: [{"x": x, "labels": torch.zeros(4).long()}], on_x)
    names = list(weights[0])

    def at(factor: float, only: str = "") -> tuple[Tensor, Tensor]:
        values = factor * torch.tensor([[0.5], [-0.3]]) * torch.tensor([float(n.startswith(only)) for n in names])
        made = coefficients(values, names, [weights_digest(m) for m in models], weights_digest(base))
        whole = {
            n: weights[0][n] + sum(values[i, j] * (weights[i + 1][n] - weights[0][n]) for i in range(2))
            for j, n in enumerate(names)
        }
        true = torch.func.functional_call(net, whole, (x,))
        return linearised(task, base, models, made)({"x": x}), true

    zero, base_outputs = at(0.0)
    torch.testing.assert_close(zero, base_outputs.detach(), atol=1e-5, rtol=1e-5)
    small, true = at(1e-3)
    assert float((small - true).detach().abs().max()) < 0.02 * float((true - zero).detach().abs().max())
    straight, true = at(1.0, "2.")
    torch.testing.assert_close(straight, true.detach(), atol=1e-5, rtol=1e-5)
    one, two = at(1.0)[0], at(2.0)[0]
    torch.testing.assert_close(two - one, one - zero, atol=1e-4, rtol=1e-4)
    assert (
        0
        <= accuracy(
            task,
            linearised(
                task,
                base,
                models,
                coefficients(
                    torch.zeros(2, len(names)), names, [weights_digest(m) for m in models], weights_digest(base)
                ),
            ),
        )
        <= 1
    )
