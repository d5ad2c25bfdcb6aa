"""The training loop: what a step does, what an interruption leaves, what is skipped, and what is told of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.training import processes
from paramsmith.hypernet.training.course import Course
from paramsmith.hypernet.training.loop import FitReport, fit
from paramsmith.hypernet.training.metrics import FILE
from paramsmith.resumable import Resumable

pytestmark = pytest.mark.usefixtures("one_thread")


class Line:
    """A line through noise, of a network with dropout; a loss of NaN or a gradient of NaN at some steps."""

    def __init__(self, net: nn.Module, wrong: Mapping[int, str] | None = None) -> None:
        self.net, self.wrong = net, dict(wrong or {})
        self.steps: list[int] = []

    def turns(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"all": self.net.parameters()}

    def turn(self, step: int) -> str:
        return "all"

    def loss(self, step: int, rng: torch.Generator) -> Tensor:
        self.steps.append(step)
        x = torch.randn(16, 4, generator=rng)
        loss = (self.net(x) - x.sum(1, keepdim=True)).square().mean()
        if self.wrong.get(step) == "loss":
            return loss * math.nan
        if self.wrong.get(step) == "gradient":
            weight = next(self.net.parameters())
            return loss + (weight * 0).abs().sum().sqrt()  # 0, with a gradient of 0 / 0
        return loss


class Alternating(Line):
    """Two turns with optimisers of their own, a parameter outside the network, a state, and numbers to tell."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.shift = nn.Parameter(torch.tensor([3.0]))
        self.seen = torch.zeros(1)

    def turns(self) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"net": self.net.parameters(), "shift": [self.shift]}

    def turn(self, step: int) -> str:
        return "shift" if step % 3 == 2 else "net"

    def optimisers(self) -> Mapping[str, Mapping[str, object]]:
        return {"shift": {"optimizer": "sgd", "momentum": 0.5, "lr": 0.1, "schedule": "constant", "warmup": 0}}

    def loss(self, step: int, rng: torch.Generator) -> Tensor:
        self.seen += 1
        return super().loss(step, rng) + (self.shift - float(self.seen) / 100).square().sum()

    def told(self) -> Mapping[str, float]:
        return {"shift": self.shift.item()}

    def state(self) -> Mapping[str, Tensor]:
        return {"seen": self.seen}

    def restore(self, held: Mapping[str, Tensor]) -> None:
        self.seen = held["seen"]


def network(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.BatchNorm1d(8), nn.Linear(8, 1))


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def drawn(course: Course, step: int) -> torch.Generator:
    words = np.random.SeedSequence((course.seed, step, 0)).generate_state(2, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


def test_a_step_is_what_torch_would_do() -> None:
    """Warm-up, cosine, clipping and AdamW, bit by bit."""
    course = Course(steps=20, lr=0.02, weight_decay=0.1, warmup=4, schedule="cosine", clip=0.5, seed=3)
    net, other = network(), network()
    report = fit(net, Line(net), course)
    optimiser = torch.optim.AdamW(other.parameters(), lr=0.02, weight_decay=0.1, fused=True)
    objective = Line(other)
    losses = []
    for step in range(20):
        loss = objective.loss(step, drawn(course, step))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        factor = (step + 1) / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 16))
        optimiser.param_groups[0]["lr"] = 0.02 * factor
        optimiser.step()
        losses.append(loss.item())
    assert same(state(net), state(other))
    assert report.losses == tuple(losses)
    assert not net.training


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimisers(name: str) -> None:
    net = network()
    report = fit(net, Line(net), Course(steps=60, lr=0.02, optimizer=name, momentum=0.5))  # type: ignore[arg-type]
    assert np.mean(report.losses[-10:]) < 0.7 * np.mean(report.losses[:10])


def test_draws_depend_on_seed_and_step_alone() -> None:
    """Dropout too, whatever torch's own state is, and that is left as it was."""
    runs = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        net = network(dropout=0.5)
        runs.append((fit(net, Line(net), Course(steps=8)).losses, state(net)))
        assert torch.equal(torch.get_rng_state(), before)
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])
    net = network(dropout=0.5)
    assert fit(net, Line(net), Course(steps=8, seed=1)).losses != runs[0][0]


