"""Small nets of many kinds, and the Fisher of each by one backward pass an example and class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from paramsmith.checkpoint import Checkpoint
from paramsmith.merge.task import Batch, ModelTask

WORDS, CLASSES = 11, 3


class Reused(nn.Module):
    """One linear layer used twice, and once more without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(torch.tanh(self.inner(x))))
        return self.head(functional.linear(hidden, self.inner.weight))


class Convolutions(nn.Module):
    """Groups, strides, dilation, padding, batch norm with running statistics, operations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
            nn.GroupNorm(2, 6),
            nn.SiLU(inplace=True),
            nn.Conv2d(6, 6, (1, 2), groups=6, padding="valid"),
            nn.Conv2d(6, 4, 3, padding="same"),
        )
        self.line, self.head = nn.Conv1d(4, 5, 2, stride=2), nn.Linear(5, CLASSES)
        with torch.no_grad():
            norm = self.body[1]
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.line(self.body(x).flatten(2)).mean(2))


class Words(nn.Module):
    """Embeddings with padding and positions that all examples share, attention by hand, layer norms, a tied head."""

    def __init__(self, width: int = 8, tied: bool = True, positions: str = "row") -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(WORDS, width, padding_idx=0), nn.Embedding(9, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width, elementwise_affine=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, WORDS, bias=False)
        self.positions = positions
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        places = torch.arange(words.shape[1])
        x = self.embed(words) + self.places(places[None] if self.positions == "row" else places)
        q, k, v = self.qkv(self.first(x)).chunk(3, -1)
        x = x + self.dropout(self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True)))
        return self.head(x + self.down(functional.gelu(self.up(self.second(x)))))


class Pooled(Words):
    """The same, one prediction an example."""

    def forward(self, words: Tensor) -> Tensor:
        return super().forward(words).mean(1)[:, :CLASSES]


class TorchEncoder(nn.Module):
    """Torch's own encoder layer, with the batch first or second, and a parameter that belongs to no layer."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, dropout=0.1)
        self.head, self.batch_first = nn.Linear(8, CLASSES), batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        if self.batch_first:
            return self.head(self.layer(x)[:, 0])
        return self.head(self.layer(x.transpose(0, 1))[0])


class RootMeanSquare(nn.Module):
    """A norm that no table of modules knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Stubborn(nn.Module):
    """It asks for the value of a tensor, which vmap cannot answer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x @ self.weight
        if bool((hidden.detach() > 1e6).any()):
            raise ValueError("too large")
        return self.head(torch.tanh(hidden))


def net(kind: str) -> nn.Module:
    """A net with the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, kind)))
        made: dict[str, Callable[[], nn.Module]] = {
            "mlp": lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, CLASSES)),
            "sequence mlp": lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), Mean(), nn.Linear(7, CLASSES)),
            "reused": Reused,
            "convolutions": Convolutions,
            "words": lambda: Words(tied=False),
            "tied": Words,
            "pooled": lambda: Pooled(tied=False),
            "pooled flat positions": lambda: Pooled(tied=True, positions="flat"),
            "encoder": lambda: TorchEncoder(True),
            "encoder, batch second": lambda: TorchEncoder(False),
            "unknown norm": lambda: nn.Sequential(nn.Linear(5, 7), RootMeanSquare(7), nn.Linear(7, CLASSES)),
            "recurrent": lambda: Recurrent(),
            "stubborn": Stubborn,
        }
        return made[kind]().double()


class Mean(nn.Module):
    """The mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Recurrent(nn.Module):
    """Torch's recurrent layer, whose weights no module of their own has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(5, 6, batch_first=True), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


KINDS = (
    "mlp",
    "sequence mlp",
    "reused",
    "convolutions",
    "words",
    "tied",
    "pooled",
    "pooled flat positions",
    "encoder",
    "encoder, batch second",
    "unknown norm",
    "recurrent",
    "stubborn",
)


def examples(kind: str, count: int = 11) -> dict[str, Tensor]:
    """Inputs and labels for the net of that kind."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"mlp": (5,), "unknown norm": (5,), "reused": (4,), "stubborn": (4,), "convolutions": (2, 7, 6)}
    shapes |= {"sequence mlp": (6, 5), "recurrent": (4, 5), "encoder": (5, 8), "encoder, batch second": (5, 8)}
    if kind in shapes:
        x = torch.randn(count, *shapes[kind], generator=generator, dtype=torch.float64)
    else:
        x = torch.randint(0, WORDS, (count, 6), generator=generator)
    if kind in ("words", "tied"):
        labels = torch.randint(0, WORDS, (count, 6), generator=generator)
        labels[:, -1] = -100
        labels[3, 2:] = -100
    else:
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return {"x": x, "labels": labels}


def cut(batch: Batch, size: int) -> list[Batch]:
    """The same examples in batches of this size."""
    count = len(batch["x"])
    return [{name: t[start : start + size] for name, t in batch.items()} for start in range(0, count, size)]


def call(model: nn.Module, batch: Batch) -> Tensor:
    """The forward of every net here."""
    outputs: Tensor = model(batch["x"])
    return outputs


def task_of(model: nn.Module, batches: list[Batch], **how: object) -> ModelTask:
    """A task of a net and its batches."""
    return ModelTask(model, data=lambda: list(batches), forward=call, **how)  # type: ignore[arg-type]


def saved(model: nn.Module, folder: Path) -> Checkpoint:
    """The net's weights as a file, ties under their first name."""
    folder.mkdir(exist_ok=True, parents=True)
    save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, folder / "model.safetensors")
    return Checkpoint.open(folder / "model.safetensors")


def by_hand(model: nn.Module, batch: Batch, estimator: str) -> Mapping[str, Tensor]:
    """One backward pass for each example (and class), squared and averaged."""
    names = dict(model.named_parameters())
    model.eval()
    sums = {name: torch.zeros_like(p) for name, p in names.items()}
    for row in range(len(batch["x"])):
        one = {name: t[row : row + 1] for name, t in batch.items()}
        chances = call(model, one).log_softmax(-1)[0]
        if estimator == "empirical":
            label = one["labels"][0]
            kept = label != -100
            terms = [(1.0, chances[kept].gather(-1, label[kept][..., None]).sum())]
        else:
            terms = [(float(chances[c].detach().exp()), chances[c]) for c in range(len(chances))]
        for weight, term in terms:
            gradients = torch.autograd.grad(term, list(names.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    sums[name] += weight * gradient.square()
    return {name: total / len(batch["x"]) for name, total in sums.items()}
