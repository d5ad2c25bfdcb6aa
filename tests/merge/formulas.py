"""The methods as their formulas have them, in float64 on whole arrays: slow, plain, and written apart from the engine.

Every function takes task vectors or models of shape (models, n); what is global in a method is global over n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def linear(models: Array, weight: Sequence[float], normalize: bool) -> Array:
    total = sum(w * m for w, m in zip(weight, models, strict=True))
    return total / sum(weight) if normalize else total


def task_arithmetic(deltas: Array, weight: Sequence[float], scale: float, normalize: bool) -> Array:
    total = sum(w * d for w, d in zip(weight, deltas, strict=True))
    return scale * (total / sum(weight) if normalize and abs(sum(weight)) > 1e-8 else total)


def trimmed(deltas: Array, kept: Sequence[int]) -> Array:
    """All entries as large as the k-th largest, a model."""
    result = np.zeros_like(deltas)
    for row, (line, k) in enumerate(zip(deltas, kept, strict=True)):
        least = sorted(np.abs(line), reverse=True)[min(k, len(line)) - 1]
        result[row] = [x if abs(x) >= least else 0.0 for x in line]
    return result


def elected(kept: Array, weight: Sequence[float], rule: str, normalize: bool, majority: str) -> Array:
    """Element by element, as one would by hand."""
    merged = np.zeros(kept.shape[1])
    for place, column in enumerate(kept.T):
        votes = [w * x for w, x in zip(weight, column, strict=True)] if rule == "mergekit" else list(column)
        total = sum(np.sign(v) for v in votes) if majority == "frequency" else sum(votes)
        sign = np.sign(total) if rule == "native" else (1.0 if total >= 0 else -1.0)
        agree = [i for i, v in enumerate(votes) if np.sign(v) == sign and v != 0]
        value = sum(weight[i] * column[i] for i in agree)
        divisor = len(agree) if rule == "peft" else sum(weight[i] for i in agree)
        merged[place] = value / divisor if normalize and divisor != 0 else value
    return merged


def ties(
    deltas: Array, density: Sequence[float], weight: Sequence[float], rule: str, normalize: bool, majority: str
) -> Array:
    kept = trimmed(deltas, [max(1, int(d * deltas.shape[1])) for d in density])
    return elected(kept, weight, rule, normalize, majority)


def authors_ties(deltas: Array, share: float, how: str) -> Array:
    """topk_values_mask, resolve_sign('mass'), disjoint_merge('dis-' + how)."""
    count = deltas.shape[1]
    kept = trimmed(deltas, [int(count * share) + 1] * len(deltas))
    sign = np.sign(kept.sum(0))
    sign[sign == 0] = np.sign(sign.sum())
    agreeing = np.where(np.where(sign > 0, kept > 0, kept < 0), kept, 0.0)
    if how == "max":
        return np.abs(agreeing).max(0) * sign
    total = agreeing.sum(0)
    return total / np.maximum((agreeing != 0).sum(0), 1) if how == "mean" else total


def dare(deltas: Array, masks: Array, density: Sequence[float], rescale: str) -> Array:
    """The rescaled task vectors of one tensor."""
    kept = deltas * masks
    for row in range(len(kept)):
        if rescale == "paper":
            kept[row] /= density[row]
        before, after = np.abs(deltas[row]).sum(), np.abs(kept[row]).sum()
        if rescale == "l1" and min(before, after) > 1e-7:
            kept[row] *= before / after
    return kept


def slerp(first: Array, second: Array, t: float) -> Array:
    norms = [np.linalg.norm(v) for v in (first, second)]
    units = [v / n if n > 1e-8 else v for v, n in zip((first, second), norms, strict=True)]
    cosine = float(np.clip(np.dot(*units), -1, 1))
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)


def karcher(models: Array, weight: Sequence[float], max_iter: int, tol: float) -> Array:
    alpha = np.array(weight) / sum(weight)
    norms = np.linalg.norm(models, axis=1)
    alive = [i for i in range(len(models)) if norms[i] > 1e-8 and alpha[i] > 0]
    if not alive:
        return np.zeros(models.shape[1])
    units = [models[i] / norms[i] for i in alive]
    share = alpha[alive] / alpha[alive].sum()
    mean = sum(a * u for a, u in zip(share, units, strict=True))
    mean = mean / np.linalg.norm(mean) if np.linalg.norm(mean) > 1e-12 else units[0]
    for _ in range(max_iter):
        tangent = np.zeros_like(mean)
        for a, unit in zip(share, units, strict=True):
            angle = 2 * np.arctan2(np.linalg.norm(mean - unit), np.linalg.norm(mean + unit))
            if angle > 1e-12:
                tangent += a * angle / max(np.sin(angle), 1e-300) * (unit - np.cos(angle) * mean)
        length = np.linalg.norm(tangent)
        if length < tol:
            break
        mean = np.cos(length) * mean + np.sin(length) * tangent / length
        mean /= np.linalg.norm(mean)
    return mean * float(alpha @ norms)


def pcb_weights(deltas: Array, ratio: float, variant: str) -> tuple[Array, Array]:
    """The authors' programs: weights and clipped task vectors; every task vector must have two magnitudes."""
    models, count = deltas.shape
    share = 1e-4 if variant == "reference" else 1e-2
    magnitude = np.abs(deltas)
    ordered = np.sort(magnitude, axis=1)
    low, high = ordered[:, [int(count * share)]], ordered[:, [int(count * (1 - share) - 1)]]
    magnitude = np.minimum(np.maximum(magnitude, low), high)
    unit = (magnitude - low) / (high - low)
    sign = np.sign(deltas)
    if variant == "vision_es":
        between = sum(np.tanh(sign * unit * (sign * unit)[j]) for j in range(models))
    else:
        voices = sign * unit if variant == "vision" else deltas
        between = np.tanh(deltas * voices.sum(0))
    score = np.exp(models * unit**2) * between
    ordered = np.sort(score, axis=1)
    least, most = ordered[:, [int(count * (1 - ratio))]], ordered[:, [count - 1]]
    spread = np.where(most > least, most - least, 1.0)  # they divide 0 by 0 where the cut is the largest score
    return (np.clip(score, least, most) - least) / spread, sign * magnitude


def pcb_paper_weights(deltas: Array, ratio: float) -> Array:
    """The equations, Norm being min-max over the whole vector."""

    def norm(x: Array) -> Array:
        return (x - x.min()) / (x.max() - x.min())

    def softmax(x: Array) -> Array:
        powers = np.exp(x - x.max())
        return powers / powers.sum()

    models, count = deltas.shape
    weights = []
    for mine in deltas:
        score = softmax(models * norm(mine * mine)) * sum(softmax(norm(mine * other)) for other in deltas)
        kept = np.where(score >= np.sort(score)[int((1 - ratio) * count)], score, 0.0)
        weights.append(kept / kept.max() if ratio < 1 else norm(kept))
    return np.array(weights)


def weighted_mean(weights: Array, values: Array, scale: Sequence[float]) -> Array:
    total = (weights * np.array(scale)[:, None] * values).sum(0)
    return total / np.maximum(weights.sum(0), 1e-12)