def test_the_average_takes_the_place_of_the_weights() -> None:
    net, other = network(), network()
    fit(net, Line(net), Course(steps=12, lr=0.05, ema=0.6))
    average = [p.detach().clone() for p in other.parameters()]
    seen: list[list[Tensor]] = []
    fit(
        other,
        Line(other),
        Course(steps=12, lr=0.05),
        progress=lambda *_: seen.append([p.detach().clone() for p in other.parameters()]),
    )
    average = seen[0]
    for t, weights in enumerate(seen, 1):
        decay = min(0.6, (1 + t) / (10 + t))
        average = [a + (1 - decay) * (w - a) for a, w in zip(average, weights, strict=True)]
    for parameter, expected in zip(net.parameters(), average, strict=True):
        torch.testing.assert_close(parameter.detach(), expected)


def test_turns_have_optimisers_of_their_own() -> None:
    """A step changes the parameters whose turn it is; overrides hold, and nothing else can be overridden."""
    net = network()
    objective = Alternating(net)
    held: list[tuple[dict[str, Tensor], float]] = [(dict(net.named_parameters()), 3.0)]

    def look(done: int, total: int) -> None:
        now = {name: p.detach().clone() for name, p in net.named_parameters()}
        assert same(now, held[-1][0]) == (done % 3 == 0)
        assert (objective.shift.item() == held[-1][1]) == (done % 3 != 0)
        held.append((now, objective.shift.item()))

    held[0] = ({name: p.detach().clone() for name, p in net.named_parameters()}, 3.0)
    report = fit(net, objective, Course(steps=9, warmup=100, log_every=3), progress=look)
    assert held[3][1] == pytest.approx(3.0 - 0.1 * 2 * (3.0 - 0.03))  # the step of SGD, without the warm-up
    lines = [json.loads(line) for line in report.metrics.splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9]
    assert set(lines[0]) == {"step", "loss net", "loss shift", "lr", "norm", "shift"}
    assert lines[0]["loss net"] == pytest.approx(np.mean(report.losses[:2]))
    objective.optimisers = lambda: {"shift": {"seed": 1}}  # type: ignore[method-assign]
    with pytest.raises(InvalidInput, match="the turn shift sets seed"):
        fit(net, objective, Course(steps=1))


class Stop(KeyboardInterrupt):
    """As by the user."""


