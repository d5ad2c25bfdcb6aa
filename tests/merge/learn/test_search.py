"""Searching a merge's numbers: where strategies look, what a trial is, the log, and resuming."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.coefficients import Coefficients
from paramsmith.errors import Failed, InvalidInput, ParamsmithError, Refused
from paramsmith.merge import merge, merge_state_dicts
from paramsmith.merge.learn import strategies
from paramsmith.merge.learn.search import search
from paramsmith.merge.learn.strategies import Point, Spent, Strategy
from paramsmith.registry import find_method, methods
from paramsmith.statistics import About, weights_digest
from tests.merge.folders import leftovers, llama, save
from tests.merge.learn.scoring import Counted, Field, field, folders, tensors

ALL: dict[str, Strategy] = {
    "line": strategies.line,
    "coordinate": strategies.coordinate,
    "evolution": strategies.evolution,
    "cma": strategies.cma,
    "grid": strategies.grid,
    "dirichlet": strategies.dirichlet,
}


def looked(strategy: Strategy, score: Callable[[Point], float], width: int, budget: int, seed: int = 0) -> list[Point]:
    """The points that a strategy asks for, until the budget is used up."""
    points: list[Point] = []

    def count(point: Point) -> float:
        if len(points) == budget:
            raise Spent
        points.append(point)
        return score(point)

    with contextlib.suppress(Spent):
        strategy(count, [(0.0, 2.0)] * width, (0.5,) * width, budget, seed)
    return points


@pytest.fixture
def plane(tmp_path: Path) -> Field:
    """Two models, the best of which is 0.7 of the first task vector and 0.2 of the second."""
    return field(tmp_path, (0.7, 0.2))


@pytest.mark.parametrize(("name", "width", "error"), [
    ("line", 1, 2e-3), ("coordinate", 1, 5e-3), ("coordinate", 3, 1e-2), ("evolution", 1, 0.05), ("evolution", 2, 0.1),
    ("grid", 1, 0.02), ("cma", 2, 0.05),
])  # fmt: skip
def test_strategies_find_the_top_of_a_hill(name: str, width: int, error: float) -> None:
    if name == "cma":
        pytest.importorskip("cma")
    top = (1.37, 0.21, 1.9)[:width]

    def hill(point: Point) -> float:
        return -sum((x - t) ** 2 for x, t in zip(point, top, strict=True))

    points = looked(ALL[name], hill, width, 150)
    assert len(points) <= 150
    assert all(0 <= x <= 2 for point in points for x in point)
    assert max(map(hill, points)) > -(error**2) * width
    assert points == looked(ALL[name], hill, width, 150)


@pytest.mark.parametrize("name", ["evolution", "cma", "dirichlet"])
def test_what_is_drawn_is_drawn_from_the_seed(name: str) -> None:
    if name == "cma":
        pytest.importorskip("cma")
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    first, again, other = (looked(ALL[name], lambda p: -sum(p), 3, 30, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("score", [lambda p: -math.inf, lambda p: 0.0, lambda p: -math.inf if p[0] < 1 else p[0]])
def test_strategies_end_where_there_is_nothing_to_find(name: str, score: Callable[[Point], float]) -> None:
    width = 2 if name in ("cma", "dirichlet", "coordinate") else 1
    if name == "cma":
        pytest.importorskip("cma")
    assert 0 < len(looked(ALL[name], score, width, 40)) <= 40


def test_grids_and_draws_of_weights_are_the_papers() -> None:
    pairs = looked(strategies.pair_grid, lambda p: 0.0, 2, 51)
    assert [p[0] for p in pairs] == pytest.approx([1 - g / 50 for g in range(51)])
    assert all(sum(p) == pytest.approx(1) for p in pairs)
    drawn = np.array(looked(strategies.dirichlet, lambda p: 0.0, 3, 400))
    assert drawn.sum(1) == pytest.approx(np.ones(400))
    assert drawn.mean(0) == pytest.approx(np.full(3, 1 / 3), abs=0.05)
    assert drawn.var(0) == pytest.approx(np.full(3, 2 / 36), abs=0.02)  # a (a0 - a) / (a0^2 (a0 + 1)), a = 1, a0 = 3


def test_a_small_budget_begins_in_the_middle() -> None:
    assert looked(strategies.line, lambda p: p[0], 1, 2) == [(1.0,), (0.0,)]


@pytest.mark.parametrize("strategy", ["coordinate", "cma"])
def test_weights_are_found(plane: Field, strategy: str) -> None:
    if strategy == "cma":
        pytest.importorskip("cma")
    out = plane.folder / "c.json"
    how = {"over": "weight", "strategy": strategy, "budget": 16}
    report = search(plane.models, plane.base, out, evaluate=plane.score, **how)  # type: ignore[arg-type]
    assert report.values == pytest.approx((0.7, 0.2), abs=0.2)
    assert report.trials == 16
    merge(plane.models, plane.folder / "m.safetensors", base=plane.base, coefficients=out)
    assert plane.score(load_file(plane.folder / "m.safetensors")) == pytest.approx(report.score, rel=1e-5)


SCALED = sorted(m.name for m in methods().values() if m.zero == "lambda")


@pytest.mark.parametrize("method", SCALED)
def test_a_merge_of_the_file_is_the_best_trial(tmp_path: Path, method: str) -> None:
    """x_0 + lambda U, with U prepared once, for every method that has lambda."""
    made = field(tmp_path, (0.3, 0.3))
    seen: list[dict[str, Tensor]] = []

    def score(model: dict[str, Tensor]) -> float:
        seen.append(model)
        return made.score(model)

    report = search(made.models, made.base, tmp_path / "c.json", evaluate=score, method=method, budget=6, seed=3)
    best = max(seen, key=made.score)
    merge(made.models, tmp_path / "m.safetensors", base=made.base, coefficients=tmp_path / "c.json", seed=3)
    merged, base = load_file(tmp_path / "m.safetensors"), load_file(made.base)
    whole = merge_state_dicts([load_file(m) for m in made.models], base=base, method=method, seed=3)
    lam = report.values[0]
    for name in base:
        size = float(base[name].abs().max() + (1 + lam) * (whole[name] - base[name]).abs().max())
        near = {"rtol": 0, "atol": 4e-7 * size}  # a few roundings of float32
        torch.testing.assert_close(best[name], merged[name], **near)
        torch.testing.assert_close(merged[name], base[name] + lam * (whole[name] - base[name]), **near)
    found = Coefficients.load(tmp_path / "c.json")
    per_model = find_method(method).params.settings()["lambda_"] == "model"
    assert (found.method, found.parameter) == (method, "lambda_")
    assert found.default == ((lam,),) * (2 if per_model else 1)


def test_other_numbers_and_fixed_parameters(tmp_path: Path) -> None:
    made = field(tmp_path, (1.0, 1.0))
    a, b = (load_file(m) for m in made.models)
    wanted = merge_state_dicts([a, b], method="slerp", t=0.25)

    def near(model: dict[str, Tensor]) -> float:
        return -max(float((model[n] - wanted[n]).abs().max()) for n in wanted)

    report = search(made.models, None, tmp_path / "t.json", evaluate=near, method="slerp", over="t", budget=14)
    assert report.values == pytest.approx((0.25,), abs=0.04)
    merge(made.models, tmp_path / "t.safetensors", coefficients=tmp_path / "t.json")
    assert near(load_file(tmp_path / "t.safetensors")) == pytest.approx(report.score, abs=1e-6)
    given = {"density": 0.5, "weight": [1, 3]}
    search(made.models, made.base, tmp_path / "d.json", evaluate=made.score, method="ties", parameters=given, budget=4)
    assert Coefficients.load(tmp_path / "d.json").parameters == given
    merge(made.models, tmp_path / "d.safetensors", base=made.base, coefficients=tmp_path / "d.json")


def fisher_of(model: Path, seed: int, output: Path) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with Checkpoint.open(model) as opened:
        digest = weights_digest(opened)
    about = About(kind="fisher", estimator="exact", examples=1, model=digest, data="")
    held = {n: torch.rand(t.shape, generator=generator) for n, t in load_file(model).items()}
    save_file(held, output, about.metadata())
    return output


def test_the_grid_of_fisher_merging(plane: Field, tmp_path: Path) -> None:
    measured = [fisher_of(m, i, tmp_path / f"f{i}.safetensors") for i, m in enumerate(plane.models)]
    target = plane.folder / "c.json"
    how = {"method": "fisher", "over": "weight", "strategy": "grid", "budget": 5, "statistics": measured}
    report = search(plane.models, None, target, evaluate=plane.score, **how)  # type: ignore[arg-type]
    logged = [json.loads(line) for line in (tmp_path / "c.json.trials.jsonl").read_text().splitlines()]
    assert [t["parameters"]["weight"][0] for t in logged[:5]] == [1.0, 0.75, 0.5, 0.25, 0.0]
    scores = []
    for i, first in enumerate((1.0, 0.75, 0.5, 0.25, 0.0)):
        out = tmp_path / f"m{i}.safetensors"
        merge(plane.models, out, method="fisher", statistics=measured, weight=[first, 1 - first])
        scores.append(plane.score(load_file(out)))
    assert [t["score"] for t in logged[:5]] == scores
    assert report.score == max(scores)
    assert logged[5] == {"best": scores.index(max(scores)), "search": logged[0]["search"]}


def test_folders_and_a_command(tmp_path: Path) -> None:
    """A candidate is a folder that can be opened as the base can; its path may hold spaces."""
    place = tmp_path / "a place"
    place.mkdir()
    made = folders(place, (0.6, 0.6))
    by_command = search(made.models, made.base, place / "c.json", evaluate=made.command(), budget=6)
    in_python = search(made.models, made.base, place / "p.json", evaluate=made.score, budget=6)
    assert by_command.values == in_python.values
    assert by_command.score == pytest.approx(in_python.score, rel=1e-4)
    told = search(made.models, made.base, place / "l.json", evaluate="test -f {model}/config.json && echo 1", budget=1)
    assert told.score == 1.0
    script = place / "mine.py"
    script.write_text("def fn(model):\n    return -abs(float(model['model.norm.weight'][0]) - 1)\n")
    assert search(made.models, made.base, place / "f.json", evaluate=f"{script}:fn", budget=3).trials == 3


def test_ties_stay(tmp_path: Path) -> None:
    """A function gets a tied head under its name too, as the same tensor; in memory and from a file."""
    paths = [
        save(tmp_path / name, llama(seed, torch.bfloat16, tied=True), tie_word_embeddings=True)
        for seed, name in enumerate(("base", "a", "b"))
    ]
    kept: list[dict[str, Tensor]] = []

    def score(model: dict[str, Tensor]) -> float:
        assert model["lm_head.weight"] is model["model.embed_tokens.weight"]
        kept.append(model)
        return float(len(kept))

    for over in ("lambda", "weight"):
        search(paths[1:], paths[0], tmp_path / f"{over}.json", evaluate=score, over=over, budget=2)
        merge(paths[1:], tmp_path / f"m-{over}", base=paths[0], coefficients=tmp_path / f"{over}.json")
        for name, tensor in load_file(tmp_path / f"m-{over}" / "model.safetensors").items():
            torch.testing.assert_close(kept[-1][name], tensor)
            assert tensor.dtype == torch.bfloat16


def test_low_precision_and_excluded_heads(tmp_path: Path) -> None:
    """Heads may differ in shape; what is excluded is the base's, whether the update can be kept apart or not."""
    for dtype in (torch.float32, torch.bfloat16):
        place = tmp_path / str(dtype)
        place.mkdir()
        paths = []
        for seed, name in enumerate(("base", "a", "b")):
            held = {**tensors(seed, dtype), "head.b": torch.full((seed + 2,), float(seed), dtype=dtype)}
            paths.append(place / f"{name}.safetensors")
            save_file(held, paths[-1])
        heads, kinds = set(), set()

        def score(model: dict[str, Tensor], heads: set[object] = heads, kinds: set[object] = kinds) -> float:
            heads.add(tuple(model["head.b"].tolist()))
            kinds.update(t.dtype for t in model.values())
            return -float(model["layers.1.w"].float().norm())

        out = place / "c.json"
        report = search(paths[1:], paths[0], out, evaluate=score, budget=6, exclude=["head"])
        assert (heads, kinds) == ({(0.0, 0.0)}, {dtype})
        done = merge(paths[1:], place / "m.safetensors", base=paths[0], coefficients=out, exclude=["head"])
        assert not done.warnings
        again = score(load_file(place / "m.safetensors"))
        assert again == pytest.approx(report.score, rel=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_interrupted_it_goes_on(plane: Field) -> None:
    out, whole = plane.folder / "cut.json", plane.folder / "whole.json"
    counted = Counted(plane.score)
    undisturbed = search(plane.models, plane.base, whole, evaluate=plane.score, over="weight", budget=14)
    with pytest.raises(KeyboardInterrupt):
        search(plane.models, plane.base, out, evaluate=Counted(plane.score, stop=8), over="weight", budget=14)
    assert not out.exists()
    counted = Counted(plane.score)
    report = search(plane.models, plane.base, out, evaluate=counted, over="weight", budget=14)
    assert counted.calls == undisturbed.trials - 7
    assert report.resumed == 7
    assert out.read_bytes() == whole.read_bytes()
    assert leftovers(plane.folder) == []


def test_trials_serve_another_search_and_force_begins_anew(plane: Field) -> None:
    out = plane.folder / "c.json"
    how = {"over": "weight", "strategy": "grid"}
    search(plane.models, plane.base, out, evaluate=Counted(plane.score), budget=3, **how)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="already exists"):
        search(plane.models, plane.base, out, evaluate=Counted(plane.score), budget=5, **how)  # type: ignore[arg-type]
    out.unlink()
    counted = Counted(plane.score)
    report = search(plane.models, plane.base, out, evaluate=counted, budget=5, **how)  # type: ignore[arg-type]
    assert (counted.calls, report.trials, report.resumed) == (2, 5, 3)  # 1, 0.5 and 0 were there
    counted = Counted(plane.score)
    search(plane.models, plane.base, out, evaluate=counted, budget=5, force=True, **how)  # type: ignore[arg-type]
    assert counted.calls == 5
    lines = out.with_name("c.json.trials.jsonl").read_text().splitlines()
    assert [json.loads(line).get("number") for line in lines] == [0, 1, 2, 3, 4, None]


