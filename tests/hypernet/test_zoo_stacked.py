"""Stacked zoos: thousands of networks in a file, conditions in files, memory that is bounded, copies and splits."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paramsmith.errors import Failed, GenerateWarning, InvalidInput
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.zoos.contents import copies, digest_of, digests
from paramsmith.hypernet.zoos.index import Entry
from paramsmith.hypernet.zoos.inspection import inspect
from paramsmith.hypernet.zoos.smallness import few, warn_few
from paramsmith.hypernet.zoos.splitting import save_index, split
from paramsmith.hypernet.zoos.targetfile import targets_bytes
from paramsmith.hypernet.zoos.writing import ZooWriter
from paramsmith.hypernet.zoos.zoo import Zoo

pytestmark = pytest.mark.usefixtures("one_thread")

NET = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
SPEC = Target.of(NET, torch.zeros(1, 4)).spec
NUMBERS = 4 * 5 + 5 + 5 * 3 + 3


def stack(count: int, classes: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = {slot.name: slot.shape for slot in SPEC.with_classes(classes).slots}
    return {name: torch.randn(count, *shape, generator=rng).to(dtype) for name, shape in shapes.items()}


def fill(folder: Path, lines: Sequence[Mapping[str, object]], **files: Mapping[str, Tensor]) -> Path:
    for name, held in files.items():
        save_file(dict(held), folder / f"{name}.safetensors")
    (folder / "zoo.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def rows(file: str, *numbers: int) -> list[dict[str, object]]:
    return [{"path": f"{file}.safetensors", "row": row} for row in numbers]


# -- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_batch_has_the_rows_in_the_order_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    held, other = stack(9, dtype=dtype), stack(4, seed=1, dtype=dtype)
    zoo = Zoo.open(fill(tmp_path, [*rows("a", *range(9)), *rows("b", 3, 0)], a=held, b=other))
    chosen = [zoo.members[i] for i in (8, 2, 10, 3, 2, 9)]
    for _ in range(2):  # from files, then from memory
        found = zoo.batch(chosen)
        for name, tensor in found.items():
            parts = [held[name][8], held[name][2], other[name][0], held[name][3], held[name][2], other[name][3]]
            assert torch.equal(tensor, torch.stack(parts).float())
    assert torch.equal(zoo.load(zoo.members[9])["0.bias"], other["0.bias"][3].float())


def test_only_the_rows_that_are_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those side by side in one read a tensor; those in memory not at all."""
    from paramsmith.checkpoint import Checkpoint

    zoo = Zoo.open(fill(tmp_path, rows("a", *range(50)), a=stack(50)))
    spans: list[tuple[str, int, int]] = []
    read = Checkpoint.read_into

    def seen(self: Checkpoint, name: str, start: int, buffer: memoryview) -> None:
        spans.append((name, start, buffer.nbytes))
        read(self, name, start, buffer)

    monkeypatch.setattr(Checkpoint, "read_into", seen)
    zoo.batch([zoo.members[i] for i in (12, 10, 11, 30)])
    assert sorted(span for span in spans if span[0] == "2.bias") == [("2.bias", 120, 36), ("2.bias", 360, 12)]
    assert len(spans) == 8
    assert zoo.reader.read == 4 * NUMBERS * 4
    zoo.batch([zoo.members[i] for i in (10, 31)])
    assert zoo.reader.read == 5 * NUMBERS * 4


