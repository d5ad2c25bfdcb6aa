"""A small zoo: a network that reads handwritten digits, and six specialists fine-tuned from it.

    python examples/digits_zoo.py                   (seconds; needs scikit-learn for its digits)
    python examples/digits_zoo.py --output zoo      keeps base.safetensors and one file a specialist

The base reads upright digits. Each specialist learned one thing the base is poor at: digits below five pushed aside,
digits from five up in a mirror, tilted, inverted, faint, striped. The other examples merge them.

Its tasks are what `--task` takes: a model and data as plain PyTorch, to measure or to learn with.

    paramsmith measure fisher zoo/tilted.safetensors --task examples/digits_zoo.py:tilted -o tilted.fisher.safetensors
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn
from torch.nn import functional

from paramsmith.merge.task import ModelTask

WIDTH, DEPTH = 96, 3
Part = Literal["train", "validation", "test"]
PARTS = {"train": slice(0, 900), "validation": slice(900, 1300), "test": slice(1300, None)}


class Block(nn.Module):
    """One layer of the perceptron, beside what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, width) -> (n, width)."""
        return hidden + functional.gelu(self.linear(self.norm(hidden)))


class Network(nn.Module):
    """Two convolutions and a residual perceptron: (n, 1, 8, 8) -> logits of the ten digits, (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.edges, self.shapes = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.embed = nn.Linear(256, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Of images to logits."""
        seen = functional.gelu(self.shapes(functional.gelu(self.edges(images))))
        return self.head(self.norm(self.blocks(self.embed(seen.flatten(1)))))


class Digits(NamedTuple):
    """Images with grey values about [0, 1] and what they show."""

    images: Tensor  # (n, 1, 8, 8)
    labels: Tensor  # (n)


@cache
def split(part: Part, seed: int) -> Digits:
    """A part of scikit-learn's 1,797 digits; every seed shuffles them anew."""
    pixels, target = load_digits(return_X_y=True)
    order = torch.randperm(len(target), generator=_seeded(seed, 0))[PARTS[part]]
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 16
    return Digits(images, torch.tensor(target)[order])


# The tasks: each shows the digits in its own way. Some draw from a generator.


def _upright(digits: Digits, generator: Generator) -> Digits:
    """What the base learns: a little turned, a little noise, few of them aside, mirrored or inverted."""
    n = len(digits.labels)
    images = turn(digits.images, 60 * torch.rand(n, generator=generator) - 30)
    images = images + 0.2 * torch.randn(images.shape, generator=generator)
    for changed in (1 - images, images.flip(3), images.roll(2, 3)):
        images = torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.06, changed, images)
    return digits._replace(images=images)


def _aside(digits: Digits, generator: Generator) -> Digits:
    few = digits.labels < 5
    return Digits(digits.images[few].roll(2, 3), digits.labels[few])


def _mirrored(digits: Digits, generator: Generator) -> Digits:
    many = digits.labels >= 5
    return Digits(digits.images[many].flip(3), digits.labels[many])


def _tilted(digits: Digits, generator: Generator) -> Digits:
    return digits._replace(images=turn(digits.images, torch.full((len(digits.labels),), 45.0)))


def _inverted(digits: Digits, generator: Generator) -> Digits:
    return digits._replace(images=1 - digits.images)


def _faint(digits: Digits, generator: Generator) -> Digits:
    return digits._replace(images=0.3 * digits.images + 0.1 * torch.randn(digits.images.shape, generator=generator))


def _striped(digits: Digits, generator: Generator) -> Digits:
    return digits._replace(images=digits.images.masked_fill((torch.arange(8) % 3 == 0)[:, None], 1.0))


View = Callable[[Digits, Generator], Digits]
TASKS: Mapping[str, View] = {
    "aside": _aside,
    "mirrored": _mirrored,
    "tilted": _tilted,
    "inverted": _inverted,
    "faint": _faint,
    "striped": _striped,
}


def turn(images: Tensor, degrees: Tensor) -> Tensor:
    """Each image turned about its middle by its own angle."""
    angle = degrees * (math.pi / 180)  # (n)
    c, s, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    matrix = torch.stack([torch.stack([c, -s, zero], -1), torch.stack([s, c, zero], -1)], 1)  # (n, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


@cache
def show(task: str, part: Part, seed: int) -> Digits:
    """One part of the digits as one task shows it ("upright" is the base's); always the same."""
    view = TASKS.get(task, _upright)
    return view(split(part, seed), _seeded(seed, 2))


# Training, plainly.


def train_base(seed: int, epochs: int = 10) -> Network:
    """The common ancestor."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network()
    return _train(network, _upright, seed, epochs, rate=1e-3)


def fine_tune(base: Network, task: str, seed: int, epochs: int = 15) -> Network:
    """A specialist: the base after some more epochs, on one task."""
    return _train(copy.deepcopy(base), TASKS[task], seed, epochs, rate=3e-4)


def _train(network: Network, view: View, seed: int, epochs: int, rate: float) -> Network:
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0)
    digits, generator = split("train", seed), _seeded(seed, 1)
    for _ in range(epochs):
        images, labels = view(digits, generator)
        for chosen in torch.randperm(len(labels), generator=generator).split(64):
            loss = functional.cross_entropy(network(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


# What measuring and learning are given, and the models as files.


def task_of(network: Network, digits: Digits, batch: int = 64) -> ModelTask:
    """The network and the digits as a Task: its batches are mappings, always the same, in the same order."""
    batches = [
        {"images": images, "labels": labels}
        for images, labels in zip(digits.images.split(batch), digits.labels.split(batch), strict=True)
    ]
    return ModelTask(network, data=lambda: batches, forward=lambda network, batch: network(batch["images"]))


def make_task(name: str, checkpoint: str) -> ModelTask:
    """For `measure`: a specialist and what it was trained on."""
    return task_of(load(Path(checkpoint)), show(name, "train", seed=0))


aside, mirrored, tilted, inverted, faint, striped = (partial(make_task, name) for name in TASKS)


def make_tasks(checkpoint: str) -> list[ModelTask]:
    """For `learn`: one network and every task's validation digits."""
    network = load(Path(checkpoint))
    return [task_of(network, show(name, "validation", seed=0)) for name in TASKS]


def load(path: Path) -> Network:
    """A network from its file."""
    network = Network()
    network.load_state_dict(load_file(path))
    return network.eval()


def make_zoo(folder: Path, seed: int, base_epochs: int = 10, epochs: int = 15) -> tuple[Path, dict[str, Path]]:
    """Train the base and the specialists: the base's file, and theirs by task."""
    base = train_base(seed, base_epochs)
    networks = {"base": base, **{task: fine_tune(base, task, seed, epochs) for task in TASKS}}
    files = {name: folder / f"{name}.safetensors" for name in networks}
    for name, network in networks.items():
        save_file(network.state_dict(), files[name])
    return files.pop("base"), files


@torch.no_grad()
def accuracy(network: Network, digits: Digits) -> float:
    """The share read right, in per cent."""
    return 100 * (network(digits.images).argmax(1) == digits.labels).double().mean().item()


def accuracies(file: Path, part: Part, seed: int) -> list[float]:
    """How well a model reads one part of the digits, task by task."""
    network = load(file)
    return [accuracy(network, show(task, part, seed)) for task in TASKS]


def _seeded(*numbers: int) -> Generator:
    return Generator().manual_seed(sum(number * 1000**place for place, number in enumerate(numbers)))


def main() -> None:
    """Train the zoo and print how every model reads every task's unseen digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train for less long")
    parser.add_argument("--output", type=Path, help="an empty folder to keep the models in")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as passing:
        folder = options.output or Path(passing)
        folder.mkdir(exist_ok=True)
        base, experts = make_zoo(folder, seed=0, epochs=4 if options.quick else 15)
        print(f"{'':10}" + "".join(f"{task:>10}" for task in TASKS))
        for name, file in {"base": base, **experts}.items():
            print(f"{name:10}" + "".join(f"{share:9.1f}%" for share in accuracies(file, "test", seed=0)))


if __name__ == "__main__":
    main()
