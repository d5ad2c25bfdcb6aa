from __future__ import annotations

import json
import os

import pytest

from paramsmith.companions import companions, output_config
from paramsmith.dtypes import DTYPES
from paramsmith.model_config import read_config

KEPT = [
    "1_Pooling/config.json",
    "added_tokens.json",
    "additional_chat_templates/tools.jinja",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
]
LEFT = [
    "config.json",
    "README.md",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.safetensors",
    "pytorch_model.bin",
    "optimizer.pt",
    "modeling_evil.py",
    "tokenizer.py",
    "tokenization_evil.py",
    "tokenizer.json.index.json",
    "adapter_config.json",
    "trainer_state.json",
    "1_Pooling/evil.py",
    "2_Dense/model.safetensors",
    "sub/tokenizer.json",
    ".git/config",
]


def test_companions(tmp_path):
    for name in KEPT + LEFT:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = companions(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == sorted(KEPT)


def test_companions_are_regular_files_and_no_pickles(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "blob").write_text("{}")
    (folder / "tokenizer.json").symlink_to("../blob")
    (folder / "vocab.json").symlink_to("nowhere")
    (folder / "gensim.model").write_bytes(b"\x80\x04K\x01.")
    (folder / "zipped.model").write_bytes(b"PK\x03\x04....")
    (folder / "tokenizer.model").mkdir()
    os.mkfifo(folder / "vocab.txt")
    assert companions(folder) == [folder / "tokenizer.json"]


def result(folder, raw, dtype=None, tied=None, num_layers=None) -> str:
    (folder / "config.json").write_text(raw if isinstance(raw, str) else json.dumps(raw))
    config = read_config(folder)
    before = json.dumps(config.raw)
    written = output_config(config, dtype, tied, num_layers).decode()
    assert json.dumps(config.raw) == before
    return written


def test_nothing_asked_nothing_changed(tmp_path):
    text = '{\n  "z": 1e-06,\n  "a": [\n    0.0,\n    Infinity\n  ],\n  "torch_dtype": "float32"\n}\n'
    assert result(tmp_path, text) == text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"torch_dtype": "float32", "b": 1}, {"torch_dtype": "bfloat16", "b": 1}),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({}, {"torch_dtype": "bfloat16"}),
        ({"transformers_version": "4.55.4"}, {"transformers_version": "4.55.4", "torch_dtype": "bfloat16"}),
        ({"transformers_version": "4.56.0.dev0"}, {"transformers_version": "4.56.0.dev0", "dtype": "bfloat16"}),
        ({"transformers_version": "5.1"}, {"transformers_version": "5.1", "dtype": "bfloat16"}),
        ({"transformers_version": None}, {"transformers_version": None, "torch_dtype": "bfloat16"}),
        (
            {"dtype": "float32", "text_config": {"dtype": "float32"}, "vision_config": {"a": 1}},
            {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}, "vision_config": {"a": 1}},
        ),
    ],
)
def test_dtype_goes_where_it_was(tmp_path, raw, expected):
    written = result(tmp_path, raw, dtype=DTYPES["BF16"])
    assert json.loads(written) == expected
    assert list(json.loads(written)) == list(expected)


def test_remote_code_is_removed_at_any_depth(tmp_path):
    raw = {"auto_map": {"AutoModel": "evil.M"}, "a": [{"auto_map": 1, "b": {"trust_remote_code": True, "c": 2}}]}
    assert json.loads(result(tmp_path, raw)) == {"a": [{"b": {"c": 2}}]}


@pytest.mark.parametrize(
    ("raw", "tied", "expected"),
    [
        ({"tie_word_embeddings": True}, False, {"tie_word_embeddings": False}),
        ({"tie_word_embeddings": False}, True, {"tie_word_embeddings": True}),
        ({"text_config": {"tie_word_embeddings": True}}, False, {"text_config": {"tie_word_embeddings": False}}),
        ({"a": 1}, True, {"a": 1, "tie_word_embeddings": True}),
        ({"a": 1}, None, {"a": 1}),
        (
            {"architectures": ["GemmaForCausalLM"]},
            False,
            {"architectures": ["GemmaForCausalLM"], "tie_word_embeddings": False},
        ),
        ({"architectures": ["ViTModel"]}, False, {"architectures": ["ViTModel"]}),
    ],
)
def test_ties_are_what_is_written(tmp_path, raw, tied, expected):
    assert json.loads(result(tmp_path, raw, tied=tied)) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"num_hidden_layers": 2}, {"num_hidden_layers": 5}),
        ({"n_layer": 2}, {"n_layer": 5}),
        ({"text_config": {"num_hidden_layers": 2}}, {"text_config": {"num_hidden_layers": 5}}),
        ({}, {"num_hidden_layers": 5}),
    ],
)
def test_number_of_layers(tmp_path, raw, expected):
    assert json.loads(result(tmp_path, raw, num_layers=5)) == expected
