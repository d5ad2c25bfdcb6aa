"""The demo's experiment: real handwritten digits, five tasks made of them, one small network and its fine-tuning.

Everything is a plain function of plain tensors, seeded, on one thread: the same machine gives the same weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor
from torch.nn import functional as nn

from paramsmith.device import one_thread_an_operation
from paramsmith.errors import InvalidInput

WIDTH, DEPTH, CLASSES, PIXELS = 384, 4, 10, 64

Weights = dict[str, Tensor]


class Digits(NamedTuple):
    """Images with grey values in [0, 1] and what they show."""

    images: Tensor  # (n, 1, 8, 8)
    labels: Tensor  # (n)


class Splits(NamedTuple):
    """The only split there is: experts learn from the first, settings are chosen on the second, the third is told."""

    train: Digits
    validation: Digits
    test: Digits


def load_splits() -> Splits:
    """The 1,797 digits of 8 x 8 pixels that scikit-learn carries, shuffled once: 1,000 / 300 / 497."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InvalidInput(
            "the demo's handwritten digits come with scikit-learn, which is not installed",
            "pip install 'paramsmith[demo]'",
        ) from None
    pixels, target = load_digits(return_X_y=True)
    order = torch.randperm(len(target), generator=_seeded(0))
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 8, 8)[order, None] / 16
    labels = torch.tensor(target, dtype=torch.int64)[order]
    ends = [0, 1000, 1300, len(labels)]
    return Splits(*(Digits(images[a:b], labels[a:b]) for a, b in pairwise(ends)))


# The tasks: each is a function of the digits and of a generator.


def _some(low: int, high: int) -> Callable[[Digits, Generator], Digits]:
    def task(digits: Digits, generator: Generator) -> Digits:
        kept = (digits.labels >= low) & (digits.labels <= high)
        return Digits(digits.images[kept], digits.labels[kept])

    return task


def _rotated(digits: Digits, generator: Generator) -> Digits:
    return digits._replace(images=_rotate(digits.images, torch.full((len(digits.labels),), 25.0)))


def _inverted(digits: Digits, generator: Generator) -> Digits:
    return digits._replace(images=1 - digits.images)


def _occluded(digits: Digits, generator: Generator) -> Digits:
    """A quarter of the picture, a square at a random place, is black."""
    corner = torch.randint(0, 5, (len(digits.labels), 2, 1), generator=generator)
    inside = (torch.arange(8) >= corner) & (torch.arange(8) < corner + 4)  # (n, 2, 8)
    hidden = inside[:, 0, :, None] & inside[:, 1, None, :]  # (n, 8, 8)
    return digits._replace(images=digits.images.masked_fill(hidden[:, None], 0.0))


TASKS: Mapping[str, Callable[[Digits, Generator], Digits]] = {
    "low": _some(0, 4),
    "high": _some(5, 9),
    "rotated": _rotated,
    "inverted": _inverted,
    "occluded": _occluded,
}


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    angle = degrees * (math.pi / 180)  # (n)
    c, s, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    turn = torch.stack([torch.stack([c, -s, zero], -1), torch.stack([s, c, zero], -1)], 1)  # (n, 2, 3)
    grid = nn.affine_grid(turn, list(images.shape), align_corners=False)
    return nn.grid_sample(images, grid, align_corners=False)


def _mixture(digits: Digits, generator: Generator) -> Digits:
    """What the base learns from: every digit a little turned and noisy, one in twenty inverted."""
    n = len(digits.labels)
    turned = _rotate(digits.images, 40 * torch.rand(n, generator=generator) - 20)
    noisy = turned + 0.2 * torch.randn(turned.shape, generator=generator)
    flipped = torch.rand(n, 1, 1, 1, generator=generator) < 0.05
    return digits._replace(images=torch.where(flipped, 1 - noisy, noisy))


# The network: a residual perceptron whose tensors are named like those of a layered model.


