"""Branch-train-merge: how likely each expert's domain is, given text; and the average of the experts that follows."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.coefficients import Coefficients, uniform_over
from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.merge.task import IGNORED, Batch, Task, check_labels, code_digest
from paramsmith.resumable import Resumable
from paramsmith.statistics import weights_digest

from .feeds import batches_of, on_device, outputs_of

Mode = Literal["full_prefix", "previous_token"]
Prior = Literal["ema", "mean", "uniform"]


@dataclass(frozen=True)
class BTMReport:
    """What was learned: the weight of each expert, from how many blocks of text."""

    output: Path
    weights: tuple[float, ...]
    blocks: int
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {**asdict(self), "output": str(self.output)}


def domain_posterior(log_probs: Tensor, prior: Tensor, mode: Mode = "full_prefix") -> Tensor:
    """How likely each expert's domain is before each token: the weights of the experts' mixture there.

    full_prefix: p(D=j | x_<t) = π_j Π_{s<t} p_j(x_s) / Σ_k π_k Π_{s<t} p_k(x_s);
    previous_token: π_j p_j(x_{t-1}), normalised, and uniform before the first token, as the public code has it.

    log_probs: (experts, ..., tokens), log p_j of each token that was observed; prior: (experts,), of sum 1. Gives
    (experts, ..., tokens), of sum 1 over the experts; computed in float64 and in log space. Text that no expert thinks
    possible says nothing: the prior stays. InvalidInput for NaN, or shapes that do not fit.

    >>> both = torch.tensor([[0.9, 0.5], [0.3, 0.5]])
    >>> domain_posterior(both.log(), torch.tensor([0.5, 0.5])).round(decimals=4).tolist()
    [[0.5, 0.75], [0.5, 0.25]]

    Paper: Li et al., Branch-train-merge, arXiv:2208.03306.
    """
    if log_probs.ndim < 2 or prior.shape != log_probs.shape[:1]:
        raise InvalidInput(f"log_probs {list(log_probs.shape)} and prior {list(prior.shape)} do not fit together")
    if torch.isnan(log_probs).any() or not (prior >= 0).all() or not 0 < float(prior.sum()) < math.inf:
        raise InvalidInput("the log-probabilities hold NaN, or the prior is no distribution over the experts")
    held = log_probs.double()
    seen = held if mode == "previous_token" else held.cumsum(-1)
    before = torch.cat([torch.zeros_like(held[..., :1]), seen[..., :-1]], -1)  # (experts, ..., tokens)
    weights = _log_posterior(before, prior.double().log().reshape(-1, *[1] * (held.ndim - 1))).exp()
    if mode == "previous_token":
        weights[..., :1] = 1 / len(prior)
    return weights


def keep_largest(prior: Tensor, top_k: int | None) -> Tensor:
    """All but the `top_k` largest entries zero, and of sum 1 again; the first of equal ones stays.

    >>> keep_largest(torch.tensor([0.5, 0.2, 0.3]), 2).tolist()
    [0.625, 0.0, 0.375]
    """
    if top_k is None:
        return prior
    order = sorted(range(len(prior)), key=lambda j: -float(prior[j]))
    kept = torch.zeros_like(prior)
    kept[order[:top_k]] = prior[order[:top_k]]
    return kept / kept.sum()


def learn_btm(
    tasks: Iterable[Task],
    models: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    prior: Prior = "ema",
    mode: Mode = "full_prefix",
    decay: float = 0.3,
    top_k: int | None = None,
    limit: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> BTMReport:
    """Weights for an average of experts: the posterior of their domains on a text, one forward pass an expert.

    Every example of the data is a block. prior `ema`: π <- decay · posterior + (1 - decay) · π, block after block, the
    posterior of each taken with the π so far, uniform at first; `mean`: the posteriors under a uniform prior,
    averaged; `uniform`: 1/N, without data. `top_k` keeps the largest and renormalises.

    tasks: one an expert, in model order, with the same data: causal language models whose `labels` are the tokens to
    be predicted. An iterator is drawn from one by one, so that no two experts need be in memory. Writes coefficients
    of `linear` to `output`. Raises InvalidInput, Refused or Failed; after an interruption the same call goes on.

    Paper: Li et al., Branch-train-merge, arXiv:2208.03306.
    """
    experts, target = [os.fspath(model) for model in models], Path(output)
    asked: dict[str, object] = {"learner": "btm", "prior": prior, "mode": mode, "decay": decay}
    asked |= {"top_k": top_k, "limit": limit}
    _check(experts, prior, mode, decay, top_k)
    digests = tuple(_digest(expert) for expert in experts)
    key = hashlib.sha256(json.dumps([asked, digests]).encode()).hexdigest()
    with Resumable(target, key, force=force) as work:
        weights = torch.full((len(experts),), 1 / len(experts), dtype=torch.float64)
        blocks = 0
        if prior != "uniform":
            scored, lengths = _scored(tasks, experts, limit, work, progress)
            weights, blocks = _prior_over(torch.split(scored, lengths, 1), prior, mode, decay), len(lengths)
        weights = keep_largest(weights, top_k)
        found = Coefficients(
            method="linear",
            models=digests,
            default=uniform_over(weights.tolist()),
            learned={**asked, "blocks": blocks},
        )
        work.publish_bytes(found.to_bytes(target.suffix == ".safetensors"))
    return BTMReport(target, tuple(weights.tolist()), blocks)


def _check(experts: Sequence[str], prior: str, mode: str, decay: float, top_k: int | None) -> None:
    for value, known in ((prior, Prior), (mode, Mode)):
        if value not in get_args(known):
            raise InvalidInput(f"{printable(value)!r} is unknown", "it is one of " + ", ".join(get_args(known)))
    if not experts:
        raise InvalidInput("no experts given", "give one model or more")
    if not 0 < decay <= 1:
        raise InvalidInput(f"a decay of {decay} is not between 0 and 1", "0.3, the share of each new block")
    if top_k is not None and not 1 <= top_k <= len(experts):
        raise InvalidInput(f"the {top_k} largest of {len(experts)} weights cannot be kept", "give 1 or more")


def _digest(expert: str) -> str:
    with Checkpoint.open(expert) as opened:
        return weights_digest(opened)


def _scored(
    tasks: Iterable[Task],
    experts: Sequence[str],
    limit: int | None,
    work: Resumable,
    progress: Callable[[int, int], None] | None,
) -> tuple[Tensor, list[int]]:
    """log p of the observed tokens: (experts, tokens of all blocks), and the blocks' lengths."""
    rows: list[Tensor] = []
    text: dict[str, object] = {}
    saved = work.load()
    if saved is not None:
        rows, text = list(saved[0]["scored"]), dict(saved[1])
    given, before = len(rows), text.pop("code", None)
    for task in islice(tasks, given, None):
        given += 1
        if given > len(experts):
            break
        code = code_digest(task)
        if before not in (None, code):
            raise Failed(
                "the code of the tasks is not what it was before the interruption", "run it again: it starts over"
            )
        before = None
        row, said = _score(task, limit, experts[given - 1])
        if text and said != text:
            fact = f"{printable(experts[given - 1])}: reads other tokens than {printable(experts[0])}"
            raise InvalidInput(fact, "the experts share one tokenizer and read the same data")
        rows, text = [*rows, row], dict(said)
        work.save({"scored": torch.stack(rows)}, {**text, "code": code})
        if progress:
            progress(given, len(experts))
    if given != len(experts):
        raise InvalidInput(f"{given} tasks are given for {len(experts)} experts", "give one task an expert, in order")
    lengths = text["lengths"]
    return torch.stack(rows), [int(length) for length in lengths] if isinstance(lengths, list) else []


