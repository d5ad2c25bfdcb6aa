"""`paramsmith learn`: the same files as from Python, killed or not, that a merge takes; what it refuses and says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from paramsmith.checkpoint import Checkpoint
from paramsmith.cli import learn_gradient, learn_scored
from paramsmith.cli.app import cli
from paramsmith.coefficients import Coefficients
from paramsmith.merge.learn import atlas as atlas_module
from paramsmith.merge.learn import learn_adamerging, learn_atlas, objectives
from paramsmith.merge.learn.btm import learn_btm
from paramsmith.merge.learn.evaluation import Metric
from paramsmith.merge.learn.search import StrategyName, search
from paramsmith.merge.learn.soup import SoupStrategy, soup
from paramsmith.merge.pretrained.task import transformers_task
from paramsmith.merge.task import Task, load_tasks
from tests.merge.folders import START, Done, assert_clean, failed, leftovers, start
from tests.merge.folders import merge as merge_command
from tests.merge.pretrained.folders import bert, llama, sentences, write_rows

TASK = """
import torch
from safetensors.torch import load_file
from paramsmith.merge.task import ModelTask

def made(checkpoint, seed):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    model.load_state_dict(load_file(checkpoint))
    inputs = torch.randn(24, 4, generator=torch.Generator().manual_seed(seed))
    data = [{"x": inputs[i:i + 8], "labels": (inputs[i:i + 8, :3] * (1 + seed)).argmax(1)} for i in (0, 8, 16)]
    return ModelTask(model, lambda: data, lambda model, batch: model(batch["x"]))

def task(checkpoint):
    return made(checkpoint, 1)

def tasks(checkpoint):
    return [made(checkpoint, 1), made(checkpoint, 2)]

def control(checkpoint):
    return made(checkpoint, 3)

def raises(checkpoint):
    raise RuntimeError("no such network")

def nan(checkpoint):
    good = task(checkpoint)
    return ModelTask(good.model, good.data, lambda model, batch: model(batch["x"]) * float("nan"))

def score(model):
    return -abs(float(model["0.bias"].sum()) - 0.3)
"""
# Saves after every step, and ends as by kill -9 after the third.
KILLED = """
import os, signal, torch
from paramsmith.resumable import Resumable
torch.set_num_threads(1)
Resumable.due = lambda self: True
save, saved = Resumable.save, []
def saving(self, *state):
    save(self, *state)
    saved.append(1)
    if len(saved) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
Resumable.save = saving
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def nets(tmp_path: Path) -> list[Path]:
    """A base and three models, as files, and beside them code.py."""
    (tmp_path / "code.py").write_text(TASK)
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b", "c")]
    for seed, path in enumerate(paths):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        save_file(net.state_dict(), path)
    return paths


@pytest.fixture(scope="module")
def berts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("berts")
    for seed, rows in enumerate((sentences(12), sentences(12, 1))):
        write_rows(folder / f"{seed}.jsonl", rows)
    return [bert(folder / name, seed) for seed, name in enumerate(("base", "a", "b"))]


def learn(*words: object) -> Done:
    done = CliRunner().invoke(cli, ["learn", *map(str, words)])
    return Done(done.exit_code, done.stdout, done.stderr)


def learned(*words: object) -> Done:
    done = learn(*words)
    assert done.code == 0, done.err
    assert_clean(done)
    return done


def code(nets: Sequence[Path], name: str) -> str:
    return f"{nets[0].parent / 'code.py'}:{name}"


