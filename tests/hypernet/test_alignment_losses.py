"""Losses between codes of conditions and latents of networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.objectives.alignment import regression_loss, siglip_loss, soft_clip_loss


def pairs(batch: int = 5, width: int = 3) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(batch, width, generator=rng), torch.randn(batch, width, generator=rng)


def softmax(x: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    held = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(held / held.sum(1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_soft_clip_is_its_formula(temperature: float) -> None:
    latents, codes = pairs()
    z, c = latents.double().numpy(), codes.double().numpy()
    logits = z @ c.T / temperature
    targets = softmax((z @ z.T + c @ c.T) / 2)
    one = -(targets * np.log(softmax(logits))).sum(1)
    other = -(targets.T * np.log(softmax(logits.T))).sum(1)
    assert soft_clip_loss(latents, codes, temperature).item() == pytest.approx(((one + other) / 2).mean(), rel=1e-5)


def test_siglip_is_its_formula() -> None:
    latents, codes = pairs()
    z, c = (held.double().numpy() / np.linalg.norm(held.numpy(), axis=1, keepdims=True) for held in (latents, codes))
    logits = 4 * z @ c.T - 2
    signs = 2 * np.eye(5) - 1
    assert siglip_loss(latents, codes, 4, -2).item() == pytest.approx(np.log1p(np.exp(-signs * logits)).sum() / 5)
    # length says nothing
    torch.testing.assert_close(siglip_loss(3 * latents, 0.1 * codes), siglip_loss(latents, codes))


def test_pairs_of_one_task_belong_together() -> None:
    latents, codes = pairs()
    codes[1] = codes[0]
    same = torch.zeros(5, 5)
    same[0, 1] = same[1, 0] = 1
    logits = 10 * functional.normalize(latents, dim=1) @ functional.normalize(codes, dim=1).T - 10
    gap = siglip_loss(latents, codes, same=same) - siglip_loss(latents, codes)
    # -log s(x) in place of -log s(-x) takes x away, for both of them
    torch.testing.assert_close(gap, -(logits[0, 1] + logits[1, 0]) / 5)


@pytest.mark.parametrize("loss", [soft_clip_loss, siglip_loss, regression_loss])
def test_codes_come_to_their_latents(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    latents, _ = pairs(6, 8)
    codes = torch.zeros(6, 8).normal_(0, 0.1, generator=torch.Generator().manual_seed(2)).requires_grad_()
    optimiser = torch.optim.Adam([codes], 0.05)
    for _ in range(150):
        optimiser.zero_grad()
        loss(latents, codes).backward()
        optimiser.step()
    nearest = functional.normalize(latents, dim=1) @ functional.normalize(codes.detach(), dim=1).T
    assert torch.equal(nearest.argmax(1), torch.arange(6))


def test_soft_targets_are_not_learned() -> None:
    latents, codes = pairs(2, 2)
    codes.requires_grad_()
    soft_clip_loss(latents, codes).backward()
    with torch.no_grad():
        targets = ((latents @ latents.T + codes @ codes.T) / 2).softmax(1)
    free = codes.detach().clone().requires_grad_()
    logits = latents @ free.T
    loss = -((targets * logits.log_softmax(1)).sum() + (targets.T * logits.T.log_softmax(1)).sum()) / 4
    loss.backward()
    torch.testing.assert_close(codes.grad, free.grad)


@pytest.mark.parametrize("loss", [soft_clip_loss, siglip_loss, regression_loss])
def test_other_widths(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    latents, codes = pairs()
    for wrong in (codes[:, :2], codes[:4], codes[:, None]):
        with pytest.raises(InvalidInput, match="that are to be aligned have the shapes 5x3 and"):
            loss(latents, wrong)
