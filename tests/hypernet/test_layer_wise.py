"""D2NWG layer by layer: tensors in chunks, one autoencoder for all of them, and layers replaced where it helps."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from paramsmith.errors import GenerateWarning, InvalidInput
from paramsmith.hypernet.codecs import chunk_vae, image_vae
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.generators import d2nwg
from paramsmith.hypernet.protocols import Batch, Site
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.selection.outputs import write_selected
from paramsmith.hypernet.selection.roles import Data, Weights
from paramsmith.hypernet.selection.selectors import GreedyLayers
from paramsmith.hypernet.selection.spectrum import layers_of, ranked, top
from paramsmith.hypernet.targets.describe import spec_of
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.tokens.tokenizer import Tokenizer
from paramsmith.hypernet.writing.generation import Request
from paramsmith.hypernet.zoos.index import Entry
from paramsmith.hypernet.zoos.writing import ZooWriter
from paramsmith.hypernet.zoos.zoo import Zoo

pytestmark = pytest.mark.usefixtures("one_thread")

CHUNK = 16


class Blocks(nn.Module):
    """Two blocks of a transformer without its attention: a norm, two layers and a residual each, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)) for _ in range(2)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        made: Tensor = self.head(x)
        return made


def lora() -> TargetSpec:
    """Pairs for layers of two sizes."""
    sizes = {"q": (12, 20), "v": (6, 20)}
    shapes = {f"{name}.lora_{x}": ((3, n) if x == "A" else (m, 3)) for name, (m, n) in sizes.items() for x in "AB"}
    return TargetSpec(tuple(Slot(f"{name}.weight", shape, "F32", "matrix", shape[1]) for name, shape in shapes.items()))


def conv() -> TargetSpec:
    return spec_of(nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 4)), 4)


SPECS = {
    "lora": lora,
    "conv": conv,
    "blocks": lambda: spec_of(Blocks(), 3),
    "head": lambda: spec_of(nn.Linear(6, 3), 3),
}


@pytest.fixture(autouse=True)
def _smaller_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(image_vae.SIZES, "tiny", image_vae._Size(8, (8, 16), 1, 4))


