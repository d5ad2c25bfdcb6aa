"""`paramsmith measure`: the same bytes as from Python, killed or not; what it refuses; what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from paramsmith.checkpoint import Checkpoint
from paramsmith.cli.app import cli
from paramsmith.merge import merge
from paramsmith.merge.measure import measure_fisher, measure_gram, measure_moments, measure_sequential_grams
from paramsmith.merge.pretrained.task import transformers_task
from paramsmith.merge.task import load_tasks
from paramsmith.statistics import Statistics
from tests.merge.folders import START, Done, assert_clean, failed, leftovers, start
from tests.merge.folders import merge as merge_command
from tests.merge.pretrained.folders import bert, llama, sentences, write_rows

TASK = """
import os, signal, torch
from pathlib import Path
from safetensors.torch import load_file
from paramsmith.merge.task import ModelTask

def make_task(checkpoint):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    model.load_state_dict(load_file(checkpoint))
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(24, 4, generator=generator), torch.arange(24) % 3

    def batches():
        for start in range(0, 24, 4):
            yield {"x": inputs[start:start + 4], "labels": labels[start:start + 4]}

    return ModelTask(model, batches, lambda model, batch: model(batch["x"]))

def raises(checkpoint):
    raise RuntimeError("no such network\\nsecond line")

def nan(checkpoint):
    task = make_task(checkpoint)
    return ModelTask(task.model, task.data, lambda model, batch: model(batch["x"]) * float("nan"))

def outside(checkpoint):
    task = make_task(checkpoint)
    data = lambda: ({**batch, "labels": batch["labels"] + 1} for batch in task.data())
    return ModelTask(task.model, data, task.forward)

def empty(checkpoint):
    task = make_task(checkpoint)
    return ModelTask(task.model, lambda: [], task.forward)

def several(checkpoint):
    return [make_task(checkpoint)] * 2
