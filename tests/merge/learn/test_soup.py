"""Model soups, against the means of dicts in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paramsmith.coefficients import Coefficients
from paramsmith.errors import Failed, InvalidInput, ParamsmithError, Refused
from paramsmith.merge import merge
from paramsmith.merge.learn.soup import soup
from tests.merge.folders import leftovers
from tests.merge.learn.scoring import Counted, Field, field, folders, tensors

Score = Callable[[dict[str, Tensor]], float]


@pytest.fixture
def shelf(tmp_path: Path) -> Field:
    """Five models; the mean of the second, fourth and fifth is the best there is."""
    return field(tmp_path, (0.0, 1 / 3, 0.0, 1 / 3, 1 / 3))


def mean(models: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([m[name].double() for m in models]).mean(0).float() for name in models[0]}


def greedy(models: Sequence[dict[str, Tensor]], score: Score) -> list[int]:
    """As the papers write it."""
    order = sorted(range(len(models)), key=lambda i: -score(models[i]))
    pool = order[:1]
    for i in order[1:]:
        if score(mean([models[j] for j in (*pool, i)])) >= score(mean([models[j] for j in pool])):
            pool.append(i)
    return pool


def weights(path: Path) -> list[float]:
    found = Coefficients.load(path)
    assert (found.method, found.parameter, found.base) == ("linear", "weight", None)
    return [row[0] for row in found.default]


def merged(made: Field, **how: object) -> dict[str, Tensor]:
    out = made.folder / "merged.safetensors"
    merge(made.models, out, coefficients=made.folder / "s.json", force=True, **how)  # type: ignore[arg-type]
    return load_file(out)


def test_greedy(shelf: Field) -> None:
    models = [load_file(path) for path in shelf.models]
    seen: list[dict[str, Tensor]] = []

    def score(model: dict[str, Tensor]) -> float:
        seen.append(model)
        return shelf.score(model)

    report = soup(shelf.models, shelf.folder / "s.json", evaluate=score)
    assert list(report.pool) == greedy(models, shelf.score)
    assert sorted(report.pool) == [1, 3, 4]
    assert weights(shelf.folder / "s.json") == [0, 1, 0, 1, 1]
    assert report.trials == len(seen) == 9
    assert report.scores == pytest.approx([shelf.score(m) for m in models])
    best = max(seen, key=shelf.score)
    result = merged(shelf)
    for name, wanted in mean([models[i] for i in report.pool]).items():
        torch.testing.assert_close(best[name], wanted)
        torch.testing.assert_close(result[name], wanted)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_takes_what_the_papers_take(tmp_path: Path, seed: int) -> None:
    """Whatever the score likes; also one with many ties, which are accepted."""
    made = field(tmp_path, (0.0,) * 4)
    models = [load_file(path) for path in made.models]
    way = tensors(50 + seed)

    def along(model: dict[str, Tensor]) -> float:
        return sum(float((model[n] * way[n]).sum()) for n in way) - sum(float(t.square().sum()) for t in model.values())

    def coarse(model: dict[str, Tensor]) -> float:
        return round(along(model) / 40)

    for name, score in (("a", along), ("b", coarse)):
        report = soup(made.models, tmp_path / f"{name}.json", evaluate=score)
        assert list(report.pool) == greedy(models, score)
    everything = soup(made.models, tmp_path / "e.json", evaluate=lambda model: 1.0)
    assert everything.pool == (0, 1, 2, 3)


def test_maximum_and_uniform(shelf: Field) -> None:
    counted = Counted(shelf.score)
    report = soup(shelf.models, shelf.folder / "s.json", evaluate=counted, strategy="maximum", p=2)
    models = [load_file(path) for path in shelf.models]
    order = sorted(range(5), key=lambda i: -shelf.score(models[i]))
    assert list(report.pool) == order[:2]
    assert counted.calls == 6
    assert report.score == pytest.approx(shelf.score(mean([models[i] for i in order[:2]])))
    everyone = soup(shelf.models, shelf.folder / "u.json", strategy="uniform")
    assert (everyone.score, everyone.trials) == (None, 0)
    assert weights(shelf.folder / "u.json") == [1] * 5
    assert not (shelf.folder / "u.json.trials.jsonl").exists()
    scored = soup(shelf.models, shelf.folder / "v.json", strategy="uniform", evaluate=shelf.score)
    assert scored.score == pytest.approx(shelf.score(mean(models)))
    one = soup(shelf.models[:1], shelf.folder / "o.json", evaluate=shelf.score)
    assert (one.pool, one.trials) == ((0,), 1)


def test_folders_and_a_command(tmp_path: Path) -> None:
    made = folders(tmp_path, (0.5, 0.5, 0.0))
    report = soup(made.models, tmp_path / "c.json", evaluate=made.command())
    again = soup(made.models, tmp_path / "p.json", evaluate=made.score)
    assert report.pool == again.pool
    assert report.score == pytest.approx(again.score, rel=1e-4)
    told = soup(made.models, tmp_path / "f.json", evaluate="test -f {model}/config.json && echo 1")
    assert (told.pool, told.score) == ((0, 1, 2), 1.0)


def test_no_more_than_one_sum_is_kept(shelf: Field) -> None:
    staging, most = shelf.folder / ".s.json.partial", 0

    def score(model: dict[str, Tensor]) -> float:
        nonlocal most
        most = max(most, len(list(staging.glob("*.safetensors"))))
        return 1.0

    soup(shelf.models, shelf.folder / "s.json", evaluate=score)
    assert most == 2  # the sum and the candidate
    assert leftovers(shelf.folder) == []


def test_heads_of_their_own(tmp_path: Path) -> None:
    """What is excluded is the first model's in every candidate, as it is in the merge that follows."""
    for dtype in (torch.float32, torch.bfloat16):
        place = tmp_path / str(dtype)
        place.mkdir()
        paths = [place / f"{name}.safetensors" for name in "abc"]
        for seed, path in enumerate(paths):
            head = torch.full((seed + 1,), float(seed), dtype=dtype)
            save_file({**tensors(seed, dtype), "head.b": head}, path)
        seen = []

        def score(model: dict[str, Tensor], seen: list[dict[str, Tensor]] = seen) -> float:
            seen.append(model)
            return float(len(seen))

        report = soup(paths, place / "s.json", evaluate=score, exclude=["head"])
        assert report.pool == (2, 1, 0)
        assert all(m["head.b"].tolist() == [0.0] and m["head.b"].dtype == dtype for m in seen)
        merge(paths, place / "m.safetensors", coefficients=place / "s.json", exclude=["head"])
        for name, tensor in load_file(place / "m.safetensors").items():
            torch.testing.assert_close(tensor, seen[-1][name])


