"""The prior `flow`, and what it shares with `diffusion`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.latents import Places, Sampling
from paramsmith.hypernet.priors.denoising import masked_error
from paramsmith.hypernet.priors.flow import Flow, FlowPrior
from paramsmith.parts import priors
from tests.hypernet.latentplaces import WIDTH, alike, little, noise_of, paired, places_of, site_of, trained, woken

pytestmark = pytest.mark.usefixtures("one_thread")

__all__ = ["little"]  # a fixture

B, L, D = 3, 5, 7


def prior_of(**options: Any) -> FlowPrior:
    torch.manual_seed(0)
    made = woken(FlowPrior(Flow(**options), site_of(L, D)))
    assert isinstance(made, FlowPrior)
    return made


def asked_of(count: int = B, length: int = L) -> Tensor:
    return torch.randn(count, length, WIDTH, generator=torch.Generator().manual_seed(4))


def test_is_registered() -> None:
    assert priors.find("flow").make is FlowPrior


def test_samples_are_those_of_the_scheduler() -> None:
    """diffusers' Euler scheduler, at the sigmas that its pipelines give it."""
    prior, places, noise = prior_of(), places_of(L, D), noise_of(range(B))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=[1 - i / 10 for i in range(10)])
    x = noise("x", (L, D))
    with torch.no_grad():
        for time in scheduler.timesteps:
            velocity = prior.denoiser(x, (time / 1000).expand(B), asked_of(), places)
            x = scheduler.step(velocity, time, x, return_dict=False)[0]
    found = prior.sample(asked_of(), places, noise, Sampling())
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_a_straight_line_is_followed_in_one_step_or_many() -> None:
    """Where the velocity is that to one point, sampling arrives there."""
    prior, places = prior_of(), places_of(L, D)
    point = torch.full((L, D), 2.0)
    prior.denoiser.forward = lambda x, time, asked, places: (x - point) / time[:, None, None]  # type: ignore[method-assign]
    prior.mean.fill_(1.0)
    prior.std.fill_(3.0)
    for steps in (1, 7):
        found = prior.sample(asked_of(), places, noise_of(range(B)), Sampling(steps=steps))
        torch.testing.assert_close(found, (point * 3 + 1).expand(B, -1, -1))


