"""The networks of the trained priors by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.denoisers.causal import CausalTransformer
from paramsmith.hypernet.denoisers.null import NullCondition, guided
from paramsmith.hypernet.denoisers.token_dit import TokenDit
from paramsmith.hypernet.denoisers.unet import Unet
from paramsmith.hypernet.denoisers.unet1d import Unet1d
from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.protocols import Site
from tests.hypernet.latentplaces import WIDTH, alike, places_of, site_of, woken

pytestmark = pytest.mark.usefixtures("one_thread")

B, L, D = 3, 5, 7
every_denoiser = pytest.mark.parametrize("kind", [TokenDit, Unet, Unet1d])


def given(length: int = L) -> tuple[Tensor, Tensor, Tensor, Places]:
    generator = torch.Generator().manual_seed(1)
    noisy, asked = (torch.randn(B, length, n, generator=generator) for n in (D, WIDTH))
    return noisy, torch.tensor([0.1, 0.5, 0.9]), asked, places_of(length, D)


@every_denoiser
def test_begins_with_zeros_and_every_parameter_learns(kind: Any) -> None:
    torch.manual_seed(0)
    net = kind("tiny", site_of(L, D))
    assert net(*given()).shape == (B, L, D)
    assert kind is Unet or not net(*given()).any()
    woken(net)(*given()).square().sum().backward()
    assert not [name for name, held in net.named_parameters() if held.grad is None or not held.grad.any()]


@every_denoiser
@torch.no_grad()
def test_each_sample_has_its_own_time_and_condition(kind: Any) -> None:
    torch.manual_seed(0)
    net = woken(kind("tiny", site_of(L, D)))
    noisy, time, asked, places = given()
    together = net(noisy, time, asked, places)
    for i in range(B):
        alone = net(noisy[i : i + 1], time[i : i + 1], asked[i : i + 1], places)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)
    later = net(noisy, time + torch.tensor([0.0, 0.05, 0.0]), asked, places)
    changed = (later - together).abs().amax((1, 2)) > 1e-3
    assert changed.tolist() == [False, True, False]
    other = net(noisy, time, asked * torch.tensor([1.0, 1.0, 2.0])[:, None, None], places)
    assert ((other - together).abs().amax((1, 2)) > 1e-3).tolist() == [False, False, True]


@every_denoiser
@torch.no_grad()
def test_one_code_is_for_all_positions_and_padding_is_neither_read_nor_written(kind: Any) -> None:
    torch.manual_seed(0)
    net = woken(kind("tiny", site_of(L, D)))
    noisy, time, asked, places = given()
    one = asked[:, :1]
    shared = net(noisy, time, one, places)
    torch.testing.assert_close(shared, net(noisy, time, one.expand(-1, L, -1), places), rtol=1e-4, atol=1e-5)
    places.mask[2, 4:] = False
    found = net(noisy, time, asked, places)
    noisy[:, 2, 4:] = 1e6
    torch.testing.assert_close(net(noisy, time, asked, places), found)
    assert not found[:, 2, 4:].any()
    assert found[:, 2, :4].all()


@torch.no_grad()
def test_transformer_is_equivariant_and_of_any_length() -> None:
    torch.manual_seed(0)
    net = woken(TokenDit("tiny", site_of(L, D)))
    noisy, time, asked, places = given(9)
    order = torch.randperm(9)
    found = net(noisy, time, asked, alike(places))
    moved = net(noisy[:, order], time, asked[:, order], alike(places))
    torch.testing.assert_close(moved, found[:, order], rtol=1e-4, atol=1e-5)
    # features break the symmetry, and move with the tokens
    told = net(noisy, time, asked, places)
    assert float((told - found).abs().max()) > 1e-3
    there = Places(places.features[order], places.classes[order], places.slots[order], places.mask[order])
    torch.testing.assert_close(net(noisy[:, order], time, asked[:, order], there), told[:, order], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_convolutions_in_a_row_take_any_length_and_see_past_a_token() -> None:
    torch.manual_seed(0)
    net = woken(Unet1d("tiny", site_of(L, D)))
    noisy, time, asked, places = given(9)
    found = net(noisy, time, asked, places)
    assert found.shape == (B, 9, D)
    noisy[:, 3, 0] += 1
    assert (net(noisy, time, asked, places) - found)[:, 2, D - 1].all()


def test_square_of_a_unet_has_one_size() -> None:
    with pytest.raises(InvalidInput, match="5x7 numbers, and these have 9x7"):
        Unet("tiny", site_of(L, D))(*given(9))


@pytest.mark.parametrize(
    ("kind", "site", "millions"),
    [
        (TokenDit, Site(128, latent=(5, 97), features=24), {"tiny": 0.965, "small": 16.5, "paper": 44.0}),
        (Unet, Site(128, latent=(1, 1024), features=24), {"paper": 99.3}),
    ],
)
def test_sizes(kind: Any, site: Site, millions: dict[Any, float]) -> None:
    """Of the U-Net 13 M are those of blocks that resample, and of scales and shifts by the time."""
    for size, wanted in millions.items():
        with torch.device("meta"):
            net = kind(size, site)
        found = sum(held.numel() for name, held in net.named_parameters() if name != "condition") / 1e6
        assert found == pytest.approx(wanted, rel=0.02), size


def test_paper_unet_is_that_of_the_paper() -> None:
    with torch.device("meta"):
        net = Unet("paper", Site(128, latent=(4, 256))).net
    config = net.config
    assert (config["in_channels"], config["out_channels"], config["sample_size"]) == (2, 1, 32)
    assert tuple(config["block_out_channels"]) == (256, 256, 256, 512)
    assert config["resnet_time_scale_shift"] == "scale_shift"
    assert [kind.startswith("Attn") for kind in config["down_block_types"]] == [False, False, True, True]


def test_a_site_without_features_or_latents() -> None:
    net = TokenDit("tiny", site_of(L, D, features=0))
    noisy, time, asked, _ = given()
    assert net(noisy, time, asked, places_of(L, D, features=0)).shape == (B, L, D)
    with pytest.raises(InvalidInput, match="the site has none"):
        TokenDit("tiny", Site(WIDTH))


@torch.no_grad()
def test_null_condition_and_guidance() -> None:
    null = NullCondition(2, 0.25)
    null.code.fill_(7.0)
    torch.manual_seed(0)
    gone = (null.dropped(torch.zeros(1, 3, 2), 4000) == 7).all((1, 2))
    assert 0.22 < float(gone.float().mean()) < 0.28
    asked = torch.ones(2, 1, 2)
    assert null.beside(asked, 1.0) is asked
    assert null.beside(asked, 2.0)[:, 0, 0].tolist() == [1, 1, 7, 7]
    assert guided(torch.tensor([1.0, 2.0, 0.0, 1.0]), 3.0).tolist() == [3.0, 4.0]
    assert guided(torch.tensor([1.0, 2.0]), 1.0).tolist() == [1.0, 2.0]


@torch.no_grad()
def test_causal_transformer_with_a_cache_is_as_without() -> None:
    torch.manual_seed(0)
    net = CausalTransformer("tiny").eval()
    tokens = torch.randn(2, 9, net.width)
    whole = net(tokens)
    cache = net.cache(2, 9)
    parts = [net(tokens[:, :4], cache)] + [net(tokens[:, i : i + 1], cache) for i in range(4, 9)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    changed = tokens.clone()
    changed[:, 5] = torch.randn(2, net.width)
    differs = ((net(changed) - whole).abs().amax((0, 2)) > 1e-3).tolist()
    assert differs == [False] * 5 + [True] * 4


def test_a_latent_too_large_for_a_square() -> None:
    with pytest.raises(InvalidInput, match="wants latents of few numbers, and these have 100,000,000"):
        Unet("tiny", site_of(10_000, 10_000))