def initial_weights(seed: int) -> Weights:
    """Untrained weights: uniform within 1/sqrt(fan-in), norms at one."""
    generator = _seeded(seed)
    weights: Weights = {}

    def linear(name: str, out: int, into: int) -> None:
        for part, shape in (("weight", (out, into)), ("bias", (out,))):
            weights[f"{name}.{part}"] = (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(into)

    linear("embed", WIDTH, PIXELS)
    for layer in range(DEPTH):
        weights[f"layers.{layer}.norm.weight"] = torch.ones(WIDTH)
        weights[f"layers.{layer}.norm.bias"] = torch.zeros(WIDTH)
        linear(f"layers.{layer}.mlp", WIDTH, WIDTH)
    linear("head", CLASSES, WIDTH)
    return weights


def forward(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Logits of the ten digits: (n, 1, 8, 8) -> (n, 10)."""
    hidden = nn.linear(images.flatten(1) - 0.5, weights["embed.weight"], weights["embed.bias"])  # (n, WIDTH)
    for layer in range(DEPTH):
        at = f"layers.{layer}"
        normed = nn.layer_norm(hidden, (WIDTH,), weights[f"{at}.norm.weight"], weights[f"{at}.norm.bias"])
        hidden = hidden + nn.gelu(nn.linear(normed, weights[f"{at}.mlp.weight"], weights[f"{at}.mlp.bias"]))
    return nn.linear(hidden, weights["head.weight"], weights["head.bias"])


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast the base and the experts learn."""

    base_epochs: int = 10
    base_rate: float = 1e-3
    expert_epochs: int = 20
    expert_rate: float = 3e-4


QUICK = Schedule(base_epochs=10, expert_epochs=4, expert_rate=5e-4)


def train_base(train: Digits, schedule: Schedule) -> Weights:
    """The common ancestor: it has seen 300 digits, and little of what the tasks ask."""
    few = Digits(train.images[:300], train.labels[:300])
    draw = lambda generator: _mixture(few, generator)  # noqa: E731
    return _train(initial_weights(0), draw, schedule.base_epochs, schedule.base_rate)


def train_expert(base: Weights, task: str, train: Digits, schedule: Schedule) -> Weights:
    """The base, fine-tuned on one task."""
    draw = lambda generator: TASKS[task](train, generator)  # noqa: E731
    return _train(base, draw, schedule.expert_epochs, schedule.expert_rate)


@one_thread_an_operation()  # sums do not depend on how many cores there are
def _train(start: Weights, draw: Callable[[Generator], Digits], epochs: int, rate: float, batch: int = 64) -> Weights:
    weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    optimizer = torch.optim.AdamW(list(weights.values()), lr=rate, weight_decay=0.0)
    generator = _seeded(1)
    for _ in range(epochs):
        images, labels = draw(generator)
        for chosen in torch.split(torch.randperm(len(labels), generator=generator), batch):
            loss = nn.cross_entropy(forward(weights, images[chosen]), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return {name: tensor.detach() for name, tensor in weights.items()}


def exams(digits: Digits) -> list[Digits]:
    """One split as every task shows it, in the order of TASKS; always the same."""
    return [task(digits, _seeded(2)) for task in TASKS.values()]


@one_thread_an_operation()  # sums do not depend on how many cores there are
@torch.no_grad()
def accuracies(weights: Mapping[str, Tensor], on: Sequence[Digits]) -> list[float]:
    """The share of right answers in each exam."""
    return [(forward(weights, e.images).argmax(1) == e.labels).float().mean().item() for e in on]


def save_folder(weights: Weights, folder: Path) -> None:
    """A model folder as others write them: config.json, shards of at most 500 KB, their index."""
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True)
    save_torch_state_dict(weights, folder, max_shard_size="500KB")
    config = {
        "architectures": ["DigitsMLP"],
        "hidden_size": WIDTH,
        "model_type": "digits",
        "num_hidden_layers": DEPTH,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_folder(folder: Path) -> Weights:
    """Every tensor of a model folder."""
    weights: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights.update(load_file(file))
    return weights


def _seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)
