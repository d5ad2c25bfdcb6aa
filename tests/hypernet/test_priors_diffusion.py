"""The prior `diffusion`: its schedule, its samplers, its three denoisers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.denoisers.unet import Unet
from paramsmith.hypernet.generators.d2nwg import D2nwg, d2nwg
from paramsmith.hypernet.latents import Places, Sampling
from paramsmith.hypernet.priors.diffusion import Diffusion, DiffusionPrior
from paramsmith.hypernet.priors.stepping import spaced
from paramsmith.hypernet.protocols import SamplerDesign, Site
from paramsmith.hypernet.targets.describe import spec_of
from paramsmith.parts import priors
from tests.hypernet.latentplaces import WIDTH, little, noise_of, paired, places_of, site_of, trained, woken

pytestmark = pytest.mark.usefixtures("one_thread")

__all__ = ["little"]  # a fixture

B, L, D = 3, 5, 7
PAPERS = {
    "d2nwg": {"times": 1024, "betas": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0155},
    "pdiff": {"times": 1000, "betas": "linear", "beta_start": 1e-4, "beta_end": 0.02},
}
every_prediction = pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])


def d2nwg_of(size: Any, **options: Any) -> SamplerDesign:
    spec = spec_of(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), 3)
    return d2nwg(D2nwg(size=size, **options), Site(0, spec, {"classes": (3, 0, 4)}))


def test_d2nwg_of_paper_size_is_as_published() -> None:
    made = d2nwg_of("paper")
    said = {"denoiser": "unet", "size": "paper", "scheduler": "ddpm", "steps": 1024, "prediction": "epsilon"}
    assert made.prior.options == {**said, **PAPERS["d2nwg"], "dropout": 0.0}
    assert (made.tokens["layout"], made.tokens["normaliser"]) == ("flat", "none")
    assert made.encoder.options == {"shots": 5}
    assert (made.width, made.objective.options["batch"], made.course["lr"]) == (1024, 64, 1e-4)
    assert (made.objective.options["align"], made.course["ema"]) == ("clip", 0.995)
    assert (d2nwg_of("small").prior.options["prediction"], d2nwg_of("small").objective.options["align"]) == (
        "epsilon",
        "clip",
    )


def test_d2nwg_that_is_tiny_and_what_is_said_of_it() -> None:
    made = d2nwg_of("tiny")
    assert (made.width, made.objective.options["batch"], made.prior.options["steps"]) == (256, 32, 100)
    assert (made.objective.options["align"], made.prior.options["prediction"]) == ("regression", "v_prediction")
    told = d2nwg_of("tiny", steps=1024, batch=8, scale=True)
    assert (told.objective.options["batch"], told.prior.options["steps"]) == (8, 1024)
    assert (made.tokens["normaliser"], told.tokens["normaliser"]) == ("center", "pow2")


def test_a_code_as_wide_as_a_latent_is_first_read_as_one() -> None:
    net = Unet("tiny", Site(L * D, latent=(L, D)))
    code = torch.randn(2, L * D)
    told = torch.einsum("bd,lnd->bln", code, net.condition)
    assert torch.equal(told.flatten(1), code)
    assert float(Unet("tiny", site_of(L, D)).condition.detach().std()) > 0.1


def prior_of(**options: Any) -> DiffusionPrior:
    torch.manual_seed(0)
    made = woken(DiffusionPrior(Diffusion(**options), site_of(L, D)))
    assert isinstance(made, DiffusionPrior)
    return made


def asked_of(count: int = B) -> Tensor:
    return torch.randn(count, 1, WIDTH, generator=torch.Generator().manual_seed(4))


def test_is_registered_and_says_v_by_itself() -> None:
    assert priors.find("diffusion").make is DiffusionPrior
    assert Diffusion().prediction == "v_prediction"


@pytest.mark.parametrize("paper", PAPERS)
def test_schedule_of_training(paper: str) -> None:
    said = PAPERS[paper]
    prior = prior_of(**said)
    config = prior.schedule.config
    assert (config["clip_sample"], config["thresholding"]) == (False, False)
    assert (config["timestep_spacing"], config["num_train_timesteps"]) == ("trailing", said["times"])
    start, end = float(str(said["beta_start"])), float(str(said["beta_end"]))
    root = 0.5 if said["betas"] == "scaled_linear" else 1.0
    betas = torch.linspace(start**root, end**root, int(str(said["times"])), dtype=torch.float64) ** (1 / root)
    wanted = torch.cumprod(1 - betas, 0)
    torch.testing.assert_close(torch.tensor(prior.alphas, dtype=torch.float64), wanted, rtol=1e-3, atol=1e-9)


@every_prediction
@pytest.mark.parametrize(("times", "steps"), [(40, 40), (40, 10)])
@pytest.mark.parametrize("kind", ["ddpm", "ddim", "dpm"])
def test_samples_are_those_of_the_schedulers(kind: Any, prediction: Any, times: int, steps: int) -> None:
    prior = prior_of(scheduler=kind, prediction=prediction, times=times, beta_end=0.2)
    places, noise, asked = places_of(L, D), noise_of(range(B)), asked_of()
    said = {"num_train_timesteps": times, "beta_end": 0.2, "prediction_type": prediction}
    said["timestep_spacing"] = "trailing"
    generator = torch.Generator().manual_seed(8)
    x = noise("x", (L, D))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the solver gives numpy a tensor
        more: dict[str, Any] = {"generator": generator} if kind == "ddpm" else {}
        scheduler: Any
        if kind == "dpm":
            scheduler = DPMSolverMultistepScheduler(**said)
        else:
            scheduler = (DDPMScheduler if kind == "ddpm" else DDIMScheduler)(**said, clip_sample=False)
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == spaced(times, steps)
        for time in scheduler.timesteps:
            found = prior.denoiser(x, (time / times).expand(B), asked, places)
            x = scheduler.step(found, time, x, return_dict=False, **more)[0]
    drawn = torch.Generator().manual_seed(8)

    def same(key: str, shape: Any) -> Tensor:
        return noise(key, shape) if key == "x" else torch.randn((B, *shape), generator=drawn)

    mine = prior.sample(asked, places, same, Sampling(steps=steps))
    torch.testing.assert_close(mine, x, rtol=2e-3, atol=2e-3)
    assert float(x.std()) > 0.1


@every_prediction
@pytest.mark.parametrize("kind", ["ddpm", "ddim", "dpm"])
def test_a_denoiser_that_knows_the_latent_gets_there(kind: Any, prediction: Any) -> None:
    """And nothing is clipped: the latent is far beyond 1. The steps do not divide the times."""
    prior, places = prior_of(scheduler=kind, prediction=prediction), places_of(L, D)
    point = torch.linspace(-40, 40, L * D).view(1, L, D)

    def knows(x: Tensor, time: Tensor, asked: Tensor, places: Places) -> Tensor:
        alpha = torch.tensor(prior.alphas)[(time * 1000).round().long()][:, None, None]
        noise = (x - alpha.sqrt() * point) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * point
        return {"v_prediction": velocity, "epsilon": noise, "sample": point.expand_as(x)}[prediction]

    prior.denoiser.forward = knows  # type: ignore[method-assign]
    found = prior.sample(asked_of(), places, noise_of(range(B)), Sampling(steps=7))
    torch.testing.assert_close(found, point.expand(B, -1, -1), rtol=2e-2, atol=2e-2)


@every_prediction
def test_loss_is_that_of_the_equation(prediction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prior, places = prior_of(dropout=0.0, prediction=prediction), places_of(L, D)
    latent = torch.randn(B, L, D)
    held: list[Tensor] = []

    def denoised(noisy: Tensor, time: Tensor, asked: Tensor, places: Places) -> Tensor:
        held[:] = [noisy]
        return torch.zeros_like(noisy)

    monkeypatch.setattr(prior.denoiser, "forward", denoised)
    torch.manual_seed(5)
    found = prior.loss(latent, asked_of(), places)
    torch.manual_seed(5)
    noise = torch.randn(B, L, D)
    alpha = torch.tensor(prior.alphas)[torch.randint(1000, (B,))][:, None, None]
    torch.testing.assert_close(held[0], alpha.sqrt() * latent + (1 - alpha).sqrt() * noise)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latent
    wanted = {"v_prediction": velocity, "epsilon": noise, "sample": latent}[prediction]
    torch.testing.assert_close(found, wanted.square().mean())


@pytest.mark.parametrize("denoiser", ["token_dit", "mlp", "unet", "unet1d"])
def test_a_sample_depends_on_its_seed_and_condition_alone(denoiser: Any) -> None:
    """Ancestral sampling, whose noise is each sample's own."""
    prior, places, asked = prior_of(denoiser=denoiser, scheduler="ddpm"), places_of(L, D), asked_of()
    how = Sampling(steps=3, guidance=2.0)
    together = prior.sample(asked, places, noise_of(range(B)), how)
    assert torch.equal(together, prior.sample(asked, places, noise_of(range(B)), how))
    for i in range(B):
        alone = prior.sample(asked[i : i + 1], places, noise_of([i]), how)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-3)
    assert float((together[0] - prior.sample(asked, places, noise_of([7, 8, 9]), how)[0]).abs().max()) > 1e-2


