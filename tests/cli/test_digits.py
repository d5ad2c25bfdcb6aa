"""The demo: its digits and tasks, its experts, its table, and the command line it ends with."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from paramsmith.cli import digits_net as net
from paramsmith.cli.app import cli
from paramsmith.cli.digits import MARKER, TRIED, VERSIONS, Outcome, data_free, run
from paramsmith.cli.digits_table import Row, best, command, table
from paramsmith.errors import InvalidInput, Refused
from paramsmith.registry import methods

TASKS = list(net.TASKS)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path, list[str]]:
    """One quick demo, shared: what it returned, where it is, what it said."""
    said: list[str] = []
    out = tmp_path_factory.mktemp("demo") / "out put"
    outcome = run(out, True, said.append)
    return outcome, out, said


def test_the_splits_are_disjoint_and_the_tasks_what_they_say() -> None:
    splits = net.load_splits()
    assert [len(split.labels) for split in splits] == [1000, 300, 497]
    assert torch.equal(splits.test.images, net.load_splits().test.images)
    low, high, rotated, inverted, occluded = net.exams(splits.test)
    assert set(low.labels.tolist()) == {0, 1, 2, 3, 4}
    assert len(low.labels) + len(high.labels) == 497
    assert torch.equal(inverted.images, 1 - splits.test.images)
    assert not torch.equal(rotated.images, splits.test.images)
    changed = (occluded.images != splits.test.images).flatten(1).sum(1)
    assert 0 < changed.max() <= 16
    assert torch.equal(occluded.images, net.exams(splits.test)[TASKS.index("occluded")].images)


def test_training_is_repeatable() -> None:
    train, schedule = net.load_splits().train, net.Schedule(base_epochs=1, expert_epochs=1)
    runs = [net.train_expert(net.train_base(train, schedule), "occluded", train, schedule) for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert torch.isfinite(torch.cat([tensor.flatten() for tensor in runs[0].values()])).all()


def test_folders_come_back_as_they_were_saved(tmp_path: Path) -> None:
    weights = net.initial_weights(0)
    net.save_folder(weights, tmp_path / "model")
    back = net.load_folder(tmp_path / "model")
    assert set(back) == set(weights)
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3


def test_every_method_has_a_row(demo: tuple[Outcome, Path, list[str]]) -> None:
    outcome, out, _ = demo
    assert not outcome.failed
    assert {row.method for row in outcome.rows if row.method} == set(data_free(methods()))
    names = [row.name for row in outcome.rows]
    assert len(names) == len(set(names))
    assert {"base", "average", "ties paper", "ties mergekit", "pcb paper", "dare elect"} <= set(names)
    assert all((row.folder / "config.json").is_file() for row in outcome.rows)
    assert {path.name for path in out.iterdir()} == {MARKER, "base", "experts", "merged"}


def test_the_settings_tried_are_those_of_the_methods() -> None:
    known = methods()
    for name, values in TRIED.items():
        options = known[name].params
        names = {field.alias or key for key, field in options.model_fields.items()}
        assert set(values) <= names, name
    assert all(parameter in known[name].params.model_fields for name, parameter in VERSIONS.items())


def test_merging_is_worth_showing(demo: tuple[Outcome, Path, list[str]]) -> None:
    rows = {row.name: row for row in demo[0].rows}
    base = rows["base"]
    for place, task in enumerate(TASKS):
        assert rows[f"expert {task}"].tests[place] > base.tests[place] + 0.01, task
    experts = max(rows[f"expert {task}"].test for task in TASKS)
    average, chosen = rows["average"], demo[0].best
    assert base.test < average.test < chosen.test
    assert experts + 0.03 < chosen.test
    assert chosen.validation == max(row.validation for row in rows.values())


def test_rows_tell_what_the_folders_hold(demo: tuple[Outcome, Path, list[str]]) -> None:
    outcome, out, _ = demo
    rows, exams = {row.name: row for row in outcome.rows}, net.exams(net.load_splits().test)
    experts = [net.load_folder(out / "experts" / task) for task in TASKS]
    average = net.load_folder(rows["average"].folder)
    for name, tensor in average.items():
        torch.testing.assert_close(tensor, torch.stack([e[name] for e in experts]).mean(0), rtol=1e-6, atol=1e-7)
    assert rows["average"].tests == net.accuracies(average, exams)
    assert rows["passthrough"].tests == rows["expert low"].tests
    assert list(rows["slerp"].of) == TASKS[:2]


def test_the_printed_command_makes_the_best_row_again(demo: tuple[Outcome, Path, list[str]]) -> None:
    outcome, out, said = demo
    assert any(outcome.command in line for line in said)
    words = shlex.split(outcome.command)
    assert words[0] == "paramsmith"
    program = [sys.executable, "-c", "from paramsmith.cli.app import main; main()"]
    result = subprocess.run([*program, *words[1:]], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    files = sorted(path.name for path in outcome.best.folder.iterdir())
    assert files == sorted(path.name for path in (out / "again").iterdir())
    for name in files:
        assert (out / "again" / name).read_bytes() == (outcome.best.folder / name).read_bytes(), name


def test_every_row_has_a_command_that_parses(demo: tuple[Outcome, Path, list[str]]) -> None:
    outcome, out, _ = demo
    for row in outcome.rows:
        if row.method:
            words = shlex.split(command(row, out, out / "not written", "500KB"))
            # The budget counts this whole process, which has just trained.
            result = CliRunner().invoke(cli, [*words[1:], "--dry-run", "--memory", "8GB"])
            assert result.exit_code == 0, (row.name, result.output)
    assert not (out / "not written").exists()


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    for force in (False, True):
        with pytest.raises(Refused):
            run(tmp_path / "mine", True, print, force=force)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not delete"
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput):
        run(tmp_path / "file", True, print)


def test_force_replaces_a_demo_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(net, "train_base", stop)
    for name in (MARKER, "notes.txt", "merged/old", "experts/old"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, True, print, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {MARKER, "merged", "notes.txt"}
    assert not list((tmp_path / "merged").iterdir())


def test_without_scikit_learn_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InvalidInput) as caught:
        run(tmp_path / "out", True, print)
    assert "scikit-learn" in caught.value.fact
    assert caught.value.hint == "pip install 'paramsmith[demo]'"
    assert not (tmp_path / "out").exists()


def test_the_table_stars_the_best_on_validation() -> None:
    here = Path("merged")
    rows = [
        Row("base", here, [0.5, 0.5], [1.0, 1.0]),
        Row("luck", here, [1.0, 1.0], [0.7, 0.7], "linear"),
        Row("skill", here, [0.9, 0.8], [0.8, 0.8], "ties", {"lambda": 1.4, "density": 0.2}, ["a", "b"], True),
    ]
    assert best(rows).name == "skill"
    lines = table(rows, ["a", "b"], 3)
    assert [line.split()[0] for line in lines if line.startswith("*")] == ["*"]
    starred = next(line for line in lines if line.startswith("*"))
    assert " ".join(starred.split()) == "* skill 90.0 80.0 85.0 80.0 lambda 1.4, density 0.2 of a + b"
    again = command(rows[2], Path("my demo"), Path("my demo/again"), "500KB")
    assert shlex.split(again)[2:5] == ["my demo/experts/a", "my demo/experts/b", "--output"]
    assert again.endswith("--base 'my demo/base' --lambda 1.4 --density 0.2 --shard-size 500KB")
