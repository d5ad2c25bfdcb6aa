"""aTLAS: the authors' steps, what each setting does, files that merge to the learned model, resuming, bad input."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from paramsmith.coefficients import Coefficients
from paramsmith.errors import Failed, InvalidInput, ParamsmithError, Refused
from paramsmith.memory import StateDict
from paramsmith.merge import merge
from paramsmith.merge.learn.atlas import PRESETS, learn_atlas
from paramsmith.merge.learn.objectives import accuracy, entropy
from paramsmith.merge.task import Batch, ModelTask
from tests.merge.learn.toys import Opened, data, on_x, oracle, oracle_models, oracle_task, task_of, tuned


def learn(opened: Opened, output: Path, **more: Any) -> Coefficients:
    """Learn with settings that are quick on the toys, and read the file."""
    tasks = more.pop("tasks", opened.tasks)
    learn_atlas(tasks, opened.base, opened.models, output, **{"epochs": 3, "lr": 0.05, **more})
    return Coefficients.load(output)


def test_three_steps_are_the_authors(tmp_path: Path) -> None:
    """AdamW with lr 0.1, decay 0.1, clipped at 1, from zero; the authors' gradients are in float16: 1e-4."""
    said = oracle()["adamw_from_zero_lr0p1_wd0p1_clip1"]
    base, models = oracle_models()
    for steps, wanted in enumerate(said, 1):
        path = tmp_path / f"{steps}.json"
        report = learn_atlas([oracle_task()], base, models, path, steps=steps, lr=0.1)
        found = Coefficients.load(path)
        blocks = torch.tensor([found.values[name] for name in oracle()["blocks"]])[:, :, 0].T
        torch.testing.assert_close(blocks, torch.tensor(wanted["coef"]), atol=1e-4, rtol=0)
        assert report.history[-1]["loss"] == pytest.approx(wanted["loss_before"], abs=1e-3)


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("penalty", [None, 1.0, 2.0])
def test_steps_are_those_of_autograd_and_adamw(
    opened: Opened, tmp_path: Path, isotropic: bool, penalty: float | None
) -> None:
    """The same loop in plain torch, holding every task vector: 12 steps to 1e-5."""
    settings = {"steps": 12, "schedule": "cosine", "clip": 0.05, "isotropic": isotropic, "penalty": penalty}
    found = learn(opened, tmp_path / "c.json", **settings)
    names, base = list(found.values), opened.tensors(opened.base)
    tuned = [opened.tensors(model) for model in opened.models]
    vectors = [{name: weights[name] - base[name] for name in names} for weights in tuned]
    free = torch.zeros(2, 1 if isotropic else len(names), requires_grad=True)
    optimiser = torch.optim.AdamW([free], lr=0.05, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 12)
    batches = [list(task.batches()) for task in opened.tasks]
    for step in range(12):
        rows = free.expand(2, len(names))
        whole = {n: base[n] + sum(rows[i, j] * v[n] for i, v in enumerate(vectors)) for j, n in enumerate(names)}
        loss = torch.zeros(()) if penalty is None else 0.5 * free.norm(penalty, dim=0).mean()
        for listed in batches:
            batch = listed[step % len(listed)]
            outputs = torch.func.functional_call(opened.net.eval(), whole, (batch["x"],))
            loss = loss + nn.functional.cross_entropy(outputs, batch["labels"])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([free], 0.05)
        optimiser.step()
        schedule.step()
    mine = torch.tensor([found.values[name] for name in names])[:, :, 0].T
    torch.testing.assert_close(mine, free.detach().expand(2, len(names)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("suffix", "partitions"), [("json", 1), ("safetensors", 4)])
def test_the_file_merges_to_the_learned_model(opened: Opened, tmp_path: Path, suffix: str, partitions: int) -> None:
    seen: list[tuple[int, int]] = []
    before = [accuracy(task) for task in opened.tasks]
    path = tmp_path / f"c.{suffix}"
    report = learn_atlas(
        opened.tasks,
        opened.base,
        opened.models,
        path,
        epochs=10,
        lr=0.05,
        partitions=partitions,
        seed=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    after = [accuracy(task) for task in opened.tasks]
    assert min(after) > max(before) + 0.2
    found = Coefficients.load(path)
    assert found.learned["learner"] == "atlas"
    assert (found.method, found.seed) == (("atlas", 3) if partitions > 1 else ("task_arithmetic", None))
    assert {len(row) for rows in found.values.values() for row in rows} == {partitions}
    models = [model.path for model in opened.models]
    merge(models, tmp_path / "m.safetensors", base=opened.base.path, coefficients=path)
    merged = load_file(tmp_path / "m.safetensors")
    for name, tensor in opened.net.state_dict().items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=1e-6)
    assert report.output == path
    assert seen[-1][0] == seen[-1][1]
    assert len(report.history) == 11
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "m.safetensors"]


