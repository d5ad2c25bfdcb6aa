"""Low-rank updates: for every matrix of a target a pair of factors, made from the code; the rest stays as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.decoders.fixed import Places
from paramsmith.hypernet.parametrizations.schemes import LAYERS
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import Params, check_filters, matches
from paramsmith.parts import decoders


class Lora(Params):
    """Options of the decoder `lora`."""

    rank: int = Field(8, ge=1, description="columns of B and rows of A, at most what the matrix has")
    alpha: float = Field(16.0, allow_inf_nan=False, description="the update is B A alpha / rank")
    only: str = Field("*", description="which matrices are updated: part of a name, /regex/, joined by &, negated by !")


@decoders("lora", Lora, paper="arXiv:2106.09685")
class LoraDecoder(nn.Module):
    """B A alpha / rank for every matrix, kernel (as out x rest) and head; zeros for other tensors.

    A and B are linear functions of the code. Their weights begin as 0, and their biases as a fresh adapter: A
    U(-1/sqrt(in), 1/sqrt(in)), B 0, so that whatever is asked for the first weights are those of the base
    (Bias-HyperInit). Meant for the base `checkpoint`. For one target; InvalidInput where there is none, or where `only`
    lets no matrix through.

    Papers: LoRA, arXiv:2106.09685; Text-to-LoRA, arXiv:2506.06105.
    """

    def __init__(self, options: Lora, site: Site) -> None:
        super().__init__()
        check_filters([options.only])
        self.places = Places(site, "lora")
        spec = self.places.spec
        self.updated = {slot.name for slot in spec.slots if _is_matrix(slot) and matches(options.only, slot.name, None)}
        if not self.updated:
            raise InvalidInput(f"no matrix of the target passes the filter {printable(options.only)}", "say another")
        self.rank, self.alpha = options.rank, options.alpha
        a, b = [], []
        for group in spec.groups:
            rows, columns, rank = self._sizes(spec.slots[group[0]])
            bound = 1 / math.sqrt(max(1, columns))
            a.append(_head(torch.empty(len(group), rank * columns).uniform_(-bound, bound), site.width))
            b.append(_head(torch.zeros(len(group), rows * rank), site.width))
        self.a, self.b = nn.ModuleList(a), nn.ModuleList(b)

    def check(self, spec: TargetSpec) -> None:
        """InvalidInput for a target that it was not built for."""
        self.places.check(spec)

    def forward(self, codes: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, d) -> (B, S, *shape)."""
        shape = (*codes.shape[:2], *slots[0].shape)
        rows, columns, rank = self._sizes(slots[0])
        kept = [slot.name in self.updated for slot in slots]
        if not any(kept):
            return codes.new_zeros(()).expand(shape)
        group = self.places.group(slots)
        a = self._made(self.a[group], codes, slots).view(*shape[:2], rank, columns)
        b = self._made(self.b[group], codes, slots).view(*shape[:2], rows, rank)
        update = (b @ a * (self.alpha / rank)).view(shape)
        if all(kept):
            return update
        return torch.where(torch.tensor(kept, device=codes.device).view(-1, *[1] * len(slots[0].shape)), update, 0.0)

    def _sizes(self, slot: Slot) -> tuple[int, int, int]:
        """Rows, columns and rank; nothing for what is no matrix."""
        if not _is_matrix(slot):
            return 0, 0, 0
        rows, columns = slot.shape[0], math.prod(slot.shape[1:])
        return rows, columns, min(self.rank, rows, columns)

    def _made(self, head: nn.Module, codes: Tensor, slots: Sequence[Slot]) -> Tensor:
        weight = self.places.rows(head.get_parameter("weight"), slots)  # (S, n, d)
        bias = self.places.rows(head.get_parameter("bias"), slots)  # (S, n)
        return torch.einsum("snh,bsh->bsn", weight, codes) + bias


def _is_matrix(slot: Slot) -> bool:
    return slot.role in LAYERS and len(slot.shape) > 1


def _head(bias: Tensor, width: int) -> nn.Module:
    """Linear functions of the code, one for each slot of a group, that begin as their biases."""
    head = nn.Module()
    head.weight = nn.Parameter(torch.zeros(*bias.shape, width))
    head.bias = nn.Parameter(bias)
    return head
