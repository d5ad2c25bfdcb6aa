"""Bases and scales: laws over all that are registered, and what each is by its definition."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.parametrizations.bases import BankBase, LearnedBase
from paramsmith.hypernet.parametrizations.checkpoint import CheckpointBase
from paramsmith.hypernet.parametrizations.scales import FanIn, FanInScale
from paramsmith.hypernet.parametrizations.schemes import drawn, spread
from paramsmith.hypernet.parametrizations.slot_tensors import SlotTensors
from paramsmith.hypernet.protocols import Chosen, Design, Site
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import validated
from paramsmith.parts import bases, scales

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "ghn_parameter_normalisation.json").read_text())
SPEC = TargetSpec(
    (
        Slot("embed.weight", (11, 6), "F32", "embedding", 1),
        Slot("place", (1, 5, 6), "F32", "position", 1),
        Slot("conv.weight", (6, 1, 3, 3), "BF16", "kernel", 9),
        Slot("layers.0.weight", (6, 6), "F32", "matrix", 6, 0.02),
        Slot("layers.0.bias", (6,), "F32", "bias", 6),
        Slot("layers.1.weight", (6, 6), "F32", "matrix", 6),
        Slot("layers.1.bias", (6,), "F32", "bias", 6, 0.0),
        Slot("norm.weight", (6,), "F32", "norm_scale", 1),
        Slot("norm.bias", (6,), "F32", "norm_shift", 1),
        Slot("head.weight", (3, 6), "F32", "head", 6, class_axis=0),
        Slot("gain", (), "F32", "norm_scale", 1),
        Slot("single", (1, 1), "F32", "matrix", 1),
    )
)
BY_SEED = {"standard"}
BASES = [name for name in bases.all() if bases.find(name).make.__module__.startswith("paramsmith.")]
SCALES = [name for name in scales.all() if scales.find(name).make.__module__.startswith("paramsmith.")]
each_base = pytest.mark.parametrize("base", BASES)
each_scale = pytest.mark.parametrize("scale", SCALES)


def state_dict(spec: TargetSpec = SPEC) -> dict[str, Tensor]:
    return {slot.name: drawn(slot, 5, slot.name) for slot in spec.slots}


def base_of(name: str, spec: TargetSpec | None = SPEC, drawn_from: int = 0, **options: Any) -> Any:
    part = bases.find(name)
    with seeded(drawn_from):
        made = part.make(validated(part.params, options, name), Site(4, spec))
    if isinstance(made, CheckpointBase):
        made.load(state_dict())
    return made


def scale_of(name: str, spec: TargetSpec | None = SPEC, **options: Any) -> Any:
    part = scales.find(name)
    return part.make(validated(part.params, options, name), Site(4, spec))


def groups() -> list[list[Slot]]:
    return [[SPEC.slots[number] for number in group] for group in SPEC.groups]


def raw_of(slots: list[Slot], samples: int = 2) -> Tensor:
    return torch.randn(samples, len(slots), *slots[0].shape, generator=torch.Generator().manual_seed(3))


@each_scale
@each_base
def test_laws_of_every_base_with_every_scale(base: str, scale: str) -> None:
    """Shapes, the batch axis also for one, fp32, finite, the same each time, torch's own generator untouched."""
    first, second, size = base_of(base), base_of(base), scale_of(scale)
    state = torch.random.get_rng_state()
    for slots in groups():
        shape = slots[0].shape
        for seeds in ([7], [7, 8, 9]):
            held = first(slots, seeds)
            assert held.shape == (len(seeds) if base in BY_SEED else 1, len(slots), *shape)
            raw = raw_of(slots, len(seeds))
            made = held + size(raw, slots)
            assert made.shape == (len(seeds), len(slots), *shape)
            assert made.dtype == torch.float32
            assert made.isfinite().all()
            assert torch.equal(made, second(slots, seeds) + scale_of(scale)(raw, slots))
    assert torch.equal(torch.random.get_rng_state(), state)