def test_isotropic_has_one_value_a_model(opened: Opened, tmp_path: Path) -> None:
    found = learn(opened, tmp_path / "c.json", isotropic=True)
    assert len(set(found.values.values())) == 1
    assert all(value for row in next(iter(found.values.values())) for value in row)


@pytest.mark.parametrize("isotropic", [False, True])
def test_a_budget_keeps_the_strongest_of_each_tensor(opened: Opened, tmp_path: Path, isotropic: bool) -> None:
    """One task: its own model has the larger gradients, and with isotropic coefficients is the only one."""
    found = learn(opened, tmp_path / "c.json", tasks=opened.tasks[:1], budget=1, partitions=2, isotropic=isotropic)
    used = {name: [any(row) for row in rows] for name, rows in found.values.items() if name.startswith("body")}
    assert all(sum(chosen) == 1 for chosen in used.values())
    assert used["body.0.weight"] == [True, False]
    if isotropic:
        assert all(chosen == [True, False] for chosen in used.values())


def test_validation_chooses_the_epoch(opened: Opened, tmp_path: Path) -> None:
    """A rate that overshoots: the best epoch by the held-out mean is kept, the model is left at it."""
    held = [task_of(opened.net, *data(seed, 48)) for seed in (1, 2)]
    path = tmp_path / "c.json"
    report = learn_atlas(
        opened.tasks, opened.base, opened.models, path, epochs=6, lr=1.5, validation=held, references=[0.9, 1.0]
    )
    values = [(s[0] / 0.9 + s[1]) / 2 for s in (entry["scores"] for entry in report.history)]  # type: ignore[index]
    best = max(range(len(values)), key=lambda i: values[i])
    assert report.best_step == report.history[best]["step"] != report.history[-1]["step"]
    assert list(report.scores) == report.history[best]["scores"] == [accuracy(task) for task in held]
    learned = Coefficients.load(path).learned
    assert (learned["best_step"], learned["scores"]) == (report.best_step, list(report.scores))


def test_validation_may_have_a_model_of_its_own(opened: Opened, tmp_path: Path) -> None:
    """It is composed too, and so judged as the shared one is."""
    reports = []
    for number, net in enumerate((opened.net, copy.deepcopy(opened.net))):
        held = [task_of(net, *data(seed, 48)) for seed in (1, 2)]
        settings = {"epochs": 4, "lr": 0.1, "validation": held}
        reports.append(learn_atlas(opened.tasks, opened.base, opened.models, tmp_path / f"{number}.json", **settings))
    assert reports[0].history == reports[1].history
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()


def test_few_shots_have_ten_batches_an_epoch(opened: Opened, tmp_path: Path) -> None:
    shots = task_of(opened.net, *data(1, 6), size=6)
    report = learn_atlas([shots], opened.base, opened.models, tmp_path / "c.json", preset="few-shot", epochs=2)
    assert [entry["step"] for entry in report.history] == [0, 10, 20]
    assert Coefficients.load(tmp_path / "c.json").learned["lr"] == PRESETS["few-shot"].lr


def test_longer_data_goes_on_in_the_next_epoch(opened: Opened, tmp_path: Path) -> None:
    """The shortest task's batches make an epoch, and no batch of the other is left out."""
    taken: list[int] = []

    def forward(model: nn.Module, batch: Batch) -> Tensor:
        taken.append(int(batch["number"][0]))
        return on_x(model, batch)

    x, labels = data(2)
    batches = [
        {"x": x[i * 12 : i * 12 + 12], "labels": labels[i * 12 : i * 12 + 12], "number": torch.full((12,), i)}
        for i in range(8)
    ]
    longer = ModelTask(opened.net, lambda: batches, forward)
    learn(opened, tmp_path / "c.json", tasks=[task_of(opened.net, *data(1, 48)), longer], epochs=4)
    assert taken == [i % 8 for i in range(12)]


