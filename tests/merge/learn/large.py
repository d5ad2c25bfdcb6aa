"""Learning on a model of 20 million parameters with eight task vectors, in its own process, which says what it took.

python -m tests.merge.learn.large FOLDER streamed|held|stacked STEPS; the folder is filled when it is empty. `held` is
the authors' form, every task vector in memory and torch.func.functional_call; `stacked` the quickest of that kind.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paramsmith.checkpoint import Checkpoint
from paramsmith.device import resident_memory
from paramsmith.memory import StateDict
from paramsmith.merge.learn.atlas import learn_atlas
from paramsmith.merge.task import ModelTask
from tests.merge.learn.toys import on_x

WIDTH, LAYERS, VECTORS, BATCH = 1024, 19, 8, 16


def network() -> nn.Sequential:
    """Nineteen layers of a million parameters each, and a head."""
    body = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*body, nn.Linear(WIDTH, 10))


def files(folder: Path) -> tuple[Path, list[Path]]:
    paths = [folder / f"{number}.safetensors" for number in range(VECTORS + 1)]
    if not paths[0].exists():
        torch.manual_seed(0)
        base = {name: tensor.detach() for name, tensor in network().state_dict().items()}
        for number, path in enumerate(paths):
            save_file({n: t + 1e-3 * number * torch.randn_like(t) for n, t in base.items()}, path)
    return paths[0], paths[1:]


def streamed(base: Path, models: list[Path], net: nn.Module, batch: dict[str, Tensor], steps: int, out: Path) -> None:
    with Checkpoint.open(base) as first:
        opened = [Checkpoint.open(path) for path in models]
        task = ModelTask(net, lambda: [batch], on_x)
        learn_atlas([task], first, opened, out, steps=steps, force=True)


def held(base: Path, models: list[Path], net: nn.Module, batch: dict[str, Tensor], steps: int, out: Path) -> None:
    first = load_file(base)
    vectors = [{name: tensor - first[name] for name, tensor in load_file(path).items()} for path in models]
    free = torch.zeros(VECTORS, len(first), requires_grad=True)
    optimiser = torch.optim.AdamW([free], lr=1e-3)
    for _ in range(steps):
        whole = {n: t + sum(free[i, j] * v[n] for i, v in enumerate(vectors)) for j, (n, t) in enumerate(first.items())}
        outputs = torch.func.functional_call(net, whole, (batch["x"],))
        optimiser.zero_grad()
        nn.functional.cross_entropy(outputs, batch["labels"]).backward()
        torch.nn.utils.clip_grad_norm_([free], 1.0)
        optimiser.step()


def stacked(base: Path, models: list[Path], net: nn.Module, batch: dict[str, Tensor], steps: int, out: Path) -> None:
    """The same, as one product of a matrix and a vector for each tensor: the quickest way with everything in memory."""
    first = load_file(base)
    vectors = {name: torch.empty(VECTORS, tensor.numel()) for name, tensor in first.items()}
    for i, path in enumerate(models):
        for name, tensor in load_file(path).items():
            torch.sub(tensor.flatten(), first[name].flatten(), out=vectors[name][i])
    free = torch.zeros(VECTORS, len(first), requires_grad=True)
    optimiser = torch.optim.AdamW([free], lr=1e-3)
    for _ in range(steps):
        whole = {n: t + (free[:, j] @ vectors[n]).view_as(t) for j, (n, t) in enumerate(first.items())}
        outputs = torch.func.functional_call(net, whole, (batch["x"],))
        optimiser.zero_grad()
        nn.functional.cross_entropy(outputs, batch["labels"]).backward()
        torch.nn.utils.clip_grad_norm_([free], 1.0)
        optimiser.step()


def warm(folder: Path) -> None:
    """Take what any learning takes once: the modules that torch imports late."""
    small = nn.Linear(8, 2)
    batch = {"x": torch.randn(4, 8), "labels": torch.arange(4) % 2}
    weights = StateDict(small.state_dict(), "small")
    learn_atlas([ModelTask(small, lambda: [batch], on_x)], weights, [weights], folder / "c.json", steps=1, force=True)


FORMS: dict[str, Callable[..., None]] = {"streamed": streamed, "held": held, "stacked": stacked}


def main() -> None:
    folder, form, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    base, models = files(folder)
    torch.manual_seed(0)
    batch = {"x": torch.randn(BATCH, WIDTH), "labels": torch.arange(BATCH) % 10}
    warm(folder)
    before = resident_memory()
    net = network().requires_grad_(form == "streamed")
    parameters = sum(p.numel() for p in net.parameters())
    FORMS[form](base, models, net, batch, 1, folder / "c.json")
    started, used = time.perf_counter(), time.process_time()
    FORMS[form](base, models, net, batch, steps, folder / "c.json")
    seconds, used = time.perf_counter() - started, time.process_time() - used
    with open("/proc/self/status", encoding="ascii") as status:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
    assert found is not None
    told = {
        "form": form,
        "parameters": parameters,
        "vector": 4 * parameters,
        "seconds": seconds / steps,
        "cpu": used / steps,
    }
    print(json.dumps({**told, "peak": int(found[1]) * 1024 - before}))


if __name__ == "__main__":
    main()