def test_interrupted_it_goes_on(shelf: Field) -> None:
    soup(shelf.models, shelf.folder / "whole.json", evaluate=shelf.score)
    with pytest.raises(KeyboardInterrupt):
        soup(shelf.models, shelf.folder / "s.json", evaluate=Counted(shelf.score, stop=8))
    assert not (shelf.folder / "s.json").exists()
    counted = Counted(shelf.score)
    report = soup(shelf.models, shelf.folder / "s.json", evaluate=counted)
    assert (counted.calls, report.resumed) == (2, 7)
    assert (shelf.folder / "s.json").read_bytes() == (shelf.folder / "whole.json").read_bytes()
    # with the log but without the sums that were kept, as after a failure
    (shelf.folder / "s.json").unlink()
    log = shelf.folder / "s.json.trials.jsonl"
    log.write_text("".join(f"{line}\n" for line in log.read_text().splitlines()[:8]))
    counted = Counted(shelf.score)
    soup(shelf.models, shelf.folder / "s.json", evaluate=counted)
    assert counted.calls == 1
    assert (shelf.folder / "s.json").read_bytes() == (shelf.folder / "whole.json").read_bytes()


def test_a_model_that_is_not_finite_is_not_taken(shelf: Field) -> None:
    save_file({n: t * math.nan for n, t in tensors(2).items()}, shelf.models[1])
    report = soup(shelf.models, shelf.folder / "s.json", evaluate=shelf.score)
    assert report.scores[1] is None
    assert 1 not in report.pool
    assert any("has no finite score" in warning for warning in report.warnings)
    lines = (shelf.folder / "s.json.trials.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["score"] is None
    with pytest.raises(Failed, match="none of 5 models has a finite score"):
        soup(shelf.models, shelf.folder / "n.json", evaluate=lambda model: math.nan)


WRONG: dict[str, tuple[type[ParamsmithError], str, dict[str, object]]] = {
    "strategy": (InvalidInput, "is no strategy", {"strategy": "minimum"}),
    "no evaluation": (InvalidInput, "a greedy soup needs an evaluation", {"evaluate": None}),
    "no p": (InvalidInput, "p says how many", {"strategy": "maximum"}),
    "p for nothing": (InvalidInput, "p says how many", {"p": 2}),
    "p too large": (InvalidInput, "the 6 best of 5", {"strategy": "maximum", "p": 6}),
    "p too small": (InvalidInput, "the 0 best of 5", {"strategy": "maximum", "p": 0}),
    "command fails": (Failed, "ended with 1", {"evaluate": "false {model}"}),
    "filter": (InvalidInput, "filter", {"exclude": ["/[/"]}),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_leaves_nothing(shelf: Field, name: str) -> None:
    kind, said, how = WRONG[name]
    with pytest.raises(kind, match=said) as problem:
        soup(shelf.models, shelf.folder / "s.json", **{"evaluate": shelf.score, **how})  # type: ignore[arg-type]
    assert type(problem.value) is kind
    assert problem.value.hint
    assert sorted(shelf.folder.iterdir()) == sorted(shelf.inputs())


def test_models_that_do_not_fit_are_refused_before_anything_is_scored(shelf: Field, tmp_path: Path) -> None:
    other, counted = tmp_path / "other.safetensors", Counted(shelf.score)
    save_file({**tensors(9), "head.b": torch.zeros(4)}, other)
    for models, said in (
        ([*shelf.models, other], "head.b has shape"),
        ([shelf.models[0]] * 2, "given twice"),
        ([], "no models given"),
    ):
        with pytest.raises(InvalidInput, match=said):
            soup(models, tmp_path / "s.json", evaluate=counted)
    assert counted.calls == 0
    (tmp_path / "s.json").write_text("mine")
    with pytest.raises(Refused, match="already exists"):
        soup(shelf.models, tmp_path / "s.json", evaluate=counted)
    assert counted.calls == 0
    assert (tmp_path / "s.json").read_text() == "mine"