def test_negation_lowers_the_target_and_keeps_the_control(opened: Opened, tmp_path: Path) -> None:
    """From a base that knows both tasks, along what tuning for the first had added."""
    before, added = opened.tensors(opened.base), opened.tensors(opened.models[0])
    (x, labels), (others, their_labels) = data(1), data(2)
    base = tuned(before, torch.cat([x, others]), torch.cat([labels, their_labels]))
    vector = {name: base[name] + (added[name] - before[name]) for name in base}
    target, control = opened.tasks
    path = tmp_path / "c.json"
    models = [StateDict(vector, "target")]
    report = learn_atlas([target], StateDict(base, "both"), models, path, preset="negation", control=control, lr=0.02)
    scores = [[float(score) for score in entry["scores"]] for entry in report.history]  # type: ignore[attr-defined]
    least = 0.95 * scores[0][1]
    assert report.scores[0] < scores[0][0] - 0.1
    assert report.scores[1] >= least
    assert report.scores[0] == min(target for target, control in scores if control >= least)
    # it stops as soon as the control is lost
    assert [control >= least for _, control in scores[:-1]] == [True] * (len(scores) - 1)
    assert scores[-1][1] < least or report.history[-1]["step"] == 60
    assert (accuracy(target), accuracy(control)) == report.scores


@pytest.mark.parametrize("objective", ["entropy", "ufm"])
def test_without_labels(opened: Opened, tmp_path: Path, objective: Any) -> None:
    """Predictions become surer, and the accuracy of a half-way base hardly falls."""
    weights, vector = opened.tensors(opened.base), opened.tensors(opened.models[0])
    half = {n: t + 0.6 * (vector[n] - t) if n.startswith("body") else t for n, t in weights.items()}
    x, labels = data(1)
    batches = [{"x": x[i : i + 24]} for i in range(0, 96, 24)]
    task = ModelTask(opened.net, lambda: batches, on_x)
    told = task_of(opened.net, x, labels)
    opened.net.load_state_dict(half)
    before = accuracy(told), float(entropy(opened.net.eval()(x).detach()))
    base = StateDict(half, "half")
    learn_atlas([task], base, opened.models, tmp_path / "c.json", objective=objective, lr=0.02)
    after = accuracy(told), float(entropy(opened.net.eval()(x).detach()))
    assert after[1] < 0.8 * before[1]
    assert after[0] >= before[0] - 0.02


CHILD = """
import sys, os
from pathlib import Path
import torch
torch.set_num_threads(1)
from paramsmith import resumable
resumable.INTERVAL = 0
from tests.merge.learn.toys import Opened, data, task_of
from tests.merge.learn.test_atlas import SETTINGS
from paramsmith.merge.learn.atlas import learn_atlas
base, a, b, out, which = sys.argv[1:]
opened = Opened(Path(base), [Path(a), Path(b)])
print("ready", flush=True)
def progress(done, total):
    print(done, flush=True)
learn_atlas(opened.tasks, opened.base, opened.models, out, progress=progress, **SETTINGS[which](opened))
"""
SETTINGS: dict[str, Any] = {
    "supervised": lambda opened: {
        "epochs": 8, "lr": 0.05, "partitions": 3, "budget": 1, "schedule": "cosine", "validation": opened.tasks
    },
    "ufm": lambda opened: {"objective": "ufm", "epochs": 5, "lr": 0.02},
}  # fmt: skip


def start(files: tuple[Path, Sequence[Path]], out: Path, which: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CHILD, str(files[0]), *map(str, files[1]), str(out), which]
    root = Path(__file__).resolve().parents[3]
    return subprocess.Popen(words, stdout=-1, stderr=-1, text=True, cwd=root)


