"""OSBORN: which few sources to use together, from their own data and the target's, by optimal transport."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput

from .ped import checked

_ROUNDS = 1_000
_EXACT = 1e-7  # the largest error of a marginal that ends the iteration, as a share of the mass


@dataclass(frozen=True)
class Source:
    """What one model sees of its own data and of the target's.

    source (m, d) and target (n, d): features; source_labels (m,): its own labels, as the model predicts them;
    predictions (n,): what it predicts for the target, in its own classes.
    """

    source: Tensor
    source_labels: Tensor
    target: Tensor
    predictions: Tensor


@dataclass(frozen=True)
class Selection:
    """The chosen sources, in the order they were chosen, and the parts of the score, all lower for better."""

    chosen: tuple[int, ...]
    costs: tuple[float, ...]  # what each added to the score when it was chosen
    domain: tuple[float, ...]  # W_D of every source
    task: tuple[float, ...]  # W_T of every source
    cohesion: tuple[tuple[float, ...], ...]  # W_C of every pair

    def score(self, members: Sequence[int]) -> float:
        """The score of a set of sources: the sum of its W_D and W_T, and of W_C over its pairs."""
        pairs = ((a, b) for i, a in enumerate(members) for b in members[i + 1 :])
        return sum(self.domain[m] + self.task[m] for m in members) + sum(self.cohesion[a][b] for a, b in pairs)


def select(sources: Sequence[Source], labels: Tensor, count: int | None = None, epsilon: float = 0.1) -> Selection:
    """Choose `count` sources, each time the one that adds least to

        sum_i W_D,i + W_T,i  +  sum_(i<j) W_C,ij

    whose negative is submodular. W_D,i = sum_ab pi_ab |theta_i(x_a) - theta_i(x_b)|^2, with pi the entropic coupling of
    source and target in source i's own features; W_T,i = H(source label | target label) under pi; W_C,ij the mean of
    H(i | j) and H(j | i) of their predictions on the target. The parts are summed without weights, as in the paper, so
    that W_D, in squared units of the features, may outweigh the others.

    Unverified: which way the paper conditions each pair of W_C; the mean of both does not depend on it.
    `labels` (n,) are the target's; `epsilon` regularises the coupling, relative to the mean squared distance.

    Paper: Bachu et al., arXiv:2309.02429.
    """
    if not sources:
        raise InvalidInput("there are no sources to choose from")
    wanted = len(sources) if count is None else count
    if not 1 <= wanted <= len(sources):
        raise InvalidInput(f"{wanted} sources are to be chosen from {len(sources)}", "choose at least one, at most all")
    parts = [domain_and_task(source, labels, epsilon) for source in sources]
    cohesion = [[_cohesion(a, b) if a is not b else 0.0 for b in sources] for a in sources]
    chosen: list[int] = []
    costs: list[float] = []
    while len(chosen) < wanted:
        left = [i for i in range(len(sources)) if i not in chosen]
        added = [sum(parts[i]) + sum(cohesion[i][j] for j in chosen) for i in left]
        costs.append(min(added))
        chosen.append(left[added.index(costs[-1])])
    domain, task = zip(*parts, strict=True)
    return Selection(tuple(chosen), tuple(costs), domain, task, tuple(map(tuple, cohesion)))


def domain_and_task(source: Source, labels: Tensor, epsilon: float = 0.1) -> tuple[float, float]:
    """W_D and W_T of one source."""
    far, given = checked(source.source, source.source_labels)
    near, wanted = checked(source.target, labels)
    if far.shape[1] != near.shape[1]:
        told = f"the source's features have {far.shape[1]} values each, the target's {near.shape[1]}"
        raise InvalidInput(told, "take both from the same layer of the same model")
    cost = torch.cdist(far, near, compute_mode="donot_use_mm_for_euclid_dist").square()  # (m, n)
    plan = coupling(cost, epsilon)
    joint = plan.new_zeros(int(given.max()) + 1, len(near)).index_add_(0, given, plan)
    joint = plan.new_zeros(len(joint), int(wanted.max()) + 1).index_add_(1, wanted, joint)
    return float((plan * cost).sum()), conditional_entropy(joint)


def coupling(cost: Tensor, epsilon: float = 0.1) -> Tensor:
    """Sinkhorn's coupling pi (m, n) of two uniform distributions: the least of <pi, cost> - epsilon mean(cost) H(pi).

    Worked out in logarithms, so that a small epsilon does not underflow, until the columns' sums are right to 1e-7 or
    for a thousand rounds; what is still wrong is put right as by Altschuler et al., so that all sums are exact.

    Papers: Cuturi, arXiv:1306.0895; Altschuler et al., arXiv:1705.09634.

    >>> coupling(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 0.05).round(decimals=4).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    if epsilon <= 0:
        raise InvalidInput(f"epsilon is {epsilon}", "it must be above 0: 0.1")
    wide = cost.double()
    mean = float(wide.mean())
    scaled = -wide / (epsilon * mean) if mean > 0 else torch.zeros_like(wide)
    rows, columns = wide.shape
    left, right = wide.new_zeros(rows, 1), wide.new_zeros(1, columns)
    row_mass, column_mass = -torch.tensor(rows).double().log(), -torch.tensor(columns).double().log()
    for _ in range(_ROUNDS):
        left = row_mass - torch.logsumexp(scaled + right, 1, keepdim=True)
        sums = torch.logsumexp(scaled + left, 0, keepdim=True)
        error = float((torch.exp(sums + right) * columns - 1).abs().max())
        if error <= _EXACT:
            break
        right = column_mass - sums
    plan = torch.exp(scaled + left + right)
    plan = plan * (1 / (rows * plan.sum(1, keepdim=True))).clamp_max(1)
    plan = plan * (1 / (columns * plan.sum(0, keepdim=True))).clamp_max(1)
    lacking = (
        (1 / rows - plan.sum(1, keepdim=True)).clamp_min(0),
        (1 / columns - plan.sum(0, keepdim=True)).clamp_min(0),
    )
    share = float(lacking[0].sum())
    return plan + lacking[0] * lacking[1] / share if share > 0 else plan


def conditional_entropy(joint: Tensor) -> float:
    """H(row | column) in nats of a joint distribution (rows, columns), scaled to sum to 1.

    >>> conditional_entropy(torch.eye(3)), round(conditional_entropy(torch.ones(2, 3)), 6)
    (0.0, 0.693147)
    """
    p = joint.double() / joint.double().sum()
    given = p.sum(0, keepdim=True).expand_as(p)
    some = p > 0
    return abs(float((p[some] * (given[some].log() - p[some].log())).sum()))


def _cohesion(a: Source, b: Source) -> float:
    joint = joint_counts(a.predictions, b.predictions)
    return 0.5 * (conditional_entropy(joint) + conditional_entropy(joint.T))


def joint_counts(a: Tensor, b: Tensor) -> Tensor:
    """How often each label of `a` meets each of `b`, (labels of a, labels of b)."""
    if a.shape != b.shape:
        raise InvalidInput(f"{len(a)} predictions stand beside {len(b)}", "predict for the same examples")
    first, second = torch.unique(a, return_inverse=True)[1], torch.unique(b, return_inverse=True)[1]
    width = int(second.max()) + 1
    return torch.bincount(first * width + second, minlength=(int(first.max()) + 1) * width).view(-1, width).double()
