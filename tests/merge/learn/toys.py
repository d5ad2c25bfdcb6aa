"""Small models with task vectors, and tasks for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paramsmith.checkpoint import Checkpoint
from paramsmith.device import one_thread_an_operation
from paramsmith.memory import StateDict
from paramsmith.merge.task import Batch, ModelTask

ORACLE = Path(__file__).resolve().parents[2] / "oracles" / "atlas_forward.json"


def oracle() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(ORACLE.read_text(encoding="utf-8"))
    return loaded


class Encoder(nn.Module):
    """The encoder of the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.ln, self.fc2 = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.ln(self.fc1(x))))  # type: ignore[no-any-return]


def oracle_models(dtype: torch.dtype = torch.float64) -> tuple[StateDict, list[StateDict]]:
    """The oracle's base and base plus task vectors, exactly."""
    said = oracle()
    base = {name: torch.tensor(value, dtype=dtype) for name, value in said["base"].items()}
    models = [
        {name: base[name] + torch.tensor(value, dtype=dtype) for name, value in vector.items()}
        for vector in said["task_vectors_fp16"]
    ]
    return StateDict(base, "base"), [StateDict(model, f"model {i}") for i, model in enumerate(models)]


def oracle_task() -> ModelTask:
    said = oracle()
    batch = {"x": torch.tensor(said["x"]), "labels": torch.tensor(said["labels"])}
    return ModelTask(Encoder(), lambda: [batch], on_x)


def on_x(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch["x"])  # type: ignore[no-any-return]


class Net(nn.Module):
    """Two layers, and a batch norm whose buffers are no parameters."""

    def __init__(self, inputs: int = 6, hidden: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


def data(seed: int, examples: int = 96, inputs: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Points around one centre a class; the centres depend on the seed."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, inputs, generator=generator)
    labels = torch.arange(examples) % classes
    return centres[labels] + torch.randn(examples, inputs, generator=generator), labels


def task_of(model: nn.Module, x: Tensor, labels: Tensor, size: int = 16, **more: Any) -> ModelTask:
    batches = [{"x": x[i : i + size], "labels": labels[i : i + size]} for i in range(0, len(x), size)]
    return ModelTask(model, lambda: batches, on_x, **more)


def tuned(base: Mapping[str, Tensor], x: Tensor, labels: Tensor, steps: int = 150) -> dict[str, Tensor]:
    """A fine-tune of a Net; its head stays."""
    model = loaded(base)
    model.head.requires_grad_(False)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.eval()
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimiser.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def loaded(weights: Mapping[str, Tensor]) -> Net:
    model = Net()
    model.load_state_dict(dict(weights))
    return model


def zoo(folder: Path, seeds: Sequence[int] = (1, 2)) -> tuple[Path, list[Path]]:
    """Files of a base and a fine-tune for the data of each seed."""
    with one_thread_an_operation(), torch.random.fork_rng():
        torch.manual_seed(0)
        base = Net().state_dict()
        made = {"base": base, **{f"m{seed}": tuned(base, *data(seed)) for seed in seeds}}
    paths = []
    for name, weights in made.items():
        paths.append(folder / f"{name}.safetensors")
        save_file(dict(weights), paths[-1])
    return paths[0], paths[1:]


class Opened:
    """A zoo's checkpoints and one task a seed on one model with the base's weights, or on a model each."""

    def __init__(self, base: Path, models: Sequence[Path], seeds: Sequence[int] = (1, 2)) -> None:
        from safetensors.torch import load_file

        self.base, self.models = Checkpoint.open(base), [Checkpoint.open(path) for path in models]
        self.net = loaded(load_file(base))
        self.tasks = [task_of(self.net, *data(seed)) for seed in seeds]

    def tensors(self, model: Checkpoint) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(model.path)
