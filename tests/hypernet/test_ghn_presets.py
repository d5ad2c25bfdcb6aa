"""The presets ghn3 and logah: the sizes that were published, and what they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.generators.ghn3 import GHN3, ghn3
from paramsmith.hypernet.generators.logah import LoGAH, logah
from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.protocols import Design, Site
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.graph import Graph, Node
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.training.course import Course
from paramsmith.params import validated
from paramsmith.parts import decoders, encoders, generators, objectives

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parent.parent / "oracles/ghn_logah_parameter_counts.json").read_text())
COUNTS, MILLIONS = ORACLE["computed"], ORACLE["published_millions"]
ENCODER = {"op_embed": "operation", "shape_embed": "shape", "gnn": "graphormer", "centrality": "centrality"}
ENCODER |= {"final_ln": "norm"}
# What the reference counts and never trains: a layer that nothing reads, and four numbers in place of a decoder.
NEVER_TRAINED = ("decoder_l1_dead", "placeholders_1d")


def size(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def on_meta(design: Design, spec: TargetSpec | None = None) -> Hypernetwork:
    with torch.device("meta"):
        return Hypernetwork.of(design, Site(design.width, spec))


def part(module: Any, name: str) -> nn.Module:
    found = getattr(module, name)
    assert isinstance(found, nn.Module)
    return found


@pytest.mark.parametrize("letter", ["T", "S", "L", "XL"])
@pytest.mark.parametrize(("setting", "options"), [("imagenet1000", {}), ("cifar10_s11", {"kernel": 11, "classes": 10})])
def test_ghn3_is_as_large_as_published(letter: str, setting: str, options: dict[str, int]) -> None:
    made = on_meta(ghn3(GHN3(size=letter, **options), Site(0)))
    counts = dict(COUNTS[f"GHN-3-{letter}_{setting}"])
    found = {key: size(part(made.encoder, name)) for key, name in ENCODER.items()}
    names = {"fc": "fc", "conv": "conv", "cls": "head", "1d": "vector"}
    found |= {f"decoder_{key}": size(part(made.decoder, name)) for key, name in names.items()}
    found["bias_class"] = size(part(made.decoder, "head_bias"))
    assert found | {"total": size(made)} == counts
    if setting == "imagenet1000":
        assert round(size(made) / 1e6, 1) == MILLIONS[f"GHN-3-{letter}"]


@pytest.mark.parametrize(("letter", "name"), [("T", "Tiny"), ("S", "Small"), ("B", "Base"), ("L", "Large")])
def test_logah_is_as_large_as_published(letter: str, name: str) -> None:
    made = on_meta(logah(LoGAH(size=letter, paper=True), Site(0)))
    counts = dict(COUNTS[f"LoGAH-{name}"])
    never = sum(counts.pop(key) for key in NEVER_TRAINED)
    found = {key: size(part(made.encoder, module)) for key, module in ENCODER.items()}
    found["decoder_mlp"] = size(part(made.decoder, "mlp"), part(made.decoder, "code"))
    found["decoder_l2"] = size(part(made.decoder, "expand"))
    assert found | {"total": size(made) + never} == counts
    assert round((size(made) + never) / 1e6, 1) == MILLIONS[f"LoGAH-{name}"]


PRESETS = [ghn3(GHN3(), Site(0)), logah(LoGAH(), Site(0)), logah(LoGAH(paper=True), Site(0))]


@pytest.mark.parametrize("design", PRESETS, ids=["ghn3", "logah", "logah of the paper"])
def test_every_part_and_option_is_there(design: Design) -> None:
    on_meta(design)
    validated(Course, design.course, "course")
    validated(objectives.find(design.objective.name).params, design.objective.options, "objective")
    assert not design.fixed


def test_what_paper_means() -> None:
    paper, ours = logah(LoGAH(paper=True), Site(0)), logah(LoGAH(), Site(0))
    parts = lambda design: (design.encoder.options["features"], design.base.name, design.scale.name)  # noqa: E731
    assert parts(paper) == ("buckets", "zeros", "fan_in")
    assert parts(ours) == ("log2", "bank", "fan_in")
    assert paper.decoder == ours.decoder
    assert paper.decoder.options == {"rank": 32, "K": 32_768, "layout": "view"}
    assert parts(logah(LoGAH(paper=True, base="bank", scale="std"), Site(0))) == ("buckets", "bank", "std")


def test_options_come_before_the_size() -> None:
    design = logah(LoGAH(size="B", width=16, layers=2, heads=4, rank=6, K=100, layout="transposed"), Site(0))
    assert design.width == 16
    assert (design.encoder.options["layers"], design.encoder.options["heads"]) == (2, 4)
    assert design.decoder.options == {"rank": 6, "K": 100, "layout": "transposed"}
    design = ghn3(GHN3(size="XL", width=16, layers=2, heads=4, base="bank", scale="std"), Site(0))
    assert (design.width, design.base.name, design.scale.name) == (16, "bank", "std")
    assert (design.encoder.options["layers"], design.encoder.options["heads"]) == (2, 4)


def test_they_are_registered_under_their_papers() -> None:
    assert generators.find("ghn3").paper == encoders.find("graph").paper == decoders.find("conv_tile").paper
    assert generators.find("logah").paper == decoders.find("lowrank").paper


def network(width: int, classes: int = 10) -> TargetSpec:
    """conv - norm - linear, as a chain."""
    slots = (
        Slot("conv.weight", (width, 3, 3, 3), "F32", "kernel", 27),
        Slot("conv.bias", (width,), "F32", "bias", 27),
        Slot("norm.weight", (width,), "F32", "norm_scale", 1),
        Slot("norm.bias", (width,), "F32", "norm_shift", 1),
        Slot("head.weight", (classes, width), "F32", "head", width, class_axis=0),
        Slot("head.bias", (classes,), "F32", "bias", width, class_axis=0),
    )
    ops = ("input", "aten.conv2d", "aten.batch_norm", "aten.linear")
    shapes = ((), slots[0].shape, slots[2].shape, slots[4].shape)
    nodes = tuple(Node(op, shape) for op, shape in zip(ops, shapes, strict=True))
    return TargetSpec(slots, graph=Graph(nodes, ((0, 1), (1, 2), (2, 3)), (1, 1, 2, 2, 3, 3), "chain"))


SMALL: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2}


def small(name: str, spec: TargetSpec, **options: Any) -> Hypernetwork:
    of = Site(0, spec)
    if name == "ghn3":
        design = ghn3(GHN3(kernel=4, **SMALL, **options), of)
    else:
        design = logah(LoGAH(rank=4, K=512, **SMALL, **options), of)
    with seeded(0):
        return Hypernetwork.of(design, Site(design.width, spec))


@pytest.mark.parametrize(("name", "options"), [("ghn3", {}), ("logah", {}), ("logah", {"paper": True})])
def test_any_width_and_all_of_it_learns(name: str, options: dict[str, Any]) -> None:
    made = small(name, network(8), **options)
    for width in (8, 20, 64):
        spec = network(width)
        weights = made({}, spec)
        assert {key: tuple(value.shape) for key, value in weights.items()} == {
            slot.name: (1, *slot.shape) for slot in spec.slots
        }
        assert all(torch.isfinite(value).all() for value in weights.values())
    torch.stack([value.square().sum() for value in weights.values()]).sum().backward()
    for key, parameter in made.decoder.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.any(), key


def test_ghn3_is_for_one_number_of_classes() -> None:
    made = small("ghn3", network(8))
    with pytest.raises(InvalidInput, match=r"head.weight is for 11 classes; this generator is for 10"):
        made({}, network(8, classes=11))
    assert made({}, network(12))["head.weight"].shape == (1, 10, 12)


def test_logah_is_for_any_number_of_classes() -> None:
    made = small("logah", network(8))
    assert made({}, network(8, classes=200))["head.weight"].shape == (1, 200, 8)


def test_logah_says_which_tensor_is_too_wide() -> None:
    made = small("logah", network(8))
    with pytest.raises(InvalidInput, match=r"conv.weight is 1,536 wide; this generator makes at most 512"):
        made({}, network(512))


def test_streamed_as_in_one_piece() -> None:
    made, spec = small("logah", network(8)), network(8)
    with torch.no_grad():
        whole = made({}, spec)
    streamed = {slot.name: value for slot, value in made.stream({}, spec)}
    assert streamed.keys() == whole.keys()
    for key, value in whole.items():
        assert torch.equal(streamed[key], value), key