def stopping(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Stop

    return progress


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save before the step that is interrupted, every third step at most."""
    calls: list[int] = []

    def due(self: Resumable) -> bool:
        calls.append(1)
        return len(calls) % 3 == 0

    monkeypatch.setattr(Resumable, "due", due)
    monkeypatch.setattr("paramsmith.hypernet.training.loop.SAVING", math.inf)


COURSES: dict[str, tuple[type[Line], dict[str, object]]] = {
    "adamw": (Line, {"weight_decay": 0.1, "clip": 1.0, "schedule": "linear", "warmup": 3}),
    "sgd": (Line, {"optimizer": "sgd", "momentum": 0.9}),
    "average": (Line, {"ema": 0.9}),
    "bf16": (Line, {"precision": "bf16"}),
    "turns": (Alternating, {"ema": 0.5, "schedule": "cosine"}),
}


@pytest.mark.usefixtures("always_due")
@pytest.mark.parametrize(("kind", "options"), COURSES.values(), ids=COURSES)
def test_an_interrupted_run_goes_on_with_the_same_numbers(
    tmp_path: Path, kind: Callable[[nn.Module], Line], options: Mapping[str, object]
) -> None:
    """Bit by bit: the losses, the weights, the metrics; wherever it was interrupted, and twice."""
    course = Course(steps=20, lr=0.02, log_every=4, **options)  # type: ignore[arg-type]
    whole = network(dropout=0.3)
    objective = kind(whole)
    expected = fit(whole, objective, course)
    net, report = None, None
    for step in (5, 13, None):
        net = network(dropout=0.3)
        again = kind(net)
        try:
            with Resumable(tmp_path / "out", "key", single=False) as keeper:
                progress = stopping(step) if step else None
                report = fit(net, again, course, keeper=keeper, progress=progress)
                assert (keeper.folder / FILE).read_text() == report.metrics
        except Stop:
            continue
        assert again.steps[0] in (11, 12)  # not from the beginning
    assert net is not None
    assert report is not None
    assert report.losses == expected.losses
    assert same(state(net), state(whole))
    assert report.metrics == expected.metrics
    assert [json.loads(line)["step"] for line in report.metrics.splitlines()] == [4, 8, 12, 16, 20]
    assert report.seconds > 0


def test_steps_that_are_not_finite_are_skipped() -> None:
    """The weights stay, the moments too; the run goes on, and tells of it."""
    net = network()
    states: list[dict[str, Tensor]] = []
    objective = Line(net, {3: "loss", 5: "gradient"})
    report = fit(
        net,
        objective,
        Course(steps=8, log_every=4),
        progress=lambda *_: states.append({name: p.detach().clone() for name, p in net.named_parameters()}),
    )
    assert [same(a, b) for a, b in pairwise(states)] == [i in (2, 4) for i in range(7)]
    assert report.bad == (3, 5)
    assert report.warnings == ("2 of 8 steps were skipped, their numbers not finite: 4, 6",)
    assert report.to_json()["skipped"] == 2
    lines = [json.loads(line) for line in report.metrics.splitlines()]
    assert lines[0]["loss"] == pytest.approx(np.mean(report.losses[:3]))  # without the one skipped
    assert [line["skipped"] for line in lines] == [1, 2]
    assert math.isnan(report.losses[3])
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_too_many_in_a_row_fail() -> None:
    net = network()
    before = state(net)
    with pytest.raises(Failed, match="not finite in 3 steps in a row, up to step 7") as failed:
        fit(net, Line(net, dict.fromkeys((1, 2, 4, 5, 6), "loss")), Course(steps=20, max_bad=3))
    assert "--lr" in failed.value.hint
    assert not same(state(net), before)


def test_a_loss_that_depends_on_nothing_fails() -> None:
    class Constant(Line):
        def loss(self, step: int, rng: torch.Generator) -> Tensor:
            return torch.ones(())

    class Nothing(Line):
        def turns(self) -> Mapping[str, Iterable[nn.Parameter]]:
            return {"all": []}

    with pytest.raises(Failed, match="no scalar that depends on what is trained"):
        fit(network(), Constant(network()), Course(steps=1))
    with pytest.raises(Failed, match="nothing to train"):
        fit(network(), Nothing(network()), Course(steps=1))


def test_metrics_are_exact_and_told_as_they_come() -> None:
    net, told = network(), []
    report = fit(net, Line(net), Course(steps=7, log_every=3), log=told.append)
    lines = [json.loads(line) for line in report.metrics.splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert lines == told
    assert lines[0]["loss"] == sum(report.losses[:3]) / 3
    assert lines[2]["loss"] == report.losses[6]


def test_precision_and_accelerate_itself() -> None:
    """Two runs of one process may differ in precision; a program's own accelerator stays as it is."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized

    net = network()
    seen: list[torch.dtype] = []
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))  # type: ignore[index]
    for precision in ("bf16", "no"):
        fit(net, Line(net), Course(steps=1, precision=precision))  # type: ignore[arg-type]
    assert seen == [torch.bfloat16, torch.float32]
    assert not is_initialized()
    with pytest.raises(InvalidInput, match="fp16 needs a GPU"):
        fit(net, Line(net), Course(steps=1, precision="fp16"))
    try:
        mine = Accelerator(cpu=True)
        fit(net, Line(net), Course(steps=1))
        assert is_initialized()
        assert mine.mixed_precision == "no"
        with pytest.raises(InvalidInput, match="uses accelerate already"):
            fit(net, Line(net), Course(steps=1, precision="bf16"))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_scaled_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in fp16: a scale of a power of two changes no bit, an overflow is skipped and halves it, all of it is kept."""
    scales: list[float] = []

    @contextmanager
    def scaling(course: Course, logs: Path | None = None) -> Iterator[object]:
        with processes.accelerated(course, logs) as made:
            made.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
            yield made
            scales.append(made.scaler.get_scale())

    plain, net = network(), network()
    expected = fit(plain, Line(plain, {5: "gradient"}), Course(steps=7, clip=1.0))
    monkeypatch.setattr("paramsmith.hypernet.training.loop.accelerated", scaling)
    found = fit(net, Line(net, {5: "gradient"}), Course(steps=7, clip=1.0))
    assert found.losses == expected.losses
    assert found.bad == expected.bad == (5,)
    assert same(state(net), state(plain))
    assert scales == [1024.0]  # doubled after four steps, halved after the sixth
    monkeypatch.setattr(Resumable, "due", lambda self: True)
    monkeypatch.setattr("paramsmith.hypernet.training.loop.SAVING", math.inf)
    net = network()
    with pytest.raises(Stop), Resumable(tmp_path / "out", "key") as keeper:
        fit(net, Line(net), Course(steps=7), keeper=keeper, progress=stopping(6))
    with Resumable(tmp_path / "out", "key") as keeper:
        fit(net, Line(net), Course(steps=7), keeper=keeper)
    assert scales[1:] == [2048.0]


def test_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import tracking

    calls: list[object] = []

    class Mine(tracking.GeneralTracker):
        name, requires_logging_directory = "mine", True

        def __init__(self, run: str, logging_dir: str, **options: object) -> None:
            super().__init__()
            calls.append(Path(logging_dir))

        @property
        def tracker(self) -> None:
            return None

        def store_init_configuration(self, values: dict[str, object]) -> None:
            calls.append(values["lr"])

        def log(self, values: dict[str, object], step: int | None = None, **options: object) -> None:
            calls.append((step, sorted(values)))

        def finish(self) -> None:
            calls.append("finished")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mine", Mine)
    net = network()
    fit(net, Line(net), Course(steps=2, log_every=1, tracker="mine"), logs=tmp_path)
    numbers = ["loss", "lr", "norm"]
    assert calls == [tmp_path, 1e-3, (1, numbers), (2, numbers), "finished"]
    with pytest.raises(InvalidInput, match="no tracker is called 'tensorbord'"):
        fit(net, Line(net), Course(steps=1, tracker="tensorbord"))
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(InvalidInput, match="tensorboard is not installed"):
        fit(net, Line(net), Course(steps=1, tracker="tensorboard"))


def test_reports_are_plain_data() -> None:
    report = FitReport((2.0, 1.0), (), "", 0.5, 4.0)
    assert json.loads(json.dumps(report.to_json())) == {
        "steps": 2,
        "loss": 1.0,
        "skipped": 0,
        "seconds": 0.5,
        "steps_per_second": 4.0,
        "warnings": [],
    }


SHARED = """
import sys, torch
torch.set_num_threads(1)
from torch import nn
from paramsmith.hypernet.training.course import Course
from paramsmith.hypernet.training.loop import fit
rank = int(sys.argv[1])
torch.manual_seed(rank)  # the weights of the first process count
net = nn.Linear(2, 1)
class Sum:
    def turns(self): return {"all": net.parameters()}
    def turn(self, step): return "all"
    def loss(self, step, rng):
        x = torch.randn(4, 2, generator=rng)
        return (net(x) - x.sum(1, keepdim=True)).square().mean()