@each_base
def test_seeds_matter_only_where_declared(base: str) -> None:
    made = base_of(base)
    slots = [SPEC.slots[3], SPEC.slots[5]]
    two = made(slots, [1, 2])
    if base in BY_SEED:
        assert not torch.equal(two[0], two[1])
        assert torch.equal(made(slots[1:], [2])[0, 0], two[1, 1])  # by its own seed and name alone
    else:
        assert torch.equal(two, made(slots, [3]))


@each_base
def test_norms_begin_neutral(base: str) -> None:
    made = base_of(base)
    for slot in SPEC.slots:
        if slot.role in ("norm_scale", "norm_shift"):
            want = torch.full((1, 1, *slot.shape), 1.0 if slot.role == "norm_scale" else 0.0)
            assert torch.equal(made([slot], [0]), want)


@each_base
def test_a_base_can_be_built_without_memory(base: str) -> None:
    from paramsmith.hypernet.skeleton import _no_memory

    part = bases.find(base)
    with _no_memory():
        made = part.make(part.params(), Site(4, SPEC))
    told = {name: tensor.shape for name, tensor in made.state_dict().items()}
    assert told == {name: tensor.shape for name, tensor in base_of(base).state_dict().items()}


@each_scale
def test_nothing_stays_nothing_and_has_a_gradient(scale: str) -> None:
    size = scale_of(scale)
    for slots in groups():
        raw = torch.zeros(1, len(slots), *slots[0].shape, requires_grad=True)
        made = size(raw, slots)
        assert not made.any()
        made.sum().backward()
        assert raw.grad is not None
        assert raw.grad.isfinite().all()
        assert raw.grad.any()


@each_scale
def test_samples_and_slots_are_scaled_by_themselves(scale: str) -> None:
    size = scale_of(scale)
    for slots in groups():
        raw = raw_of(slots, 3)
        made = size(raw, slots)
        for place, slot in enumerate(slots):
            torch.testing.assert_close(size(raw[1:2, place : place + 1], [slot]), made[1:2, place : place + 1])


# The scales, one by one


@pytest.mark.parametrize(("role", "rule"), [("norm_scale", "norm_weight"), ("bias", "bias"), ("norm_shift", "bias")])
def test_fan_in_squashes_norms_and_biases_as_ghn3(role: Any, rule: str) -> None:
    told = ORACLE[rule]
    slot = Slot("x", (5,), "F32", role, 64)
    made = base_of("zeros")([slot], [0]) + FanInScale(FanIn(), Site(0))(
        torch.tensor(told["input"]).view(1, 1, 5), [slot]
    )
    torch.testing.assert_close(made.flatten(), torch.tensor(told["output"]), rtol=0, atol=5e-7)


@pytest.mark.parametrize(("shape", "factor"), ORACLE["multipliers"].items())
def test_fan_in_multiplies_layers_as_ghn3(shape: str, factor: float) -> None:
    sizes = tuple(json.loads(shape.replace("(", "[").replace(")", "]")))
    slot = Slot("x", sizes, "F32", "matrix" if len(sizes) == 2 else "kernel", prod(sizes[1:]))
    made = FanInScale(FanIn(), Site(0))(torch.ones(1, 1, *sizes), [slot])
    torch.testing.assert_close(made, torch.full_like(made, factor))


def test_fan_in_leaves_tables_as_they_are() -> None:
    for slot in SPEC.slots[:2]:
        raw = raw_of([slot])
        assert torch.equal(FanInScale(FanIn(), Site(0))(raw, [slot]), raw)


