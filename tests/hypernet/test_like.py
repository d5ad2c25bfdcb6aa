"""What `--like` may name: functions, configs, checkpoints; and what is refused before anything is built or run."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paramsmith.errors import Failed, GenerateWarning, InvalidInput
from paramsmith.hypernet.targets.architecture import build
from paramsmith.hypernet.targets.exampleinputs import example_inputs
from paramsmith.hypernet.targets.like import Like, open_like
from tests.merge.pretrained import folders

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL_VISION = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
VIT: dict[str, Any] = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "num_attention_heads": 2}
VIT |= SMALL_VISION
UNET: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}

SOURCE = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(1, 4)

def named():
    return net()[0], {"input": torch.zeros(1, 4)}

def bare():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

def headless():
    return nn.LayerNorm(4)

def needs_values():
    module = nn.Linear(4, 2)
    with torch.no_grad():
        module.weight[:, module.weight[0].argmax().item()] = 0.0
    return module

def masked():
    module = nn.Linear(4, 2)
    module.register_buffer("mask", torch.tensor([1.0, 2.0]))
    return module, (torch.zeros(1, 4),)

def odd():
    return 3

def strange():
    return nn.Linear(4, 2), "an input"

def raises():
    raise KeyError("sesame")

def integers():
    module = nn.Linear(4, 2)
    module.steps = nn.Parameter(torch.arange(3), requires_grad=False)
    return module
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "nets.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.bert(tmp_path_factory.mktemp("bert"))


def strictly(reference: object, **options: Any) -> Like:
    """Opened without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return open_like(str(reference), **options)


