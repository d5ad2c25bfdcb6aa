"""Trained priors with the codecs that they are for, as parts of a sampler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.latents import Pairs
from paramsmith.hypernet.protocols import Chosen, SamplerDesign, Site
from paramsmith.hypernet.sampler import Sampler
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.targets.target import TargetSpec

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 12
TOGETHER = {
    "flow": (Chosen("identity"), Chosen("flow")),
    "flow in few numbers": (Chosen("pca", {"rank": 4}), Chosen("flow", {"standardise": "number"})),
    "row of numbers": (
        Chosen("identity"),
        Chosen("diffusion", {"denoiser": "unet1d", "scheduler": "ddpm", "steps": 3}),
    ),
    "image": (Chosen("identity"), Chosen("diffusion", {"denoiser": "unet", "scheduler": "dpm", "steps": 3})),
    "codes": (Chosen("rvq", {"chunk": 4, "codes": 8}), Chosen("autoregressive", {"codes": 8})),
}
every_pair = pytest.mark.parametrize("name", TOGETHER)


def spec_of(classes: int = 4) -> TargetSpec:
    with torch.device("meta"):
        return Target.of(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, classes))).spec


def fitted(name: str) -> tuple[Sampler, Tensor]:
    """A sampler whose parts have seen a zoo, and the loss of its prior there."""
    codec, prior = TOGETHER[name]
    spec = spec_of()
    design = SamplerDesign(8, {"layout": "row"}, Chosen("vector", {"hidden": [8]}), codec, prior)
    with seeded(0):
        made = Sampler.of(design, Site(8, spec, {"vector": (3,)}))
    generator = torch.Generator().manual_seed(0)
    zoo = {slot.name: torch.randn(COUNT, *slot.shape, generator=generator) for slot in spec.slots}
    made.tokenizer.fit(lambda: iter([(zoo, spec)]))
    tokens, layout = made.tokenizer.tokens(zoo, spec), made.layout(spec)
    if hasattr(made.codec, "fit"):
        made.codec.fit(lambda: iter([(tokens, layout)]))
    asked = made.asked({"vector": torch.rand(COUNT, 3, generator=generator)}, spec)
    latent, places = made.encoded(zoo, spec), made.places(spec)
    made.prior.fit(lambda: iter([Pairs(latent, asked, places, tuple(range(COUNT)))]))
    torch.manual_seed(0)
    return made.eval(), made.prior.loss(latent, asked, places)


@every_pair
def test_trains_samples_and_is_saved(name: str, tmp_path: Path) -> None:
    made, loss = fitted(name)
    loss.backward()
    assert loss.isfinite()
    condition = {"vector": torch.full((1, 3), 0.5)}
    several = {slot.name: values for slot, values in made.stream(condition, None, (3, 4, 5))}
    assert all(values.isfinite().all() and values.std() > 0 for values in several.values())
    for slot, alone in made.stream(condition, None, (5,), 2):
        assert torch.equal(alone[0], several[slot.name][2])
    made.save_pretrained(tmp_path)
    again = Sampler.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()
    for slot, values in again.stream(condition, None, (3, 4, 5)):
        assert torch.equal(values, several[slot.name])


@pytest.mark.parametrize("name", ["flow", "row of numbers", "codes"])
def test_another_number_of_classes(name: str) -> None:
    made, _ = fitted(name)
    found = {slot.name: values for slot, values in made.stream({"vector": torch.full((1, 3), 0.5)}, spec_of(7))}
    assert found["2.weight"].shape == (1, 7, 5)


def test_an_image_has_one_size() -> None:
    made, _ = fitted("image")
    with pytest.raises(InvalidInput, match="numbers, and these have"):
        list(made.stream({"vector": torch.full((1, 3), 0.5)}, spec_of(7)))