KILLED = """
import os, signal
from pathlib import Path
calls = 0
def fn(model):
    global calls
    calls += 1
    if calls == 4 and not Path({mark!r}).exists():
        Path({mark!r}).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return -abs(float(model["layers.1.w"][3]) - 0.4)
"""
RUN = """
import json, sys
from paramsmith.merge.learn.search import search
given = json.loads(sys.argv[1])
print(search(given["models"], given["base"], given["out"], evaluate=given["evaluate"], budget=12).resumed)
"""


def test_killed_it_goes_on_and_gives_the_same(plane: Field) -> None:
    script = plane.folder / "fn.py"
    script.write_text(KILLED.format(mark=str(plane.folder / "mark")))
    out = plane.folder / "c.json"
    given = {"models": [str(m) for m in plane.models], "base": str(plane.base), "evaluate": f"{script}:fn"}
    command = [sys.executable, "-c", RUN, json.dumps({**given, "out": str(out)})]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    log = out.with_name("c.json.trials.jsonl")
    assert len(log.read_text().splitlines()) == 3
    with log.open("a") as file:
        file.write('{"number": 3, "parameters": {"lambda"')  # a line that the kill cut short
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "3\n", done.stderr
    whole = plane.folder / "whole.json"
    search(plane.models, plane.base, whole, evaluate=f"{script}:fn", budget=12)
    assert out.read_bytes() == whole.read_bytes()

    def scores(path: Path) -> list[object]:
        lines = map(json.loads, path.with_name(f"{path.name}.trials.jsonl").read_text().splitlines())
        return [(t.get("number"), t.get("parameters"), t.get("score"), t.get("best")) for t in lines]

    assert scores(out) == scores(whole)
    assert leftovers(plane.folder) == []


