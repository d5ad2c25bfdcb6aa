"""Reading features and predictions from tasks of many shapes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaConfig, LlamaForCausalLM

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import Failed, InvalidInput
from paramsmith.memory import StateDict
from paramsmith.merge.rank.features import (
    features_and_predictions_of,
    features_of,
    load_weights,
    predictions_of,
)
from paramsmith.merge.rank.labelled import with_labels
from paramsmith.merge.task import IGNORED, Batch, ModelTask

INPUTS = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(10) % 3


class Net(nn.Module):
    """Names its layers in another order than it runs them, and has dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.body = nn.Linear(4, 6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.hidden(x)))

    def hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.body(x)))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def batches(size: int, labels: Tensor = LABELS) -> Iterable[Batch]:
    return [{"x": INPUTS[i : i + size], "labels": labels[i : i + size]} for i in range(0, 10, size)]


def task(model: nn.Module, size: int = 4, labels: Tensor = LABELS, **more: Any) -> ModelTask:
    return ModelTask(model, lambda: batches(size, labels), lambda model, batch: model(batch["x"]), **more)


@pytest.mark.parametrize("size", [1, 4, 10])
def test_features_are_what_the_head_reads(size: int) -> None:
    model = net().train()
    features, labels = features_of(task(model, size))
    wanted = model.eval().hidden(INPUTS)
    torch.testing.assert_close(features, wanted.double(), rtol=0, atol=1e-6)
    assert features.dtype == torch.float64
    assert not features.requires_grad
    assert torch.equal(labels, LABELS)
    assert not model.head._forward_hooks
    predictions, _ = predictions_of(task(model, size))
    assert torch.equal(predictions, model(INPUTS).argmax(-1))
    both = features_and_predictions_of(task(model, size))
    assert all(map(torch.equal, both, (features, predictions, labels)))


def test_the_limit_holds() -> None:
    features, labels = features_of(task(net()), limit=5)
    # the batch that the limit cuts is of another shape: same values but for the rounding of its matrix products
    torch.testing.assert_close(features, features_of(task(net()))[0][:5], rtol=0, atol=1e-6)
    assert torch.equal(labels, LABELS[:5])
    with pytest.raises(InvalidInput, match="11 examples are asked for, the data has 10"):
        features_of(task(net()), limit=11)


def test_features_of_ones_own() -> None:
    wanted = 2 * INPUTS.double()
    assert torch.equal(features_of(task(net()), features=lambda model, batch: 2 * batch["x"])[0], wanted)

    class Own(ModelTask):
        def features(self, model: nn.Module, batch: Batch) -> Tensor:
            assert model is self.model
            return 2 * batch["x"]

    assert torch.equal(features_of(Own(net(), lambda: batches(4), lambda model, batch: model(batch["x"])))[0], wanted)


def test_ignored_labels_are_left_out() -> None:
    labels = LABELS.clone()
    labels[::2] = IGNORED
    features, kept = features_of(task(net(), labels=labels))
    assert torch.equal(kept, LABELS[1::2])
    assert torch.equal(features, features_of(task(net()))[0][1::2])
    with pytest.raises(InvalidInput, match="no labels that count"):
        features_of(task(net(), labels=torch.full_like(LABELS, IGNORED)))


def test_data_without_labels() -> None:
    plain = ModelTask(net(), lambda: [{"x": INPUTS}], lambda model, batch: model(batch["x"]))
    assert torch.equal(features_of(plain, labelled=False)[0], features_of(task(net(), 10))[0])
    for read in (features_of, predictions_of):
        with pytest.raises(InvalidInput, match="the data has no labels"):
            read(plain)


def test_a_regression_has_features_but_no_predictions() -> None:
    values = torch.randn(10, 3, generator=torch.Generator().manual_seed(2))
    values[3, 0] = IGNORED  # a number like any other
    found = task(net(), labels=values, likelihood="regression")
    features, labels = features_of(found)
    assert torch.equal(labels, values)
    assert features.shape == (10, 6)
    assert torch.equal(features_of(task(net(), labels=values[:, 0], likelihood="regression"))[1], values[:, 0])
    with pytest.raises(InvalidInput, match="the task is a regression"):
        predictions_of(found)


def tokens(rows: int = 4, width: int = 5, pad: int | None = None) -> Tensor:
    ids = torch.randint(3, 19, (rows, width), generator=torch.Generator().manual_seed(3))
    if pad is not None:
        ids[0, 3:], ids[2, 1:] = pad, pad
    return ids


def test_a_classifier_that_reads_one_position() -> None:
    """GPT-2's: the head runs over all positions, and the last that is no padding comes out."""
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8, num_labels=3, pad_token_id=0)
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(config).eval()
    ids = tokens(pad=0)
    data = [{"ids": ids, "labels": torch.arange(4) % 3}]
    found = ModelTask(model, lambda: data, lambda model, batch: model(input_ids=batch["ids"]).logits)
    features, _ = features_of(found)
    hidden = model.transformer(input_ids=ids).last_hidden_state
    wanted = torch.stack([hidden[0, 2], hidden[1, 4], hidden[2, 0], hidden[3, 4]])
    torch.testing.assert_close(features, wanted.detach().double())


