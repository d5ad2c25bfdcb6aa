"""`paramsmith zoo`: build, inspect, split and align from the command line, and what is refused there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from paramsmith.cli.app import cli
from paramsmith.cli.zoo import command
from paramsmith.hypernet.zoos.build import Building
from tests.merge.folders import Done, assert_clean

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = """
import torch
from torch import nn
from paramsmith.hypernet.protocols import Episode
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.training.tasks import FunctionTask

target = Target.of(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)))

def angles():
    def draw(rng, split):
        angle = torch.rand(1, generator=rng) * 6.28
        x = torch.randn(30, 2, generator=rng)
        y = ((x[:, 0] * angle.cos() + x[:, 1] * angle.sin()) > 0).long()
        return Episode(target, {"angle": angle}, {"x": x[20:], "y": y[20:]}, {"x": x[:20], "y": y[:20]})
    loss = lambda run, batch: nn.functional.cross_entropy(run(batch["x"]), batch["y"])
    return FunctionTask(draw, loss, lambda run, batch: (run(batch["x"]).argmax(-1) == batch["y"]).float().mean())
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def run(*words: object) -> Done:
    done = CliRunner().invoke(cli, ["zoo", *map(str, words)])
    return Done(done.exit_code, done.stdout, done.stderr)


def succeeded(*words: object) -> Done:
    done = run(*words)
    assert done.code == 0, done.err
    assert_clean(done)
    return done


def refused(told: str, *words: object, code: int = 2) -> None:
    done = run(*words)
    assert done.code == code, (done.out, done.err)
    assert_clean(done)
    assert told in done.err
    answered = run(*words, "--json")
    assert answered.code == code
    assert told in json.loads(answered.out)["error"]["fact"]


def build(here: Path, *words: object) -> Done:
    return succeeded("build", "--tasks", here / "tasks.py:angles", "-o", here / "zoo", "--steps", 20, *words)


def test_from_a_task_to_an_aligned_zoo(here: Path) -> None:
    done = build(here, "-n", 6, "--init", "independent", "--test", 2)
    assert done.out.startswith(f"{here / 'zoo'}: 8 networks, score ")
    assert "warning: 6 networks are few to learn a distribution from: expect copies" in done.err
    shown = succeeded("inspect", here / "zoo")
    assert shown.out.startswith("8 networks, 8 tasks, 8 runs; train 6, validation 0, test 2\ncondition: angle 1\n")
    assert "expect copies" in shown.err
    dealt = succeeded("split", here / "zoo", "--validation", 0.25, "--test", 0.25)
    assert dealt.out == f"{here / 'zoo'}: train 4, validation 2, test 2\n"
    told = json.loads(succeeded("inspect", here / "zoo", "--json").out)
    assert told["splits"] == {"train": 4, "validation": 2, "test": 2}
    assert told["architectures"][0]["numbers"] == 42
    assert set(told["metrics"]) == {"score", "loss"}
    aligned = succeeded("align", here / "zoo", "-o", here / "aligned", "--rounds", 2)
    assert aligned.out.startswith(f"{here / 'aligned'}: 8 networks, ")
    assert json.loads(succeeded("inspect", here / "aligned", "--json").out)["splits"] == told["splits"]


def test_every_field_has_an_option_and_says_its_default(here: Path) -> None:
    options = {option.name: option for option in command.commands["build"].params}
    for name, field in Building.model_fields.items():
        assert f"[{field.default}]" in (getattr(options[name], "help", None) or ""), name
    build(here, "-n", 2, "--lr", 0.5, "--batch-size", 3, "--seed", 4, "-q")
    quiet = json.loads(build(here, "-n", 2, "--force", "--json").out)
    assert quiet["networks"] == 2
    again = load_file(here / "zoo" / "zoo-00001.safetensors")
    build(here, "-n", 2, "--force", "--steps", 0)
    assert not torch.equal(load_file(here / "zoo" / "zoo-00001.safetensors")["0.weight"], again["0.weight"])


def test_what_is_refused(here: Path) -> None:
    tasks = here / "tasks.py:angles"
    refused("no output given", "build", "--tasks", tasks)
    refused("nothing to train for", "build", "-o", here / "zoo")
    refused("does not exist", "build", "--tasks", here / "none.py:f", "-o", here / "zoo")
    refused("has no function", "build", "--tasks", here / "tasks.py:none", "-o", here / "zoo")
    refused("lr: ", "build", "--tasks", tasks, "-o", here / "zoo", "-n", 2, "--lr", -1)
    refused("does not exist", "inspect", here / "none")
    refused("has no checkpoints", "inspect", here)
    build(here, "-n", 2)
    refused("already exists", "build", "--tasks", tasks, "-o", here / "zoo", "-n", 2, code=3)
    refused("the shares do not sum to 1", "split", here / "zoo", "--test", 0.9, "--validation", 0.9)
    refused("3 parts are asked for", "split", here / "zoo")
    refused("no output given", "align", here / "zoo")
    refused("is an input", "align", here / "zoo", "-o", here / "zoo")
    listed = (here / "zoo" / "zoo.jsonl").read_text()
    (here / "zoo" / "zoo.jsonl").write_text(listed + '{"path": "zoo-00001.safetensors", "row": 2}\n')
    refused("has 2 rows, and no row 2", "inspect", here / "zoo")
    (here / "zoo" / "zoo.jsonl").write_text('{"path": "../../x\x1b[31m.safetensors"}\n')
    refused("zoo.jsonl", "inspect", here / "zoo")