def test_a_score_that_is_not_finite_is_the_worst(plane: Field) -> None:
    def score(model: dict[str, Tensor]) -> float:
        value = plane.score(model)
        return value if value > -300 else math.nan

    out = plane.folder / "c.json"
    report = search(plane.models, plane.base, out, evaluate=score, strategy="grid", budget=9)
    best = search(plane.models, plane.base, plane.folder / "b.json", evaluate=plane.score, strategy="grid", budget=9)
    assert report.values == best.values
    lines = [json.loads(line) for line in (plane.folder / "c.json.trials.jsonl").read_text().splitlines()]
    without = sum(line.get("score", 0) is None for line in lines)
    assert 0 < without < 9
    assert report.warnings == (f"{without} of 9 trials have no finite score and count as the worst",)
    with pytest.raises(Failed, match="none of 3 trials has a finite score"):
        search(plane.models, plane.base, plane.folder / "n.json", evaluate=lambda m: -math.inf, budget=3)
    assert not (plane.folder / "n.json").exists()


def test_values_that_a_method_has_no_use_for_count_as_the_worst(plane: Field) -> None:
    """A weight of 0 is no average."""
    out = plane.folder / "c.json"
    report = search(plane.models[:1], None, out, evaluate=plane.score, method="linear", over="weight", budget=4)
    assert report.warnings == (
        "1 of 4 trials have no finite score and count as the worst: linear: the weights sum to zero",
    )
    assert report.values > (0.0,)


