"""Specs: of modules and of headers; what is refused; equality, groups, classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput
from paramsmith.hypernet.targets.describe import spec_of, spec_of_checkpoint
from paramsmith.hypernet.targets.graph import Graph, Node
from paramsmith.hypernet.targets.target import Buffer, Slot, TargetSpec

pytestmark = pytest.mark.usefixtures("one_thread")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Embedding(9, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
        self.again = self.body[0]
        self.out = nn.Linear(8, 9)
        self.out.weight = self.look.weight
        self.register_buffer("table", torch.arange(3))
        self.register_buffer("passing", torch.ones(2), persistent=False)


def test_a_spec_has_every_name_of_the_state_once() -> None:
    module = Tied()
    spec = spec_of(module)
    names = [name for slot in spec.slots for name in (slot.name, *slot.copies)] + [b.name for b in spec.buffers]
    assert sorted(names) == sorted(module.state_dict())
    assert len(spec.slots) == len(list(module.parameters()))
    assert spec.slots[0].copies == ("out.weight",)
    by_name = {slot.name: slot for slot in spec.slots}
    assert by_name["body.0.weight"].copies == ("again.weight",)
    assert {b.name: (b.fill, b.dtype, b.shape) for b in spec.buffers} == {
        "table": (None, "I64", (3,)),
        "body.1.running_mean": (0.0, "F32", (8,)),
        "body.1.running_var": (1.0, "F32", (8,)),
        "body.1.num_batches_tracked": (0.0, "I64", ()),
    }


def test_a_module_on_the_meta_device_has_the_same_spec_and_stays_as_it_is() -> None:
    with torch.device("meta"):
        module = Tied()
    before = {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()}
    spec = spec_of(module)
    assert (spec.slots, spec.buffers) == (spec_of(Tied()).slots, spec_of(Tied()).buffers)
    assert {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()} == before


def test_frozen_parameters_are_generated_like_others() -> None:
    assert spec_of(nn.Linear(3, 2).requires_grad_(False)).slots == spec_of(nn.Linear(3, 2)).slots


def with_parameter(values: torch.Tensor, name: str = "odd") -> nn.Module:
    module = nn.Linear(3, 2)
    module.register_parameter(name, nn.Parameter(values, requires_grad=False))
    return module


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (nn.ReLU(), "no parameters"),
        (with_parameter(torch.arange(3)), r"odd: is of type I64"),
        (with_parameter(torch.ones(3, dtype=torch.bool)), r"odd: is of type BOOL"),
        (with_parameter(torch.ones(3, dtype=torch.complex64)), r"odd: is of type C64"),
        (with_parameter(torch.ones(3, dtype=torch.complex128)), r"odd: tensors of type torch.complex128"),
        (with_parameter(torch.ones(0, 3)), r"odd: has no elements"),
        (with_parameter(torch.empty(10**7, 10**6, device="meta")), "numbers; at most 1,000,000,000,000"),
        (nn.LazyLinear(3), r"weight: belongs to a lazy layer"),
        (with_parameter(torch.ones(3), "__metadata__"), r"__metadata__: is a name that no file of tensors can have"),
        (with_parameter(torch.ones(3), "\udcff"), r"\\udcff: is a name that no file of tensors can have"),
    ],
)
def test_modules_that_nothing_can_be_generated_for(module: nn.Module, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        spec_of(module)


def test_what_is_no_module() -> None:
    with pytest.raises(InvalidInput, match=r"Linear'> is no torch\.nn\.Module"):
        spec_of(nn.Linear)  # type: ignore[arg-type]


def test_more_classes_than_anything_can_hold() -> None:
    with pytest.raises(InvalidInput, match="at most 1,000,000,000,000 are generated"):
        spec_of(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))).with_classes(10**15)


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    save_file(tensors, folder / "x.safetensors")
    return Checkpoint.open(folder / "x.safetensors")


def test_the_spec_of_a_header_is_that_of_the_module(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), *(nn.Linear(8, 8) for _ in range(9)))
    with checkpoint(tmp_path, module.state_dict()) as opened:
        found = spec_of_checkpoint(opened)
    spec = spec_of(module)
    assert found == spec
    assert found.slots == spec.slots  # with roles, fan-ins, deviations, and the head, 11.weight
    assert {b.name: b.fill for b in found.buffers} == {b.name: b.fill for b in spec.buffers}


def test_a_header_is_read_without_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with checkpoint(tmp_path, {"fc.weight": torch.ones(3, 4, dtype=torch.bfloat16)}) as opened:
        monkeypatch.setattr(Checkpoint, "reader", None)
        assert spec_of_checkpoint(opened).slots[0].dtype == "BF16"


def test_what_a_header_holds_beside_weights(tmp_path: Path) -> None:
    tensors = {
        "h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "h.0.attn.c_attn.weight": torch.ones(4, 12),
        "embeddings.position_ids": torch.arange(4),
        "rotary.inv_freq": torch.ones(2),
    }
    with checkpoint(tmp_path, tensors) as opened:
        spec = spec_of_checkpoint(opened)
    assert [slot.name for slot in spec.slots] == ["h.0.attn.c_attn.weight"]
    assert {b.name: b.fill for b in spec.buffers} == dict.fromkeys(set(tensors) - {"h.0.attn.c_attn.weight"})


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"fc.weight": torch.ones(2, 2, dtype=torch.int8)}, "fc.weight: is of type I8"),
        ({"fc.weight": torch.ones(2, 2, dtype=torch.complex64)}, "fc.weight: is of type C64"),
        ({"fc.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}, "fc.weight: F8_E4M3 codes count only"),
        ({"fc.weight": torch.ones(0, 2)}, "fc.weight: has no elements"),
        ({"position_ids": torch.arange(3)}, "no parameters"),
    ],
)
def test_headers_that_nothing_can_be_generated_for(tmp_path: Path, tensors: dict[str, torch.Tensor], told: str) -> None:
    with pytest.raises(InvalidInput, match=told), checkpoint(tmp_path, tensors) as opened:
        spec_of_checkpoint(opened)


def test_equality_is_of_names_and_shapes() -> None:
    first = Slot("a", (2, 3), "F32", "matrix", 3)
    other = Slot("b", (4,), "F32", "bias", 3)
    spec = TargetSpec((first, other))
    alike = TargetSpec((Slot("a", (2, 3), "BF16", "head", 9, 0.5, 0, ("c",)), other), (Buffer("m", (1,), "F32", 0.0),))
    assert spec == alike
    assert len({spec, alike}) == 1
    assert spec.hash == alike.hash
    turned = TargetSpec((other, first))
    assert spec != turned
    assert spec.hash == turned.hash  # but their weights are interchangeable
    assert spec.hash != TargetSpec((first, Slot("b", (5,), "F32", "bias", 3))).hash
    assert spec != "a"


def test_groups_are_of_equal_shape_role_and_class_axis() -> None:
    spec = spec_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)))
    named = [tuple(spec.slots[i].name for i in group) for group in spec.groups]
    assert named == [
        ("0.weight", "1.weight"),
        ("0.bias", "1.bias"),
        ("2.weight",),
        ("2.bias",),
        ("3.weight",),
        ("3.bias",),
    ]


def test_another_number_of_classes() -> None:
    spec = spec_of(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)))
    nodes = (
        Node("input"),
        Node("aten.linear", (8, 4)),
        Node("bias", (8,)),
        Node("aten.linear", (3, 8)),
        Node("bias", (3,)),
    )
    graph = Graph(nodes, ((0, 1), (1, 2), (2, 3), (3, 4)), (1, 2, 3, 4))
    other = TargetSpec(spec.slots, graph=graph).with_classes(10)
    assert [slot.shape for slot in other.slots] == [(8, 4), (8,), (10, 8), (10,)]
    assert other.slots[2].std == spec.slots[2].std
    assert other.graph is not None
    assert [node.shape for node in other.graph.nodes] == [(), (8, 4), (8,), (10, 8), (10,)]


@pytest.mark.parametrize(("module", "classes"), [(nn.Linear(4, 3), 0), (nn.LayerNorm(4), 3)])
def test_classes_that_no_target_can_have(module: nn.Module, classes: int) -> None:
    with pytest.raises(InvalidInput):
        spec_of(module).with_classes(classes)
