"""Normal equations of linear maps from codes to positions, summed over a zoo that streams by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Equations:
    """Sums of `count` networks, or rows: K kinds of positions, each with the code of its group. All in fp64.

    `group` (K,) says which of the G codes a kind goes by. codes: `x` (G, d), `xx` (G, d, d); latents: `y` (K, D); both:
    `xy` (d, K, D).
    """

    group: Tensor
    count: int
    x: Tensor
    xx: Tensor
    y: Tensor
    xy: Tensor

    @classmethod
    def none(cls, group: Tensor, width: int, numbers: int) -> Equations:
        """Of nothing yet."""
        groups, kinds = int(group.max()) + 1 if len(group) else 0, len(group)
        shapes = ((groups, width), (groups, width, width), (kinds, numbers), (width, kinds, numbers))
        return cls(group, 0, *(torch.zeros(shape, dtype=torch.float64, device=group.device) for shape in shapes))

    def add(self, codes: Tensor, latent: Tensor) -> None:
        """Codes (n, G, d) and latents (n, K, D)."""
        codes, latent = codes.double(), latent.double()
        self.count += len(codes)
        self.x += codes.sum(0)
        self.y += latent.sum(0)
        for g in range(len(self.x)):
            own, kinds = codes[:, g], self._kinds(g)
            self.xx[g] += own.T @ own
            made = own.T @ latent[:, kinds].flatten(1)  # (d, kinds * D)
            self.xy[:, kinds] += made.reshape(len(made), len(kinds), -1)

    def pooled(self, classes: int) -> Equations:
        """The kinds of all classes, (classes * each), as kinds of one."""
        group = self.group[: len(self.group) // classes]
        width, numbers = len(self.xy), self.y.shape[1]
        y = self.y.reshape(classes, -1, numbers).sum(0)
        xy = self.xy.reshape(width, classes, -1, numbers).sum(1)
        return Equations(group, classes * self.count, classes * self.x, classes * self.xx, y, xy)

    def without(self, other: Equations) -> Equations:
        """Those of the networks that are not in the other."""
        mine, others = (self.x, self.xx, self.y, self.xy), (other.x, other.xx, other.y, other.xy)
        x, xx, y, xy = (a - b for a, b in zip(mine, others, strict=True))
        return Equations(self.group, self.count - other.count, x, xx, y, xy)

    def solved(self, alphas: Tensor) -> Tensor:
        """Maps (K, d + 1, D), the last row the constant, which is not held down, by an alpha for each group.

        W = (C + alpha · mean(diag C) · I)⁻¹ cov(x, y), with C = cov(x); 0 where codes are all the same.
        """
        count = max(1, self.count)
        mean_x, mean_y = self.x / count, self.y / count
        made = torch.zeros(len(self.y), self.x.shape[1] + 1, self.y.shape[1], dtype=torch.float64, device=self.y.device)
        for g in range(len(self.x)):
            kinds, middle = self._kinds(g), mean_x[g]
            spread = self.xx[g] / count - torch.outer(middle, middle)  # (d, d)
            level = spread.diagonal().mean()
            if not level > 1e-12 * middle.square().mean():  # all that fp64 leaves of a constant
                continue
            right = self.xy[:, kinds] / count - middle[:, None, None] * mean_y[kinds]  # (d, kinds, D)
            held = spread + alphas[g] * level * torch.eye(len(spread), dtype=spread.dtype, device=spread.device)
            made[kinds, :-1] = torch.linalg.solve(held, right.flatten(1)).reshape(right.shape).transpose(0, 1)
        made[:, -1] = mean_y - torch.einsum("kd,kdn->kn", mean_x[self.group], made[:, :-1])
        return made

    def errors(self, maps: Tensor) -> Tensor:
        """By group (G,), the sum of squared differences of these networks from such maps.

        But for that of y², which no map changes.
        """
        found = torch.zeros(len(self.x), dtype=torch.float64, device=self.x.device)
        for g in range(len(self.x)):
            kinds = self._kinds(g)
            slope = maps[kinds, :-1].transpose(0, 1).flatten(1)  # (d, kinds * D)
            constant = maps[kinds, -1].flatten()
            crossed = (self.xy[:, kinds].flatten(1) * slope).sum() + self.y[kinds].flatten() @ constant
            squared = ((self.xx[g] @ slope) * slope).sum() + 2 * (self.x[g] @ slope) @ constant
            found[g] = squared + self.count * constant.square().sum() - 2 * crossed
        return found

    def _kinds(self, group: int) -> Tensor:
        return (self.group == group).nonzero()[:, 0]