def test_a_log_that_does_not_belong_is_refused(plane: Field) -> None:
    out, log = plane.folder / "c.json", plane.folder / "c.json.trials.jsonl"
    search(plane.models, plane.base, out, evaluate=plane.score, budget=3)
    out.unlink()
    with pytest.raises(Refused, match="another search"):
        search(plane.models, plane.base, out, evaluate=plane.score, over="weight", budget=3)
    with pytest.raises(Refused, match="another search"):
        search(plane.models[:1], plane.base, out, evaluate=plane.score, budget=3)
    search(plane.models, plane.base, out, evaluate=plane.score, over="weight", budget=3, force=True)
    out.unlink()
    for damage in ("[]\n", "{}\n", "nonsense\n", '{"search": 3}\n', "\x00\n"):
        log.write_text(damage)
        with pytest.raises(Refused, match=r"c.json.trials.jsonl: (line 1|holds)"):
            search(plane.models, plane.base, out, evaluate=plane.score, budget=3)
        assert log.read_text() == damage
    search(plane.models, plane.base, out, evaluate=plane.score, budget=3, force=True)
    assert len(log.read_text().splitlines()) == 4


def test_without_cma_the_hint_says_what_to_install(plane: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(InvalidInput, match="needs the package cma") as problem:
        search(plane.models, plane.base, plane.folder / "c.json", evaluate=plane.score, over="weight", strategy="cma")
    assert problem.value.hint == "pip install 'paramsmith[search]'"
    assert sorted(plane.folder.iterdir()) == sorted(plane.inputs())


def raising(model: dict[str, Tensor]) -> float:
    raise LookupError("no such benchmark")


WRONG: dict[str, tuple[type[ParamsmithError], str, dict[str, object]]] = {
    "command fails": (Failed, "ended with 3: no data", {"evaluate": "echo no data >&2; : {model}; exit 3"}),
    "command is killed": (Failed, "was ended by signal 9", {"evaluate": "kill -9 $$; : {model}"}),
    "command is not there": (Failed, "ended with 127", {"evaluate": "no-such-command {model}"}),
    "command prints nothing": (Failed, "printed nothing", {"evaluate": "true {model}"}),
    "command prints words": (Failed, "printed 'accuracy: 3', which is no", {"evaluate": "echo accuracy: 3 # {model}"}),
    "command prints nan": (Failed, "none of 2 trials", {"evaluate": "echo nan # {model}", "budget": 2}),
    "command about nothing": (InvalidInput, "says nowhere which model", {"evaluate": "python score.py"}),
    "no such file": (InvalidInput, "does not exist", {"evaluate": "none.py:fn"}),
    "function raises": (Failed, "raising raised LookupError: no such benchmark", {"evaluate": raising}),
    "function returns words": (Failed, "returned str, which is no score", {"evaluate": lambda model: "good"}),
    "function returns nothing": (Failed, "returned NoneType", {"evaluate": lambda model: None}),
    "function returns many": (Failed, "returned Tensor", {"evaluate": lambda model: torch.ones(2)}),
    "budget": (InvalidInput, "a budget of 0", {"budget": 0}),
    "bounds": (InvalidInput, "nothing lies between the bounds 1.0 and 1.0", {"bounds": (1.0, 1.0)}),
    "bounds not finite": (InvalidInput, "nothing lies between", {"bounds": (0.0, math.inf)}),
    "method": (InvalidInput, "no merge method is called", {"method": "tie"}),
    "no such number": (InvalidInput, "no number called densities", {"over": "densities", "method": "ties"}),
    "no number": (InvalidInput, "no number called normalize", {"over": "normalize"}),
    "given and searched": (InvalidInput, "given and searched", {"parameters": {"lambda": 1.0}}),
    "unknown parameter": (InvalidInput, "no parameter density", {"parameters": {"density": 1.0}}),
    "strategy": (InvalidInput, "is no strategy", {"strategy": "random"}),
    "line of two": (InvalidInput, "a line is of one number", {"strategy": "line", "over": "weight"}),
    "cma of one": (InvalidInput, "two numbers or more", {"strategy": "cma"}),
    "draws of one": (InvalidInput, "weights of two models", {"strategy": "dirichlet"}),
    "statistics": (InvalidInput, "uses no statistics", {"statistics": ["base", "base"]}),
    "folder": (InvalidInput, "is not an existing folder", {"output": "none/c.json"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_leaves_nothing(plane: Field, name: str) -> None:
    kind, said, how = WRONG[name]
    given = {"evaluate": plane.score, "budget": 3, "output": "c.json", **how}
    given["output"] = plane.folder / str(given["output"])
    if name == "statistics":
        given["statistics"] = [plane.base, plane.base]
    if name == "no such file":
        given["evaluate"] = f"{plane.folder}/none.py:fn"
    with pytest.raises(kind, match=said) as problem:
        search(plane.models, plane.base, **given)  # type: ignore[arg-type]
    assert type(problem.value) is kind
    assert problem.value.hint
    left = {p.name for p in plane.folder.iterdir()} - {p.name for p in plane.inputs()}
    assert left <= ({"c.json.trials.jsonl"} if name == "command prints nan" else set())


def test_models_that_do_not_fit_are_refused_before_anything_is_scored(plane: Field, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({**tensors(9), "head.b": torch.zeros(4)}, other)
    counted = Counted(plane.score)
    wrong: list[tuple[list[Path], Path | None, str]] = [
        ([plane.models[0], other], plane.base, "head.b has shape"),
        ([plane.models[0], plane.models[0]], plane.base, "given twice"),
        ([plane.models[0], plane.base], plane.base, "both the base and one of the models"),
        (plane.models, None, "needs a base"),
        ([], plane.base, "no models given"),
        ([tmp_path / "none"], plane.base, "none"),
    ]
    for models, base, said in wrong:
        for over in ("lambda", "weight"):
            with pytest.raises(InvalidInput, match=said):
                search(models, base, tmp_path / "c.json", evaluate=counted, over=over)
    assert counted.calls == 0
    assert sorted(tmp_path.iterdir()) == sorted([*plane.inputs(), other])


def test_the_output_does_not_go_into_a_model(tmp_path: Path) -> None:
    made = folders(tmp_path, (0.5,))
    with pytest.raises(InvalidInput, match="lies in the model"):
        search(made.models, made.base, made.base / "c.json", evaluate=made.score)
    assert sorted(p.name for p in made.base.iterdir()) == ["config.json", "model.safetensors"]


def test_trials_that_were_done_are_kept_when_one_fails(plane: Field) -> None:
    def score(model: dict[str, Tensor]) -> float:
        score.calls += 1  # type: ignore[attr-defined]
        if score.calls == 3:  # type: ignore[attr-defined]
            raise MemoryError
        return plane.score(model)

    score.calls = 0  # type: ignore[attr-defined]
    out = plane.folder / "c.json"
    with pytest.raises(Failed) as problem:
        search(plane.models, plane.base, out, evaluate=score, budget=6)
    assert "goes on after the 2 trials" in problem.value.hint
    assert not out.exists()
    assert leftovers(plane.folder) == []
    report = search(plane.models, plane.base, out, evaluate=score, budget=6)
    assert (report.trials, report.resumed) == (6, 2)
