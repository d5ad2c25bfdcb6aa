"""What every codec has to hold to, and those that are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paramsmith.errors import InvalidInput, ParamsmithError
from paramsmith.hypernet.codecs import image_vae
from paramsmith.hypernet.codecs.positions import sinusoids
from paramsmith.hypernet.model import options_of
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.describe import spec_of
from paramsmith.hypernet.tokens.tokenizer import Tokenizer
from paramsmith.parts import codecs
from tests.hypernet.stublayout import FEATURES, batches, networks, rows, site

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, dict[str, Any]] = {
    "identity": {},
    "pca": {"rank": 5},
    "pca per token": {"rank": 3, "per": "token", "whiten": True},
    "token_vae": {"latent": 3, "layers": 1, "width": 16, "heads": 2},
    "rvq": {"chunk": 2, "codes": 8, "iterations": 3},
    "rvq of vectors": {"chunk": 3, "codes": 8, "iterations": 3, "latent": "vectors"},
    "rvq learned": {"chunk": 2, "codes": 16, "learned": True, "width": 16, "vector": 4, "decay": 0.8},
    "image_vae": {"size": "tiny"},
    "chunk_vae": {"size": "tiny", "batch": 8},
}
TRAINED = [name for name in SMALL if name in ("token_vae", "image_vae", "chunk_vae", "rvq learned")]
ANY_CLASSES = [name for name in SMALL if name not in ("pca", "image_vae")]
each = pytest.mark.parametrize("name", SMALL)


@pytest.fixture(autouse=True)
def _smaller_images(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "sizes" not in request.node.name:
        monkeypatch.setitem(image_vae.SIZES, "tiny", image_vae._Size(8, (8, 16), 1, 4))


def made(name: str, where: Site, **more: object) -> Any:
    part = codecs.find(name.split()[0])
    with seeded(0):
        return part.make(options_of(codecs, part.name, {**SMALL[name], **more}), where)


def fitted(name: str, layout: Any, tokens: Tensor, size: int = 7) -> Any:
    """A codec that knows the networks, be it by one step of training."""
    codec = made(name, site(layout))
    if hasattr(codec, "fit"):
        codec.fit(batches(layout, tokens, size))
    elif name in TRAINED:
        with seeded(1):
            trained(codec, layout, tokens, 1)
    return codec.eval()


def trained(codec: Any, layout: Any, tokens: Tensor, steps: int, rate: float = 3e-3) -> list[float]:
    optimiser, losses = torch.optim.Adam(codec.parameters(), rate), []
    codec.train()
    for _ in range(steps):
        loss = codec.loss(tokens, layout)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    codec.eval()
    return losses


@each
def test_shapes_are_those_of_the_places(name: str) -> None:
    layout = rows(padding=1)
    tokens = networks(layout, 20)
    codec = fitted(name, layout, tokens)
    places, latent = codec.places(layout), codec.encode(tokens, layout)
    assert latent.shape == (20, *places.mask.shape)
    assert latent.dtype == torch.float32
    assert places.features.shape == (len(places), FEATURES)
    assert places.classes.shape == places.slots.shape == (len(places),)
    assert places.classes.dtype == places.slots.dtype == torch.int64
    assert places.mask.dtype == torch.bool
    assert codec.decode(latent, layout).shape == tokens.shape
    assert torch.isfinite(places.features).all()


@each
def test_what_stands_in_padding_changes_nothing(name: str) -> None:
    layout = rows(padding=1)
    tokens = networks(layout, 20)
    codec = fitted(name, layout, tokens)
    dirty = torch.where(layout.places.mask, tokens, 1e3)
    latent = codec.encode(tokens, layout)
    if name != "identity":  # whose latents are the tokens, padding and all
        assert torch.equal(codec.encode(dirty, layout), latent)
        there = codec.places(layout).mask
        restored = codec.decode(latent, layout)
        assert (restored[:, ~layout.places.mask] == 0).all()
        if name.startswith(("token_vae", "chunk_vae", "rvq")):
            other = torch.where(there, latent, 1.0)
            torch.testing.assert_close(codec.decode(other, layout), restored)
    if name in TRAINED:
        codec.train()
        losses = []
        for given in (tokens, dirty):
            torch.manual_seed(0)
            losses.append(codec.loss(given, layout))
        if name != "rvq learned":  # whose codes have moved
            assert losses[0] == losses[1]
        codec.eval()


@each
def test_a_network_is_coded_alike_whatever_is_in_its_batch(name: str) -> None:
    layout = rows()
    tokens = networks(layout, 20)
    codec = fitted(name, layout, tokens)
    latent = codec.encode(tokens, layout)
    torch.testing.assert_close(codec.encode(tokens[3:4], layout), latent[3:4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        codec.decode(latent[3:4], layout), codec.decode(latent, layout)[3:4], rtol=1e-4, atol=1e-5
    )


@each
def test_the_same_networks_and_seed_give_the_same_codec(name: str) -> None:
    layout = rows()
    tokens = networks(layout, 20)
    one, two = (fitted(name, layout, tokens).state_dict() for _ in range(2))
    assert list(one) == list(two)
    assert all(torch.equal(one[key], two[key]) for key in one)


@each
def test_tensors_that_are_saved_have_their_shapes_before_any_network_is_seen(name: str) -> None:
    layout = rows()
    before = {key: (held.shape, held.dtype) for key, held in made(name, site(layout)).state_dict().items()}
    codec = fitted(name, layout, networks(layout, 8))
    assert {key: (held.shape, held.dtype) for key, held in codec.state_dict().items()} == before
    again = made(name, site(layout))
    again.load_state_dict(codec.state_dict())
    tokens = networks(layout, 4, seed=5)
    assert torch.equal(again.eval().encode(tokens, layout), codec.encode(tokens, layout))


@each
def test_it_can_be_built_without_memory(name: str) -> None:
    layout = rows()
    with torch.device("meta"):
        bare = made(name, site(rows()))
        shape = bare.places(rows()).mask.shape
    whole = made(name, site(layout))
    assert shape == whole.places(layout).mask.shape
    assert [h.shape for h in bare.state_dict().values()] == [h.shape for h in whole.state_dict().values()]


@pytest.mark.parametrize("name", ANY_CLASSES)
def test_any_number_of_classes(name: str) -> None:
    layout, wider = rows(3), rows(5)
    codec = fitted(name, layout, networks(layout, 20))
    tokens = networks(wider, 4)
    latent = codec.encode(tokens, wider)
    assert latent.shape[1:] == codec.places(wider).mask.shape
    assert codec.decode(latent, wider).shape == tokens.shape


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ANY_CLASSES])
def test_another_number_of_classes_is_refused_where_it_is_fixed(name: str) -> None:
    layout, wider = rows(3), rows(5)
    codec = fitted(name, layout, networks(layout, 20))
    latent = codec.encode(networks(layout, 2), layout)
    calls: list[Callable[[], object]] = [
        lambda: codec.places(wider),
        lambda: codec.encode(networks(wider, 2), wider),
        lambda: codec.decode(latent, wider),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match="7 tokens of 7 numbers, and the target has 9"):
            call()


@each
def test_a_site_without_tokens_is_refused(name: str) -> None:
    if name == "identity":
        return
    with pytest.raises(InvalidInput, match="how the target is cut"):
        made(name, Site(8))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pca", {"rank": 0}),
        ("pca", {"rank": 10**9}),
        ("pca", {"per": "layer"}),
        ("token_vae", {"width": 10**6}),
        ("token_vae", {"layers": 0}),
        ("token_vae", {"layers": 10**6}),
        ("token_vae", {"heads": 5}),
        ("token_vae", {"latent": 10**9}),
        ("token_vae", {"layers": 64, "width": 8192}),
        ("token_vae", {"kl": -1.0}),
        ("token_vae", {"kl": float("nan")}),
        ("rvq", {"codes": 10**7}),
        ("rvq", {"codes": 1}),
        ("rvq", {"levels": 17}),
        ("rvq", {"chunk": 0}),
        ("rvq", {"chunk": 4096, "levels": 16, "codes": 65_536}),
        ("rvq", {"iterations": 10**9}),
        ("rvq learned", {"width": 10**6}),
        ("image_vae", {"size": "vast"}),
        ("chunk_vae", {"batch": 0}),
    ],
)
def test_hostile_options_are_refused_before_anything_is_made(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: object) -> None:
        raise AssertionError("something was made")

    monkeypatch.setattr(nn.Module, "register_buffer", too_late)
    monkeypatch.setattr(nn.Module, "register_parameter", too_late)
    with pytest.raises(ParamsmithError):
        made(name, site(rows()), **options)


def test_targets_that_are_too_large_for_a_codec_of_whole_networks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        vast = rows(classes=3, hidden=10_000, inputs=10_000)
        for name in ("pca", "image_vae"):
            with pytest.raises(InvalidInput, match="would hold"):
                made(name, site(vast), **({"rank": 64} if name == "pca" else {}))


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_has_a_gradient_and_training_helps(name: str) -> None:
    layout = rows(padding=1)
    image = name in ("image_vae", "chunk_vae")
    tokens = networks(layout, 8 if image else 32)
    codec = made(name, site(layout))
    torch.manual_seed(0)
    losses = trained(codec, layout, tokens, 30 if image else 80)
    lacking = [key for key, p in codec.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # the bias of a key moves no attention, so its gradient is rounding at most
    assert not [key for key in lacking if not key.endswith("to_k.bias")]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", TRAINED)
def test_a_loss_draws_from_torchs_generator_alone(name: str) -> None:
    layout = rows()
    tokens = networks(layout, 8)
    codec = fitted(name, layout, tokens)
    held = {key: value.clone() for key, value in codec.state_dict().items()}
    found = []
    for seed in (0, 0, 1):
        codec.load_state_dict(held)
        codec.train(name != "rvq learned")
        torch.manual_seed(seed)
        found.append(codec.loss(tokens, layout).item())
    assert found[0] == found[1]
    assert (found[0] != found[2]) == (name != "rvq learned")


@each
@pytest.mark.parametrize("kind", ["row", "flat"])
def test_targets_cut_into_tokens(name: str, kind: str) -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    spec = spec_of(net, 3)
    tokenizer = Tokenizer.of({"layout": kind, "width": 7}, spec)
    rng = torch.Generator().manual_seed(0)
    weights = {slot.name: torch.randn(12, *slot.shape, generator=rng) for slot in spec.slots}
    tokenizer.fit(lambda: iter([(weights, spec)]))
    layout, tokens = tokenizer.layout(spec), tokenizer.tokens(weights, spec)
    codec = fitted(name, layout, tokens)
    latent = codec.encode(tokens, layout)
    assert latent.shape == (12, *codec.places(layout).mask.shape)
    restored = tokenizer.tensors(codec.decode(latent, layout), spec)
    assert {key: values.shape for key, values in restored.items()} == {k: v.shape for k, v in weights.items()}
    if name in ANY_CLASSES and kind == "row":
        wider = spec.with_classes(4)
        drawn = torch.zeros(2, *codec.places(tokenizer.layout(wider)).mask.shape)
        made_of = tokenizer.tensors(codec.decode(drawn, tokenizer.layout(wider)), wider)
        assert made_of["2.weight"].shape == (2, 4, 5)


def test_identity_is_the_tokens() -> None:
    layout = rows()
    tokens, codec = networks(layout, 3), made("identity", site(layout))
    assert torch.equal(codec.decode(codec.encode(tokens, layout), layout), tokens)
    assert codec.places(layout) is layout.places


def test_a_token_that_is_encoded_knows_of_the_others_but_not_of_padding() -> None:
    layout = rows(padding=2)
    tokens = networks(layout, 2)
    codec = fitted("token_vae", layout, tokens)
    changed = tokens.clone()
    changed[:, 0] += 1
    latent, other = codec.encode(tokens, layout), codec.encode(changed, layout)
    assert (latent[:, 1:7] != other[:, 1:7]).any(2).all()
    assert (latent[:, 7:] == 0).all()
    torch.testing.assert_close(latent[:, :7], codec.encode(tokens[:, :7], rows()), rtol=1e-4, atol=1e-5)


def test_the_loss_of_token_vae_is_its_equation() -> None:
    layout = rows()
    tokens = networks(layout, 5)
    codec = made("token_vae", site(layout), kl=0.5, l1=2.0)
    mean, spread = codec._posterior(tokens, layout)
    torch.manual_seed(3)
    noise = torch.randn_like(mean)
    wrong = (codec.decode(mean + noise * (spread / 2).exp(), layout) - tokens)[:, layout.places.mask]
    normal = torch.distributions.Normal(0.0, 1.0)
    apart = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (spread / 2).exp()), normal)
    torch.manual_seed(3)
    expected = wrong.square().mean() + 2 * wrong.abs().mean() + 0.5 * apart.sum(2).mean()
    torch.testing.assert_close(codec.loss(tokens, layout), expected)


def test_the_loss_of_image_vae_is_its_equation() -> None:
    layout = rows()
    tokens = networks(layout, 3)
    codec = made("image_vae", site(layout), kl=0.5)
    mean, spread = codec._moments(tokens, layout)
    torch.manual_seed(3)
    drawn = mean + torch.randn_like(mean) * (spread / 2).exp()
    wrong = (codec.decode(drawn.flatten(2).mT, layout) - tokens)[:, layout.places.mask]
    normal = torch.distributions.Normal(0.0, 1.0)
    apart = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (spread / 2).exp()), normal)
    torch.manual_seed(3)
    expected = wrong.abs().sum() / 3 + 0.5 * apart.sum() / 3 + 1000 * wrong.square().mean()
    torch.testing.assert_close(codec.loss(tokens, layout), expected)


@pytest.mark.parametrize(("size", "pixels"), [("tiny", 64), ("small", 256), ("paper", 256)])
def test_sizes_of_the_image_vae(size: str, pixels: int) -> None:
    with torch.device("meta"):
        codec = made("image_vae", site(rows()), size=size)
        assert codec.places(rows()).mask.shape == (pixels, 4)
        assert codec.slope == (1 if size == "tiny" else 0.01)
    if size == "paper":
        count = sum(p.numel() for p in codec.autoencoder.parameters())
        assert 15.0e6 < count < 15.2e6  # as many as the reference's
        assert (codec.enter.out_features, codec.leave.in_features) == (4096, 4096)


def test_features_of_positions_tell_them_apart() -> None:
    for width in (1, 2, 5, 16):
        found = sinusoids(torch.arange(64), width)
        assert found.shape == (64, width)
        assert len(found.unique(dim=0)) == 64
        assert found.abs().max() <= 2**0.5
