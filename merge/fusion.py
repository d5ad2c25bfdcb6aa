"""Fusing several live language models token by token, as logits processors for the `generate` of transformers.

    fused = BtmEnsemble([expert_a, expert_b], prior=[0.7, 0.3])
    expert_a.generate(**prompts, logits_processor=[fused])

    fused = DynamicFusion(small_base, [small_expert])
    large.generate(**prompts, logits_processor=[fused])

All models share one vocabulary. Prompts of different lengths are padded on the left. The models are put in eval mode.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paramsmith.errors import Failed, InvalidInput

from .learn.btm import Mode, domain_posterior, keep_largest

GRID = tuple(round(0.1 * i, 1) for i in range(21))


def mix(log_probs: Tensor, weights: Tensor) -> Tensor:
    """The log-probabilities of a mixture: log sum_j w_j p_j. (experts, ..., vocabulary), (experts, ...) -> float64.

    >>> mix(torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log(), torch.tensor([0.5, 0.5])).exp().round(decimals=6).tolist()
    [0.3, 0.7]
    """
    return torch.logsumexp(log_probs.double() + weights.double().log()[..., None], 0)


def fuse_logits(large: Tensor, base: Tensor, experts: Tensor, alpha: Tensor) -> Tensor:
    """Logits of a large model, moved as small experts moved from their base: M_L + sum_t alpha_t (M_t - M_S).

    large and base (..., vocabulary), experts (experts, ..., vocabulary), alpha (experts, ...).
    """
    return large + (alpha[..., None] * (experts - base)).sum(0)


def choose_alpha(large: Tensor, base: Tensor, experts: Tensor, grid: Sequence[float] = GRID) -> tuple[Tensor, Tensor]:
    """The alpha of each expert, (experts, ...), of which at most one is not 0, and the objective there, (...).

    With P, Q, Q_t the softmax of the large model's, the small base's and the small experts' logits and P' that of the
    fused logits, alpha makes the large model move as far as each expert did:

        min sum_t [KL(P' | P) - KL(Q_t | Q)]^2 + [KL(P | P') - KL(Q | Q_t)]^2

    over `grid` for one expert at a time, which costs n T evaluations instead of n^T; of equals the first. Shapes as in
    `fuse_logits`, float64 inside. The paper bounds the evaluations (20) and the range (0 to 2); the grid is ours.

    Paper: Fan et al., Dynamic logits fusion, arXiv:2406.15480.
    """
    wide = large.double()
    p, q, tuned = (logits.double().log_softmax(-1) for logits in (large, base, experts))
    forward, backward = _divergence(tuned, q), _divergence(q.expand_as(tuned), tuned)  # (experts, ...)
    best, found = torch.full_like(forward[0], math.inf), torch.zeros_like(forward)
    for number, expert in enumerate(experts.double()):
        moved = torch.where(wide == -math.inf, 0.0, expert - base.double())
        for alpha in grid:
            fused = (wide + alpha * moved).log_softmax(-1)
            objective = ((_divergence(fused, p) - forward) ** 2 + (_divergence(p, fused) - backward) ** 2).sum(0)
            better = objective < best
            best = torch.where(better, objective, best)
            chosen = torch.zeros_like(found)
            chosen[number] = alpha
            found = torch.where(better, chosen, found)
    return found, best


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p | q) over the last dimension; what p thinks impossible counts nothing."""
    return torch.where(log_p == -math.inf, 0.0, log_p.exp() * (log_p - log_q)).sum(-1)