def config(folder: Path, raw: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def head(like: Like) -> list[tuple[str, tuple[int, ...]]]:
    return [(slot.name, slot.shape) for slot in like.spec.slots if slot.class_axis is not None]


@pytest.mark.parametrize("function", ["net", "named"])
def test_a_function_gives_the_module_and_an_example(source: Path, function: str) -> None:
    like = strictly(f"{source}:{function}")
    assert like.label == f"{source}:{function}"
    assert [slot.name for slot in like.spec.slots] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert like.spec.graph is not None
    assert like.spec.graph.source == "export"
    assert like.target is not None
    assert all(parameter.is_meta for parameter in like.target.module.parameters())
    assert (like.config, like.folder, like.own()) == (None, None, {})
    weights = {slot.name: torch.ones(slot.shape) for slot in like.spec.slots}
    assert like.target.call(weights, torch.ones(1, 4)).tolist() == [[41.0, 41.0, 41.0]]


def test_a_function_without_an_example_has_a_chain(source: Path) -> None:
    with pytest.warns(GenerateWarning, match="no example of its inputs is known"):
        like = open_like(f"{source}:bare")
    assert like.spec.graph is not None
    assert like.spec.graph.source == "chain"
    assert strictly(f"{source}:bare", capture=False).spec.graph is None


def test_a_function_that_needs_values_is_called_again_with_them(source: Path) -> None:
    assert strictly(f"{source}:needs_values", capture=False).spec.slots[0].shape == (2, 4)
    like = strictly(f"{source}:masked", capture=False)
    assert {name: value.tolist() for name, value in like.own().items()} == {"mask": [1.0, 2.0]}


def test_building_draws_nothing_from_the_global_generator(source: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    strictly(f"{source}:needs_values", capture=False)
    strictly(config(tmp_path, UNET), capture=False)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_number_of_classes_for_a_function(source: Path) -> None:
    like = strictly(f"{source}:net", classes=7)
    assert head(like) == [("2.weight", (7, 8)), ("2.bias", (7,))]
    assert like.target is None
    assert strictly(f"{source}:net", classes=3).target is not None
    with pytest.raises(InvalidInput, match="no layer of the target has 7 outputs"):
        strictly(f"{source}:headless", classes=7, capture=False)


@pytest.mark.parametrize(
    ("function", "error", "told"),
    [
        ("odd", InvalidInput, "nets.py:odd: gave int"),
        ("strange", InvalidInput, "nets.py:strange: gave Linear, str"),
        ("raises", Failed, "nets.py:raises raised KeyError: 'sesame'"),
        ("integers", InvalidInput, "steps: is of type I64"),
        ("missing", InvalidInput, "has no function 'missing'"),
    ],
)
def test_functions_that_give_no_module(source: Path, function: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        open_like(f"{source}:{function}")


def test_a_config_alone(bert: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    config(alone, json.loads((bert / "config.json").read_text()))
    like, by_path = strictly(alone), strictly(bert / "config.json", capture=False)
    stored = {name: tuple(tensor.shape) for name, tensor in load_file(bert / "model.safetensors").items()}
    assert {slot.name: slot.shape for slot in like.spec.slots} == stored
    assert like.spec == by_path.spec
    assert like.target is not None
    assert like.spec.graph is not None
    assert like.spec.graph.source == "export"
    assert like.config is not None
    assert like.config["model_type"] == "bert"
    assert (like.folder, by_path.folder) == (alone, bert)
    assert {slot.std for slot in like.spec.slots if slot.role == "matrix"} == {0.02}


def test_a_checkpoint_and_its_config_agree_and_it_runs(bert: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    like = strictly(bert)
    assert like.spec.slots == strictly(bert / "config.json", capture=False).spec.slots
    assert like.target is not None
    assert like.folder == bert
    weights = load_file(bert / "model.safetensors")
    inputs: dict[str, Tensor] = dict(like.inputs)  # type: ignore[arg-type]
    with folders.quiet():
        model = AutoModelForSequenceClassification.from_pretrained(bert).eval()
    torch.testing.assert_close(like.target.call(weights, **inputs), model(**inputs).logits)
    several = {name: torch.stack([weight, 2 * weight]) for name, weight in weights.items()}
    both = like.target.call_many(several, shared=True, **inputs)
    torch.testing.assert_close(both[0], model(**inputs).logits)
    assert not torch.allclose(both[0], both[1])


def test_types_are_those_that_are_stored(bert: Path, tmp_path: Path) -> None:
    half = config(tmp_path / "half", json.loads((bert / "config.json").read_text()))
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(bert / "model.safetensors").items()}
    tensors["classifier.bias"] = tensors["classifier.bias"].float()
    save_file(tensors, half / "model.safetensors")
    like = strictly(half, capture=False)
    assert {slot.dtype for slot in like.spec.slots if slot.name != "classifier.bias"} == {"BF16"}
    assert like.spec.slots[-1].dtype == "F32"
    raw = {**VIT, "dtype": "bfloat16"}
    assert {slot.dtype for slot in strictly(config(tmp_path / "vit", raw), capture=False).spec.slots} == {"BF16"}


@pytest.mark.parametrize("reference", ["folder", "config.json"])
def test_another_number_of_classes_is_in_the_config(bert: Path, tmp_path: Path, reference: str) -> None:
    """The library loads what comes out: that is what the names, shapes and config are for."""
    from transformers import AutoModelForSequenceClassification

    like = strictly(bert if reference == "folder" else bert / reference, classes=5, capture=False)
    assert head(like) == [("classifier.weight", (5, 16)), ("classifier.bias", (5,))]
    out = config(tmp_path / "out", dict(like.config or {}))
    rng = torch.Generator().manual_seed(0)
    weights = {slot.name: torch.randn(slot.shape, generator=rng) for slot in like.spec.slots}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    with folders.quiet():
        model, told = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


def test_a_language_model_has_no_classes(tmp_path: Path) -> None:
    gpt2 = folders.gpt2(tmp_path)
    with pytest.raises(InvalidInput, match="is no classifier"):
        open_like(str(gpt2), classes=3)
    like = strictly(gpt2, capture=False)
    assert like.spec.slots[0].copies == ("lm_head.weight",)
    assert not head(like)


def test_names_are_those_that_are_stored(tmp_path: Path) -> None:
    """As the first files of GPT-2 are: without the prefix, and with masks, which no library wants."""
    tensors = load_file(folders.gpt2(tmp_path / "new") / "model.safetensors")
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32) for i in range(2)}
    old = config(tmp_path / "old", json.loads((tmp_path / "new" / "config.json").read_text()))
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file({**bare, **masks}, old / "model.safetensors")
    with pytest.warns(GenerateWarning, match=r"2 tensors are none of its architecture, h.0.attn.bias first"):
        like = open_like(str(old))
    assert {slot.name for slot in like.spec.slots} == set(bare)
    assert (like.target, like.spec.graph and like.spec.graph.source) == (None, "export")
    assert {name for slot in like.spec.slots for name in slot.copies} == {"lm_head.weight"}
    alone = strictly(old / "model.safetensors")
    assert {slot.name for slot in alone.spec.slots} == set(bare)
    assert set(alone.own()) == set(masks)


def test_names_that_the_library_changes_while_it_loads(tmp_path: Path) -> None:
    vit = folders.pretrained(tmp_path / "vit", "ViTForImageClassification", num_attention_heads=2, **SMALL_VISION)
    like = strictly(vit, capture=False)
    assert {slot.name for slot in like.spec.slots} == set(load_file(vit / "model.safetensors"))
    roles = {slot.name: slot.role for slot in like.spec.slots}
    assert roles["vit.embeddings.cls_token"] == "position"


def test_a_checkpoint_of_another_architecture_than_its_config_says(bert: Path, tmp_path: Path) -> None:
    raw = json.loads((bert / "config.json").read_text())
    other = config(tmp_path / "other", {**raw, "intermediate_size": 32, "type_vocab_size": 3})
    save_file(load_file(bert / "model.safetensors"), other / "model.safetensors")
    with pytest.raises(InvalidInput, match=r"has shape \[2, 16\], but config.json makes it \[3, 16\]"):
        open_like(str(other), capture=False)


def test_a_checkpoint_that_lacks_tensors_is_named_as_in_the_library(bert: Path, tmp_path: Path) -> None:
    part = config(tmp_path / "part", json.loads((bert / "config.json").read_text()))
    tensors = {n: t for n, t in load_file(bert / "model.safetensors").items() if not n.startswith("classifier")}
    save_file(tensors, part / "model.safetensors")
    with pytest.warns(GenerateWarning, match="has 2 of the tensors of its architecture under no name that is known"):
        like = open_like(str(part), capture=False)
    assert like.spec == strictly(bert, capture=False).spec


def test_a_file_alone_is_told_by_its_names(bert: Path) -> None:
    like, whole = strictly(bert / "model.safetensors"), strictly(bert, capture=False)
    assert (like.target, like.folder, like.config) == (None, None, None)
    assert like.spec.graph is not None
    assert like.spec.graph.source == "chain"
    assert like.spec.hash == whole.spec.hash
    assert {s.name: (s.role, s.fan_in) for s in like.spec.slots} == {
        s.name: (s.role, s.fan_in) for s in whole.spec.slots
    }
    assert head(strictly(bert / "model.safetensors", classes=7)) == [
        ("classifier.weight", (7, 16)),
        ("classifier.bias", (7,)),
    ]


def test_an_architecture_of_its_own_code_is_told_by_its_names(bert: Path, tmp_path: Path) -> None:
    """And its code, though it lies beside, is not run."""
    raw = json.loads((bert / "config.json").read_text())
    raw |= {"architectures": ["Own"], "auto_map": {"AutoModel": "own.Own", "AutoConfig": "own.OwnConfig"}}
    own = config(tmp_path / "own", raw)
    marker = tmp_path / "ran"
    (own / "own.py").write_text(f"open({str(marker)!r}, 'w').close()")
    save_file(load_file(bert / "model.safetensors"), own / "model.safetensors")
    with pytest.warns(GenerateWarning, match="transformers has no architecture 'Own' of its own"):
        like = open_like(str(own))
    assert like.spec.graph is not None
    assert like.spec.graph.source == "chain"
    (own / "model.safetensors").unlink()
    with pytest.raises(InvalidInput, match="no architecture 'Own'"):
        open_like(str(own))
    assert not marker.exists()


def test_code_that_a_config_names_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: object, **__: object) -> None:
        pytest.fail("something was fetched")

    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", fetched)
    wanted = {
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "experts_implementation": "e/k",
    }
    raw = {**VIT, **wanted, "auto_map": {"AutoModel": "evil/repo--own.Own"}}
    like = strictly(config(tmp_path, raw), capture=False)
    assert like.target is not None
    told = like.target.module.config
    assert told._attn_implementation in ("sdpa", "eager")  # type: ignore[union-attr]


ABSURD: dict[str, dict[str, Any]] = {
    "width": {"hidden_size": 10**13},
    "widths together": {"hidden_size": 2 * 10**6, "intermediate_size": 10**6, "num_hidden_layers": 9_000},
    "layers": {"num_hidden_layers": 200_000},
    "heads": {"num_attention_heads": 10**6},
    "labels": {"num_labels": 10**10},
    "deep": {"text_config": {"num_hidden_layers": 10**6}},
    "negative": {"hidden_size": -16},
    "astronomic": {"hidden_size": 10**300},
    "text": {"hidden_size": "wide"},
    "list": {"hidden_size": [16]},
    "no such type": {"model_type": "nonsense"},
    "no such class": {"architectures": ["os"]},
    "a class that is no model": {"architectures": ["ViTConfig"]},
    "no name": {"architectures": ["../evil"]},
    "nothing": {"model_type": None, "architectures": None},
    "class of nothing": {"_class_name": "nonsense"},
    "class that is no model": {"_class_name": "DDPMScheduler"},
}


@pytest.mark.parametrize("change", ABSURD.values(), ids=ABSURD.keys())
def test_configs_that_nothing_is_built_from(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        open_like(str(config(tmp_path, {**VIT, **change})), capture=False)
    assert "config.json" in caught.value.fact
    assert "\n" not in caught.value.fact
    assert len(caught.value.fact) < 600


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}'])
def test_a_config_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"config\.json"):
        open_like(str(tmp_path))


