from __future__ import annotations

import json
from pathlib import Path

import pytest

from paramsmith.dtypes import DTYPES
from paramsmith.errors import InvalidInput
from paramsmith.header import TensorInfo
from paramsmith.model_config import ModelConfig, check_config, layer_index, read_config, tied_names

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def config(folder: Path, **raw: object) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(raw))
    found = read_config(folder)
    assert found is not None
    return found


def tensors(**shapes: tuple[int, ...]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, DTYPES["F32"], shape, Path("m"), 0, 0) for name, shape in shapes.items()}


def names(*stored: str, shape: tuple[int, ...] = (4, 2)) -> dict[str, TensorInfo]:
    return tensors(**dict.fromkeys(stored, shape))


def layers(stack: str, count: int) -> dict[str, TensorInfo]:
    return names(*(f"{stack}.{i}.mlp.w" for i in range(count)))


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("model.layers.12.mlp.weight", 12),
        ("model.layers.3.experts.7.w", 3),
        ("0.weight", 0),
        ("lm_head.weight", None),
        ("a.b2.c", None),
        ("a.²", None),
        ("a.-1", None),
        ("a." + "9" * 5000, None),
        ("", None),
    ],
)
def test_layer_index(name, index):
    assert layer_index(name) == index


def test_no_config_is_none(tmp_path):
    assert read_config(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 2}}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_config_must_be_one_strict_object(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"config\.json"):
        read_config(tmp_path)


def test_config_has_a_size_limit(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10_000_001)
    with pytest.raises(InvalidInput, match=r"10,000,001.*10,000,000"):
        read_config(tmp_path)


def test_infinity_is_accepted_as_transformers_writes_it(tmp_path):
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert read_config(tmp_path) is not None


@pytest.mark.parametrize(
    ("raw", "stored", "key"),
    [
        ({"vocab_size": 40}, tensors(**{EMBEDDING: (32, 8)}), "vocab_size"),
        ({"text_config": {"vocab_size": 40}}, tensors(**{EMBEDDING: (32, 8)}), "vocab_size"),
        ({"hidden_size": 16}, tensors(**{EMBEDDING: (32, 8), "model.norm.weight": (8,)}), "hidden_size"),
        ({"num_hidden_layers": 3}, layers("model.layers", 2), "num_hidden_layers"),
        ({"num_hidden_layers": 1}, layers("model.layers", 2), "num_hidden_layers"),
        ({"n_layer": 10**9}, layers("transformer.h", 2), "n_layer"),
        ({"num_hidden_layers": 10**9}, names("a"), "num_hidden_layers"),
        ({"text_config": {"num_hidden_layers": 3}}, layers("model.language_model.layers", 2), "num_hidden_layers"),
        ({"intermediate_size": 9}, tensors(**{"model.layers.0.mlp.up_proj.weight": (16, 8)}), "intermediate_size"),
        ({"quantization_config": {"bits": 4}}, names("a"), "quantization_config"),
    ],
)
def test_certain_contradictions(tmp_path, raw, stored, key):
    with pytest.raises(InvalidInput, match=rf"config\.json: {key}"):
        check_config(config(tmp_path, **raw), stored)


