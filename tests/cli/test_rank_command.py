"""`paramsmith rank`: the same numbers as from Python, as a table and as JSON; what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from paramsmith.cli.app import cli
from paramsmith.cli.rank import SCORES
from paramsmith.merge.pretrained.task import transformers_task
from paramsmith.merge.rank import features_of, logme, rank
from paramsmith.merge.task import load_tasks
from tests.merge.pretrained.folders import bert, llama

TASK = """
import torch
from safetensors.torch import load_file
from paramsmith.merge.task import ModelTask

def task(checkpoint, shift=0.0):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    model.load_state_dict(load_file(checkpoint))
    inputs = torch.randn(24, 4, generator=torch.Generator().manual_seed(1)) + shift
    batch = {"x": inputs, "labels": torch.arange(24) % 3}
    return ModelTask(model, lambda: [batch], lambda model, batch: model(batch["x"]))

def general(checkpoint):
    made = task(checkpoint, 0.5)
    return ModelTask(made.model, lambda: [{"x": 3 * batch["x"]} for batch in made.batches()], made.forward)

def own(checkpoint):
    return task(checkpoint, 1.0)

def wrong(checkpoint):
    made = task(checkpoint)
    return ModelTask(made.model, lambda: [{**b, "labels": b["labels"] + 1} for b in made.batches()], made.forward)

def raises(checkpoint):
    raise RuntimeError("no such network")
"""
TEXTS = ["the cat sat", "a dog ran far away", "good mat", "bad bad dog", "the mat", "on a good cat"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four nets of plain torch with their task, two classifiers of texts, and data; nothing in it is changed."""
    made = tmp_path_factory.mktemp("rank")
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (8, 4), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)}
    for name in ("base", "a", "b", "c"):
        save_file({n: torch.randn(s, generator=generator) for n, s in shapes.items()}, made / f"{name}.safetensors")
    (made / "task.py").write_text(TASK)
    bert(made / "bert", 1)
    bert(made / "other", 2)
    llama(made / "llama")
    for name, labels in {"two": ("neg", "pos"), "three": ("red", "green", "blue")}.items():
        rows = [{"text": TEXTS[i % 6], "label": labels[i * i % len(labels)]} for i in range(18)]
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def run(folder: Path, *words: object) -> Result:
    """`paramsmith rank` of the three nets, in this process."""
    models = [folder / f"{name}.safetensors" for name in "abc"]
    return CliRunner().invoke(cli, ["rank", *map(str, models), *map(str, words)])


def of_task(folder: Path, name: str = "task") -> list[str]:
    return ["--task", f"{folder / 'task.py'}:{name}"]


def failed(done: Result, code: int, told: str) -> None:
    """One line of fact and one of hint, and nothing else."""
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], done.stderr
    assert told in lines[0], done.stderr


