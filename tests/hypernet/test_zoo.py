"""Zoos: what is read of a folder of checkpoints, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.zoos.inspection import inspect
from paramsmith.hypernet.zoos.zoo import Zoo

pytestmark = pytest.mark.usefixtures("one_thread")


def tensors(seed: int, width: int = 5, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (width, 4), "0.bias": (width,), "2.weight": (3, width), "2.bias": (3,)}
    return {name: torch.randn(shape, generator=rng).to(dtype) for name, shape in shapes.items()}


def fill(folder: Path, lines: Sequence[Mapping[str, object]] = (), **files: Mapping[str, Tensor]) -> Path:
    for name, held in files.items():
        save_file(dict(held), folder / f"{name}.safetensors")
    if lines:
        (folder / "zoo.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return folder


def test_a_folder_of_checkpoints(tmp_path: Path) -> None:
    """Files and folders in the order of their names, in any dtype; what is no checkpoint is passed over."""
    fill(tmp_path, b=tensors(1), a=tensors(0, dtype=torch.bfloat16))
    (tmp_path / "c").mkdir()
    save_file(tensors(2), tmp_path / "c" / "model.safetensors", {"format": "pt"})
    (tmp_path / "c" / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("no checkpoint")
    (tmp_path / ".hidden.safetensors").write_text("no checkpoint")
    zoo = Zoo.open(tmp_path)
    assert [member.label for member in zoo.members] == ["a.safetensors", "b.safetensors", "c"]
    assert len(zoo) == len(zoo.of("train")) == 3
    assert not zoo.of("test")
    loaded = {member.label: zoo.load(member) for member in zoo.members}
    for label, seed, dtype in (("a.safetensors", 0, torch.bfloat16), ("c", 2, torch.float32)):
        expected = tensors(seed, dtype=dtype)
        assert loaded[label].keys() == expected.keys()
        assert all(torch.equal(loaded[label][name], expected[name].float()) for name in expected)
    assert zoo.site.spec is not None
    assert zoo.site.spec.hash == zoo.members[0].spec.hash
    assert zoo.site.condition == {}


def test_what_is_known_of_each(tmp_path: Path) -> None:
    lines = [
        {"path": "b.safetensors", "condition": [0.5, 1], "task": "digits", "run": 3, "metrics": {"accuracy": 0.9}},
        {"path": "a.safetensors", "condition": {"vector": [0, 2]}, "split": "test"},
    ]
    zoo = Zoo.open(fill(tmp_path, lines, a=tensors(0), b=tensors(1), left_out=tensors(2)))
    assert [member.label for member in zoo.members] == ["b.safetensors", "a.safetensors"]
    assert zoo.site.condition == {"vector": (2,)}
    first = zoo.of("train")[0]
    assert (first.entry.task, first.entry.run, first.entry.metrics) == ("digits", 3, {"accuracy": 0.9})
    assert torch.equal(zoo.of("test")[0].condition["vector"], torch.tensor([0.0, 2.0]))


def test_a_digest_tells_zoos_apart(tmp_path: Path) -> None:
    fill(tmp_path, [{"path": "a.safetensors"}, {"path": "b.safetensors"}], a=tensors(0), b=tensors(1))
    before = Zoo.open(tmp_path).digest
    assert Zoo.open(tmp_path).digest == before
    fill(tmp_path, [{"path": "a.safetensors"}, {"path": "b.safetensors", "split": "test"}])
    changed = Zoo.open(tmp_path).digest
    fill(tmp_path, [{"path": "a.safetensors"}, {"path": "b.safetensors"}], b=tensors(2, 6))
    assert len({before, changed, Zoo.open(tmp_path).digest}) == 3


def test_a_target_may_say_what_the_checkpoints_are_of(tmp_path: Path) -> None:
    """It knows the graph, and the order of the tensors, which a file does not."""
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    like = Target.of(net, torch.zeros(1, 4)).spec
    zoo = Zoo.open(fill(tmp_path, a=tensors(0), other=tensors(1, 6)), like)
    assert zoo.members[0].spec is like
    assert zoo.members[1].spec.graph is None
    assert set(zoo.load(zoo.members[0])) == set(net.state_dict())


def wrong(path: Path, told: str) -> None:
    with pytest.raises(InvalidInput, match=told) as refused:
        Zoo.open(path)
    assert "\n" not in refused.value.fact
    assert refused.value.hint


def test_no_zoo(tmp_path: Path) -> None:
    wrong(tmp_path / "none", "does not exist")
    wrong(tmp_path, "has no checkpoints")
    (tmp_path / "file").write_text("")
    wrong(tmp_path / "file", "is no folder")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: "),
        ("[1]", "line 2: "),
        ('{"condition": [1]}', "line 2: path: "),
        ('{"path": "a.safetensors", "contition": [1]}', "line 2: contition: "),
        ('{"path": "a.safetensors", "split": "tset"}', "line 2: split: "),
        ('{"path": "../a.safetensors"}', "lies outside the zoo"),
        ('{"path": "b.safetensors"}', "does not exist"),
        ('{"path": "a.safetensors", "condition": ["x"]}', "is no numbers"),
        ('{"path": "a.safetensors", "condition": [NaN]}', "is no numbers|line 2"),
        ('{"path": "a.safetensors", "condition": [[1], [1, 2]]}', "is no numbers"),
        ('{"path": "a.safetensors", "condition": [1]}', "its condition is not of the shape of"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: str, told: str) -> None:
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    fill(zoo, a=tensors(0))
    fill(tmp_path, a=tensors(0))
    (zoo / "zoo.jsonl").write_text('{"path": "a.safetensors"}\n' + line)
    wrong(zoo, told)


def test_checkpoints_that_do_not_belong_together(tmp_path: Path) -> None:
    zoo = Zoo.open(fill(tmp_path, a=tensors(0), b=tensors(1, 6)))
    with pytest.raises(InvalidInput, match=r"b\.safetensors: .*0\.\w+ has the shape \[6(, 4)?\], not \[5(, 4)?\]"):
        zoo.batch(zoo.members)
    lacking = {name: tensor for name, tensor in tensors(1).items() if name != "2.bias"}
    zoo = Zoo.open(fill(tmp_path, b=lacking))
    with pytest.raises(
        InvalidInput, match=r"it?s of another architecture .*: has no tensor 2\.bias|has no tensor 2\.bias"
    ):
        zoo.batch(zoo.members)
    zoo = Zoo.open(fill(tmp_path, a=lacking, b=tensors(0)))
    with pytest.raises(InvalidInput, match=r"has a tensor 2\.bias besides"):
        zoo.batch(zoo.members)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    held = tensors(1)
    held["2.weight"][1, 1] = value
    zoo = Zoo.open(fill(tmp_path, a=tensors(0), b=held))
    with pytest.raises(InvalidInput, match=r"b\.safetensors: tensor 2\.weight holds values that are not finite"):
        zoo.batch(zoo.members)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    fill(tmp_path, a=tensors(0))
    (tmp_path / "b.safetensors").write_bytes(b"nonsense")
    wrong(tmp_path, "b.safetensors")
    save_file({"n": torch.arange(3)}, tmp_path / "b.safetensors")
    wrong(tmp_path, "b.safetensors: ")


def test_adapter_folders(tmp_path: Path) -> None:
    """As PEFT saves them; a folder with a whole model beside the adapter is the model."""
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        save_file(tensors(seed), tmp_path / name / "adapter_model.safetensors", {"format": "pt"})
        (tmp_path / name / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    zoo = Zoo.open(tmp_path)
    assert [member.label for member in zoo.members] == ["a", "b"]
    assert torch.equal(zoo.load(zoo.members[1])["0.weight"], tensors(1)["0.weight"])
    save_file(tensors(5), tmp_path / "b" / "model.safetensors")
    (tmp_path / "b" / "config.json").write_text("{}")
    zoo = Zoo.open(tmp_path)
    assert torch.equal(zoo.load(zoo.members[1])["0.weight"], tensors(5)["0.weight"])


def test_one_file_under_two_names_is_not_on_two_sides(tmp_path: Path) -> None:
    lines = [{"path": "a.safetensors"}, {"path": "./a.safetensors", "split": "test"}]
    wrong(fill(tmp_path, lines, a=tensors(0)), "are the same network")
    (tmp_path / "link.safetensors").symlink_to("a.safetensors")
    wrong(fill(tmp_path, [lines[0], {"path": "link.safetensors", "split": "test"}]), "are the same network")


def test_a_list_of_another_editor(tmp_path: Path) -> None:
    """With a byte order mark, and with line ends of two characters."""
    fill(tmp_path, a=tensors(0), b=tensors(1))
    text = '{"path": "a.safetensors"}\r\n{"path": "b.safetensors"}\r\n'
    (tmp_path / "zoo.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(Zoo.open(tmp_path)) == 2


def test_what_a_zoo_should_be_told_of(tmp_path: Path) -> None:
    """Lines that occur twice, conditions of several widths, and pickles that nobody reads."""
    lines = [{"path": "a.safetensors", "condition": [1, 2]}] * 2 + [{"path": "b.safetensors", "condition": [1]}]
    found = inspect(Zoo.open(fill(tmp_path, lines, a=tensors(0), b=tensors(1))))
    assert "a.safetensors is listed more than once" in found.warnings
    assert "the condition vector has 2 numbers in a.safetensors and 1 in b.safetensors" in found.warnings
    (tmp_path / "zoo.jsonl").unlink()
    (tmp_path / "c.pt").write_bytes(b"x")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "adapter_model.bin").write_bytes(b"x")
    told = inspect(Zoo.open(tmp_path)).warnings
    assert "c.pt is left out: it is a pickle, or has nothing else" in told
    assert "and 1 more like it" in told
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "net.pth").write_bytes(b"x")
    with pytest.raises(InvalidInput, match="has no checkpoints") as refused:
        Zoo.open(alone)
    assert refused.value.hint == "net.pth is a pickle, which could run code: convert it to safetensors"