def test_help_comes_without_torch() -> None:
    words = [[], *([name] for name in ("atlas", "adamerging", "soup", "search", "btm"))]
    program = f"""
import sys
from paramsmith.cli.app import main
for words in {words!r}:
    sys.argv = ["paramsmith", "learn", *words, "--help"]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code
print([name for name in ("torch", "scipy", "numpy", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert learn().code == 0
    failed(learn("atlass"), 2, 'unknown command "atlass"')


def test_choices_are_those_of_the_library() -> None:
    assert get_args(SoupStrategy) == learn_scored.SOUPS
    assert get_args(StrategyName) == learn_scored.STRATEGIES
    assert get_args(Metric) == learn_scored.METRICS
    assert set(get_args(atlas_module.PresetName)) == set(learn_gradient.PRESETS)
    assert get_args(objectives.Name) == learn_gradient.OBJECTIVES
    assert {"adapt"} | {"entropy", "ufm"} == learn_gradient.UNLABELLED


def test_atlas(nets: list[Path]) -> None:
    """The same bytes as from Python, and a merge takes them."""
    base, *models = nets
    here = base.parent
    told = learned(
        "atlas",
        *models,
        "--base",
        base,
        "--task",
        code(nets, "tasks"),
        "--epochs",
        2,
        "--lr",
        0.1,
        "-o",
        here / "c.json",
    )
    assert told.out.startswith(f"{here / 'c.json'}: coefficients of 3 models after 6 steps")
    with ExitStack() as stack:
        opened, *held = (stack.enter_context(Checkpoint.open(path)) for path in nets)
        tasks = load_tasks(code(nets, "tasks"), str(base))
        learn_atlas(tasks, opened, held, here / "p.json", epochs=2, lr=0.1)
    assert (here / "c.json").read_bytes() == (here / "p.json").read_bytes()
    done = merge_command(*models, "--base", base, "--coefficients", here / "c.json", "-o", here / "m.safetensors")
    assert done.code == 0, done.err
    before, after = load_file(base), load_file(here / "m.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_atlas_with_control_validation_and_partitions(nets: list[Path]) -> None:
    base, *models = nets
    out = base.parent / "packed.safetensors"
    words = ["atlas", *models, "--base", base, "--task", code(nets, "task"), "--preset", "negation", "-o", out]
    words += ["--control", code(nets, "control"), "--epochs", 1, "--partitions", 2, "--budget", 2, "--json"]
    document = json.loads(learned(*words).out)
    assert document["output"] == str(out)
    assert len(document["scores"]) == 2
    found = Coefficients.load(out)
    assert (found.method, found.parameters, found.learned["objective"]) == ("atlas", {"partitions": 2}, "negation")
    words = ["atlas", *models, "--base", base, "--task", code(nets, "task"), "--objective", "entropy", "--steps", 2]
    words += ["--validation", code(nets, "control"), "--reference", 0.5, "--isotropic", "-o", base.parent / "i.json"]
    learned(*words)
    values = Coefficients.load(base.parent / "i.json").values
    assert len(set(values.values())) == 1
    failed(learn(*words[:-1], base.parent / "n.json", "--control", code(nets, "tasks")), 2, "gave 2 tasks")


def test_killed_it_goes_on_and_gives_the_same(nets: list[Path]) -> None:
    base, *models = nets
    words = ["learn", "atlas", *models, "--base", base, "--task", code(nets, "task"), "--epochs", 3, "-q", "-o"]
    cut, whole = base.parent / "cut.json", base.parent / "whole.json"
    process = start(*words, cut, before=KILLED)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not cut.exists()
    assert leftovers(base.parent) == [".cut.json.partial"]
    for path in (cut, whole):
        learned(*words[1:], path)
    assert cut.read_bytes() == whole.read_bytes()
    assert leftovers(base.parent) == []


def test_adamerging_with_the_heads_of_the_models(berts: list[Path], tmp_path: Path) -> None:
    """Each task runs with the classifier of its own model, which is left out of the merge."""
    base, *models = berts
    data = [base.parent / "0.jsonl", base.parent / "1.jsonl"]
    words = ["adamerging", *models, "--base", base, "--data", data[0], "--data", data[1], "--heads", "models"]
    words += ["--exclude", "classifier", "--steps", 2, "--batch-size", 4, "--plus-plus", "-o", tmp_path / "c.json"]
    learned(*words)
    with Checkpoint.open(base) as opened, Checkpoint.open(models[0]) as a, Checkpoint.open(models[1]) as b:
        tasks = [transformers_task(m, [d], batch_size=4, labels=False) for m, d in zip(models, data, strict=True)]
        how = {"plus_plus": True, "steps": 2, "exclude": ("classifier",)}
        learn_adamerging(tasks, opened, [a, b], tmp_path / "p.json", **how)  # type: ignore[arg-type]
    assert (tmp_path / "c.json").read_bytes() == (tmp_path / "p.json").read_bytes()
    words[words.index(data[1]) - 1 : words.index(data[1]) + 1] = []
    failed(learn(*words, "--force"), 2, "1 tasks are given for the heads of 2 models")


def test_search_by_a_function_and_by_a_command(nets: list[Path]) -> None:
    base, *models = nets
    here = base.parent
    words = ["search", *models, "--base", base, "--method", "ties", "--parameter", "density=0.5", "--budget", 5]
    by_function = learned(*words, "--evaluate", code(nets, "score"), "-o", here / "c.json")
    how = {"method": "ties", "parameters": {"density": 0.5}, "budget": 5}
    report = search(models, base, here / "p.json", evaluate=code(nets, "score"), **how)  # type: ignore[arg-type]
    assert (here / "c.json").read_bytes() == (here / "p.json").read_bytes()
    told = f"{here / 'c.json'}: lambda {report.values[0]:.6g}, score {report.score:.6g}, 5 trials\n"
    assert by_function.out == told
    command = "test -f {model} && echo 0.25"
    document = json.loads(learned(*words, "--evaluate", command, "-o", here / "d.json", "--json").out)
    assert (document["score"], document["trials"], document["values"]) == (0.25, 5, [1.0])
    merged = merge_command(*models, "--base", base, "--coefficients", here / "c.json", "-o", here / "m.safetensors")
    assert merged.code == 0, merged.err
    assert -abs(float(load_file(here / "m.safetensors")["0.bias"].sum()) - 0.3) == pytest.approx(report.score, abs=1e-6)


def test_search_by_tasks_resumes_from_its_log(nets: list[Path]) -> None:
    base, *models = nets
    here = base.parent
    words = [
        "search",
        *models,
        "--base",
        base,
        "--over",
        "weight",
        "--strategy",
        "evolution",
        "--bounds",
        "-0.5",
        "1.5",
    ]
    words += ["--budget", 12, "--seed", 4, "--task", code(nets, "tasks"), "-o", here / "c.json", "--json"]
    first = json.loads(learned(*words).out)
    assert (first["trials"], first["resumed"]) == (12, 0)
    content = (here / "c.json").read_bytes()
    (here / "c.json").unlink()
    assert json.loads(learned(*words).out)["resumed"] == 12
    assert (here / "c.json").read_bytes() == content
    (here / "c.json").unlink()
    failed(learn(*[w for w in words if w != "--json"], "--metric", "loss"), 3, "another search")
    (here / "code.py").write_text(TASK.replace("(1 + seed)", "(2 + seed)"))
    failed(learn(*[w for w in words if w != "--json"]), 3, "another search")


def test_soup_of_classifiers(berts: list[Path], tmp_path: Path) -> None:
    data = ["--data", berts[0].parent / "0.jsonl", "--data", berts[0].parent / "1.jsonl"]
    told = learned("soup", *berts, *data, "--metric", "loss", "-o", tmp_path / "s.json")
    lines = [json.loads(line) for line in (tmp_path / "s.json.trials.jsonl").read_text().splitlines()]
    assert told.out.startswith(f"{tmp_path / 's.json'}: ")

    def score(model: Path) -> float:
        return minus_loss([transformers_task(model, [file]) for file in data[1::2]])  # type: ignore[list-item]

    assert [t["score"] for t in lines[:3]] == pytest.approx([score(path) for path in berts], rel=1e-5)
    done = merge_command(*berts, "--coefficients", tmp_path / "s.json", "-o", tmp_path / "m")
    assert done.code == 0, done.err
    best = max(line["score"] for line in lines if "score" in line)
    assert score(tmp_path / "m") == pytest.approx(best, rel=1e-4)
    accuracy = json.loads(learned("soup", *berts, *data, "-o", tmp_path / "a.json", "--json").out)
    assert all(24 * score == pytest.approx(round(24 * score)) for score in accuracy["scores"])
    uniform = learned("soup", *berts, "--strategy", "uniform", "-o", tmp_path / "u.json")
    assert "3 of 3 models: " in uniform.out
    in_python = soup(berts, tmp_path / "p.json", strategy="uniform")
    assert (tmp_path / "u.json").read_bytes() == (tmp_path / "p.json").read_bytes()
    assert in_python.pool == (0, 1, 2)


def minus_loss(tasks: Sequence[Task]) -> float:
    """The mean over the tasks of minus the mean cross-entropy."""
    total = 0.0
    for task in tasks:
        pairs = [(task.outputs(task.model.eval(), batch).detach(), batch["labels"]) for batch in task.batches()]
        outputs, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        total -= float(torch.nn.functional.cross_entropy(outputs, labels))
    return total / len(tasks)


def test_btm_of_language_models(tmp_path: Path) -> None:
    models = [llama(tmp_path / name, seed) for seed, name in enumerate("abc")]
    text = write_rows(tmp_path / "text.txt", sentences(10))
    told = learned("btm", *models, "--data", text, "--limit", 8, "-o", tmp_path / "c.json", "--json")
    document = json.loads(told.out)
    assert document["blocks"] == 8
    assert sum(document["weights"]) == pytest.approx(1)
    report = learn_btm((transformers_task(m, [text]) for m in models), models, tmp_path / "p.json", limit=8)
    assert report.weights == pytest.approx(document["weights"])
    done = merge_command(*models, "--coefficients", tmp_path / "c.json", "-o", tmp_path / "m")
    assert done.code == 0, done.err
    out = learned("btm", *models, "--prior", "uniform", "--top-k", 2, "-o", tmp_path / "u.json").out
    assert "weights 0.5000, 0.5000, 0.0000" in out
    failed(learn("btm", *models, "-o", tmp_path / "n.json"), 2, "no data given")


WRONG = {
    "no output": (2, ["search", "A", "--base", "BASE", "--evaluate", "SCORE"], "no output given"),
    "nothing to score by": (2, ["search", "A", "--base", "BASE", "-o", "OUT"], "nothing to score a model by"),
    "two things to score by": (
        2,
        ["search", "A", "--base", "BASE", "-o", "OUT", "--evaluate", "SCORE", "--task", "TASK"],
        "both --evaluate and data",
    ),
    "a command that fails": (1, ["soup", "A", "B", "-o", "OUT", "--evaluate", "exit 3; {model}"], "ended with 3"),
    "a command that prints words": (1, ["soup", "A", "-o", "OUT", "--evaluate", "echo good {model}"], "is no score"),
    "budget": (
        2,
        ["search", "A", "--base", "BASE", "-o", "OUT", "--evaluate", "SCORE", "--budget", "0"],
        "a budget of 0",
    ),
    "parameter": (
        2,
        ["search", "A", "--base", "BASE", "-o", "OUT", "--evaluate", "SCORE", "--parameter", "density"],
        "'density' is no parameter",
    ),
    "the same parameter": (
        2,
        ["search", "A", "--base", "BASE", "-o", "OUT", "--evaluate", "SCORE", *["--parameter", "normalize=true"] * 2],
        "normalize is given twice",
    ),
    "no base": (2, ["atlas", "A", "-o", "OUT", "--task", "TASK"], "atlas needs the base"),
    "no data": (2, ["adamerging", "A", "--base", "BASE", "-o", "OUT"], "no data given"),
    "memory": (
        2,
        ["atlas", "A", "--base", "BASE", "-o", "OUT", "--task", "TASK", "--memory", "1GB"],
        "the memory of a learner",
    ),
    "limit": (2, ["soup", "A", "-o", "OUT", "--task", "TASK", "--limit", "3"], "--limit goes with --data"),
    "a task that raises": (1, ["atlas", "A", "--base", "BASE", "-o", "OUT", "--task", "RAISES"], "no such network"),
    "a task that raises for a score": (1, ["soup", "A", "-o", "OUT", "--task", "RAISES"], "no such network"),
    "a loss that is not finite": (
        1,
        ["atlas", "A", "--base", "BASE", "-o", "OUT", "--task", "NAN", "--steps", "2"],
        "the loss is nan",
    ),
    "no such data": (2, ["soup", "A", "-o", "OUT", "--data", "none.jsonl"], "does not exist"),
    "no such model": (2, ["search", "none", "--base", "BASE", "-o", "OUT", "--evaluate", "SCORE"], "none"),
    "an output that stands": (3, ["soup", "A", "-o", "B", "--strategy", "uniform"], "already exists"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_leaves_nothing(nets: list[Path], name: str) -> None:
    exit_code, words, said = WRONG[name]
    named = {"BASE": nets[0], "A": nets[1], "B": nets[2], "OUT": nets[0].parent / "out.json"}
    named |= {word: code(nets, word.lower()) for word in ("SCORE", "TASK", "RAISES", "NAN")}  # type: ignore[dict-item]
    before = {path: path.read_bytes() for path in nets[0].parent.iterdir() if path.is_file()}
    failed(learn(*(named.get(word, word) for word in words)), exit_code, said)
    after = {path: path.read_bytes() for path in nets[0].parent.iterdir() if path.is_file()}
    assert after == before
    assert leftovers(nets[0].parent) == []


@pytest.mark.parametrize("name", ["a.safetensors", "base.safetensors", "code.py", "link.safetensors"])
def test_an_input_is_never_replaced(nets: list[Path], name: str) -> None:
    output = nets[0].with_name(name)
    if name.startswith("link"):
        output.hardlink_to(nets[1])
    before = output.read_bytes()
    task = f"{nets[0].with_name('code.py')}:task"
    words = ["learn", "atlas", *map(str, nets[1:3]), "--base", str(nets[0]), "--task", task, "-o", str(output)]
    done = CliRunner().invoke(cli, [*words, "--force"])
    assert done.exit_code == 2
    assert "is an input" in done.output
    assert output.read_bytes() == before


def test_interrupted_it_says_how_to_go_on(nets: list[Path]) -> None:
    """Ctrl-C between two trials; the closing line of the error tells that nothing is lost."""
    script = nets[0].parent / "stop.py"
    script.write_text("def fn(model):\n    raise KeyboardInterrupt\n")
    words = [
        "learn",
        "search",
        nets[1],
        "--base",
        nets[0],
        "--evaluate",
        f"{script}:fn",
        "-o",
        nets[0].parent / "c.json",
    ]
    done = subprocess.run([sys.executable, "-c", START, *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert "the same command goes on from here" in done.stderr