def test_memory_is_bounded(tmp_path: Path) -> None:
    """By the budget, for what stays; what was used last stays."""
    budget = 10 * 4 * NUMBERS + 3
    zoo = Zoo.open(fill(tmp_path, rows("a", *range(50)), a=stack(50)), memory=budget)
    for members, tensors in zoo.batches("train", 7):
        assert zoo.reader.held <= budget
        assert len(members) == len(tensors["0.bias"]) <= 7
    kept = [tensor for one in zoo.reader._kept.values() for tensor in one.values()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    assert sum(storages.values()) == zoo.reader.held == 10 * 4 * NUMBERS
    before = zoo.reader.read
    zoo.batch(zoo.members[40:])
    assert zoo.reader.read == before
    zoo.batch(zoo.members[:1])
    assert zoo.reader.read == before + 4 * NUMBERS
    none = Zoo.open(tmp_path, memory=0)
    none.batch(none.members)
    assert none.reader.held == 0


def test_peak_memory_of_a_pass(tmp_path: Path) -> None:
    """A pass over a zoo holds the budget and a batch, whatever the zoo's size."""
    held = {"w": torch.randn(400, 100, 100)}
    zoo = Zoo.open(fill(tmp_path, rows("a", *range(400)), a=held), memory=20 * 40_000)
    alive = [0, 0]
    empty = torch.empty

    def gone(nbytes: int) -> None:
        alive[0] -= nbytes

    class Counted:
        """Bytes of the tensors that reading makes, while they live."""

        def __call__(self, *shape: object, **options: object) -> Tensor:
            made: Tensor = empty(*shape, **options)  # type: ignore[call-overload]
            alive[0] += made.nbytes
            alive[1] = max(alive)
            weakref.finalize(made, gone, made.nbytes)
            return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", Counted())
        for _, tensors in zoo.batches("train", 10):
            del tensors
    assert 10 * 40_000 <= alive[1] <= 4 * 10 * 40_000  # the batch, what was read for it, and the one before
    assert zoo.reader.held <= 20 * 40_000


def test_batches_are_of_one_architecture_and_in_one_order(tmp_path: Path) -> None:
    lines = [line for i in range(5) for line in (*rows("three", i), *rows("four", i))]
    lines[2]["split"] = lines[3]["split"] = "validation"
    zoo = Zoo.open(fill(tmp_path, lines, three=stack(5), four=stack(5, 4)))
    found = [[member.label for member in members] for members, _ in zoo.batches("train", 3)]
    order = [f"{kind}.safetensors[{i}]" for kind in ("three", "four") for i in (0, 2, 3, 4)]
    assert found == [order[:3], order[3:4], order[4:7], order[7:]]
    assert [len(members) for members, _ in zoo.batches(None)] == [5, 5]
    assert [len(members) for members, _ in zoo.batches("validation")] == [1, 1]
    assert not list(zoo.batches("test"))
    with pytest.raises(InvalidInput, match=r"four\.safetensors\[0\]: is of another architecture than three"):
        zoo.batch(zoo.members[:2])
    with pytest.raises(InvalidInput, match="no networks"):
        zoo.batch([])


def test_a_network_that_is_not_finite_is_named(tmp_path: Path) -> None:
    held = stack(6)
    held["2.weight"][4, 1, 1] = torch.inf
    zoo = Zoo.open(fill(tmp_path, rows("a", *range(6)), a=held))
    with pytest.raises(InvalidInput, match=r"a\.safetensors\[4\]: tensor 2\.weight holds values that are not finite"):
        zoo.batch(zoo.members)
    zoo.batch(zoo.members[:4])


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    zoo = Zoo.open(fill(tmp_path, rows("a", 0, 1), a=stack(2)))
    save_file(stack(3, seed=1), tmp_path / "a.safetensors")
    with pytest.raises(Failed, match=r"a\.safetensors: changed"):
        zoo.batch(zoo.members)


# -- what the networks are -------------------------------------------------------------------


def test_numbers_of_classes_are_of_one_target(tmp_path: Path) -> None:
    """Where the head is known; its size alone differs."""
    fill(tmp_path, [*rows("a", 0, 1), *rows("b", 0)], a=stack(2), b=stack(1, 7))
    by_name = Zoo.open(tmp_path).site.spec
    assert by_name is not None
    assert by_name.graph is None
    zoo = Zoo.open(tmp_path, SPEC)
    assert zoo.site.spec is SPEC
    assert zoo.members[2].spec.hash == SPEC.with_classes(7).hash
    assert zoo.members[2].spec.slots[2].class_axis == 0
    (tmp_path / "targets.json").write_bytes(targets_bytes([SPEC]))
    found = Zoo.open(tmp_path)
    assert found.site.spec is not None
    assert found.site.spec.graph == SPEC.graph
    assert [member.spec.slots[2].shape[0] for member in found.members] == [3, 3, 7]
    wide = {name: tensor.repeat_interleave(2, 1) for name, tensor in stack(1).items()}
    assert Zoo.open(fill(tmp_path, [*rows("a", 0), *rows("b", 0)], b=wide)).site.spec is None


def test_conditions_of_files(tmp_path: Path) -> None:
    """Tensors of classes are stacked in the order given, read once and shared; rows are rows."""
    features = {name: torch.full((2, 3), float(name)) for name in "0123"} | {"all": torch.arange(8.0).view(4, 2)}
    lines = rows("a", 0, 1, 2)
    for line, names in zip(lines, (["3", "1"], ["0", "2", "3"], ["1"]), strict=True):
        line["condition"] = {
            "classes": {"file": "f.safetensors", "tensors": names},
            "row": {"file": "f.safetensors", "tensor": "all", "row": len(names)},
        }
    zoo = Zoo.open(fill(tmp_path, lines, a=stack(3), f=features))
    assert len(zoo) == 3
    assert zoo.site.condition == {"classes": (0, 2, 3), "row": (2,)}
    first, second, _ = (member.condition for member in zoo.members)
    assert torch.equal(first["classes"], torch.stack([features["3"], features["1"]]))
    assert torch.equal(first["row"], features["all"][2])
    assert second["classes"].shape == (3, 2, 3)
    digest, unread = zoo.digest, Zoo.open(tmp_path).members[1].condition
    save_file({**features, "0": torch.zeros(2, 4)[:, :3].contiguous() + 9}, tmp_path / "f.safetensors")
    assert Zoo.open(tmp_path).digest != digest
    with pytest.raises(Failed, match=r"f\.safetensors: changed"):
        unread["classes"]


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ({"file": "f.safetensors", "tensors": []}, "tensors: "),
        ({"file": "f.safetensors", "tensors": ["0", "nine"]}, "has no tensor nine"),
        ({"file": "f.safetensors", "tensors": ["0", "odd"]}, "odd is of shape"),
        ({"file": "../f.safetensors", "tensors": ["0"]}, "lies outside the zoo"),
        ({"file": "/etc/passwd", "tensors": ["0"]}, "lies outside the zoo"),
        ({"file": "none.safetensors", "tensors": ["0"]}, "does not exist"),
        ({"file": "f\x00", "tensors": ["0"]}, "is no path"),
        ({"file": "f.safetensors", "tensors": "0"}, "tensors: "),
        ({"file": "f.safetensors", "tensors": ["0"], "rows": 1}, "rows: "),
        ({"file": "f.safetensors", "tensor": "0", "row": 2}, "has no row 2"),
        ({"file": "f.safetensors", "tensor": "0", "row": -1}, "row: "),
        ({"file": "f.safetensors", "tensor": "0", "row": 10**30}, "row: "),
        ({"file": "f.safetensors", "tensor": "number", "row": 0}, "has no row 0"),
        ({"file": 3, "tensor": "0", "row": 0}, "file: "),
        ({}, "file: "),
        ({"nested": {"deep": 1}}, "file: |nested: "),
    ],
)
def test_conditions_that_are_none(tmp_path: Path, condition: object, told: str) -> None:
    inside = tmp_path / "zoo"
    inside.mkdir()
    features = {"0": torch.zeros(2, 3), "odd": torch.zeros(3, 3), "number": torch.zeros(())}
    save_file(features, tmp_path / "f.safetensors")
    line = {**rows("a", 0)[0], "condition": {"classes": condition}}
    with pytest.raises(InvalidInput, match=told) as refused:
        Zoo.open(fill(inside, [line], a=stack(1), f=features))
    assert "\n" not in refused.value.fact