@pytest.mark.parametrize("there", [True, False])
def test_nothing_to_open(tmp_path: Path, there: bool) -> None:
    with pytest.raises(InvalidInput):
        open_like(str(tmp_path if there else tmp_path / "nothing"))


@pytest.mark.parametrize("reference", ["folder", "config.json"])
def test_a_missing_library_is_named(bert: Path, monkeypatch: pytest.MonkeyPatch, reference: str) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InvalidInput, match="a model of transformers, which is not installed") as caught:
        open_like(str(bert if reference == "folder" else bert / reference))
    assert "pip install 'paramsmith[transformers]'" in caught.value.hint
    assert strictly(bert / "model.safetensors").spec  # which needs none


def test_a_model_of_diffusers(tmp_path: Path) -> None:
    like = strictly(config(tmp_path, UNET))
    assert like.spec.graph is not None
    assert like.spec.graph.source == "export"
    assert {slot.name for slot in like.spec.slots} == set(build(UNET, "here").state_dict())
    assert {name: tuple(value.shape) for name, value in dict(like.inputs).items()} == {  # type: ignore[arg-type]
        "sample": (1, 3, 8, 8),
        "timestep": (1,),
    }
    assert like.target is not None
    weights = {slot.name: torch.zeros(slot.shape) for slot in like.spec.slots}
    inputs: dict[str, Tensor] = dict(like.inputs)  # type: ignore[arg-type]
    assert like.target.call(weights, **inputs).shape == (1, 3, 8, 8)