def test_more_steps_than_times() -> None:
    with pytest.raises(InvalidInput, match="25 steps of sampling, and the diffusion has 20 times"):
        prior_of(times=20)
    prior = prior_of(times=20, steps=20)
    with pytest.raises(InvalidInput, match="21 steps of sampling"):
        prior.sample(asked_of(), places_of(L, D), noise_of(range(B)), Sampling(steps=21))


@pytest.mark.parametrize("steps", [1, 3, 7, 50, 999, 1000])
def test_times_are_evenly_spaced(steps: int) -> None:
    found = spaced(1000, steps)
    assert len(set(found)) == steps
    assert found[0] == 999
    assert min(found) >= 0
    assert max(abs(a - b - 1000 / steps) for a, b in zip(found, [*found[1:], -1], strict=True)) <= 1


@pytest.mark.parametrize(("denoiser", "steps"), [("token_dit", 60), ("mlp", 60), ("unet", 40), ("unet1d", 40)])
def test_one_batch_is_learned(denoiser: Any, steps: int, little: None) -> None:
    torch.manual_seed(1)
    prior, places = DiffusionPrior(Diffusion(denoiser=denoiser), site_of(L, D)), places_of(L, D)
    latent, asked = torch.randn(8, L, D), asked_of(8)
    losses = trained(prior, lambda: (latent, asked), places, steps)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.slow
def test_two_modes_are_sampled(little: None) -> None:
    torch.manual_seed(1)
    prior, places = DiffusionPrior(Diffusion(), site_of(1, 1)), places_of(1, 1)
    latent = ((torch.arange(512) % 2) * 4.0 - 1)[:, None, None] + 0.1 * torch.randn(512, 1, 1)
    asked = torch.zeros(512, 1, WIDTH)
    prior.fit(paired(latent, asked, places, 64))

    def draw() -> tuple[Tensor, Tensor]:
        rows = torch.randint(512, (128,))
        return latent[rows], asked[rows]

    trained(prior, draw, places, 400)
    found = prior.eval().sample(torch.zeros(64, 1, WIDTH), places, noise_of(range(64)), Sampling())[:, 0, 0]
    near = (found + 1).abs() < 0.7, (found - 3).abs() < 0.7
    assert min(int(which.sum()) for which in near) >= 16
    assert int((near[0] | near[1]).sum()) >= 56
