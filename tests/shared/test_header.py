from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from paramsmith.dtypes import DTYPES, from_torch
from paramsmith.errors import InvalidInput
from paramsmith.header import MAX_DIMENSIONS, Header, TensorSpec, layout, parse_header

TORCH_DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.uint16,
]
# Surrogates cannot be encoded, so neither reader nor writer knows them.
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=3)


def parse(path: Path) -> Header:
    fd = os.open(path, os.O_RDONLY)
    try:
        return parse_header(path, fd)
    finally:
        os.close(fd)


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@given(
    tensors=st.dictionaries(NAMES, st.tuples(st.sampled_from(TORCH_DTYPES), SHAPES), max_size=8),
    metadata=st.sampled_from([None, {"format": "pt"}, {'a"\n\x01\x7fé\u2028': "\\/\b"}]),
)
def test_layout_is_the_librarys(tensors, metadata):
    stored = {name: torch.ones(shape, dtype=torch.uint8).to(dtype) for name, (dtype, shape) in tensors.items()}
    expected = save(stored, metadata=metadata)
    specs = [TensorSpec(name, from_torch(tensor.dtype), tuple(tensor.shape)) for name, tensor in stored.items()]
    head, offsets, size = layout(specs, metadata or {})
    written = bytearray(size)
    written[: len(head)] = head
    for name, tensor in stored.items():
        data = bytes(tensor.reshape(-1).view(torch.uint8).numpy())
        written[offsets[name] : offsets[name] + len(data)] = data
    assert bytes(written) == expected


def test_layout_of_awkward_names_scalars_and_packed_elements():
    stored = {
        'quote"newline\né': torch.tensor(1.5, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "packed": torch.zeros(2, 3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "i": torch.arange(3),
    }
    specs = [
        TensorSpec('quote"newline\né', DTYPES["BF16"], ()),
        TensorSpec("empty", DTYPES["F32"], (0, 3)),
        TensorSpec("packed", DTYPES["F4"], (2, 6)),
        TensorSpec("i", DTYPES["I64"], (3,)),
    ]
    head, _, size = layout(specs, {"format": "pt"})
    expected = save(stored, metadata={"format": "pt"})
    assert size == len(expected)
    assert expected.startswith(head)


def test_layout_refuses_names_that_cannot_be_written():
    twice = [TensorSpec("a", DTYPES["F32"], ())] * 2
    with pytest.raises(ValueError, match="twice"):
        layout(twice, {})


@given(tensors=st.dictionaries(NAMES, st.tuples(st.sampled_from(TORCH_DTYPES), SHAPES), max_size=8))
def test_parse_reads_what_the_library_writes(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("parse") / "a.safetensors"
    stored = {name: torch.ones(shape, dtype=torch.uint8).to(dtype) for name, (dtype, shape) in tensors.items()}
    save_file(stored, path, metadata={"format": "pt"})
    found = parse(path)
    data = path.read_bytes()
    assert found.size == len(data)
    assert found.metadata == {"format": "pt"}
    assert set(found.tensors) == set(stored)
    for name, info in found.tensors.items():
        assert info.shape == tuple(stored[name].shape)
        assert info.dtype is from_torch(stored[name].dtype)
        assert info.count == stored[name].numel()
        assert data[info.offset :][: info.nbytes] == bytes(stored[name].reshape(-1).view(torch.uint8).numpy())


def test_tensors_come_in_the_order_of_their_bytes(tmp_path):
    entry = {"dtype": "U8", "shape": [1]}
    header = {"b": {**entry, "data_offsets": [1, 2]}, "a": {**entry, "data_offsets": [0, 1]}}
    assert list(parse(write(tmp_path / "a.safetensors", header, b"ab")).tensors) == ["a", "b"]


def test_padding_and_unaligned_data_are_legal(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + b" " * 5
    path = write(tmp_path / "a.safetensors", header, b"abcd")
    assert parse(path).tensors["a"].offset == 8 + len(header)
    with safe_open(path, "pt") as library:
        assert library.keys() == ["a"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}, "hole"),
        ({"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}, "shape"),
        ({"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}, "shape"),
        ({"dtype": "U8", "shape": "1", "data_offsets": [0, 1]}, "shape"),
        ({"dtype": "U8", "shape": [1] * (MAX_DIMENSIONS + 1), "data_offsets": [0, 1]}, "shape"),
        ({"dtype": "U8", "shape": [2**62, 2, 2, 2], "data_offsets": [0, 1]}, "too large"),
        ({"dtype": "U8", "shape": [0, 2**64], "data_offsets": [0, 0]}, "too large"),
        ({"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}, "dtype"),
        ({"dtype": "u8", "shape": [1], "data_offsets": [0, 1]}, "dtype u8"),
        ({"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}, "ends before"),
        ({"dtype": "F6_E3M2", "shape": [4], "data_offsets": [0, 3]}, "F6_E3M2"),
        ([1, 2], "not an object"),
        (None, "not an object"),
    ],
)
def test_a_bad_entry_is_named(tmp_path, entry, said):
    path = write(tmp_path / "model.safetensors", {"the\x1bname": entry}, b"a")
    with pytest.raises(InvalidInput) as caught:
        parse(path)
    assert "model.safetensors" in caught.value.fact
    assert r"the\x1bname" in caught.value.fact
    assert said in caught.value.fact


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "lfs pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"<HTML><body>", "web page"),
        (b"PK\x03\x04" + b"\0" * 60, "zip"),
        (b"\x80\x02}q\x00." + b"\0" * 60, "pickle"),
        (b"GGUF\3\0\0\0" + b"\0" * 60, "gguf"),
        (b'{"error": "Entry not found"}', "json"),
        (b"", "0 bytes"),
        (b"\0" * 64, "does not begin"),
    ],
)
def test_impostors_are_told_by_name(tmp_path, start, said):
    path = tmp_path / "model.safetensors"
    path.write_bytes(start)
    with pytest.raises(InvalidInput, match=r"model\.safetensors") as caught:
        parse(path)
    assert said in caught.value.fact


@given(data=st.data())
def test_a_damaged_header_is_refused_or_means_something_valid(tmp_path_factory, data):
    """Any one byte of the header changed: a sentence, or a file that still holds together."""
    good = save({"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.bfloat16)}, metadata={"format": "pt"})
    length = 8 + int.from_bytes(good[:8], "little")
    where = data.draw(st.integers(0, length - 1))
    damaged = bytearray(good)
    damaged[where] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    path.write_bytes(damaged)
    fact = "model.safetensors"
    try:
        found = parse(path)
    except InvalidInput as error:
        fact = error.fact
    else:
        assert found.data_start + sum(info.nbytes for info in found.tensors.values()) == len(damaged)
    assert "model.safetensors" in fact
    assert "\n" not in fact
