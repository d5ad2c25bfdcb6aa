"""A set of vectors as one code: deep sets, a bidirectional LSTM, or a transformer without positions."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.encoders.set import dim_of, members_of
from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.params import Params
from paramsmith.parts import encoders


class Words(Params):
    """Options of the encoder `words`."""

    kind: Literal["deepsets", "bilstm", "setformer"] = Field("deepsets", description="how the words are put together")
    hidden: int = Field(128, ge=1, le=65536, description="width inside; of each direction of the LSTM")
    layers: int = Field(2, ge=1, le=64, description="layers over the words")
    heads: int = Field(4, ge=1, le=256, description="attention heads of the setformer")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of numbers dropped in training")


@encoders("words", Words, paper="arXiv:1703.06114")
class WordsEncoder(nn.Module):
    """Codes (B, 1, width) of `set` (B, n, dim), of which `mask` (B, n) says what is there; the rest changes nothing.

    c = pool((x - centre) / spread) -> Linear, GELU, dropout, with `deepsets` pool = mean of an MLP of each word;
    `bilstm` the last forward and backward state of the top layer (HYPEROFA); `setformer` the mean of a transformer
    without positions, feed-forward 8 times as wide. An empty set has the pool 0. InvalidInput for other conditions.

    Papers: Deep Sets, arXiv:1703.06114; HYPEROFA, arXiv:2504.21018.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, options: Words, site: Site) -> None:
        super().__init__()
        self.dim = dim_of(site, "words")
        self.kind, hidden = options.kind, options.hidden
        self.register_buffer("centre", torch.zeros(self.dim))
        self.register_buffer("spread", torch.ones(()))
        if options.kind == "bilstm":
            between = options.dropout if options.layers > 1 else 0.0
            self.body: nn.Module = nn.LSTM(
                self.dim, hidden, options.layers, batch_first=True, bidirectional=True, dropout=between
            )
        elif options.kind == "setformer":
            self.body = _transformer(self.dim, options)
        else:
            self.body = _each_word(self.dim, options)
        pooled = 2 * hidden if options.kind == "bilstm" else hidden
        self.code = nn.Sequential(nn.Linear(pooled, site.width), nn.GELU(), nn.Dropout(options.dropout))

    @torch.no_grad()
    def standardise(self, vectors: Tensor) -> None:
        """Let vectors like these (words, dim) come in with mean 0 and, over all numbers, standard deviation 1."""
        self.centre.copy_(vectors.mean(0))
        self.spread.copy_((vectors - vectors.mean(0)).square().mean().sqrt().clamp_min(1e-12))

    def forward(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, 1, width)."""
        words, mask = members_of(condition, self.dim)
        if not words.shape[1]:
            raise InvalidInput("a set of the condition has room for no word", "(B, n, dim), n > 0")
        words = ((words - self.centre) / self.spread) * mask[..., None]  # (B, n, dim)
        pool = {"deepsets": self._mean, "bilstm": self._ends, "setformer": self._attended}[self.kind]
        pooled = torch.where(mask.any(1, keepdim=True), pool(words, mask), 0.0)
        code: Tensor = self.code(pooled)
        return code[:, None]

    def _mean(self, words: Tensor, mask: Tensor) -> Tensor:
        return _mean(self.body(words), mask)

    def _attended(self, words: Tensor, mask: Tensor) -> Tensor:
        # a set without words would attend to nothing, and give NaN
        unseen = mask.any(1, keepdim=True) & ~mask
        linear, layers = self.body[0], self.body[1]  # type: ignore[index]
        return _mean(layers(linear(words), src_key_padding_mask=unseen), mask)

    def _ends(self, words: Tensor, mask: Tensor) -> Tensor:
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)  # what is there comes first, in its order
        words = words.gather(1, order[..., None].expand_as(words))
        lengths = mask.sum(1).clamp_min(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.body(packed)  # (2 * layers, B, hidden)
        return torch.cat([last[-2], last[-1]], dim=1)


def _each_word(dim: int, options: Words) -> nn.Module:
    widths = [dim, *[options.hidden] * options.layers]
    layers = [
        layer
        for inputs, outputs in pairwise(widths)
        for layer in (nn.Linear(inputs, outputs), nn.GELU(), nn.Dropout(options.dropout))
    ]
    return nn.Sequential(*layers)


def _transformer(dim: int, options: Words) -> nn.Module:
    hidden = options.hidden
    if hidden % options.heads:
        raise InvalidInput(
            f"{options.heads} heads do not divide a width of {hidden}", "give -p hidden=, a multiple of the heads"
        )
    layer = nn.TransformerEncoderLayer(
        hidden, options.heads, 8 * hidden, options.dropout, "gelu", batch_first=True, norm_first=True
    )
    layers = nn.TransformerEncoder(layer, options.layers, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(dim, hidden), layers)


def _mean(words: Tensor, mask: Tensor) -> Tensor:
    """Over the words that are there: (B, n, h), (B, n) -> (B, h)."""
    there = mask[..., None]
    total: Tensor = torch.where(there, words, 0.0).sum(1)
    return total / there.sum(1).clamp_min(1)