@pytest.mark.parametrize("by", SCORES)
def test_the_command_and_python_agree(folder: Path, by: Any) -> None:
    base = str(folder / "base.safetensors")

    def make(name: str) -> Any:
        return lambda path: load_tasks(f"{folder / 'task.py'}:{name}", path)

    extra = {"general": make("general"), "sources": make("own"), "count": 2, "then": "sfda"}
    models = [str(folder / f"{name}.safetensors") for name in "abc"]
    wanted = rank(models, base, make("task"), by=by, **extra)  # type: ignore[arg-type]
    options = ["--base", base, "--by", by, "--then", "sfda", "--count", "2"]
    options += ["--general", f"{folder / 'task.py'}:general", "--source", f"{folder / 'task.py'}:own"]
    done = run(folder, *of_task(folder), *options, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(json.dumps(wanted.to_json()))
    table = run(folder, *of_task(folder), *options)
    assert (table.exit_code, table.stderr) == (0, "")
    lines = table.stdout.splitlines()
    assert lines[0].split()[:2] == ["model", "score"]
    shown = [line.split()[:2] for line in lines[1 : 1 + len(wanted.rows)]]
    assert shown == [[row.model, f"{row.score:.5g}"] for row in wanted.rows]
    assert bool(wanted.pairs) == ("" in lines)


def test_flips_show_every_pair(folder: Path) -> None:
    lines = run(folder, *of_task(folder), "--by", "flips").stdout.splitlines()
    assert lines[5].split() == ["right,", "where", "that", "one", "is", "wrong", "1", "2", "3"]
    pairs = rank(
        [str(folder / f"{n}.safetensors") for n in "abc"],
        None,
        lambda path: load_tasks(of_task(folder)[1], path),
        by="flips",
    ).pairs
    assert [line.split()[2:] for line in lines[6:]] == [[f"{value:.5g}" for value in row] for row in pairs]


def test_texts_for_models_of_the_library(folder: Path) -> None:
    bert, other = str(folder / "bert"), str(folder / "other")
    told = {}
    for options in (["--base", bert], ["--by", "logme", "--limit", "12"], ["--by", "flips"]):
        words = ["rank", other, bert, "--data", str(folder / "two.jsonl"), *options, "--json"]
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.output
        told[options[-1]] = {row["model"]: row["score"] for row in json.loads(done.stdout)["models"]}
    assert told[bert][bert] == 0  # the base's own task vector
    assert told[bert][other] > 0
    tasks = {path: transformers_task(path, [folder / "two.jsonl"], limit=12) for path in (bert, other)}
    assert told["12"] == {path: logme(*features_of(task)) for path, task in tasks.items()}


def test_texts_with_labels_that_the_models_do_not_know(folder: Path) -> None:
    """Features are judged by the data's own three classes; what needs the head says what is wrong."""
    words = ["rank", str(folder / "other"), str(folder / "bert"), "--data", str(folder / "three.jsonl")]
    done = CliRunner().invoke(cli, [*words, "--by", "logme", "--shuffle", "--seed", "3", "--limit", "12", "--json"])
    assert done.exit_code == 0, done.output
    file, options = folder / "three.jsonl", {"shuffle": True, "seed": 3, "limit": 12}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in json.loads(done.stdout)["models"]:
        task = transformers_task(row["model"], [file], labels=False, **options)  # type: ignore[arg-type]
        features, _ = features_of(task, labelled=False)
        whole, _ = features_of(transformers_task(row["model"], [file], labels=False), labelled=False)
        places = [int((whole - one).abs().sum(1).argmin()) for one in features]  # every text has one label here
        labels = torch.tensor([("blue", "green", "red").index(rows[place]["label"]) for place in places])
        assert row["score"] == pytest.approx(logme(features, labels), abs=1e-6)
    failed(CliRunner().invoke(cli, [*words, "--by", "flips"]), 2, "'red' is none of the model's 2 classes")


def test_osborn_with_a_file_for_each_model(folder: Path, tmp_path: Path) -> None:
    """The file that is the target's own lies nearer than one of other texts, and each goes with its model."""
    near, far = folder / "three.jsonl", tmp_path / "far.jsonl"
    far.write_text("".join(json.dumps({"text": "a a a" if i % 2 else "a a"}) + "\n" for i in range(8)))
    models, domains = [str(folder / "other"), str(folder / "bert")], []
    for sources in ((near, far), (far, near)):
        words = ["rank", *models, "--by", "osborn", "--data", str(near), "--json"]
        done = CliRunner().invoke(cli, [*words, *(word for s in sources for word in ("--source", str(s)))])
        assert done.exit_code == 0, done.output
        rows = {row["model"]: row["domain"] for row in json.loads(done.stdout)["models"]}
        domains.append([rows[model] for model in models])
    assert domains[0][0] < domains[1][0]
    assert domains[1][1] < domains[0][1]


def test_notes_are_warnings(folder: Path, tmp_path: Path) -> None:
    rows = [{"text": "the cat", "label": label} for label in "abab"]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(
        cli, ["rank", str(folder / "bert"), "--data", str(tmp_path / "same.jsonl"), "--by", "ped"]
    )
    assert done.exit_code == 0, done.output
    assert "1 pairs of classes have one mean" in done.stderr
    assert done.stderr.startswith("warning: ")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["TASK"], 2, "the gradient score needs the base"),
        (["TASK", "--by", "osborn"], 2, "0 sources are given for 3 models"),
        (["TASK", "--by", "osborn", "--source", "x.py:f", "--source", "y.py:f"], 2, "2 sources are given for 3 models"),
        (["TASK", "--by", "osborn", "--source", "x.py:f", "--count", "4"], 2, "4 of 3 models are to be chosen"),
        (["TASK", "--by", "osborn", "--source", "x.py:f"], 2, "x.py: does not exist"),
        (["--by", "logme"], 2, "no data given"),
        (["TASK", "--data", "x.jsonl", "--by", "logme"], 2, "both --data and --task are given"),
        (["TASK", "--by", "size"], 2, "'size' is not one of"),
        (["TASK", "--by", "logme", "--device", "tpu"], 2, "no device is called"),
        (["TASK", "--by", "logme", "--limit", "25"], 2, "25 examples are asked for, the data has 24"),
        (["TASK", "--by", "logme", "--limit", "1"], 2, "all examples have one label"),
        (["TASK:wrong", "--by", "flips"], 2, "the label 3 is outside the model's 3 classes"),
        (["TASK:raises", "--by", "logme"], 1, "raised RuntimeError: no such network"),
        (["TASK:absent", "--by", "logme"], 2, "has no function 'absent'"),
        (["--data", "x.jsonl", "--by", "logme"], 2, "is a file of weights"),
    ],
)
def test_what_cannot_be_ranked(folder: Path, words: list[str], code: int, told: str) -> None:
    before = sorted(path.name for path in folder.iterdir())
    given: list[str] = []
    for word in words:
        name, _, function = word.partition(":")
        given += of_task(folder, function or "task") if name == "TASK" else [word]
    failed(run(folder, *given), code, told)
    done = run(folder, *given, "--json")
    assert told in json.loads(done.stdout)["error"]["fact"]
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == [
        name for name in before if name != "__pycache__"
    ]


def test_models_that_are_damaged(folder: Path, tmp_path: Path) -> None:
    nan = {name: tensor * float("nan") for name, tensor in load_file(folder / "a.safetensors").items()}
    save_file(nan, tmp_path / "nan.safetensors")
    for by, code, told in (("logme", 1, "nan.safetensors: its outputs on the data hold NaN"), ("gradient", 1, "nan")):
        words = ["rank", str(tmp_path / "nan.safetensors"), "--base", str(folder / "base.safetensors"), "--by", by]
        failed(CliRunner().invoke(cli, [*words, *of_task(folder)]), code, told)


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom paramsmith.cli.app import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "rank", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "False"
    assert all(score in told for score in SCORES)
    assert "--force" not in told