report = fit(net, Sum(), Course(steps=5, lr=0.1, optimizer="sgd"))
print(repr([*net.weight.flatten().tolist(), net.bias.item(), *report.losses]))
"""


@pytest.mark.slow
def test_processes_share_the_work(tmp_path: Path) -> None:
    """Two processes have the same weights: those of gradients averaged over the draws of both."""
    import os
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    held = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    held |= {"ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": "2"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, str(rank)],
            env={**held, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (json.loads(run.communicate(timeout=120)[0].splitlines()[-1]) for run in runs)
    assert first == second
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Linear(2, 1)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(5):
        losses = []
        for rank in range(2):
            words = np.random.SeedSequence((0, step, rank)).generate_state(2, np.uint64)
            x = torch.randn(4, 2, generator=torch.Generator().manual_seed(int(words[0])))
            losses.append((net(x) - x.sum(1, keepdim=True)).square().mean())
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        optimiser.step()
    expected = [*net.weight.flatten().tolist(), net.bias.item()]
    assert first[:3] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_compiled_network_learns_the_same() -> None:
    net, other = network(), network()
    compiled = fit(net, Line(net), Course(steps=5, compile=True))
    assert compiled.losses == pytest.approx(fit(other, Line(other), Course(steps=5)).losses, rel=1e-4)
