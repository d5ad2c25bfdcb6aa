"""The planned files are the ones that the safetensors library and the Hub client would have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from paramsmith.dtypes import from_torch
from paramsmith.errors import InvalidInput
from paramsmith.header import TensorSpec
from paramsmith.shards import INDEX_NAME, Layout, plan_files

TYPES = [torch.bool, torch.uint8, torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.int32, torch.float64]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(TYPES), SHAPES), max_size=8)


def random_tensors(described: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(0, 2, shape, generator=generator).to(torch.float32).to(dtype)
        for name, (dtype, shape) in described.items()
    }


def specs(tensors: Mapping[str, torch.Tensor]) -> list[TensorSpec]:
    return [TensorSpec(name, from_torch(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]


def fill(layout: Layout, tensors: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """The bytes of each file, made from nothing but the layout."""
    contents = [bytearray(file.header) + bytes(file.size - len(file.header)) for file in layout.files]
    for name, tensor in tensors.items():
        number, offset = layout.where[name]
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        contents[number][offset : offset + len(data)] = data
    return {file.name: bytes(content) for file, content in zip(layout.files, contents, strict=True)}


@given(TENSORS)
def test_file_is_what_the_library_writes(described: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    tensors = random_tensors(described)
    layout = plan_files(specs(tensors), None)
    assert fill(layout, tensors) == {"model.safetensors": save(tensors, {"format": "pt"})}
    assert layout.index is None
    assert layout.nbytes == sum(tensor.nbytes for tensor in tensors.values())


@given(described=TENSORS.filter(bool), shard_size=st.integers(1, 300))
def test_shards_are_what_the_hub_client_writes(
    tmp_path_factory: pytest.TempPathFactory,
    described: dict[str, tuple[torch.dtype, tuple[int, ...]]],
    shard_size: int,
) -> None:
    tensors = random_tensors(described)
    folder = tmp_path_factory.mktemp("reference")
    save_torch_state_dict(tensors, folder, max_shard_size=shard_size, metadata={"format": "pt"})
    layout = plan_files(specs(tensors), shard_size)
    ours = fill(layout, tensors)
    if layout.index is not None:
        ours[INDEX_NAME] = layout.index
        written = json.loads((folder / INDEX_NAME).read_bytes())
        # the same document; the text is as transformers writes it, which differs from the Hub client only in spaces
        assert json.loads(layout.index) == {**written, "metadata": {"total_size": layout.nbytes}}
        ours[INDEX_NAME] = (folder / INDEX_NAME).read_bytes()
    assert ours == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_index_is_formatted_as_save_pretrained_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=32
    )
    model = transformers.BertModel(config)
    model.save_pretrained(tmp_path, max_shard_size=2000)
    written = (tmp_path / INDEX_NAME).read_bytes()
    layout = plan_files(specs(model.state_dict()), 2000)
    parsed = json.loads(written)
    parsed["metadata"].pop("total_parameters", None)  # for a merge, the tensors say it
    assert layout.index == (json.dumps(parsed, indent=2, sort_keys=True) + "\n").encode()
    assert [file.name for file in layout.files] == sorted(path.name for path in tmp_path.glob("*.safetensors"))


def test_large_tensor_is_alone_and_model_order_is_kept() -> None:
    tensors = {name: torch.zeros(count) for name, count in [("z", 2), ("huge", 9), ("a", 2), ("m", 1)]}
    layout = plan_files(specs(tensors), 16)
    assert [file.tensors for file in layout.files] == [("huge",), ("a", "z"), ("m",)]
    assert layout.files[2].name == "model-00003-of-00003.safetensors"


def test_single_name_makes_one_file_whatever_the_shard_size() -> None:
    layout = plan_files(specs({"a": torch.zeros(9), "b": torch.zeros(9)}), 8, single="x.safetensors")
    assert [file.name for file in layout.files] == ["x.safetensors"]
    assert layout.index is None


def test_tensors_of_a_file_are_in_the_order_of_their_bytes() -> None:
    tensors = {"b": torch.zeros(2), "a": torch.zeros(0), "c": torch.zeros(1, dtype=torch.float64)}
    layout = plan_files(specs(tensors), None)
    assert layout.files[0].tensors == ("c", "a", "b")


def test_digest_tells_layouts_apart() -> None:
    tensors = {"a": torch.zeros(4), "b": torch.zeros(4)}
    one = plan_files(specs(tensors), None)
    assert one.digest == plan_files(specs(tensors), None).digest
    others = [plan_files(specs(tensors), 16), plan_files(specs(tensors), None, single="x.safetensors")]
    others.append(plan_files(specs({**tensors, "b": torch.zeros(2, 2)}), None))
    assert len({one.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize("size", [0, -1])
def test_shard_size_must_be_positive(size: int) -> None:
    with pytest.raises(InvalidInput, match="shard size must be positive"):
        plan_files(specs({"a": torch.zeros(1)}), size)
