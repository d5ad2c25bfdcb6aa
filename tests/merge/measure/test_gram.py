"""Gram matrices and moments: against the oracle, against plain sums, and what they share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import Failed
from paramsmith.merge import merge
from paramsmith.merge.measure import Report, measure_gram, measure_moments
from paramsmith.merge.task import Batch, ModelTask
from paramsmith.statistics import Statistics
from tests.merge.folders import leftovers
from tests.merge.measure.nets import WORDS, call, cut, examples, net, saved, task_of

CASES = json.loads((Path(__file__).parents[2] / "oracles" / "regmean.json").read_text())["cases"]


def grams(model: nn.Module, batches: list[Batch], folder: Path, **how: object) -> dict[str, Tensor]:
    """What the measurement writes, by every name."""
    out = folder / "gram.safetensors"
    measure_gram(task_of(model, batches), saved(model, folder / "model"), out, force=True, **how)  # type: ignore[arg-type]
    return by_name(out)


def by_name(file: Path) -> dict[str, Tensor]:
    held = load_file(file)
    with Checkpoint.open(file) as opened:
        return held | {alias: held[kept] for alias, kept in opened.aliases.items()}


def seen_by(model: nn.Module, name: str, batch: Batch) -> Tensor:
    """The inputs of a module, by a hook of its own: (positions, d)."""
    found: list[Tensor] = []
    module = model.get_submodule(name)
    hook = module.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0].detach()))
    model.eval()(batch["x"])
    hook.remove()
    x = torch.cat(found)
    return x.reshape(-1, x.shape[-1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_oracle(case: dict[str, dict[str, list[float]]], tmp_path: Path) -> None:
    """Grams to float32's 1e-7; and the merge of them to 1e-6, their precision."""
    paths, files = [], []
    for number, (weight, bias) in enumerate(zip(case["inputs"]["weights"], case["inputs"]["biases"], strict=True)):
        model = nn.Sequential()
        model.add_module("fc", nn.Linear(len(weight[0]), len(weight)).double())  # type: ignore[arg-type]
        with torch.no_grad():
            model.fc.weight.copy_(torch.tensor(weight))
            model.fc.bias.copy_(torch.tensor(bias))
        folder = tmp_path / str(number)
        found = grams(model, cut({"x": torch.tensor(case["inputs"]["inputs"][number]).double()}, 3), folder)
        expected = torch.tensor(case["inputs"]["gram"][number])
        torch.testing.assert_close(found["fc.weight"], expected, rtol=1e-6, atol=1e-7)
        paths.append(folder / "model" / "model.safetensors")
        files.append(folder / "gram.safetensors")
    ratio = case["params"]["reduce_non_diagonal_ratio"]
    merge(paths, tmp_path / "merged.safetensors", method="regmean", statistics=files, off_diagonal=ratio)
    merged = load_file(tmp_path / "merged.safetensors")
    for name, values in case["output"].items():
        torch.testing.assert_close(merged[name], torch.tensor(values, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "layers"), [("mlp", ("0", "3")), ("words", ("qkv", "out", "up", "down", "head"))])
def test_means_over_positions(kind: str, layers: tuple[str, ...], tmp_path: Path) -> None:
    model, batch = net(kind), examples(kind)
    found = grams(model, cut(batch, 4), tmp_path)
    assert set(found) == {f"{layer}.weight" for layer in layers}
    out = tmp_path / "moments.safetensors"
    report = measure_moments(task_of(model, cut(batch, 4)), saved(model, tmp_path / "model"), out)
    assert report == Report(out, "moments", 11, report.seconds, ())
    moments = by_name(out)
    assert set(moments) == {f"{layer}.weight/{what}" for layer in layers for what in ("mean", "var", "norm")}
    for layer in layers:
        x = seen_by(model, layer, batch)
        torch.testing.assert_close(found[f"{layer}.weight"].double(), x.T @ x / len(x), rtol=1e-6, atol=1e-7)
        expected = {"mean": x.mean(0), "var": x.var(0, correction=0), "norm": x.square().mean(0).sqrt()}
        for what, values in expected.items():
            torch.testing.assert_close(moments[f"{layer}.weight/{what}"].double(), values, rtol=1e-6, atol=1e-7)


