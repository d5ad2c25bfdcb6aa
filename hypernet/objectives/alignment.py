"""Losses that bring codes of conditions and latents of the networks that belong to them together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from paramsmith.errors import InvalidInput


def soft_clip_loss(latents: Tensor, codes: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy in both directions between pairs, with soft targets, of latents and codes (B, e); a scalar.

        logits = Z Cᵀ / temperature      P = softmax((Z Zᵀ + C Cᵀ) / 2), over rows
        loss = mean over pairs of (H(P, softmax(logits)) + H(Pᵀ, softmax(logitsᵀ))) / 2

    So pairs that are alike need not be told apart. P is taken as it is: no gradient goes through it. Stage 2 of D2NWG,
    where nothing is normalised. InvalidInput for other shapes.

    Paper: Diffusion-Based Neural Network Weights Generation, arXiv:2402.18153.

    >>> one = torch.eye(2)
    >>> round(float(soft_clip_loss(one, one)), 3), round(float(soft_clip_loss(one, one.flip(0))), 3)
    (0.582, 1.044)
    """
    _check(latents, codes)
    logits = latents @ codes.T / temperature
    targets = ((latents @ latents.T + codes @ codes.T) / 2).softmax(1).detach()
    over_codes = -(targets * logits.log_softmax(1)).sum(1)
    over_latents = -(targets.T * logits.T.log_softmax(1)).sum(1)
    return ((over_codes + over_latents) / 2).mean()


def siglip_loss(
    latents: Tensor,
    codes: Tensor,
    scale: Tensor | float = 10.0,
    bias: Tensor | float = -10.0,
    same: Tensor | None = None,
) -> Tensor:
    """Each pair by itself, of latents and codes (B, e), which are brought to length 1; a scalar.

        loss = -1/B sum_ij log sigmoid(y_ij (scale · z_i · c_j + bias))

    with y 1 for pairs that belong together, else -1: those on the diagonal, and those of `same` (B, B), as where
    several networks of a batch were trained on one task. `scale` and `bias` may be learned; they begin as given here.
    InvalidInput for other shapes.

    Paper: Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343.

    >>> one = torch.eye(2)
    >>> round(float(siglip_loss(one, one)), 3), round(float(siglip_loss(one, one.flip(0))), 3)
    (0.693, 10.693)
    """
    _check(latents, codes)
    logits = scale * functional.normalize(latents, dim=1) @ functional.normalize(codes, dim=1).T + bias
    together = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    if same is not None:
        together = together | same.bool()
    signs = torch.where(together, 1.0, -1.0)
    return -functional.logsigmoid(signs * logits).sum() / len(logits)


def regression_loss(latents: Tensor, codes: Tensor) -> Tensor:
    """The mean square of codes less latents, (B, e) each; a scalar. The best code is the mean latent of what it tells.

    InvalidInput for other shapes.

    >>> float(regression_loss(torch.ones(2, 3), torch.zeros(2, 3)))
    1.0
    """
    _check(latents, codes)
    return (codes.float() - latents).square().mean()


def _check(latents: Tensor, codes: Tensor) -> None:
    if latents.dim() != 2 or latents.shape != codes.shape:
        shapes = " and ".join("x".join(map(str, held.shape)) for held in (latents, codes))
        fact = f"latents and codes that are to be aligned have the shapes {shapes}"
        raise InvalidInput(fact, "make the codes as wide as a flattened latent")