@pytest.mark.parametrize(
    ("raw", "stored"),
    [
        pytest.param({"vocab_size": 30}, tensors(**{EMBEDDING: (32, 8)}), id="padded vocabulary"),
        pytest.param({"vocab_size": "many", "num_hidden_layers": {"a": 1}}, layers("layers", 2), id="not numbers"),
        pytest.param({"vocab_size": True}, tensors(**{EMBEDDING: (0, 8)}), id="a truth value"),
        pytest.param(
            {"hidden_size": 768, "embedding_size": 128},
            tensors(**{"albert.embeddings.word_embeddings.weight": (30, 128), "albert.norm.weight": (768,)}),
            id="factorised embedding",
        ),
        pytest.param(
            {"num_hidden_layers": 12}, layers("albert.encoder.albert_layer_groups", 1), id="shared layers (albert)"
        ),
        pytest.param(
            {"num_hidden_layers": 6, "decoder_layers": 2, "encoder_layers": 6},
            layers("model.encoder.layers", 6) | layers("model.decoder.layers", 2),
            id="encoder and decoder",
        ),
        pytest.param(
            {"num_layers": 6, "num_decoder_layers": 2},
            layers("encoder.block", 6) | layers("decoder.block", 2),
            id="t5",
        ),
        pytest.param(
            {"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 5}},
            layers("model.language_model.layers", 3) | layers("model.vision_tower.encoder.layers", 5),
            id="vision and text",
        ),
        pytest.param(
            {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}, layers("model.layers", 5), id="prediction layer"
        ),
        pytest.param({"num_hidden_layers": 8, "num_layers": 4}, layers("model.layers", 4), id="two attentions a layer"),
        pytest.param({"depths": [2, 2, 6, 2], "num_layers": 4}, layers("encoder.layers", 4), id="stages"),
        pytest.param(
            {"intermediate_size": 64, "moe_intermediate_size": 16},
            tensors(**{"model.layers.0.mlp.up_proj.weight": (16, 8)}),
            id="experts of another width",
        ),
        pytest.param(
            {"intermediate_size": 16},
            tensors(**{"a.0.mlp.up_proj.weight": (16, 8), "b.0.mlp.up_proj.weight": (32, 8)}),
            id="two widths",
        ),
        pytest.param({"quantization_config": None}, names("a"), id="no quantisation"),
        pytest.param({}, names("a"), id="silent"),
    ],
)
def test_what_is_not_certain_is_not_refused(tmp_path, raw, stored):
    check_config(config(tmp_path, **raw), stored)


@pytest.mark.parametrize(
    ("raw", "stored", "aliases"),
    [
        ({"tie_word_embeddings": True}, [EMBEDDING], {HEAD: EMBEDDING}),
        ({}, [EMBEDDING], {HEAD: EMBEDDING}),
        ({}, [EMBEDDING, HEAD], {}),
        ({"tie_word_embeddings": True}, [EMBEDDING, HEAD], {HEAD: EMBEDDING}),
        ({"tie_word_embeddings": False}, [EMBEDDING], {}),
        ({"text_config": {"tie_word_embeddings": False}}, [EMBEDDING], {}),
        ({"architectures": ["LlamaForSequenceClassification"]}, [EMBEDDING, "score.weight"], {}),
        ({"architectures": ["Gemma2ForCausalLM"]}, [EMBEDDING], {HEAD: EMBEDDING}),
        ({}, ["transformer.wte.weight"], {HEAD: "transformer.wte.weight"}),
        (
            {"tie_word_embeddings": True},
            ["language_model.model.embed_tokens.weight"],
            {"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"},
        ),
        (
            {"architectures": ["T5ForConditionalGeneration"]},
            ["shared.weight", "encoder.block.0.w", "decoder.block.0.w"],
            {
                HEAD: "shared.weight",
                "encoder.embed_tokens.weight": "shared.weight",
                "decoder.embed_tokens.weight": "shared.weight",
            },
        ),
        (
            {"tie_word_embeddings": False, "architectures": ["T5ForConditionalGeneration"]},
            ["shared.weight", "encoder.block.0.w", "decoder.block.0.w", HEAD],
            {"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
        ),
        (
            {"tie_word_embeddings": True, "share_encoder_decoder_embeddings": False},
            ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"],
            {HEAD: "model.decoder.embed_tokens.weight"},
        ),
        (
            {},
            ["model.encoder.conv1.weight", "model.decoder.embed_tokens.weight"],
            dict.fromkeys([HEAD, "proj_out.weight"], "model.decoder.embed_tokens.weight"),
        ),
        (
            {"tie_word_embeddings": True},
            ["model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"],
            {
                HEAD: "model.shared.weight",
                "model.encoder.embed_tokens.weight": "model.shared.weight",
                "model.decoder.embed_tokens.weight": "model.shared.weight",
            },
        ),
        (
            {"architectures": ["BertForMaskedLM"]},
            ["bert.embeddings.word_embeddings.weight", "cls.predictions.bias"],
            {
                "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
                "cls.predictions.decoder.bias": "cls.predictions.bias",
            },
        ),
        ({"architectures": ["BertModel"]}, ["embeddings.word_embeddings.weight"], {}),
        (
            {"tie_word_embeddings": True},
            ["roberta.embeddings.word_embeddings.weight", "lm_head.bias"],
            {
                "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
                "lm_head.decoder.bias": "lm_head.bias",
            },
        ),
        ({"tie_word_embeddings": True}, ["conv.weight"], {}),
    ],
)
def test_ties(tmp_path, raw, stored, aliases):
    assert tied_names(config(tmp_path, **raw), names(*stored), {}) == aliases


def test_a_stored_head_of_another_shape_is_not_tied(tmp_path):
    stored = tensors(**{EMBEDDING: (4, 2), HEAD: (5, 2)})
    assert tied_names(config(tmp_path, tie_word_embeddings=True), stored, {}) == {}


def test_metadata_names_aliases(tmp_path):
    metadata = {"format": "pt", "b": "a", "c": "missing", "a": "a", "kept": "a", EMBEDDING: HEAD}
    found = tied_names(None, names("a", "kept", HEAD), metadata)
    assert found == {"b": "a", EMBEDDING: HEAD}