def test_std_gives_each_tensor_the_spread_of_its_own_initialisation() -> None:
    raw = torch.randn(2, 2, 40, 50, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 30.0]).view(
        2, 1, 1
    )
    slots = [Slot("a", (40, 50), "F32", "matrix", 50, 0.02), Slot("b", (40, 50), "F32", "matrix", 50)]
    made = scale_of("std", None)(raw, slots)
    for place, std in enumerate((0.02, 1 / sqrt(150))):
        for sample in range(2):
            assert made[sample, place].std(correction=0).item() == pytest.approx(std, rel=1e-3)
    torch.testing.assert_close(made[0, 1] / raw[0, 1], (made[0, 1, 0, 0] / raw[0, 1, 0, 0]).expand(40, 50))


def test_std_takes_a_single_number_for_itself() -> None:
    slot = SPEC.slots[-1]
    assert scale_of("std")(torch.full((1, 1, 1, 1), 3.0), [slot]).item() == pytest.approx(3 / sqrt(3))


@pytest.mark.parametrize("by", ["role", "slot"])
def test_learned_scales(by: str) -> None:
    size = scale_of("learned", by=by, start=0.5)
    slots = [SPEC.slots[3], SPEC.slots[5]]
    raw = raw_of(slots)
    assert torch.equal(size(raw, slots), raw / 2)
    size(raw, slots).sum().backward()
    assert int((size.factor.grad != 0).sum()) == (1 if by == "role" else 2)
    assert len(size.factor) == (8 if by == "role" else len(SPEC.slots))


# The bases, one by one


def test_standard_is_what_torch_does() -> None:
    """Bounds and deviations of fresh layers, the same distribution by Kolmogorov and Smirnov's distance."""
    layers = {
        "matrix": nn.Linear(64, 200),
        "kernel": nn.Conv2d(16, 40, 3),
        "embedding": nn.Embedding(100, 64),
    }
    for role, layer in layers.items():
        with seeded(0):
            layer.reset_parameters()
        shape = tuple(layer.weight.shape)
        fan_in = prod(shape[1:]) if role != "embedding" else 1
        tensors = {"weight": role} | ({"bias": "bias"} if role != "embedding" else {})
        for name, own in tensors.items():
            theirs = getattr(layer, name).detach()
            slot = Slot(name, tuple(theirs.shape), "F32", own, fan_in)  # type: ignore[arg-type]
            ours = base_of("standard")([slot], [4])[0, 0]
            together = torch.cat([theirs.flatten(), ours.flatten()]).sort().values
            gap = sum(
                sign * torch.searchsorted(x.flatten().sort().values, together, right=True) / x.numel()
                for sign, x in ((1, theirs), (-1, ours))
            )
            assert torch.as_tensor(gap).abs().max() < 1.95 * sqrt(2 / theirs.numel())  # 1 in 1 000
            if own != "embedding":
                assert ours.abs().max() <= 1 / sqrt(fan_in)


def test_standard_takes_the_deviation_a_slot_says() -> None:
    slot = Slot("wte", (300, 100), "F32", "embedding", 1, 0.02)
    for role in ("embedding", "matrix", "head", "position", "bias"):
        made = base_of("standard")([replace(slot, role=role)], [0])
        assert made.std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "init"),
    [
        ("kaiming_normal", lambda w: nn.init.kaiming_normal_(w)),
        ("kaiming_uniform", lambda w: nn.init.kaiming_uniform_(w)),
        ("xavier_normal", lambda w: nn.init.xavier_normal_(w)),
        ("xavier_uniform", lambda w: nn.init.xavier_uniform_(w)),
    ],
)
def test_named_schemes(kind: str, init: Any) -> None:
    for shape in ((300, 100), (60, 30, 3, 3)):
        slot = Slot("w", shape, "F32", "kernel", prod(shape[1:]))
        with seeded(0):
            want = init(torch.empty(shape))
        made = base_of("standard", kind=kind)([slot], [0])
        assert made.std().item() == pytest.approx(want.std().item(), rel=0.02)
        assert (made.abs().max() > 3 * made.std()) == ("normal" in kind)
        bias = Slot("b", (5,), "F32", "bias", 5)
        assert not base_of("standard", kind=kind)([bias], [0]).any()


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (6, 3, 3, 3)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    made = base_of("standard", kind="orthogonal")([Slot("w", shape, "F32", "kernel", prod(shape[1:]))], [0, 1])
    for sample in made[:, 0].flatten(2):
        gram = sample @ sample.T if sample.shape[0] <= sample.shape[1] else sample.T @ sample
        torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)