def test_features_that_are_not_finite(tmp_path: Path) -> None:
    line = {**rows("a", 0)[0], "condition": {"classes": {"file": "f.safetensors", "tensors": ["x"]}}}
    zoo = Zoo.open(fill(tmp_path, [line], a=stack(1), f={"x": torch.tensor([1.0, torch.nan])}))
    with pytest.raises(InvalidInput, match=r"f\.safetensors: x holds values that are not finite"):
        zoo.members[0].condition["classes"]


# -- the index -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"row": -1}, "line 1: row: "),
        ({"row": 3}, r"a\.safetensors has 3 rows, and no row 3"),
        ({"row": 2**52}, "has 3 rows, and no row"),
        ({"row": 10**40}, "line 1: row: "),
        ({"row": "0"}, "line 1: row: "),
        ({"row": 1.0}, "line 1: row: "),
        ({"row": True}, "line 1: row: "),
        ({"row": [0]}, "line 1: row: "),
        ({"row": 0, "split": "dev"}, "line 1: split: "),
        ({"row": 0, "sha256": "abc"}, "line 1: sha256: "),
        ({"row": 0, "episode": -1}, "line 1: episode: "),
        ({"row": 0, "episode": 2**63}, "line 1: episode: "),
        ({"row": 0, "step": -5}, "line 1: step: "),
        ({"row": 0, "seed": "x"}, "line 1: seed: "),
        ({"row": 0, "metrics": {"a": "high"}}, "line 1: metrics.a: "),
        ({"row": 0, "metrics": {"a": float("nan")}}, "line 1: "),
        ({"row": 0, "drawn": "dev"}, "line 1: drawn: "),
        ({"row": 0, "path": "../a.safetensors"}, "lies outside"),
        ({"row": 0, "path": "/etc/passwd"}, "lies outside"),
        ({"row": 0, "path": "a\x00b"}, "is no path"),
        ({"row": 0, "path": "x" * 4000}, "is no path|cannot be opened|too long"),
        ({"row": 0, "path": ""}, "line 1: path: "),
        ({"row": 0, "path": "uneven.safetensors"}, "has tensors of 2 and 3 rows"),
        ({"row": 0, "path": "flat.safetensors"}, "has tensors of 0 rows"),
        ({"row": 0, "path": "loop"}, "is no path|does not exist|cannot be opened"),
    ],
)
def test_hostile_lines(tmp_path: Path, line: dict[str, object], told: str) -> None:
    uneven = {**stack(3), "2.bias": torch.zeros(2, 3)}
    (tmp_path / "loop").symlink_to("loop")
    fill(tmp_path, [{"path": "a.safetensors", **line}], a=stack(3), uneven=uneven, flat={"x": torch.zeros(())})
    with pytest.raises(InvalidInput, match=told) as refused:
        Zoo.open(tmp_path)
    assert "\n" not in refused.value.fact
    assert len(refused.value.fact) < 3000