class BtmEnsemble:
    """The mixture of experts whose weights are the posterior of their domains given the text so far.

    p(x_t | x_<t) = sum_j p_j(x_t | x_<t) p(D=j | x_<t), by Bayes from `prior` (uniform when None) and what each expert
    thought of the prefix: of all of it (full_prefix) or, as the public code has it, of its last token. The generating
    model may be any of the experts; its own logits are replaced, but for what earlier processors forbade (-inf).
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        prior: Sequence[float] | Tensor | None = None,
        mode: Mode = "full_prefix",
        *,
        top_k: int | None = None,
        pad_token_id: int | None = None,
        attention_mask: Tensor | None = None,
    ) -> None:
        held = torch.as_tensor([1.0] * len(models) if prior is None else prior, dtype=torch.float64)
        if not models or held.shape != (len(models),):
            raise InvalidInput(f"{len(models)} experts and a prior of shape {list(held.shape)}", "one value an expert")
        if not bool(torch.isfinite(held).all()) or float(held.min()) < 0 or float(held.sum()) <= 0:
            raise InvalidInput(f"the prior {held.tolist()} is no distribution", "give shares of 0 or more")
        if mode not in ("full_prefix", "previous_token"):
            raise InvalidInput(f"there is no mode {mode!r}", "full_prefix or previous_token")
        if top_k is not None and top_k < 1:
            raise InvalidInput(f"top_k is {top_k}", "keep at least one expert")
        shares = keep_largest(held / held.sum(), top_k)
        alive = [i for i in range(len(models)) if shares[i] > 0]  # the others never count
        self.prior = shares[alive]
        self.mode: Mode = mode
        self._prefix = _Prefix(models[0] if pad_token_id is None else None, pad_token_id, attention_mask)
        self._experts = [_Follower(models[i], f"expert {i + 1}") for i in alive]
        self._next: list[Tensor] = []  # log-probabilities of the token to come, an expert
        self._seen = torch.zeros(
            len(alive), 0, dtype=torch.float64
        )  # (experts, rows): of the prefix, or its last token
        self._counted = torch.zeros(0, dtype=torch.bool)  # rows in which any token was predicted

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The mixture's log-probabilities of the next token, (rows, vocabulary)."""
        start, mask = self._prefix.advance(input_ids)
        given = [expert.logits(input_ids, mask, start, scores) for expert in self._experts]
        if start == 0:
            counted = mask[:, 1:] * mask[:, :-1]
            observed = torch.stack([_observed(logits[:, :-1], input_ids[:, 1:]) for logits in given])
            observed = torch.where(counted.to(observed.device) > 0, observed, 0.0)
            self._counted = (counted.sum(1) > 0).to(observed.device)
            last = observed[..., -1] if observed.shape[-1] else observed.new_zeros(observed.shape[:2])
            self._seen = observed.sum(-1) if self.mode == "full_prefix" else last
        else:
            new = torch.stack([_observed(logits[:, None], input_ids[:, -1:]) for logits in self._next])[..., 0]
            self._seen = self._seen + new if self.mode == "full_prefix" else new
            self._counted = torch.ones_like(self._counted)
        self._next = [logits[:, -1] for logits in given]
        mixed = mix(torch.stack([logits.log_softmax(-1) for logits in self._next]), self.weights)
        return mixed.to(scores.dtype).masked_fill(scores == -math.inf, -math.inf)

    @property
    def weights(self) -> Tensor:
        """The posterior that the last token was mixed with: (experts of a prior above 0, rows)."""
        before = torch.stack([self._seen, torch.zeros_like(self._seen)], -1)
        weights = domain_posterior(before, self.prior.to(before.device), self.mode)[..., -1]
        if self.mode == "previous_token":
            weights = torch.where(self._counted, weights, 1 / len(self.prior))
        return weights