def networks(spec: TargetSpec, count: int, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {slot.name: torch.randn(count, *slot.shape, generator=rng) for slot in spec.slots}


def built(spec: TargetSpec, **options: Any) -> Generator:
    return Generator.build("d2nwg", spec=spec, condition={"vector": (2,)}, chunk=CHUNK, steps=3, **options)


def zoo_of(spec: TargetSpec, folder: Path, count: int = 24) -> Zoo:
    """Networks that follow what is asked for, with a little noise."""
    asked = torch.randn(count, 2, generator=torch.Generator().manual_seed(7))
    along, noise = networks(spec, 2, 1), networks(spec, count, 2)
    made = {name: torch.einsum("bd,d...->b...", asked, way) + 0.1 * noise[name] for name, way in along.items()}
    with ZooWriter(folder) as writer:
        writer.add(spec, made, [Entry(path="?", task=i) for i in range(count)], [{"vector": row} for row in asked])
        return Zoo.open(writer.publish())


@pytest.mark.parametrize("name", SPECS)
def test_tensors_of_any_size_are_whole_chunks(name: str) -> None:
    spec = SPECS[name]()
    sampler = built(spec).sampler
    layout, weights = sampler.layout(spec), networks(spec, 3)
    assert len(layout) == sum(-(-prod(slot.shape) // CHUNK) for slot in layout.slots)
    latent, places = sampler.encoded(weights, spec), sampler.places(spec)
    assert latent.shape == (3, len(layout), 4 * 4 * 4) == (3, *places.mask.shape)
    assert places.slots.unique().tolist() == [spec.slots.index(slot) for slot in layout.slots]
    restored = sampler.restored(latent, spec)
    assert all(restored[slot.name].shape == (3, *slot.shape) for slot in layout.slots)


def test_each_chunk_is_encoded_by_itself_and_without_its_padding() -> None:
    spec = lora()
    sampler = built(spec).sampler
    layout, tokens = sampler.layout(spec), sampler.tokenizer.tokens(networks(spec, 2), spec)
    mask = layout.places.mask
    assert not mask.all()
    latent = sampler.codec.encode(tokens, layout)
    changed = torch.where(mask, tokens, 9.0)
    changed[:, 1] += 1
    other = sampler.codec.encode(changed, layout)
    moved = (latent != other).any(2)
    assert moved[:, 1].all()
    assert not moved[:, [0, *range(2, len(layout))]].any()
    assert (sampler.codec.decode(latent, layout)[:, ~mask] == 0).all()


def test_however_few_chunks_are_encoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = lora()
    sampler, weights = built(spec).sampler, networks(spec, 2)
    latent = sampler.encoded(weights, spec)
    whole = sampler.restored(latent, spec)
    monkeypatch.setattr(chunk_vae, "_AT_ONCE", 3)
    torch.testing.assert_close(sampler.encoded(weights, spec), latent, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sampler.restored(latent, spec), whole, rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_each_chunk_as_a_network() -> None:
    """Of one chunk without padding: what `image_vae` says of a network that is this chunk."""
    spec = TargetSpec((Slot("w", (4, 4), "F32", "matrix", 4),))
    tokenizer = Tokenizer.of({"layout": "tensor", "width": CHUNK}, spec)
    layout = tokenizer.layout(spec)
    site, tokens = Site(1, spec, layout=layout), networks(spec, 5)["w"].view(5, 1, CHUNK)
    with seeded(0):
        many = chunk_vae.ChunkVaeCodec(chunk_vae.ChunkVae.model_validate({"size": "tiny", "batch": 5, "kl": 0.5}), site)
    with seeded(0):
        whole = image_vae.ImageVaeCodec(image_vae.ImageVae.model_validate({"size": "tiny", "kl": 0.5}), site)
    torch.manual_seed(3)
    order = torch.randperm(5)
    expected = whole.loss(tokens[order], layout)
    torch.manual_seed(3)
    torch.testing.assert_close(many.loss(tokens, layout), expected)


def test_a_step_is_of_so_many_chunks() -> None:
    spec = lora()
    sampler = built(spec, batch=4).sampler
    layout, tokens, seen = sampler.layout(spec), sampler.tokenizer.tokens(networks(spec, 6), spec), []
    moments = sampler.codec._moments
    sampler.codec._moments = lambda known, alone: (seen.append(len(known)), moments(known, alone))[1]
    sampler.codec.loss(tokens, layout)
    assert seen == [4]


@pytest.mark.slow  # ten seconds on a busy machine
def test_training_lowers_the_loss_and_what_is_saved_draws_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(d2nwg.STEPS, "tiny", (40, 5, 4))
    spec = lora()
    zoo, generator = zoo_of(spec, tmp_path / "zoo"), built(spec, scale=True, batch=48)
    assert generator.design().objective.options["align_steps"] == 0
    with pytest.warns(GenerateWarning, match="copies"):
        losses = generator.fit(zoo, {"lr": 1e-2}).losses
    assert len(losses) == 40 + 4
    assert sum(losses[30:40]) < 0.7 * sum(losses[:10])
    generator.save_pretrained(tmp_path / "gen")
    asked = {"vector": torch.tensor([[0.5, -1.0], [1.0, 0.0]])}
    first, again = (g.sample(asked, seed=1) for g in (generator, Generator.from_pretrained(tmp_path / "gen")))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a)
    assert {name: tuple(values.shape) for name, values in first[0].items()} == {s.name: s.shape for s in spec.slots}


def test_a_head_for_another_number_of_classes() -> None:
    spec = SPECS["head"]()
    generator = Generator.build("d2nwg", spec=spec, condition={"classes": (0, 5, 6)}, chunk=CHUNK, steps=2)
    (sample,) = generator.sample(
        {"classes": torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0))}, classes=4
    )
    assert sample["weight"].shape == (4, 6)


@pytest.mark.parametrize("chunk", [0, -3, 2**21, "layer", 1.5])
def test_a_wrong_size_is_refused(chunk: object) -> None:
    with pytest.raises(InvalidInput, match="chunk"):
        Generator.build("d2nwg", spec=lora(), condition={"vector": (2,)}, chunk=chunk)


def test_a_chunk_far_larger_than_the_network_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"4 tokens of 1,048,576 numbers|would hold"):
        Generator.build("d2nwg", spec=lora(), condition={"vector": (2,)}, chunk=2**20, size="paper")


def test_layers_by_their_spectrum_are_replaced_where_that_helps(tmp_path: Path) -> None:
    """Layers of a transformer's blocks, from what there is: never worse on what it is selected by, and here better."""
    module = Blocks()
    spec, x = spec_of(module, 3), torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    data = Data({}, *({"x": rows, "y": rows[:, :3].argmax(1)} for rows in (x[:20], x[20:])))
    known = {name: 0.1 * values for name, values in networks(spec, 24).items()}
    known["head.weight"] += torch.eye(3, 4)  # the residuals pass on what is to be told
    generator = built(spec)
    generator.sampler.tokenizer.fit(lambda: iter([(known, spec)]))  # whose mean is what is drawn, as good as untrained
    begin = {name: values[0] + 4 * networks(spec, 1, 5)[name][0] for name, values in known.items()}
    begin["head.weight"] = known["head.weight"][0]
    order = layers_of(spec, top(ranked(begin, spec), 0.5))

    def right(weights: Weights, batch: Batch) -> float:
        logits = torch.func.functional_call(module, dict(weights), batch["x"])
        return -float(nn.functional.cross_entropy(logits, batch["y"]))

    _, selected = write_selected(
        generator,
        tmp_path / "out",
        Request(condition={"vector": torch.zeros(2)}),
        data.shown(),
        lambda draw, spec, shown: GreedyLayers(k=6).select(draw, shown, right, begin, order),
    )
    assert len(selected.steps) == len(order) == 2  # half of the blocks' layers
    before = right(begin, data.selection)
    assert selected.before == before
    assert selected.score == right(selected.weights, data.selection) >= before
    assert any(step.kept is not None for step in selected.steps)
    found = load_file(tmp_path / "out" / "model.safetensors")
    kept = {name for step in selected.steps if step.kept is not None for name in step.names}
    assert kept == {slot.name for slot in spec.slots if not torch.equal(found[slot.name], begin[slot.name])}
