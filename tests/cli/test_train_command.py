"""`paramsmith train`: the same generator as from Python, killed or not; what it refuses, and what it says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from paramsmith.cli.app import cli
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.training.course import Course
from paramsmith.hypernet.training.learning import train
from paramsmith.hypernet.training.tasks import load_task
from paramsmith.hypernet.vocabulary.train import train_hyperofa
from paramsmith.hypernet.zoos.zoo import Zoo
from tests.hypernet import new_vocabulary
from tests.merge.folders import Done, assert_clean, contents, failed, leftovers, start

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = """
import torch
from torch import nn
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.training.family import family
from paramsmith.hypernet.training.hyperparameters import Hyperparameter
from paramsmith.hypernet.protocols import Episode
from paramsmith.hypernet.training.tasks import Classification, FunctionTask

rng = torch.Generator().manual_seed(0)
X = torch.randn(30, 4, generator=rng)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

def number():
    return Classification(
        Target.of(net, X[:1]), X, Y, X, Y, batch=8,
        condition=lambda rng: {"vector": torch.rand(1, generator=rng)}, change=lambda x, c: x * c["vector"])

def plain():
    return Classification(Target.of(net, X[:1]), X, Y, X, Y, batch=8)

def several():
    pool = family("mlp", inputs=4, classes=3, layers=(1, 1), widths=(5, 8), count=2, test_count=1)
    return Classification(pool, X, Y, X, Y, batch=8)

def nan():
    good = plain()
    return FunctionTask(good.episode, lambda run, batch: good.loss(run, batch) * float("nan"))

class Noisy(Classification):
    hyperparameters = {"noise": Hyperparameter(0.5, 0, 1)}

    def loss(self, run, batch):
        noise = batch.get("noise", torch.zeros(()))
        return super().loss(run, {"x": batch["x"] * (1 + noise), "y": batch["y"]})

def tuned():
    return Noisy(Target.of(net, X[:1]), X, Y, X, Y, batch=8)

def raises():
    raise RuntimeError("no data")
"""
# Saves after every step, and ends as by kill -9 after the third.
KILLED = """
import os, signal, torch
from paramsmith.resumable import Resumable
import paramsmith.hypernet.training.loop as training
torch.set_num_threads(1)
training.SAVING = float("inf")
Resumable.due = lambda self: True
save, saved = Resumable.save, []
def saving(self, *state):
    save(self, *state)
    saved.append(1)
    if len(saved) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
Resumable.save = saving
"""
TENSORS = "hypernetwork/diffusion_pytorch_model.safetensors"
INDEX = "model_index.json"  # says how long the training took


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def run(*words: object) -> Done:
    done = CliRunner().invoke(cli, list(map(str, words)))
    return Done(done.exit_code, done.stdout, done.stderr)


def trained(*words: object) -> Done:
    done = run("train", *words)
    assert done.code == 0, done.err
    assert_clean(done)
    return done


def test_help_comes_without_torch() -> None:
    program = """
