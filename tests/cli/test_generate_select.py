"""`paramsmith generate --select`, and `--steps` and `--guidance`, end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor

from paramsmith.cli.app import cli
from paramsmith.cli.generate import command
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.selection.selecting import SELECTORS
from paramsmith.hypernet.selection.spectrum import layers_of, ranked
from paramsmith.hypernet.training.tasks import load_task
from tests.shared.staged import listing

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = """
import torch
from torch import nn
from paramsmith.hypernet import Target
from paramsmith.hypernet.protocols import Episode
from paramsmith.hypernet.training.tasks import Classification, FunctionTask

x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
y = x[:, :3].argmax(1)


def asked(rng):
    return {"vector": torch.rand(2, generator=rng)}


def of(module, **more):
    return Classification(Target.of(module, classes=3), x[:40], y[:40], x[40:], y[40:], condition=asked, **more)


def net():
    return of(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))


def normed():
    return of(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).eval())


def head():
    return of(nn.Linear(4, 3))


def other():
    return of(nn.Linear(4, 3, bias=False))


def leaking():
    target = Target.of(nn.Linear(4, 3), classes=3)
    return Classification(target, x[:40], y[:40], x[39:], y[39:], condition=asked)


def bare():
    target = Target.of(nn.Linear(4, 3), classes=3)
    draw = lambda rng, split: Episode(target, asked(rng), {"x": x, "y": y})
    return FunctionTask(draw, lambda run, batch: run(batch["x"]).sum())


def broken():
    target = Target.of(nn.Linear(4, 3), classes=3)
    draw = lambda rng, split: Episode(target, asked(rng), {"x": x[:9]}, {"x": x[9:]})
    return FunctionTask(draw, lambda run, batch: batch["z"])


def watched():
    target = Target.of(nn.Linear(4, 3), classes=3)

    def measure(run, batch):
        with open("seen", "a") as file:
            print(len(batch["x"]), file=file)
        return run(batch["x"]).square().mean()

    return FunctionTask(lambda rng, split: Episode(target, asked(rng), {"x": x[:7]}, {"x": x[7:]}), measure)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks, and samplers for the targets of two of them."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "tasks.py").write_text(TASKS)
    for name in ("net", "head"):
        spec = load_task(f"{folder}/tasks.py:{name}").episode(torch.Generator()).target.spec
        built = Generator.build("flow", spec=spec, condition={"vector": (2,)}, steps=1)
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in built.model.parameters():
                if not parameter.any():
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
        built.save_pretrained(folder / name)
    spec = load_task(f"{folder}/tasks.py:head").episode(torch.Generator()).target.spec
    Generator.build("mip", spec=spec, condition={"vector": (2,)}).save_pretrained(folder / "mip")
    return folder