def test_convolutions(tmp_path: Path) -> None:
    """w' G w is the mean square of what the filter w gives, without its bias."""
    model, batch = net("convolutions"), examples("convolutions")
    found = grams(model, cut(batch, 4), tmp_path)
    # the one that pads to the same size by a word pads as torch likes
    assert set(found) == {"body.0.weight", "body.3.weight", "body.6.weight", "line.weight", "head.weight"}
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "body.0.weight": (18, 18),
        "body.3.weight": (2, 18, 18),
        "body.6.weight": (6, 2, 2),
        "line.weight": (8, 8),
        "head.weight": (5, 5),
    }
    outputs: dict[str, Tensor] = {}
    for name in ("body.0", "body.3", "body.6", "line"):
        model.get_submodule(name).register_forward_hook(lambda _, x, y, name=name: outputs.update({name: y.detach()}))
    model.eval()(batch["x"])
    for name, y in outputs.items():
        module, gram = model.get_submodule(name), found[f"{name}.weight"].double()
        gram = gram[None] if gram.ndim == 2 else gram
        weight = module.weight.detach().flatten(1).unflatten(0, (len(gram), -1))  # (groups, outputs, d)
        plain = y if module.bias is None else y - module.bias.detach().view(-1, *[1] * (y.ndim - 2))
        squares = plain.square().transpose(0, 1).flatten(1).mean(1)
        torch.testing.assert_close(
            torch.einsum("god,gde,goe->go", weight, gram, weight).flatten(), squares, rtol=1e-5, atol=1e-7
        )


def test_padding_does_not_count(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.pool = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.wide(x).mean(1))

    model = Masked().double()
    x = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(0)).double()
    mask = (torch.arange(6) < torch.tensor([6, 2, 3, 1, 4])[:, None]).long()
    found = grams(model, cut({"x": x, "attention_mask": mask}, 2), tmp_path)
    kept = x[mask == 1]
    torch.testing.assert_close(found["wide.weight"].double(), kept.T @ kept / len(kept), rtol=1e-6, atol=1e-7)
    pooled = model.wide(x).mean(1).detach()
    torch.testing.assert_close(found["pool.weight"].double(), pooled.T @ pooled / 5, rtol=1e-6, atol=1e-7)


class Shared(nn.Module):
    """Query, key and value of one input; a layer whose input is its equal, but another tensor; a tied pair."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.key, self.query = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.copy, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.two.weight = self.one.weight
        self.leaves_out = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x)
        q, k, v = self.query(hidden), self.key(hidden), self.value(hidden.clone() if self.leaves_out else hidden)
        return self.head(self.two(torch.tanh(self.one(q * k + v))) + self.copy(torch.tanh(x)))


def test_layers_with_one_input_share_a_matrix(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Shared().double()
        batches = cut({"x": torch.randn(7, 4).double()}, 3)
    checkpoint, out = saved(model, tmp_path / "model"), tmp_path / "gram.safetensors"
    report = measure_gram(task_of(model, batches), checkpoint, out)
    assert report.warnings == ("not measured, as the model does not use them on this data: unused.weight",)
    with Statistics.open(out, "gram") as found:
        found.check_model(checkpoint)
        found.check_values()
        assert set(found.tensors) == {f"{name}.weight" for name in ("query", "copy", "one", "head")}
        assert set(found.names) == set(found.tensors) | {"key.weight", "value.weight"}
    held = by_name(out)
    assert torch.equal(held["query.weight"], held["copy.weight"])
    x = torch.cat([batch["x"] for batch in batches])
    seen = torch.cat([seen_by(model, name, {"x": x}) for name in ("one", "two")])
    torch.testing.assert_close(held["one.weight"].double(), seen.T @ seen / 14, rtol=1e-6, atol=1e-7)
    moments = tmp_path / "moments.safetensors"
    measure_moments(task_of(model, batches), checkpoint, moments)
    with Statistics.open(moments, "moments") as found:
        assert len(found.tensors) == 12
        assert found.info("key.weight/var") is found.tensors["query.weight/var"]


def test_layers_that_stop_sharing(tmp_path: Path) -> None:
    model = Shared().double()
    calls = iter(range(9))

    def turning(model: nn.Module, batch: Batch) -> Tensor:
        model.leaves_out = next(calls) > 1
        return call(model, batch)

    task = ModelTask(model, lambda: cut({"x": torch.ones(7, 4).double()}, 3), turning)
    with pytest.raises(Failed, match=r"value\.weight does not have the inputs of query\.weight for every batch"):
        measure_gram(task, saved(model, tmp_path / "model"), tmp_path / "gram.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_embeddings_are_left_out(tmp_path: Path) -> None:
    """A Gram says what the inputs of the head are, and nothing of the words that the same weight embeds."""
    model, out = net("tied"), tmp_path / "gram.safetensors"
    report = measure_gram(task_of(model, [examples("tied")]), saved(model, tmp_path / "model"), out)
    assert report.warnings == ("not measured, as they are also used in another way: embed.weight",)
    assert "embed.weight" not in by_name(out)
    assert functional.embedding(torch.tensor([WORDS - 1]), model.embed.weight).numel()


def test_memory_changes_nothing(tmp_path: Path) -> None:
    model, batches = net("words"), cut(examples("words"), 4)
    whole = grams(model, batches, tmp_path)
    data = (tmp_path / "gram.safetensors").read_bytes()
    grams(model, batches, tmp_path, memory=8 * 16 * 16)
    assert (tmp_path / "gram.safetensors").read_bytes() == data
    assert set(grams(model, batches, tmp_path, include="qkv")) == {"qkv.weight"} < set(whole)
    assert leftovers(tmp_path) == []