def test_loss_is_that_of_the_equation(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, places = prior_of(dropout=0.0), places_of(L, D)
    latent = torch.randn(B, L, D)
    held: list[Tensor] = []

    def denoised(noisy: Tensor, time: Tensor, asked: Tensor, places: Places) -> Tensor:
        held[:] = [noisy, time]
        return torch.zeros_like(noisy)

    monkeypatch.setattr(prior.denoiser, "forward", denoised)
    torch.manual_seed(5)
    found = prior.loss(latent, asked_of(), places)
    torch.manual_seed(5)
    noise, time = torch.randn(B, L, D), torch.randn(B).sigmoid()
    torch.testing.assert_close(held[1], time)
    torch.testing.assert_close(held[0], (1 - time)[:, None, None] * latent + time[:, None, None] * noise)
    torch.testing.assert_close(found, (noise - latent).square().mean())


def test_a_sample_depends_on_its_seed_and_condition_alone() -> None:
    prior, places, asked = prior_of(), places_of(L, D), asked_of()
    together = prior.sample(asked, places, noise_of(range(B)), Sampling(guidance=2.0))
    assert torch.equal(together, prior.sample(asked, places, noise_of(range(B)), Sampling(guidance=2.0)))
    for i in range(B):
        alone = prior.sample(asked[i : i + 1], places, noise_of([i]), Sampling(guidance=2.0))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    prior.sample(asked, places, noise_of(range(B)), Sampling())
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_guidance() -> None:
    """1 is none, 0 asks for nothing, others lie on the line."""
    prior, places, asked = prior_of(), places_of(L, D), asked_of()
    x = torch.randn(B, L, D)
    told, none, both = (prior.predicted(x, 0.5, asked, places, w) for w in (1.0, 0.0, 3.0))
    torch.testing.assert_close(told, prior.denoiser(x, torch.full((B,), 0.5), asked, places))
    null = prior.null.code.expand(B, 1, -1)
    torch.testing.assert_close(none, prior.denoiser(x, torch.full((B,), 0.5), null, places), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both, none + 3 * (told - none), rtol=1e-4, atol=1e-4)
    assert float((told - none).abs().max()) > 1e-2


def test_classes_may_be_permuted_and_added() -> None:
    prior, places, asked = prior_of(), alike(places_of(8, D)), asked_of(B, 8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    found = prior.sample(asked, places, noise_of(range(B)), Sampling())
    assert found.shape == (B, 8, D)
    moved = prior.sample(
        asked[:, order], places, lambda key, shape: noise_of(range(B))(key, shape)[:, order], Sampling()
    )
    torch.testing.assert_close(moved, found[:, order], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("standardise", ["scalar", "number"])
def test_statistics_are_of_the_whole_zoo_without_padding(standardise: str) -> None:
    prior, places = prior_of(standardise=standardise), places_of(L, D)
    latent = torch.randn(10, L, D) * torch.arange(1, D + 1) + 3
    places.mask[:, 6] = False
    places.mask[0, 2] = False
    latent[:, ~places.mask] = torch.nan_to_num(torch.tensor(1e9))
    prior.fit(paired(latent, asked_of(10), places))
    for number in range(6) if standardise == "number" else [slice(None, 6)]:
        there = latent[:, :, number][:, places.mask[:, number]].double()
        torch.testing.assert_close(prior.mean[number if standardise == "number" else 0].double(), there.mean())
        std = there.std(correction=0)
        torch.testing.assert_close(prior.std[number if standardise == "number" else 0].double(), std)
    if standardise == "number":
        assert (float(prior.mean[6]), float(prior.std[6])) == (0.0, 1.0)
    torch.testing.assert_close(prior.restored(prior.standard(latent), places)[:, 1, :6], latent[:, 1, :6])
    assert not prior.sample(asked_of(), places, noise_of(range(B)), Sampling())[:, ~places.mask].any()


def test_constant_latents_have_the_deviation_one() -> None:
    prior, places = prior_of(), places_of(L, D)
    prior.fit(paired(torch.full((4, L, D), 1.1), asked_of(4), places))
    assert float(prior.std) == 1.0
    assert float(prior.mean) == pytest.approx(1.1)


def test_latents_that_cannot_be_learned_from() -> None:
    prior, places = prior_of(), places_of(L, D)
    with pytest.raises(InvalidInput, match="no latents"):
        prior.fit(paired(torch.zeros(0, L, D), asked_of(0), places))
    with pytest.raises(Failed, match="not finite"):
        prior.fit(paired(torch.full((1, L, D), torch.inf), asked_of(1), places))


def test_padding_does_not_count() -> None:
    places = places_of(2, 2)
    places.mask[1, 1] = False
    found = torch.tensor([[[1.0, 2.0], [3.0, 100.0]]])
    assert float(masked_error(found, torch.zeros(1, 2, 2), places)) == pytest.approx((1 + 4 + 9) / 3)


def test_one_batch_is_learned(little: None) -> None:
    torch.manual_seed(1)
    prior, places = FlowPrior(Flow(), site_of(L, D)), places_of(L, D)
    latent, asked = torch.randn(16, L, D), asked_of(16)
    losses = trained(prior, lambda: (latent, asked), places, 80)
    assert sum(losses[:5]) / 5 > 1.5
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_two_modes_are_sampled(little: None) -> None:
    """A mixture of two narrow Gaussians, at -1 and 3; half of the cases ask for one of them."""
    torch.manual_seed(1)
    prior, places = FlowPrior(Flow(standardise="number"), site_of(1, 1)), places_of(1, 1)
    side = torch.arange(512) % 2
    latent = (side * 4.0 - 1)[:, None, None] + 0.1 * torch.randn(512, 1, 1)
    asked = torch.zeros(512, 1, WIDTH)
    asked[:256, 0, 0] = side[:256] * 2.0 - 1
    prior.fit(paired(latent, asked, places, 64))

    def draw() -> tuple[Tensor, Tensor]:
        rows = torch.randint(512, (128,))
        return latent[rows], asked[rows]

    trained(prior, draw, places, 400)
    none = prior.eval().sample(torch.zeros(64, 1, WIDTH), places, noise_of(range(64)), Sampling())[:, 0, 0]
    near = (none + 1).abs() < 0.5, (none - 3).abs() < 0.5
    assert min(int(which.sum()) for which in near) >= 16
    assert int((near[0] | near[1]).sum()) >= 58
    for wanted, place in ((-1.0, -1.0), (1.0, 3.0)):
        code = torch.zeros(1, 1, WIDTH)
        code[..., 0] = wanted
        told = prior.sample(code.expand(32, -1, -1), places, noise_of(range(32)), Sampling())[:, 0, 0]
        assert int(((told - place).abs() < 0.5).sum()) >= 30