def test_a_narrower_bank_is_a_corner_of_a_wider() -> None:
    bank = base_of("bank", None)
    wide = Slot("layers.1.weight", (64, 100, 3, 3), "F32", "kernel", 900)
    narrow = replace(wide, shape=(32, 25, 3, 3), fan_in=225)
    corner = bank([wide], [0])[0, 0, :32, :25] * 2  # sqrt(900 / 225)
    torch.testing.assert_close(bank([narrow], [0])[0, 0], corner)
    assert bank([wide], [0]).std().item() == pytest.approx(1 / sqrt(2700), rel=0.02)


def test_layers_take_turns_in_a_bank() -> None:
    """Whatever steps of 1 to 4 a module counts its layers by, five in a row differ, and the sixth is the first."""
    bank = base_of("bank", None)
    for step in (1, 2, 3, 4):
        keys = [bank.key(Slot(f"net.{step * i}.weight", (4, 4), "F32", "matrix", 4)) for i in range(6)]
        assert len(set(keys[:5])) == 5
        assert keys[5] == keys[0]
    assert bank.key(Slot("fc12.weight", (4, 4), "F32", "matrix", 4)) == "matrix/fc12.weight"
    endless = base_of("bank", None, period=0)
    assert endless.key(Slot("net.12.weight", (4, 4), "F32", "matrix", 4)) == "matrix/net.12.weight"
    slots = [Slot(f"net.{i}.weight", (4, 4), "F32", "matrix", 4) for i in (0, 5, 6)]
    made = bank(slots, [0])[0]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_bank_is_kept_as_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = base_of("bank", None, seed=3)
    assert not list(bank.parameters())
    assert not bank.state_dict()
    slots = [SPEC.slots[3], SPEC.slots[5]]
    first = bank(slots, [0])
    assert torch.equal(base_of("bank", None, seed=3)(slots, [1]), first)
    assert not torch.equal(base_of("bank", None, seed=4)(slots, [0]), first)
    monkeypatch.setattr("paramsmith.hypernet.parametrizations.bases.HELD", 150)
    bank = base_of("bank", None, seed=3)
    for _ in range(2):
        assert torch.equal(bank(slots, [0]), first)
    assert isinstance(bank, BankBase)
    assert bank._kept.held == 144  # one of the two tables


def test_learned_begins_as_the_target_and_is_all_parameters() -> None:
    base = base_of("learned")
    assert isinstance(base, LearnedBase)
    assert sum(p.numel() for p in base.parameters()) == sum(prod(slot.shape) for slot in SPEC.slots)
    other = base_of("learned", drawn_from=1)
    for slot in SPEC.slots:
        held = base.theta[slot.name]
        assert held.requires_grad
        assert torch.equal(base([slot], [0])[0, 0], held)
        if slot.role not in ("norm_scale", "norm_shift") and spread(slot):
            assert not torch.equal(held, other.theta[slot.name])
            assert held.abs().max() < 6 * spread(slot)


def test_a_learned_base_times_a_number_a_layer() -> None:
    base = base_of("learned", factor="layer")
    assert len(base.factor) == len({slot.name.rpartition(".")[0] for slot in SPEC.slots})
    with torch.no_grad():
        base.factor.copy_(torch.arange(len(base.factor)) + 2.0)
    pair = [SPEC.slots[3], SPEC.slots[5]]
    weights, biases = base(pair, [0])[0], base([SPEC.slots[4], SPEC.slots[6]], [0])[0]
    for place, layer in enumerate(("layers.0", "layers.1")):  # the fourth and fifth of the layers
        torch.testing.assert_close(weights[place], base.theta[f"{layer}.weight"] * (place + 5.0))
        torch.testing.assert_close(biases[place], base.theta[f"{layer}.bias"] * (place + 5.0))