@pytest.mark.parametrize("shifted", [True, False])
def test_a_language_model_has_features_at_labelled_positions(shifted: bool) -> None:
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    ids = tokens()
    labels = ids[:, 1:].clone() if shifted else ids.clone()
    labels[1, 2:] = IGNORED

    def forward(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(input_ids=batch["ids"]).logits
        return logits[:, :-1] if shifted else logits

    features, kept = features_of(ModelTask(model, lambda: [{"ids": ids, "labels": labels}], forward))
    hidden = model.model(input_ids=ids).last_hidden_state[:, : labels.shape[1]]
    torch.testing.assert_close(features, hidden[labels != IGNORED].detach().double())
    assert torch.equal(kept, labels[labels != IGNORED])


def test_models_without_a_head_to_read() -> None:
    convolution = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 4), nn.Flatten())
    with pytest.raises(InvalidInput, match="runs no Linear"):
        features_of(task(convolution))
    assert predictions_of(task(convolution))[0].shape == (10,)
    late = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 6), nn.Flatten())
    with pytest.raises(InvalidInput, match=r"gives \[4, 6\], but the task's outputs are \[4, 3\]: it is not the head"):
        features_of(task(late))
    assert not late[0]._forward_hooks


def test_tasks_that_fail() -> None:
    with pytest.raises(Failed, match="the task's features raised ZeroDivisionError"):
        features_of(task(net()), features=lambda model, batch: batch["x"] / (1 // 0))
    with pytest.raises(InvalidInput, match="no tensor of rows"):
        features_of(task(net()), features=lambda model, batch: batch["labels"])
    with pytest.raises(InvalidInput, match="there is no row"):
        features_of(task(net()), features=lambda model, batch: batch["x"][:1])
    with pytest.raises(Failed, match="NaN or an infinity"):
        features_of(task(net()), features=lambda model, batch: batch["x"] / 0)
    with pytest.raises(InvalidInput, match="the label 3 is outside the model's 3 classes"):
        predictions_of(task(net(), labels=LABELS + 1))
    with pytest.raises(InvalidInput, match="the data is empty"):
        features_of(ModelTask(net(), list, lambda model, batch: model(batch["x"])))
    broken = ModelTask(net(), lambda: batches(4), lambda model, batch: model(batch["y"]))
    with pytest.raises(Failed, match="the task's outputs raised KeyError"):
        features_of(broken)


def test_labels_of_other_classes_than_the_head() -> None:
    assert torch.equal(features_of(task(net(), labels=LABELS + 40))[1], LABELS + 40)


def test_weights_are_loaded_with_their_buffers(tmp_path: Any) -> None:
    source, target = net(1), net(2)
    source.norm.running_mean.fill_(0.5)
    renamed = {f"deep.{name}": tensor for name, tensor in source.state_dict().items()}
    save_file(renamed, tmp_path / "a.safetensors")
    names = {name: f"deep.{name}" for name in source.state_dict()}
    with Checkpoint.open(tmp_path / "a.safetensors") as checkpoint:
        load_weights(task(target, names=names), checkpoint)
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in source.state_dict().items())
    half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in net(3).state_dict().items()}
    load_weights(task(target), StateDict(half, "half"))
    assert torch.equal(target.head.weight, half["head.weight"].float())


def test_weights_that_are_not_all_there() -> None:
    lacking = {name: t for name, t in net(1).state_dict().items() if name != "head.bias"}
    model = net(2)
    before = model.head.weight.clone()
    with pytest.raises(InvalidInput, match=r"half: has no tensor for the parameter head\.bias"):
        load_weights(task(model), StateDict(lacking, "half"))
    assert torch.equal(model.head.weight, before)


def rows(path: Any, labels: list[object]) -> Any:
    path.write_text("".join(json.dumps({"text": "x", "kind": label}) + "\n" for label in labels))
    return path


def test_labels_of_other_data(tmp_path: Any) -> None:
    """They go with the rows, in batches of any size, and the task's own code does not see them."""
    words = [("b", "a", "d")[i % 3] for i in range(10)]
    file = rows(tmp_path / "a.jsonl", [*words, "unused"])

    def forward(model: nn.Module, batch: Batch) -> Tensor:
        assert set(batch) == {"x"}
        return model(batch["x"])

    plain = ModelTask(net(), lambda: ({"x": b["x"]} for b in batches(4)), forward)
    found = with_labels(plain, [file], "kind", limit=10)
    features, labels = features_of(found)
    assert labels.tolist() == [(1, 0, 2)[i % 3] for i in range(10)]
    assert torch.equal(features, features_of(plain, labelled=False)[0])
    labelled = task(net())
    assert with_labels(labelled, [file], "kind") is labelled


def test_labels_that_are_numbers(tmp_path: Any) -> None:
    plain = ModelTask(net(), lambda: [{"x": INPUTS}], lambda model, batch: model(batch["x"]))

    def of(values: list[object]) -> Tensor:
        return features_of(with_labels(plain, [rows(tmp_path / "a.jsonl", values)], "kind"))[1]

    assert torch.equal(of([i / 4 for i in range(10)]), torch.arange(10).double() / 4)
    assert of([7, 3] * 5).tolist() == [1, 0] * 5
    for lacking in (None, ""):
        with pytest.raises(InvalidInput, match=r"a\.jsonl: line 10.*: has no label"):
            of([*["a"] * 9, lacking])
    with pytest.raises(InvalidInput, match="has no column 'sort'"):
        with_labels(plain, [tmp_path / "a.jsonl"], "sort")