import sys
from paramsmith.cli.app import main
sys.argv = ["paramsmith", "train", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print([name for name in ("torch", "scipy", "numpy", "diffusers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    for name, field in Course.model_fields.items():
        assert f"--{name.replace('_', '-')} " in done.stdout
        assert str(field.description).split()[0].lower() in done.stdout.lower()


def test_it_is_the_same_from_python(here: Path) -> None:
    """The generator that is saved, and all that is told of it."""
    words = ["mip", "--tasks", here / "tasks.py:number", "--steps", 12, "--lr", 0.02, "--ema", 0.5, "--seed", 3]
    words += ["-p", "hidden=4,8", "-p", "meta-batch=3", "--log-every", 5]
    told = trained(*words, "-o", here / "a")
    assert told.out.startswith(f"{here / 'a'}: mip, ")
    assert " parameters, 12 steps in " in told.out
    task = load_task(f"{here / 'tasks.py'}:number")
    course = {"steps": 12, "lr": 0.02, "ema": 0.5, "seed": 3, "log_every": 5}
    found = train("mip", task, here / "b", options={"hidden": (4, 8), "meta_batch": 3}, course=course)
    a, b = contents(here / "a"), contents(here / "b")
    assert set(a) == set(b) == {"README.md", INDEX, "metrics.jsonl", "hypernetwork/config.json", TENSORS}
    assert all(a[name] == b[name] for name in a if name not in (INDEX, "README.md"))
    assert b"# `a`" in a["README.md"]
    assert b"# `b`" in b["README.md"]
    assert found.fit.steps == 12
    assert found.course.optimizer == "adam"  # the preset's
    assert [json.loads(line)["step"] for line in a["metrics.jsonl"].splitlines()] == [5, 10, 12]
    assert leftovers(here) == []
    generator = Generator.from_pretrained(here / "a")
    assert generator.seconds == json.loads(a[INDEX])["seconds"] > 0
    assert generator.preset is not None
    assert generator.preset[0] == "mip"


def test_what_was_trained_generates(here: Path) -> None:
    trained("mip", "--tasks", here / "tasks.py:number", "--steps", 3, "-p", "hidden=4", "-o", here / "gen", "-q")
    done = run("generate", here / "gen", "--task", "vector=0.5", "-o", here / "out.safetensors")
    assert done.code == 0, done.err
    held = load_file(here / "out.safetensors")
    assert {name: tuple(t.shape) for name, t in held.items()} == {
        "0.weight": (5, 4),
        "0.bias": (5,),
        "2.weight": (3, 5),
        "2.bias": (3,),
    }


def test_killed_it_goes_on_and_gives_the_same(here: Path) -> None:
    words = ["train", "mip", "--tasks", here / "tasks.py:number", "--steps", 7, "-p", "hidden=4", "--log-every", 2]
    words += ["--ema", 0.9, "--schedule", "cosine", "--warmup", 2, "-q", "-o"]
    cut, whole = here / "cut", here / "whole"
    process = start(*words, cut, before=KILLED)
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert not cut.exists()
    assert leftovers(here) == [".cut.partial"]
    assert (here / ".cut.partial" / "metrics.jsonl").read_text().count("\n") == 1
    begun = load_file(here / ".cut.partial" / "state.safetensors")
    assert len(begun["losses"]) == 3
    for path in (cut, whole):
        trained(*words[1:], path)
    a, b = contents(cut), contents(whole)
    for name in (TENSORS, "metrics.jsonl", "hypernetwork/config.json"):
        assert a[name] == b[name], name
    steps = [json.loads(line)["step"] for line in a["metrics.jsonl"].splitlines()]
    assert steps == [2, 4, 6, 7]
    assert leftovers(here) == []


def test_another_training_starts_over(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted, what is done is kept for the same command only: the same task, seed, options."""
    from paramsmith.resumable import Resumable

    words = ["mip", "--tasks", here / "tasks.py:number", "--steps", 6, "-p", "hidden=4", "-q", "-o", here / "gen"]
    save = Resumable.save

    def saving(self: Resumable, *state: object) -> None:
        save(self, *state)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    def interrupted(*others: object) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(Resumable, "due", lambda self: True)
            patch.setattr(Resumable, "save", saving)
            patch.setattr("paramsmith.hypernet.training.loop.SAVING", float("inf"))
            done = run("train", *words, *others)
        assert done.code == 130, done.err
        assert "the same command goes on from here" in done.err
        return len(load_file(here / ".gen.partial" / "state.safetensors")["losses"])

    assert [interrupted(), interrupted(), interrupted("--seed", 1)] == [1, 2, 1]
    assert interrupted("--seed", 1, "--log-every", 3) == 2  # which changes nothing that is learned
    (here / "tasks.py").write_text(TASKS.replace('x * c["vector"]', 'x + c["vector"]'))
    assert interrupted("--seed", 1) == 1
    trained(*words)
    assert leftovers(here) == []


def test_a_zoo(here: Path) -> None:
    (here / "zoo").mkdir()
    for i in range(3):
        rng = torch.Generator().manual_seed(i)
        held = {"0.weight": torch.randn(3, 4, generator=rng), "0.bias": torch.randn(3, generator=rng)}
        save_file(held, here / "zoo" / f"{i}.safetensors")
    lines = [json.dumps({"path": f"{i}.safetensors", "condition": [i / 2]}) for i in range(3)]
    (here / "zoo" / "zoo.jsonl").write_text("\n".join(lines))
    words = ["mip", "--zoo", here / "zoo", "--steps", 4, "-p", "hidden=4", "-p", "meta_batch=2", "-o", here / "gen"]
    document = json.loads(trained(*words, "--json").out)
    assert document["steps"] == 4
    assert document["generator"] == "mip"
    assert document["course"]["lr"] == 1e-3
    assert Generator.from_pretrained(here / "gen").hypernetwork.spec == Zoo.open(here / "zoo").site.spec


def test_a_zoo_for_a_generator_that_goes_by_graphs(here: Path) -> None:
    """--like knows the graph; what is said of it is said once, as a warning."""
    (here / "zoo").mkdir()
    (here / "net.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(4, 3))\n")
    for i in range(2):
        save_file({"0.weight": torch.ones(3, 4) * i, "0.bias": torch.ones(3)}, here / "zoo" / f"{i}.safetensors")
    words = ["logah", "--zoo", here / "zoo", "--steps", 2, "-o", here / "gen"]
    words += [word for option in PRESETS["logah"][1] for word in ("-p", option)]
    failed(run("train", *words), 2, "the target has no graph")
    told = trained(*words, "--like", f"{here / 'net.py'}:net").err
    assert told.count("warning: ") == 1
    assert "a chain" in told


PRESETS = {
    "maml": ("plain", ["meta_batch=2"]),
    "reptile": ("plain", ["meta_batch=2", "steps=2"]),
    "doh": ("plain", ["latents=5"]),
    "logah": ("several", ["width=8", "layers=1", "heads=2", "rank=2", "K=32", "meta_batch=3"]),
    "ghn3": ("several", ["width=8", "layers=1", "heads=2", "classes=3", "kernel=1", "meta_batch=3"]),
}


@pytest.mark.parametrize(("preset", "task", "options"), [(p, *rest) for p, rest in PRESETS.items()], ids=PRESETS)
def test_presets(here: Path, preset: str, task: str, options: list[str]) -> None:
    pairs = [word for option in options for word in ("-p", option)]
    trained(preset, "--tasks", here / f"tasks.py:{task}", "--steps", 2, *pairs, "-o", here / "gen")
    assert Generator.from_pretrained(here / "gen").preset is not None


def test_embeddings_by_word_vectors(here: Path) -> None:
    """The words and the model, instead of tasks; cheap baselines that do as well are told of."""
    (here / "source").mkdir()
    source = new_vocabulary.source(here / "source")
    vectors, _ = new_vocabulary.words(here)
    words = ["hyperofa", "--words", vectors, "--like", source, "--steps", 3, "-p", "hidden=16", "-o", here / "gen"]
    assert "on tokens kept apart: cosine" in trained(*words).err
    made = train_hyperofa(source, vectors, course={"steps": 3}, options={"hidden": 16})
    held = Generator.from_pretrained(here / "gen").hypernetwork.state_dict()
    assert all(torch.equal(tensor, held[name]) for name, tensor in made.generator.hypernetwork.state_dict().items())
    failed(run("train", "mip", *words[1:-1], here / "other"), 2, "mip does not learn from word vectors")


def test_what_an_objective_found_is_told(here: Path) -> None:
    words = ["stn", "--tasks", here / "tasks.py:tuned", "--steps", 6, "-p", "draws=2", "-o", here / "gen"]
    told = trained(*words).out
    found = json.loads((here / "gen" / "result.json").read_text())
    assert 0 < found["values"]["noise"] < 1
    assert f"values: {json.dumps(found['values'])}" in told
    document = json.loads(trained(*words, "--force", "--json").out)
    assert document["result"] == found


def test_losses_that_are_not_finite(here: Path) -> None:
    words = ["maml", "--tasks", here / "tasks.py:nan", "--steps", 30, "--max-bad", 4, "-o", here / "gen"]
    failed(run("train", *words), 1, "not finite in 4 steps in a row, up to step 4")
    assert not (here / "gen").exists()
    assert leftovers(here) == []


def test_an_existing_output(here: Path) -> None:
    """Stays, unless it may be replaced; and what is no generator stays in any case."""
    words = ["maml", "--tasks", here / "tasks.py:plain", "--steps", 1, "-q", "-o"]
    trained(*words, here / "gen")
    before = contents(here / "gen")
    failed(run("train", *words, here / "gen"), 3, "already exists")
    assert contents(here / "gen") == before
    trained(*words, here / "gen", "--force", "--seed", 1)
    assert contents(here / "gen")[TENSORS] != before[TENSORS]
    (here / "papers").mkdir()
    (here / "papers" / "thesis.txt").write_text("years")
    failed(run("train", *words, here / "papers", "--force"), 3, "holds no model")
    assert (here / "papers" / "thesis.txt").exists()


WRONG = {
    "no output": (2, ["mip", "--tasks", "TASKS:number"], "no output given"),
    "nothing to learn from": (2, ["mip", "-o", "OUT"], "there is nothing to learn from"),
    "two things": (2, ["mip", "--words", "HERE/w.vec", "--zoo", "HERE", "-o", "OUT"], "--zoo and --words are given"),
    "like": (2, ["mip", "--tasks", "TASKS:number", "--like", "HERE", "-o", "OUT"], "--like goes with --zoo"),
    "words of nothing": (2, ["hyperofa", "--words", "TASKS", "-o", "OUT"], "--words needs the model"),
    "no such preset": (2, ["mpi", "--tasks", "TASKS:number", "-o", "OUT"], "no generator is called 'mpi'"),
    "no such task": (2, ["mip", "--tasks", "TASKS:numbr", "-o", "OUT"], "has no function 'numbr'"),
    "a task that raises": (1, ["mip", "--tasks", "TASKS:raises", "-o", "OUT"], "raised RuntimeError: no data"),
    "no such option": (2, ["mip", "--tasks", "TASKS:number", "-p", "hiden=3", "-o", "OUT"], "no parameter hiden"),
    "the target's": (2, ["mip", "--tasks", "TASKS:number", "-p", "spec=3", "-o", "OUT"], "no parameter spec"),
    "no pair": (2, ["mip", "--tasks", "TASKS:number", "-p", "hidden", "-o", "OUT"], "'hidden' is no option"),
    "a wrong value": (2, ["mip", "--tasks", "TASKS:number", "-p", "hidden=x", "-o", "OUT"], "hidden"),
    "no steps": (2, ["mip", "--tasks", "TASKS:number", "--steps", 0, "-o", "OUT"], "steps"),
    "no number": (2, ["mip", "--tasks", "TASKS:number", "--lr", "fast", "-o", "OUT"], "--lr"),
    "too large a rate": (
        2,
        ["mip", "--tasks", "TASKS:number", "--lr", "1e300", "-o", "OUT"],
        "lr: Input should be less",
    ),
    "an empty list": (2, ["mip", "--tasks", "TASKS:number", "-p", "hidden=0", "-o", "OUT"], "equal to 1, found 0"),
    "this folder": (3, ["mip", "--tasks", "TASKS:number", "--steps", 1, "-o", "HERE/."], "already exists"),
    "no step taken": (1, ["maml", "--tasks", "TASKS:nan", "--steps", 2, "-o", "OUT"], "not finite in 2 steps in a row"),
    "no such schedule": (2, ["mip", "--tasks", "TASKS:number", "--schedule", "sine", "-o", "OUT"], "--schedule"),
    "no such device": (2, ["mip", "--tasks", "TASKS:number", "--device", "tpu", "-o", "OUT"], "no device is called"),
    "no such tracker": (2, ["mip", "--tasks", "TASKS:number", "--tracker", "x", "-o", "OUT"], "no tracker is called"),
    "half precision": (2, ["mip", "--tasks", "TASKS:number", "--precision", "fp16", "-o", "OUT"], "fp16 needs a GPU"),
    "a file": (2, ["mip", "--tasks", "TASKS:number", "-o", "OUT.safetensors"], "a generator is a folder"),
    "no training": (2, ["random", "--tasks", "TASKS:plain", "-o", "OUT"], "random needs no training"),
    "no condition": (2, ["mip", "--tasks", "TASKS:plain", "-o", "OUT"], "vector"),
    "several targets": (2, ["maml", "--tasks", "TASKS:several", "-o", "OUT"], "target"),
    "no zoo": (2, ["mip", "--zoo", "HERE/none", "-o", "OUT"], "does not exist"),
    "within the zoo": (2, ["mip", "--zoo", "HERE", "-o", "HERE/gen"], "lies in the input"),
}


@pytest.mark.parametrize(("code", "words", "told"), WRONG.values(), ids=WRONG)
def test_what_is_refused(here: Path, code: int, words: list[object], told: str) -> None:
    """In one line with a hint, before anything is written."""
    places = {"TASKS": str(here / "tasks.py"), "OUT": str(here / "out"), "HERE": str(here)}
    given = []
    for word in map(str, words):
        for name, place in places.items():
            word = word.replace(name, place)
        given.append(word)
    failed(run("train", *given), code, told)
    assert sorted(path.name for path in here.iterdir() if path.name != "__pycache__") == ["tasks.py"]


def test_wrong_input_as_json(here: Path) -> None:
    done = run("train", "mip", "--json")
    assert done.code == 2
    assert json.loads(done.out)["error"]["fact"] == "no output given"