def test_deep_lines_and_links_out_of_the_zoo(tmp_path: Path) -> None:
    inside = tmp_path / "zoo"
    inside.mkdir()
    save_file(stack(1), tmp_path / "a.safetensors")
    (inside / "a.safetensors").symlink_to(tmp_path / "a.safetensors")
    (inside / "zoo.jsonl").write_text('{"path": "a.safetensors", "row": 0}')
    with pytest.raises(InvalidInput, match="lies outside the zoo"):
        Zoo.open(inside)
    (inside / "zoo.jsonl").write_text('{"path": "a.safetensors", "condition": ' + "[" * 100_000)
    with pytest.raises(InvalidInput, match="line 1: "):
        Zoo.open(inside)


@pytest.mark.parametrize("text", ["[]", "{}", '{"targets": 3}', '{"targets": [3]}', '{"targets": [{"slots": []}]}'])
def test_targets_that_are_none(tmp_path: Path, text: str) -> None:
    fill(tmp_path, rows("a", 0), a=stack(1))
    (tmp_path / "targets.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"targets\.json: "):
        Zoo.open(tmp_path)


# -- copies and splits -----------------------------------------------------------------------


def test_one_network_on_two_sides_of_a_split(tmp_path: Path) -> None:
    """By its place, or by the content that is stated; both are named."""
    line = rows("a", 0)[0]
    with pytest.raises(InvalidInput, match=r"a\.safetensors\[0\] \(train\) and a\.safetensors\[0\] \(test\)"):
        Zoo.open(fill(tmp_path, [line, {**line, "split": "test"}], a=stack(2)))
    lines: list[dict[str, object]] = [
        {**one, "sha256": "0" * 64, "split": s} for one, s in zip(rows("a", 0, 1), ("train", "test"), strict=True)
    ]
    with pytest.raises(InvalidInput, match=r"a\.safetensors\[0\] \(train\) and a\.safetensors\[1\] \(test\)"):
        Zoo.open(fill(tmp_path, lines))
    assert len(Zoo.open(fill(tmp_path, [line, line]))) == 2


def test_content(tmp_path: Path) -> None:
    """Equal values have equal hashes, whatever their type in the file and the order of tensors; others have not."""
    held = stack(3)
    held["0.bias"][2] = held["0.bias"][0].clone()
    for name in held:
        held[name][2] = held[name][0]
    lines = [*rows("a", 0, 1, 2), {"path": "one.safetensors"}]
    one = {name: held[name][1].double() for name in reversed(held)}
    found = digests(Zoo.open(fill(tmp_path, lines, a=held, one=one)))
    assert copies(found) == [
        ("a.safetensors[0]", "a.safetensors[2]"),
        ("a.safetensors[1]", "one.safetensors"),
    ]
    assert digest_of({"x": torch.zeros(2, 3)}) != digest_of({"x": torch.zeros(3, 2)})
    assert digest_of({"x": torch.zeros(2)}) != digest_of({"y": torch.zeros(2)})


def tasked(tmp_path: Path, tasks: int, runs: int, steps: int = 2) -> Zoo:
    lines: list[dict[str, object]] = []
    for task in range(tasks):
        for run in range(runs):
            for step in range(steps):
                row = len(lines)
                lines.append({**rows("a", row)[0], "task": f"t{task}", "run": run, "step": step})
    return Zoo.open(fill(tmp_path, lines, a=stack(len(lines))))


def test_splits_are_of_whole_tasks(tmp_path: Path) -> None:
    zoo = tasked(tmp_path, 10, 3)
    made = split(zoo, {"validation": 0.1, "test": 0.25}, seed=1)
    tasks = {name: {m.entry.task for m in made.of(name)} for name in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert [len(found) for found in tasks.values()] in ([7, 1, 2], [6, 1, 3])
    assert len(set.union(*tasks.values())) == sum(map(len, tasks.values())) == 10
    again = split(zoo, {"validation": 0.1, "test": 0.25}, seed=1)
    assert [m.entry for m in again.members] == [m.entry for m in made.members]
    other = split(zoo, {"validation": 0.1, "test": 0.25}, seed=2)
    assert [m.entry.split for m in other.members] != [m.entry.split for m in made.members]
    save_index(made)
    assert [m.entry for m in Zoo.open(tmp_path).members] == [m.entry for m in made.members]


def test_splits_of_few_tasks_are_of_whole_runs(tmp_path: Path) -> None:
    made = split(tasked(tmp_path, 2, 4), {"validation": 0.25, "test": 0.25})
    runs = [(m.entry.task, m.entry.run, m.entry.split) for m in made.members]
    assert len(set(runs)) == 8  # both checkpoints of each run on one side
    assert len(made.of("train")) == 8
    assert len(made.of("test")) == len(made.of("validation")) == 4


def test_splits_that_cannot_be(tmp_path: Path) -> None:
    zoo = tasked(tmp_path, 1, 1)
    with pytest.raises(InvalidInput, match="no more than one run of one task"):
        split(zoo, {"test": 0.5})
    zoo = tasked(tmp_path, 4, 1)
    shares: list[dict[str, float]] = [
        {"test": 1.5},
        {"test": -0.1},
        {"test": float("nan")},
        {"test": 0.6, "train": 0.6},
    ]
    for wrong in (*shares, {"test": 0.7, "validation": 0.7}, {"dev": 0.1}):
        with pytest.raises(InvalidInput, match=r"share|is no part"):
            split(zoo, wrong)  # type: ignore[arg-type]
    held = stack(8)
    for name in held:
        held[name][5] = held[name][2]
    save_file(held, tmp_path / "a.safetensors")
    with pytest.raises(InvalidInput, match=r"a\.safetensors\[2\] and a\.safetensors\[5\] are the same network"):
        split(Zoo.open(tmp_path), {"test": 0.25})


# -- inspecting and writing ------------------------------------------------------------------


def test_an_inspection(tmp_path: Path) -> None:
    held = stack(6)
    for name in held:
        held[name][1] = held[name][0]
    held["0.bias"][4, 0] = torch.nan
    lines = rows("a", *range(6))
    for i, line in enumerate(lines):
        line |= {"task": f"t{i // 2}", "run": i, "metrics": {"score": i / 10}}
    lines[1]["split"] = "test"
    lines[2]["sha256"] = "0" * 64
    found = inspect(Zoo.open(fill(tmp_path, lines, a=held)))
    assert (found.networks, found.tasks, found.runs) == (6, 3, 6)
    assert found.splits == {"train": 5, "validation": 0, "test": 1}
    assert found.copies == found.crossing == (("a.safetensors[0]", "a.safetensors[1]"),)
    assert found.not_finite == ("a.safetensors[4]",)
    assert found.changed == ("a.safetensors[2]",)
    assert found.metrics["score"] == pytest.approx((0.0, 0.25, 0.5))
    told = "\n".join(found.warnings)
    for said in (
        "expect copies",
        "have the same weights",
        "two sides of a split",
        "not finite",
        "is not what the index",
    ):
        assert said in told
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("shared", [True, False])
def test_networks_of_one_initialisation_are_told(tmp_path: Path, shared: bool) -> None:
    held = stack(40)
    if shared:
        held = {name: x[:1] + 0.5 * x for name, x in held.items()}
    found = inspect(Zoo.open(fill(tmp_path, rows("a", *range(40)), a=held), SPEC))
    (kind,) = found.architectures
    assert kind.explained == pytest.approx(0.8 if shared else 1 / 40, abs=0.1)
    assert found.order == pytest.approx(1.0 if shared else 0.0, abs=0.2)
    assert any("not in one order" in told for told in found.warnings) != shared
    assert (kind.networks, kind.numbers, kind.tensors, kind.classes) == (40, NUMBERS, 4, 3)


def test_few_networks_are_said_to_be_few() -> None:
    with pytest.warns(GenerateWarning, match="expect copies"):
        warn_few(19)
    with pytest.warns(GenerateWarning, match="may be copies"):
        warn_few(199)
    warn_few(200)
    assert few(200) is None


def test_what_is_written_is_read(tmp_path: Path) -> None:
    first, second = stack(3), stack(2, 5)
    ragged = [{"x": torch.ones(i + 1, 2)} for i in range(2)]
    with ZooWriter(tmp_path / "zoo") as writer:
        entries = [Entry(path="?", task=f"t{i}", metrics={"score": 0.5}) for i in range(5)]
        writer.add(SPEC, first, entries[:3], [{"x": torch.full((2, 2), float(i))} for i in range(3)], [4, 0, 2])
        writer.add(SPEC.with_classes(5), second, entries[3:], ragged, [1, 3])
        assert not (tmp_path / "zoo").exists()
        writer.publish()
    zoo = Zoo.open(tmp_path / "zoo")
    assert [member.entry.task for member in zoo.members] == ["t1", "t3", "t2", "t4", "t0"]
    assert torch.equal(zoo.load(zoo.members[4])["0.weight"], first["0.weight"][0])
    assert torch.equal(zoo.load(zoo.members[3])["2.weight"], second["2.weight"][1])
    assert torch.equal(zoo.members[4].condition["x"], torch.zeros(2, 2))
    assert torch.equal(zoo.members[3].condition["x"], torch.ones(2, 2))
    assert zoo.site.condition == {"x": (0, 2)}
    assert zoo.site.spec is not None
    assert zoo.site.spec.with_classes(3).hash == SPEC.hash
    assert len(json.loads((tmp_path / "zoo" / "targets.json").read_text())["targets"]) == 1
    assert {label: m.entry.sha256 for label, m in zip(digests(zoo), zoo.members, strict=True)} == digests(zoo)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "zoo").iterdir()}
    assert len(modes) == 1


def test_what_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> None:
        with ZooWriter(tmp_path / "zoo") as writer:
            writer.add(SPEC, stack(2), [Entry(path="?"), Entry(path="?")], [{}, {}])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    with pytest.raises(InvalidInput, match="no networks"), ZooWriter(tmp_path / "zoo") as writer:
        writer.publish()
    assert not list(tmp_path.iterdir())