@pytest.mark.parametrize("name", ["learned", "checkpoint"])
def test_bases_of_one_target_say_so(name: str) -> None:
    part = bases.find(name)
    with pytest.raises(InvalidInput, match="is for one target"):
        part.make(part.params(), Site(4))
    with pytest.raises(InvalidInput, match="is for one target"):
        scale_of("learned", None, by="slot")


def test_slots_may_be_called_anything() -> None:
    names = ["a.b", "a/b", "a_b", "training", "forward", "register_buffer", "weight"]
    held = SlotTensors({name: torch.full((2,), float(i)) for i, name in enumerate(names)})
    assert [held[name][0].item() for name in names] == list(range(len(names)))
    assert len(held.state_dict()) == len(names)
    assert held.train() is held


# The base that is read


def built(path: Path | None, trainable: bool = False, spec: TargetSpec = SPEC) -> Hypernetwork:
    options: dict[str, object] = {"path": None if path is None else str(path), "trainable": trainable}
    design = Design(
        4, Chosen("empty"), Chosen("none"), Chosen("checkpoint", options), Chosen("none"), Chosen("tasks"), fixed=True
    )
    return Hypernetwork.of(design, Site(4, spec))


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


def test_a_checkpoint_is_read_once_and_kept(tmp_path: Path) -> None:
    """Its path is nobody's business: it is neither saved, nor read again."""
    told = {name: tensor.bfloat16() for name, tensor in state_dict().items()}
    path = written(tmp_path / "model.safetensors", told)
    made = built(path)
    assert str(tmp_path) not in json.dumps(made.config, default=str)
    made.save_pretrained(tmp_path / "saved")
    path.unlink()
    again = Hypernetwork.from_pretrained(tmp_path / "saved", low_cpu_mem_usage=False)
    for name, tensor in again({}).items():
        assert torch.equal(tensor[0], told[name].float())


@pytest.mark.parametrize("trainable", [False, True])
def test_a_checkpoint_is_learned_further_or_not(tmp_path: Path, trainable: bool) -> None:
    path = written(tmp_path / "model.safetensors", state_dict())
    learned = [p for p in built(path, trainable).base.parameters() if p.requires_grad]
    assert len(learned) == (len(SPEC.slots) if trainable else 0)


def test_a_tied_tensor_is_found_under_any_of_its_names(tmp_path: Path) -> None:
    spec = TargetSpec((Slot("head.weight", (3, 2), "F32", "head", 2, copies=("embed.weight",)),))
    values = torch.arange(6.0).view(3, 2)
    made = built(written(tmp_path / "m.safetensors", {"embed.weight": values}), spec=spec)
    assert torch.equal(made({})["head.weight"][0], values)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gain": None}, "has no tensor gain"),
        ({"gain": torch.zeros((), dtype=torch.int64)}, "has no tensor gain of floating-point"),
        ({"norm.bias": torch.zeros(7)}, r"norm.bias is \[7\], and the target's \[6\]"),
        ({"norm.bias": torch.full((6,), torch.nan)}, "norm.bias holds a number that is not finite"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path: Path, change: dict[str, Tensor | None], told: str) -> None:
    tensors = {name: tensor for name, tensor in {**state_dict(), **change}.items() if tensor is not None}
    with pytest.raises(InvalidInput, match=told):
        built(written(tmp_path / "m.safetensors", tensors))
    with pytest.raises(InvalidInput, match=told):
        base_of("checkpoint").load(tensors)


def test_a_checkpoint_has_to_be_named() -> None:
    with pytest.raises(InvalidInput, match="is given no checkpoint"):
        built(None)