def test_a_built_model_has_its_ties_and_buffers_but_no_weights() -> None:
    model = build({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 16, "n_head": 2}, "here")
    assert model.get_parameter("lm_head.weight") is model.get_parameter("transformer.wte.weight")
    assert all(parameter.is_meta for parameter in model.parameters())
    llama = build({"model_type": "llama", **TEXT, "num_key_value_heads": 1}, "here")
    assert all(parameter.is_meta for parameter in llama.parameters())
    assert not any(buffer.is_meta for buffer in llama.buffers())
    assert list(llama.buffers())


TEXT = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 17}
RESNET = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}


@pytest.mark.parametrize(
    ("raw", "shapes"),
    [
        ({"model_type": "bert", **TEXT}, {"input_ids": (1, 8)}),
        (VIT, {"pixel_values": (1, 3, 16, 16)}),
        ({"model_type": "t5", "architectures": ["T5Model"], **T5}, {"input_ids": (1, 8), "decoder_input_ids": (1, 8)}),
        ({"model_type": "resnet", **RESNET}, {"pixel_values": (1, 3, 224, 224)}),
        (
            {"model_type": "clip", "text_config": TEXT, "vision_config": {**SMALL_VISION, "num_attention_heads": 2}},
            {"input_ids": (1, 8), "pixel_values": (1, 3, 16, 16)},
        ),
    ],
    ids=lambda value: value.get("model_type", ""),
)
def test_example_inputs_are_what_the_model_takes(raw: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    model = build(raw, "here")
    inputs = example_inputs(model)
    assert {name: tuple(value.shape) for name, value in inputs.items()} == shapes
    model(**{name: value.to("meta") for name, value in inputs.items()})