@torch.no_grad()
def _score(task: Task, limit: int | None, expert: str) -> tuple[Tensor, Mapping[str, object]]:
    """log p of one expert's tokens: (tokens of all blocks); the blocks' lengths and the digest of the tokens."""
    if task.likelihood != "categorical":
        raise InvalidInput(f"{printable(expert)}: its task has no tokens to predict", "give a causal language model")
    task.model.eval()
    parts: list[Tensor] = []
    lengths: list[int] = []
    digest = hashlib.sha256()
    for batch in batches_of(task, limit):
        for log_probs, tokens in _blocks(task, batch, expert):
            if len(tokens):
                parts.append(log_probs)
                lengths.append(len(tokens))
                digest.update(json.dumps(tokens.tolist()).encode())
    if not parts:
        raise InvalidInput("the data has no tokens to predict", "all labels are ignored (-100)")
    return torch.cat(parts), {"lengths": lengths, "tokens": digest.hexdigest()}


def _blocks(task: Task, batch: Batch, expert: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The counted tokens of each example, and their log-probabilities."""
    moved = on_device(task, batch)
    outputs, labels = outputs_of(task, moved), moved.get("labels")
    if labels is None:
        raise InvalidInput("the data has no labels", "give the batches a tensor called labels")
    if labels.ndim < 2 or outputs.shape[:-1] != labels.shape:
        fact = f"{printable(expert)}: outputs {list(outputs.shape)} for labels {list(labels.shape)}"
        raise InvalidInput(fact, "a causal language model has one row of logits for each token to be predicted")
    check_labels(labels, outputs.shape[-1])
    scores = outputs.float().log_softmax(-1).gather(-1, labels.clamp_min(0).long()[..., None])[..., 0]
    for row, tokens in zip(scores.flatten(1).cpu(), labels.flatten(1).cpu(), strict=True):
        counted = row[tokens != IGNORED]
        if torch.isnan(counted).any():
            raise Failed(f"{printable(expert)}: its outputs on the data are not finite", "leave this expert out")
        yield counted, tokens[tokens != IGNORED]


def _prior_over(blocks: Sequence[Tensor], prior: str, mode: Mode, decay: float) -> Tensor:
    """π after all blocks (experts, tokens), as learn_btm says; in log space, so that no expert is lost to underflow."""
    uniform = torch.full((len(blocks[0]),), -math.log(len(blocks[0])), dtype=torch.float64)
    if prior == "mean":
        return torch.stack([_of_block(block, uniform, mode).exp() for block in blocks]).mean(0)
    now = _of_block(blocks[0], uniform, mode)
    kept = math.log1p(-decay) if decay < 1 else -math.inf
    for block in blocks[1:]:
        now = torch.logaddexp(kept + now, math.log(decay) + _of_block(block, now, mode))
    return now.log_softmax(0).exp()


def _of_block(log_probs: Tensor, log_prior: Tensor, mode: Mode) -> Tensor:
    """log posterior (experts,) given a whole block; in mode previous_token, as it is at the block's last position."""
    held = log_probs.double()
    if mode == "full_prefix":
        return _log_posterior(held.sum(-1), log_prior)
    if held.shape[-1] < 2:
        return torch.full_like(log_prior, -math.log(len(log_prior)))
    return _log_posterior(held[:, -2], log_prior)


def _log_posterior(log_likelihood: Tensor, log_prior: Tensor) -> Tensor:
    joint = log_likelihood + log_prior
    impossible = (joint == -math.inf).all(0, keepdim=True)
    return torch.where(impossible, log_prior, joint).log_softmax(0)