"""
# Saves after every batch, and ends as by kill -9 after the second.
KILLED = """
import math, os, signal, torch
import paramsmith.merge.measure.passes as passes
from paramsmith.resumable import Resumable
torch.set_num_threads(1)
passes._SHARE = math.inf
Resumable.due = lambda self: True
save, saved = Resumable.save, []
def saving(self, *state):
    save(self, *state)
    saved.append(1)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Resumable.save = saving
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of the library, one of plain torch, and data; nothing in it is changed."""
    made = tmp_path_factory.mktemp("measure")
    bert(made / "bert")
    bert(made / "other", seed=1)
    llama(made / "llama")
    write_rows(made / "rows.jsonl", sentences(24))
    write_rows(made / "rows.txt", sentences(24))
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (8, 4), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)}
    net = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(net, made / "net.safetensors", {"format": "pt"})
    (made / "task.py").write_text(TASK)
    return made


def measure(*words: object) -> Done:
    """`paramsmith measure` in this process."""
    done = CliRunner().invoke(cli, ["measure", *map(str, words)])
    return Done(done.exit_code, done.stdout, done.stderr)


def test_help_does_not_wait_for_torch() -> None:
    for words in (["--help"], ["fisher", "--help"]):
        code = f"import sys\ntry:\n    {START}\nfinally:\n    print('torch' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code, "measure", *words], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "False"
        assert "fisher" in done.stdout


@pytest.mark.parametrize("estimator", ["exact", "sampled", "empirical"])
def test_the_command_and_python_write_the_same_bytes(folder: Path, tmp_path: Path, estimator: str) -> None:
    words = (folder / "bert", "--data", folder / "rows.jsonl", "--estimator", estimator, "--seed", 3, "--limit", 20)
    done = measure("fisher", *words, "-o", tmp_path / "a.safetensors")
    assert (done.code, done.err) == (0, ""), done
    assert done.out.startswith(f"{tmp_path / 'a.safetensors'}: fisher of {folder / 'bert'} on 20 examples in ")
    task = transformers_task(
        folder / "bert", [folder / "rows.jsonl"], limit=20, seed=3, labels=estimator == "empirical"
    )
    with Checkpoint.open(folder / "bert") as checkpoint:
        measure_fisher(task, checkpoint, tmp_path / "b.safetensors", estimator=estimator, limit=20, seed=3)  # type: ignore[arg-type]
        with Statistics.open(tmp_path / "a.safetensors", "fisher") as found:
            found.check_model(checkpoint)
            found.check_values()
            assert (found.about.estimator, found.about.examples, found.about.seed) == (estimator, 20, 3)
            assert set(found.names) == set(checkpoint.tensors)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert not leftovers(tmp_path)


def test_gram_and_moments_too(folder: Path, tmp_path: Path) -> None:
    task = transformers_task(folder / "llama", [folder / "rows.txt"], labels=False)
    with Checkpoint.open(folder / "llama") as checkpoint:
        for kind, function in (("gram", measure_gram), ("moments", measure_moments)):
            done = measure(
                kind, folder / "llama", "--data", folder / "rows.txt", "-q", "-o", tmp_path / f"{kind}.safetensors"
            )
            assert (done.code, done.out) == (0, ""), done
            function(task, checkpoint, tmp_path / f"python-{kind}.safetensors")
            written = [(tmp_path / f"{name}.safetensors").read_bytes() for name in (kind, f"python-{kind}")]
            assert written[0] == written[1]


def test_a_task_of_your_own(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "f.safetensors"
    words = ("fisher", folder / "net.safetensors", "--task", f"{folder / 'task.py'}:make_task", "-o", output)
    done = measure(*words, "--json")
    assert (done.code, done.err) == (0, ""), done
    told = json.loads(done.out)
    assert told.pop("seconds") > 0
    assert told == {
        "output": str(output),
        "kind": "fisher",
        "model": str(folder / "net.safetensors"),
        "examples": 24,
        "warnings": [],
    }
    assert set(load_file(output)) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    failed(measure(*words), 3, str(output))
    assert measure(*words, "--force", "--include", "0.", "-q").code == 0
    assert set(load_file(output)) == {"0.weight", "0.bias"}


def killed_and_resumed(folder: Path, *words: object) -> None:
    """Killed it leaves no output, and the same command goes on to the bytes of one that was left alone."""
    assert measure(*words, "-o", folder / "whole.safetensors").code == 0
    output = folder / "killed.safetensors"
    process = start("measure", *words, "-o", output, before=KILLED)
    told = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, told
    assert leftovers(folder) == [".killed.safetensors.partial"]
    assert not output.exists()
    assert measure(*words, "-o", output).code == 0
    assert output.read_bytes() == (folder / "whole.safetensors").read_bytes()
    assert not leftovers(folder)


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_killed_it_goes_on_and_gives_the_same_bytes(folder: Path, tmp_path: Path, kind: str) -> None:
    killed_and_resumed(tmp_path, kind, folder / "net.safetensors", "--task", f"{folder / 'task.py'}:make_task")


def test_killed_on_files_of_data(folder: Path, tmp_path: Path) -> None:
    how = ("--batch-size", 4, "--shuffle", "--seed", 5, "--estimator", "sampled")
    killed_and_resumed(tmp_path, "fisher", folder / "bert", "--data", folder / "rows.jsonl", *how)


@pytest.mark.parametrize(("kind", "method"), [("fisher", "fisher"), ("gram", "regmean")])
def test_measured_and_merged_by_the_command_as_from_python(
    folder: Path, tmp_path: Path, kind: str, method: str
) -> None:
    measured = {"fisher": measure_fisher, "gram": measure_gram}[kind]
    models = [folder / "bert", folder / "other"]
    files: dict[str, list[Path]] = {}
    for n, model in enumerate(models):
        files.setdefault("cli", []).append(tmp_path / f"cli-{n}.safetensors")
        files.setdefault("python", []).append(tmp_path / f"python-{n}.safetensors")
        words = (kind, model, "--data", folder / "rows.jsonl", "-q", "-o", files["cli"][-1])
        assert measure(*words).code == 0
        with Checkpoint.open(model) as checkpoint:
            task = transformers_task(model, [folder / "rows.jsonl"], labels=False)
            measured(task, checkpoint, files["python"][-1])
    statistics = [word for file in files["cli"] for word in ("--statistics", file)]
    done = merge_command(*models, *statistics, "--method", method, "-o", tmp_path / "cli")
    assert done.code == 0, done
    merge(models, tmp_path / "python", method=method, statistics=files["python"], compile="never")
    found = [load_file(tmp_path / name / "model.safetensors") for name in ("cli", "python")]
    assert set(found[0]) == set(load_file(models[0] / "model.safetensors"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("cli", "python"))
    assert first == second


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("raises", 1, "raised RuntimeError: no such network"),
        ("nan", 1, ""),
        ("outside", 2, "the label 3 is outside the model's 3 classes"),
        ("empty", 2, "the data is empty"),
        ("several", 2, "gave 2 tasks"),
        ("missing", 2, "has no function 'missing'"),
    ],
)
def test_tasks_that_fail_leave_nothing(folder: Path, tmp_path: Path, name: str, code: int, told: str) -> None:
    words = ("--task", f"{folder / 'task.py'}:{name}", "--estimator", "empirical", "-o", tmp_path / "f.safetensors")
    failed(measure("fisher", folder / "net.safetensors", *words), code, told)
    assert not os.listdir(tmp_path)


def test_data_that_cannot_be_used_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "in"
    data.mkdir()
    one = write_rows(data / "one.jsonl", [{"text": "a cat", "label": "pos"}] * 3)
    outside = write_rows(data / "outside.jsonl", [{"text": "a cat", "label": n} for n in (0, 1, 2)])
    torn = data / "torn.csv"
    torn.write_text("text,label\na,1,2\n")
    out = tmp_path / "out"
    out.mkdir()
    common = ("fisher", folder / "bert", "-o", out / "f.safetensors", "--estimator", "empirical", "--data")
    failed(measure(*common, one), 2, "all examples have the label 'pos'")
    failed(measure(*common, outside), 2, f"{outside}: line 3: 2 is none of the model's 2 classes")
    failed(measure(*common, torn), 2, f"{torn}: line 2 has 3 fields")
    failed(measure(*common, data / "none.jsonl"), 2, "does not exist")
    failed(measure(*common, folder / "rows.jsonl", "--limit", 25), 2, "25 examples are asked for, the data has 24")
    failed(measure(*common, folder / "rows.jsonl", "--label", "lable"), 2, "has no column 'lable'")
    failed(measure(*common, folder / "rows.jsonl", "--include", "nothing"), 2, "nothing")
    told = measure(*common, one, "--json")
    error = json.loads(told.out)["error"]
    assert (told.code, told.err, error["exit_code"]) == (2, "", 2)
    assert not os.listdir(out)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no data given"),
        (["--data", "a.jsonl", "--task", "b.py:c"], "both --data and --task are given"),
        (["--task", "b.py"], "'b.py' is no task"),
        (["--data", "a.jsonl", "--memory", "much"], "'much' is no size"),
        (["--data", "a.jsonl", "--device", "tpu"], "no device is called 'tpu'"),
        (["--data", "a.jsonl", "--kind", "bert"], "'bert' is not one of"),
        (["--data", "a.jsonl", "--limit", "0"], "0 is not in the range"),
        (["--data", "a.jsonl", "-o", "f.bin"], "f.bin: statistics are a .safetensors file"),
    ],
)
def test_invocations_that_are_wrong(folder: Path, tmp_path: Path, words: list[str], told: str) -> None:
    output = [] if "-o" in words else ["-o", tmp_path / "f.safetensors"]
    failed(measure("fisher", folder / "net.safetensors", *output, *words), 2, told)
    assert not os.listdir(tmp_path)


def test_unknown_kinds_and_models(folder: Path, tmp_path: Path) -> None:
    done = measure("fsher", folder / "bert")
    assert (done.code, done.err) == (2, 'error: unknown command "fsher"\nhint: did you mean "fisher"?\n')
    failed(measure("gram", folder / "bert"), 2, "no data given")
    failed(measure("gram", folder / "bert", "--data", "x.txt"), 2, "no output given")
    output = tmp_path / "g.safetensors"
    failed(measure("gram", folder / "none", "--data", folder / "rows.txt", "-o", output), 2, "none")
    weights = folder / "net.safetensors"
    failed(measure("gram", weights, "--data", folder / "rows.txt", "-o", output), 2, "config.json is needed")
    gone = tmp_path / "no" / "g.safetensors"
    failed(measure("gram", folder / "llama", "--data", folder / "rows.txt", "-o", gone), 2, "is not an existing folder")
    assert not os.listdir(tmp_path)


def test_text_from_inputs_is_harmless(folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [{"text": "a", "label": "\x1b[31m"}])
    words = ("fisher", folder / "bert", "--estimator", "empirical", "-o", tmp_path / "f.safetensors", "--data", data)
    done = measure(*words)
    assert done.code == 2
    assert_clean(done)


def test_sequential_writes_what_python_writes(folder: Path, tmp_path: Path) -> None:
    net = load_file(folder / "net.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in net.items()}, tmp_path / "two.safetensors")
    models = [folder / "net.safetensors", tmp_path / "two.safetensors"]
    words = (*models, "--task", f"{folder / 'task.py'}:make_task", "--weight", "1,3", "-q", "-o", tmp_path / "grams")
    done = measure("sequential", *words)
    assert done.code == 0, done.err
    made = [tmp_path / "grams" / name for name in ("1-net.safetensors", "2-two.safetensors")]
    again = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    tasks = [load_tasks(f"{folder / 'task.py'}:make_task", str(model))[0] for model in models]
    with Checkpoint.open(models[0]) as one, Checkpoint.open(models[1]) as two:
        measure_sequential_grams(tasks, [one, two], again, weight=[1, 3])
    assert [file.read_bytes() for file in made] == [file.read_bytes() for file in again]
    merge(models, tmp_path / "m.safetensors", method="regmean", statistics=made, weight=[1, 3])
    failed(measure("sequential", *words), 3, "already exists")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "a.jsonl"], "1 data files for 2 models"),
        (["--task", "task.py:make_task", "--weight", "1,x"], "not all of these are numbers"),
        (["--task", "task.py:make_task", "--memory", "1GB"], "--memory has no effect here"),
        ([], "no data given"),
    ],
)
def test_sequential_refuses(folder: Path, tmp_path: Path, words: list[str], said: str) -> None:
    model = folder / "net.safetensors"
    failed(measure("sequential", model, folder / "llama", *words, "-o", tmp_path / "grams"), 2, said)
    assert not list(tmp_path.iterdir())
