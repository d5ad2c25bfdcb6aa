"""AdaMerging: the loop against plain torch, both granularities, the trimmed variant, files that merge to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from paramsmith.coefficients import Coefficients
from paramsmith.errors import InvalidInput
from paramsmith.merge import merge
from paramsmith.merge.learn.adamerging import learn_adamerging
from tests.merge.learn.toys import Opened


def learn(opened: Opened, output: Path, **more: Any) -> Coefficients:
    learn_adamerging(opened.tasks, opened.base, opened.models, output, **{"steps": 20, "lr": 0.02, **more})
    return Coefficients.load(output)


def trimmed(vectors: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The task vectors by their formulas: the largest fifth of each model, of that what has the elected sign."""
    kept = []
    for vector in vectors:
        whole = torch.cat([t.flatten() for t in vector.values()]).abs()
        least = whole.sort(descending=True).values[int(0.2 * len(whole)) - 1]
        kept.append({n: torch.where(t.abs() >= least, t, 0.0) for n, t in vector.items()})
    signs = {n: torch.sign(sum(k[n] for k in kept)) for n in kept[0]}  # type: ignore[arg-type]
    return [{n: torch.where(t * signs[n] > 0, t, 0.0) for n, t in k.items()} for k in kept]


@pytest.mark.parametrize("plus_plus", [False, True])
@pytest.mark.parametrize("per", ["layer", "task"])
def test_steps_are_those_of_autograd_and_adam(opened: Opened, tmp_path: Path, per: str, plus_plus: bool) -> None:
    """20 steps to 2e-5."""
    found = learn(opened, tmp_path / "c.json", per=per, plus_plus=plus_plus)
    base = opened.tensors(opened.base)
    floats = [n for n, t in base.items() if t.is_floating_point()]
    vectors = [{n: opened.tensors(model)[n] - base[n] for n in floats} for model in opened.models]
    vectors = trimmed(vectors) if plus_plus else vectors
    names = list(found.values)
    free = torch.full((2, 1 if per == "task" else len(names)), 0.3, requires_grad=True)
    optimiser = torch.optim.Adam([free], lr=0.02)
    batches = [list(task.batches()) for task in opened.tasks]
    for step in range(20):
        rows = free.expand(2, len(names))
        whole = {n: base[n] + sum(rows[i, j] * v[n] for i, v in enumerate(vectors)) for j, n in enumerate(names)}
        loss = torch.zeros(())
        for listed in batches:
            outputs = torch.func.functional_call(opened.net.eval(), whole, (listed[step % len(listed)]["x"],))
            loss = loss + torch.distributions.Categorical(logits=outputs).entropy().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    mine = torch.tensor([found.values[name] for name in names])[:, :, 0].T
    torch.testing.assert_close(mine, free.detach().expand(2, len(names)), atol=2e-5, rtol=0)


@pytest.mark.parametrize("plus_plus", [False, True])
def test_the_file_merges_to_the_learned_model(opened: Opened, tmp_path: Path, plus_plus: bool) -> None:
    """By the method the file names; predictions have become surer."""
    path = tmp_path / "c.json"
    report = learn_adamerging(opened.tasks, opened.base, opened.models, path, steps=60, lr=0.02, plus_plus=plus_plus)
    losses = [float(str(entry["loss"])) for entry in report.history[1:]]
    assert losses[-1] < 0.7 * losses[0]
    method = Coefficients.load(path).method
    assert method == ("ties" if plus_plus else "task_arithmetic")
    models = [model.path for model in opened.models]
    merge(models, tmp_path / "m.safetensors", base=opened.base.path, method=method, coefficients=path)
    merged = load_file(tmp_path / "m.safetensors")
    for name, tensor in opened.net.state_dict().items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=1e-6)


def test_labels_are_not_needed_and_validation_chooses(opened: Opened, tmp_path: Path) -> None:
    from dataclasses import replace

    unlabelled = [
        replace(task, data=lambda task=task: [{"x": batch["x"]} for batch in task.batches()]) for task in opened.tasks
    ]
    path = tmp_path / "c.json"
    report = learn_adamerging(unlabelled, opened.base, opened.models, path, steps=30, lr=0.3, validation=opened.tasks)
    means = [sum(entry["scores"]) / 2 for entry in report.history]  # type: ignore[arg-type]
    assert [entry["step"] for entry in report.history] == [0, 6, 12, 18, 24, 30]
    assert sum(report.scores) / 2 == max(means)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "per": ({"per": "neuron"}, "coefficients per neuron"),
    "steps": ({"steps": 0}, "steps is 0"),
    "lr": ({"lr": -1.0}, "lr is -1.0"),
    "exclude": ({"exclude": ["/("]}, "opens a regular expression"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_learned_leaves_nothing(opened: Opened, tmp_path: Path, name: str) -> None:
    settings, said = WRONG[name]
    with pytest.raises(InvalidInput, match=said):
        learn(opened, tmp_path / "c.json", **settings)
    assert list(tmp_path.iterdir()) == []