@pytest.fixture(autouse=True)
def inside(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is empty."""
    monkeypatch.chdir(tmp_path)


Run = Callable[..., Result]


@pytest.fixture
def run(made: Path) -> Run:
    """`paramsmith generate NAME --tasks TASK` with more words."""

    def invoke(name: str, task: str | None, *words: object) -> Result:
        tasks = [] if task is None else ["--tasks", f"{made}/tasks.py:{task}"]
        return CliRunner().invoke(cli, ["generate", str(made / name), *tasks, *map(str, words)])

    return invoke


def episode_of(made: Path, name: str, seed: int = 0) -> Any:
    return load_task(f"{made}/tasks.py:{name}").episode(torch.Generator().manual_seed(seed), "test")


def score(made: Path, name: str, weights: dict[str, Tensor], part: str, seed: int = 0) -> float:
    episode = episode_of(made, name, seed)
    batch = getattr(episode, part)
    return float((episode.target.call(weights, batch["x"]).argmax(-1) == batch["y"]).float().mean())


def stored(folder: str = "out") -> dict[str, Tensor]:
    return {name: values.float() for name, values in load_file(Path(folder) / "model.safetensors").items()}


def told(folder: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "generation.json").read_text())
    return found


class TestBestOf:
    def test_is_the_best_sample_by_the_support_and_judged_by_the_query(self, made: Path, run: Run) -> None:
        done = run("net", "net", "-o", "out", "--select", "best_of", "-k", 5, "--seed", 2)
        assert (done.exit_code, done.stderr) == (0, ""), done.output
        episode = episode_of(made, "net", 2)
        samples = Generator.from_pretrained(made / "net").sample(episode.condition, 5, seed=2)
        scores = [score(made, "net", sample, "support", 2) for sample in samples]
        best = scores.index(max(scores))
        assert len(set(scores)) > 1
        found = stored()
        assert all(torch.equal(values, samples[best][name]) for name, values in found.items())
        report = score(made, "net", found, "query", 2)
        record = told()["made"]["selected"]
        assert record["steps"] == [{"first": 0, "scores": pytest.approx(scores)}]
        assert (record["selector"], record["k"], record["kept"], record["rows"]) == ("best_of", 5, best, 40)
        assert record["report"] == {"rows": 50, "score": pytest.approx(report)}
        assert record["tasks"] == "tasks.py:net"
        assert str(made) not in json.dumps(told())
        assert told()["asked"]["values"] == {"vector": [pytest.approx(episode.condition["vector"].tolist())]}
        first, second, third = done.stdout.splitlines()
        assert first.startswith("out: ")
        assert second == f"best_of: sample {best} of 5: {max(scores):.4g} on the 40 rows it was chosen by"
        assert third.startswith(f"{report:.4g} on 50 others")

    def test_what_is_reported_on_is_looked_at_once_and_last(self, run: Run) -> None:
        assert run("head", "watched", "-o", "out", "--select", "best_of", "-k", 3).exit_code == 0
        assert Path("seen").read_text().split() == ["83"] * 3 + ["7"]

    def test_json_and_the_weights_as_they_are_stored(self, made: Path, run: Run) -> None:
        words = ("-o", "out", "--select", "best_of", "-k", 3, "--dtype", "bf16", "--json")
        found = json.loads(run("net", "net", *words).stdout)
        assert found["samples"][0]["path"] == "out"
        assert found["selected"]["report"] == told()["made"]["selected"]["report"]
        assert found["selected"]["report"]["score"] == pytest.approx(score(made, "net", stored(), "query"))

    def test_the_condition_is_the_episode_s_unless_it_is_said(self, run: Run) -> None:
        words = ("--select", "best_of", "-k", 2, "-q", "--task", "vector=0.25,0.5")
        assert run("net", "net", "-o", "out", *words).output == ""
        assert told()["asked"]["values"] == {"vector": [[0.25, 0.5]]}

    def test_with_steps_and_guidance(self, made: Path, run: Run) -> None:
        words = ("--select", "best_of", "-k", 1, "--steps", 2, "--guidance", 3)
        assert run("net", "net", "-o", "out", *words).exit_code == 0
        generator, asked = Generator.from_pretrained(made / "net"), episode_of(made, "net").condition
        (sample,) = generator.sample(asked, steps=2, guidance=3.0)
        assert all(torch.equal(values, sample[name]) for name, values in stored().items())
        assert (told()["asked"]["steps"], told()["asked"]["guidance"]) == (2, 3.0)

    def test_of_a_generator_that_draws_nothing(self, run: Run) -> None:
        done = run("mip", "head", "-o", "out", "--select", "best_of", "-k", 3)
        assert (done.exit_code, "all 3 candidates score the same" in done.stderr) == (0, True), done.output


class TestOthers:
    def test_a_mean_of_heads(self, made: Path, run: Run) -> None:
        done = run("head", "head", "-o", "out", "--select", "mean_of", "-k", 4)
        assert done.exit_code == 0, done.output
        assert "mean_of: 4 samples: " in done.stdout
        samples = Generator.from_pretrained(made / "head").sample(episode_of(made, "head").condition, 4)
        mean = torch.stack([sample["weight"] for sample in samples]).double().mean(0).float()
        assert torch.equal(stored()["weight"], mean)

    def test_a_mean_of_networks_has_to_be_said_to_be_aligned(self, run: Run) -> None:
        done = run("net", "net", "-o", "out", "--select", "mean_of")
        assert (done.exit_code, Path("out").exists()) == (2, False)
        assert "hidden layers" in done.stderr
        assert "--aligned" in done.stderr
        assert run("net", "net", "-o", "out", "--select", "mean_of", "-k", 2, "--aligned").exit_code == 0

    def test_greedy_layers_begins_with_a_network(self, made: Path, run: Run) -> None:
        episode = episode_of(made, "net")
        spec = episode.target.spec
        begin = {slot.name: torch.zeros(slot.shape) for slot in spec.slots}
        begin |= {"0.weight": -torch.eye(6, 4), "2.weight": torch.eye(3, 6)}  # it says what is least of all
        save_file(begin, "base.safetensors")
        words = ("-o", "out", "--select", "greedy_layers", "--base", "base.safetensors", "-k", 6)
        done = run("net", "net", *words)
        assert done.exit_code == 0, done.output
        record = told()["made"]["selected"]
        assert record["begun"]["reference"] == "base.safetensors"
        order = layers_of(spec, [name for name, _ in ranked(begin, spec)])
        assert [tuple(step["tensors"]) for step in record["steps"]] == list(order)
        assert record["before"] == pytest.approx(score(made, "net", begin, "support"))
        samples = Generator.from_pretrained(made / "net").sample(episode.condition, 6 * len(order))
        expected = dict(begin)
        for step in record["steps"]:
            if step["kept"] is not None:
                expected |= {name: samples[step["kept"]][name] for name in step["tensors"]}
        assert any(step["kept"] is not None for step in record["steps"])
        assert all(torch.equal(values, expected[name]) for name, values in stored().items())
        assert "greedy_layers: " in done.stdout

    def test_running_statistics_are_those_of_the_network_that_is_begun_with(self, made: Path, run: Run) -> None:
        target = episode_of(made, "normed").target
        Generator.build("flow", spec=target.spec, condition={"vector": (2,)}, steps=1).save_pretrained("gen")
        begin = {slot.name: torch.ones(slot.shape) for slot in target.spec.slots}
        begin |= {"1.running_mean": torch.full((6,), 0.25), "1.running_var": torch.full((6,), 3.0)}
        save_file(begin, "base.safetensors")
        words = ("--select", "greedy_layers", "--base", "base.safetensors", "-k", 2)
        done = run(Path("gen").resolve(), "normed", "-o", "out", *words)
        assert done.exit_code == 0, done.output
        assert torch.equal(stored()["1.running_var"], begin["1.running_var"])
        assert torch.equal(stored()["1.running_mean"], begin["1.running_mean"])
        record = told()["made"]["selected"]
        assert record["before"] == pytest.approx(score(made, "normed", begin, "support"))
        weights = {name: values for name, values in stored().items() if "tracked" not in name}
        assert record["report"]["score"] == pytest.approx(score(made, "normed", weights, "query"))

    def test_bootstrap(self, made: Path, run: Run) -> None:
        done = run("net", "net", "-o", "out", "--select", "bootstrap", "-k", 6)
        assert done.exit_code == 0, done.output
        record = told()["made"]["selected"]
        first, second = (step["scores"] for step in record["steps"])
        assert (len(first), len(second)) == (6, 6)
        assert record["score"] == max(first + second)
        assert score(made, "net", stored(), "support") == pytest.approx(record["score"])
        assert run("net", "net", "-o", "again", "--select", "bootstrap", "-k", 6).exit_code == 0
        assert listing(Path("again"))["model.safetensors"] == listing(Path("out"))["model.safetensors"]


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "task", "words", "fact"),
        [
            ("head", None, ["--select", "best_of"], "--tasks FILE.PY:FUNCTION"),
            ("head", "head", [], "--tasks goes with --select"),
            ("head", None, ["-k", "3"], "-k goes with --select"),
            ("head", None, ["--aligned"], "--aligned goes with --select"),
            ("head", "head", ["--select", "best"], "'best'"),
            ("head", "head", ["--select", "best_of", "-k", "0"], "-k"),
            ("head", "head", ["--select", "best_of", "-n", "2"], "one is selected"),
            ("head", "head", ["--select", "best_of", "--aligned"], "leave --aligned out"),
            ("head", "head", ["--select", "best_of", "--base", "b"], "not what to make with it"),
            ("head", "head", ["--select", "greedy_layers"], "add --base MODEL"),
            ("head", "head", ["--select", "greedy_layers", "--base", "head.safetensors"], "the target has none"),
            ("net", "net", ["--select", "greedy_layers", "--base", "head.safetensors"], "0.weight is missing"),
            ("net", "net", ["--select", "greedy_layers", "--base", "b", "--as", "head"], "leave --as out"),
            ("head", "head", ["--select", "bootstrap", "-k", "1"], "-k of bootstrap"),
            ("mip", "head", ["--select", "bootstrap"], "a hypernetwork has none"),
            ("head", "other", ["--select", "best_of"], "name the task that the generator was trained for"),
            ("head", "nothing", ["--select", "best_of"], "has no function 'nothing'"),
            ("head", "leaking", ["--select", "best_of"], "1 of the rows that are reported on"),
            ("head", "bare", ["--select", "best_of"], "the data for selection has no rows"),
            ("head", "head", ["--select", "best_of", "--task", "many.json"], "2 conditions are asked for"),
            ("head", "head", ["--select", "best_of", "--classes", "5"], "leave --like and --classes out"),
            ("head", "head", ["--select", "best_of", "--guidance", "nan"], "a guidance of nan"),
            ("mip", "head", ["--select", "best_of", "--steps", "3"], "a hypernetwork takes no number of steps"),
        ],
    )
    def test_before_anything_is_drawn(
        self, tmp_path: Path, run: Run, name: str, task: str | None, words: list[str], fact: str
    ) -> None:
        save_file({"weight": torch.ones(3, 4), "bias": torch.zeros(3)}, "head.safetensors")
        Path("many.json").write_text('{"vector": [[0.1, 0.2], [0.3, 0.4]]}')
        before = listing(tmp_path)
        done = run(name, task, "-o", "out", *words)
        assert done.exit_code == 2, done.output
        assert fact in done.stderr
        assert listing(tmp_path) == before

    def test_with_a_vocabulary(self, run: Run) -> None:
        words = ("--like", "m", "--vocabulary", "t", "-o", "out")
        assert "--select does not go with --vocabulary" in run("head", "head", *words, "--select", "best_of").stderr
        assert "--steps does not go with --vocabulary" in run("head", None, *words, "--steps", 2).stderr

    def test_an_output_that_is_there(self, tmp_path: Path, run: Run) -> None:
        Path("out").mkdir()
        Path("out/mine").touch()
        done = run("head", "watched", "-o", "out", "--select", "best_of")
        assert (done.exit_code, Path("seen").exists()) == (3, False)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]

    def test_an_output_over_an_input(self, made: Path, run: Run) -> None:
        for output in (made, made / "head"):
            done = run("head", "watched", "-o", output, "--force", "--select", "best_of")
            assert (done.exit_code, Path("seen").exists()) == (2, False), done.output
            assert "overlap" in done.stderr

    def test_a_score_that_raises(self, run: Run) -> None:
        done = run("head", "broken", "-o", "out", "--select", "best_of")
        assert (done.exit_code, Path("out").exists()) == (1, False)
        assert "KeyError" in done.stderr

    def test_dry_run(self, tmp_path: Path, run: Run) -> None:
        done = run("head", "watched", "--select", "best_of", "--dry-run", "--json")
        assert json.loads(done.stdout)["parameters"] == 15
        assert not any(tmp_path.iterdir())


class TestSampling:
    def test_steps_and_guidance(self, made: Path, run: Run) -> None:
        words = ("--task", "vector=0.5,1", "--steps", 3, "--guidance", 1.5, "-n", 2)
        assert run("net", None, "-o", "out", *words).exit_code == 0
        samples = Generator.from_pretrained(made / "net").sample(
            {"vector": torch.tensor([0.5, 1.0])}, 2, steps=3, guidance=1.5
        )
        for number, sample in enumerate(samples):
            found = stored(f"out/{number}")
            assert all(torch.equal(values, sample[name]) for name, values in found.items())
        assert told("out/0")["asked"]["steps"] == 3
        again = run("net", None, "-o", "out", "--task", "vector=0.5,1", "--steps", 4, "-n", 2)
        assert (again.exit_code, "already exists" in again.stderr) == (3, True)

    @pytest.mark.parametrize(
        ("name", "words", "fact"),
        [
            ("net", ["--steps", "0"], "--steps"),
            ("net", ["--guidance", "-1"], "a guidance of -1"),
            ("net", ["--guidance", "inf"], "a guidance of inf"),
            ("mip", ["--guidance", "2"], "a hypernetwork knows no guidance"),
            ("mip", ["--steps", "2"], "a hypernetwork takes no number of steps"),
        ],
    )
    def test_refused(self, tmp_path: Path, run: Run, name: str, words: list[str], fact: str) -> None:
        for more in (["-o", "out"], ["--dry-run"]):
            done = run(name, None, *more, "--task", "vector=0.5,1", *words)
            assert done.exit_code == 2, done.output
            assert fact in done.stderr
        assert not any(tmp_path.iterdir())


def test_the_choices_are_the_selectors() -> None:
    option = next(each for each in command.params if each.name == "select")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == SELECTORS