class DynamicFusion:
    """A large model steered by small experts, as far at each token as they went from their own base.

    The large model generates. See `choose_alpha` for how far; what earlier processors forbade (-inf) stays forbidden.
    """

    def __init__(
        self,
        base: nn.Module,
        experts: Sequence[nn.Module],
        grid: Sequence[float] = GRID,
        *,
        pad_token_id: int | None = None,
        attention_mask: Tensor | None = None,
    ) -> None:
        if not experts:
            raise InvalidInput("there are no experts", "give the small base and at least one small expert")
        if not grid or not all(math.isfinite(alpha) for alpha in grid):
            raise InvalidInput(f"the grid {list(grid)} has no values to choose from", "give numbers: 0, 0.1, ... 2")
        self.grid = tuple(grid)
        self.alpha = torch.zeros(len(experts), 0)  # of the last token: (experts, rows)
        self._prefix = _Prefix(base if pad_token_id is None else None, pad_token_id, attention_mask)
        self._base = _Follower(base, "the small base", last=True)
        self._experts = [_Follower(expert, f"expert {i + 1}", last=True) for i, expert in enumerate(experts)]

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The fused log-probabilities of the next token, (rows, vocabulary)."""
        start, mask = self._prefix.advance(input_ids)
        given = [f.logits(input_ids, mask, start, scores)[:, -1] for f in (self._base, *self._experts)]
        forbidden = scores == -math.inf
        base, experts = given[0], torch.stack(given[1:])
        possible = [logits.masked_fill(forbidden, -math.inf) for logits in given]
        self.alpha = choose_alpha(scores, possible[0], torch.stack(possible[1:]), self.grid)[0]
        fused = fuse_logits(scores.double(), base.double(), experts.double(), self.alpha)
        return fused.log_softmax(-1).to(scores.dtype)


class _Prefix:
    """The text so far: which of its tokens are new since the last call, and which are padding."""

    def __init__(self, model: nn.Module | None, pad_token_id: int | None, mask: Tensor | None) -> None:
        found = getattr(getattr(model, "config", None), "pad_token_id", None) if model is not None else pad_token_id
        self._pad: int | None = found
        self._given = mask
        self._ids: Tensor | None = None

    def advance(self, ids: Tensor) -> tuple[int, Tensor]:
        """The first new position, 0 for another text, and the attention mask (rows, tokens)."""
        before, self._ids = self._ids, ids.clone()
        known = before is not None and ids.shape == (before.shape[0], before.shape[1] + 1)
        same = known and before is not None and bool((ids[:, :-1] == before).all())
        return ids.shape[1] - 1 if same else 0, self._mask(ids)

    def _mask(self, ids: Tensor) -> Tensor:
        mask = torch.ones_like(ids)
        if self._given is not None:
            given = self._given.to(mask)
            copies, odd = divmod(len(ids), len(given))  # beams and returned sequences repeat the prompts
            if odd or given.shape[1] > ids.shape[1]:
                told = f"the attention mask {list(given.shape)} does not fit the prompts {list(ids.shape)}"
                raise InvalidInput(told, "give the one that the prompts come with")
            mask[:, : given.shape[1]] = given.repeat_interleave(copies, 0)
        elif self._pad is not None:
            mask = ((ids != self._pad).long().cumsum(1) > 0).to(mask.dtype)  # the padding in front, nothing later
            mask[:, -1] = 1
        if bool((mask.diff(dim=1) < 0).any()):
            raise InvalidInput("the prompts are padded behind", "pad them on the left, as generating needs")
        return mask


class _Follower:
    """A model that reads along, keeping its own cache of the text so far; `last`: only its last logits are wanted."""

    def __init__(self, model: nn.Module, label: str, last: bool = False) -> None:
        self._model, self._label, self._last = model.eval(), label, last
        self._cache: object = None
        inner = getattr(model, "get_base_model", lambda: model)()  # adapters pass on what they do not name
        self._takes = set(inspect.signature(inner.forward).parameters)
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def logits(self, ids: Tensor, mask: Tensor, start: int, scores: Tensor) -> Tensor:
        """Logits of what follows each token from `start` on: (rows, new tokens, vocabulary), beside the scores."""
        cached = start > 0 and self._cache is not None
        first = start if cached else 0
        options: dict[str, object] = {
            "attention_mask": mask.to(self._device),
            "position_ids": (mask.cumsum(1) - 1).clamp_min(0)[:, first:].to(self._device),
            "past_key_values": self._cache if cached else None,
            "use_cache": True,
        }
        if self._last:
            options["logits_to_keep"] = 1
        taken = {name: value for name, value in options.items() if name in self._takes}
        outputs = self._model(input_ids=ids[:, first:].to(self._device), **taken)
        self._cache = getattr(outputs, "past_key_values", None)
        logits: Tensor = outputs.logits[:, -1 if self._last else start - first :].to(scores.device).float()
        if logits.shape[-1] != scores.shape[-1]:
            told = f"{self._label} has a vocabulary of {logits.shape[-1]:,}, the generating model {scores.shape[-1]:,}"
            raise InvalidInput(told, "fuse models of one tokenizer")
        if not bool(torch.isfinite(logits[:, -1]).all()):
            raise Failed(f"{self._label} gives logits that are not finite", "leave it out, or load it in float32")
        return logits


def _observed(logits: Tensor, ids: Tensor) -> Tensor:
    """log p of the tokens that did follow, float64: (rows, tokens, vocabulary), (rows, tokens) -> (rows, tokens)."""
    wide = logits.double()
    return wide.gather(-1, ids[..., None].to(wide.device))[..., 0] - wide.logsumexp(-1)