@pytest.mark.parametrize("which", SETTINGS)
def test_killed_and_run_again_gives_the_same_bytes(
    zoo_files: tuple[Path, list[Path]], tmp_path: Path, which: str
) -> None:
    def run(out: Path) -> list[int]:
        seen: list[int] = []
        opened = Opened(*zoo_files)
        settings = SETTINGS[which](opened)
        learn_atlas(
            opened.tasks, opened.base, opened.models, out, progress=lambda done, _: seen.append(done), **settings
        )
        return seen

    steps = run(tmp_path / "whole.json")
    out = tmp_path / "out.json"
    process = start(zoo_files, out, which)
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(len(steps) // 2)]
    process.send_signal(signal.SIGKILL)
    _, problem = process.communicate()
    assert (told[0], process.returncode) == ("ready\n", -signal.SIGKILL), problem
    assert not out.exists()
    rest = run(out)
    assert rest[0] >= int(told[-1])
    assert rest == steps[-len(rest) :]
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "whole.json"]


def test_other_settings_or_data_start_over(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paramsmith import resumable

    monkeypatch.setattr(resumable, "INTERVAL", 0)
    out = tmp_path / "c.json"

    def stop(done: int, total: int) -> None:
        steps.append(done)
        if stopping and len(steps) == 3:
            raise KeyboardInterrupt

    other = [opened.tasks[0], task_of(opened.net, *data(5))]
    for changed, resumed in (({}, True), ({"lr": 0.06}, False), ({"seed": 1}, False), ({"tasks": other}, False)):
        steps: list[int] = []
        stopping = True
        with pytest.raises(KeyboardInterrupt):
            learn(opened, out, progress=stop)
        assert not out.exists()
        first, steps, stopping = steps[0], [], False
        learn(opened, out, progress=stop, **changed)
        assert (steps[0] > first) is resumed
        out.unlink()


def test_an_existing_file_is_refused_and_replaced_by_force(opened: Opened, tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    first = learn(opened, out)
    with pytest.raises(Refused, match="already exists"):
        learn(opened, out)
    assert Coefficients.load(out) == first
    assert learn(opened, out, force=True, lr=0.06) != first


def raising(model: nn.Module, batch: Batch) -> Tensor:
    raise RuntimeError("their\x1b fault")


def changed(opened: Opened, **more: Any) -> list[Any]:
    return [replace(opened.tasks[0], **more)]


def batches(opened: Opened, *listed: dict[str, Tensor]) -> list[Any]:
    return changed(opened, data=lambda: list(listed))


X, LABELS = data(1, 8)
WRONG: dict[str, tuple[Any, type[ParamsmithError], str]] = {
    "no tasks": (lambda o: {"tasks": []}, InvalidInput, "no tasks"),
    "empty": (lambda o: {"tasks": batches(o)}, InvalidInput, "the data is empty"),
    "no labels": (lambda o: {"tasks": batches(o, {"x": X})}, InvalidInput, "no labels"),
    "one class": (lambda o: {"tasks": batches(o, {"x": X, "labels": 0 * LABELS})}, InvalidInput, "the same label"),
    "outside": (lambda o: {"tasks": batches(o, {"x": X, "labels": LABELS + 1})}, InvalidInput, "label 3 is outside"),
    "negative": (lambda o: {"tasks": batches(o, {"x": X, "labels": LABELS - 1})}, InvalidInput, "label -1 is outside"),
    "floats": (lambda o: {"tasks": batches(o, {"x": X, "labels": LABELS + 0.5})}, InvalidInput, "not integers"),
    "rows": (lambda o: {"tasks": batches(o, {"x": X, "labels": LABELS[:3]})}, InvalidInput, "one row an example"),
    "nan": (lambda o: {"tasks": batches(o, {"x": X * torch.nan, "labels": LABELS})}, Failed, "loss is nan at step 1"),
    "raises": (lambda o: {"tasks": changed(o, forward=raising)}, Failed, r"raised RuntimeError: their\\x1b fault"),
    "data raises": (lambda o: {"tasks": changed(o, data=lambda: iter([1 / 0]))}, Failed, "raised ZeroDivisionError"),
    "no tensor": (lambda o: {"tasks": changed(o, forward=lambda m, b: [1])}, InvalidInput, "outputs are list"),
    "lr": (lambda o: {"lr": 0.0}, InvalidInput, "lr is 0.0"),
    "rate": (lambda o: {"lr": float("nan")}, InvalidInput, "lr is nan"),
    "steps": (lambda o: {"steps": 0}, InvalidInput, "steps is 0"),
    "epochs": (lambda o: {"epochs": -1}, InvalidInput, "epochs is -1"),
    "clip": (lambda o: {"clip": 0.0}, InvalidInput, "clip is 0"),
    "decay": (lambda o: {"weight_decay": -0.1}, InvalidInput, "weight_decay is -0.1"),
    "partitions": (lambda o: {"partitions": 0}, InvalidInput, "partitions is 0"),
    "many": (lambda o: {"partitions": 1 << 16}, InvalidInput, "65,536 partitions are too many"),
    "budget": (lambda o: {"budget": 3}, InvalidInput, "the budget is 3 task vectors of 2"),
    "preset": (lambda o: {"preset": "magic"}, InvalidInput, "no preset magic"),
    "objective": (lambda o: {"objective": "magic"}, InvalidInput, "no objective magic"),
    "schedule": (lambda o: {"schedule": "magic"}, InvalidInput, "no schedule magic"),
    "no control": (lambda o: {"objective": "negation"}, InvalidInput, "negation needs a control"),
    "control": (lambda o: {"control": o.tasks[0]}, InvalidInput, "supervised has no control"),
    "references": (lambda o: {"validation": o.tasks, "references": [1.0]}, InvalidInput, "1 references for 2"),
    "reference": (lambda o: {"validation": o.tasks, "references": [1.0, 0.0]}, InvalidInput, "not above 0"),
    "regression": (
        lambda o: {"tasks": changed(o, likelihood="regression"), "objective": "entropy"},
        InvalidInput,
        "entropy is of classes",
    ),
    "device": (lambda o: {"device": "quantum"}, InvalidInput, "no device"),
    "exclude": (lambda o: {"exclude": ["*"]}, InvalidInput, "no tensor"),
    "folder": (lambda o: {"output": "no/such/c.json"}, InvalidInput, "not an existing folder"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_learned_is_told_and_leaves_nothing(opened: Opened, tmp_path: Path, name: str) -> None:
    make, kind, said = WRONG[name]
    settings = make(opened)
    output = tmp_path / settings.pop("output", "c.json")
    with pytest.raises(kind, match=said) as problem:
        learn(opened, output, **settings)
    assert type(problem.value) is kind
    assert problem.value.fact.isprintable()
    assert list(tmp_path.iterdir()) == []
    assert all(p.requires_grad and p.grad is None for p in opened.net.parameters())


def test_regression_is_judged_by_its_loss(tmp_path: Path, opened: Opened) -> None:
    x, labels = data(1)
    wanted = nn.functional.one_hot(labels).float()
    rows = [{"x": x[i : i + 16], "labels": wanted[i : i + 16]} for i in range(0, 96, 16)]
    task = ModelTask(opened.net, lambda: rows, on_x, likelihood="regression")
    path = tmp_path / "c.json"
    report = learn_atlas([task], opened.base, opened.models, path, epochs=5, lr=0.05, validation=[task])
    scores = [entry["scores"][0] for entry in report.history]  # type: ignore[index]
    assert scores[0] < max(scores) == report.scores[0] < 0


def test_the_file_says_how_it_was_learned(opened: Opened, tmp_path: Path) -> None:
    learn(opened, tmp_path / "c.json", exclude=["head"])
    said = json.loads((tmp_path / "c.json").read_text())["learned"]
    assert {"learner": "atlas", "preset": "addition", "objective": "supervised", "epochs": 3}.items() <= said.items()
    assert [data["examples"] for data in said["data"]] == [96, 96]
    assert [entry["step"] for entry in said["history"]] == [0, 6, 12, 18]
    assert "head.weight" not in json.loads((tmp_path / "c.json").read_text())["values"]


@pytest.mark.slow
def test_memory_is_that_of_the_model_and_its_gradients(tmp_path: Path) -> None:
    """Eight task vectors of 80 MB: the peak, over what the process held before, is below a model and two of them."""
    root = Path(__file__).resolve().parents[3]
    told = {}
    for form in ("streamed", "held"):
        command = [sys.executable, "-m", "tests.merge.learn.large", str(tmp_path), form, "2"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        told[form] = json.loads(done.stdout)
    for path in tmp_path.iterdir():
        path.unlink()
    assert told["streamed"]["peak"] < 3 * told["streamed"]["vector"]
    assert told["held"]["peak"] > 8 * told["held"]["vector"]
