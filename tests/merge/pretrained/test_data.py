"""Rows of data files: what is read, in which order, and what each kind of damage is answered with."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramsmith.errors import InvalidInput
from paramsmith.merge.pretrained import formats
from paramsmith.merge.pretrained.data import Rows

SENTENCES = [{"text": f"sentence {n}\nof {n}, two lines", "label": "ab"[n % 2]} for n in range(7)]


def jsonl(path: Path, rows: Sequence[dict[str, object]] = SENTENCES) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, rows: Sequence[dict[str, object]] = SENTENCES) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet(path: Path, rows: Sequence[dict[str, object]] = SENTENCES) -> Path:
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(list(rows)), path, row_group_size=3)
    return path


WRITERS: dict[str, Callable[..., Path]] = {"jsonl": jsonl, "csv": table, "tsv": table, "parquet": parquet}
each_format = pytest.mark.parametrize("suffix", WRITERS)


def values(*files: Path, **how: object) -> list[dict[str, object]]:
    return [dict(row.values) for row in Rows(files, **how)]  # type: ignore[arg-type]


def refused(*files: Path, **how: object) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        values(*files, **how)
    assert "\n" not in caught.value.fact
    assert caught.value.hint
    return caught.value


@each_format
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = WRITERS[suffix](tmp_path / f"d.{suffix}")
    assert values(path) == SENTENCES
    assert values(path, limit=2) == SENTENCES[:2]
    assert values(path, path, limit=9) == [*SENTENCES, *SENTENCES[:2]]
    assert [row.number for row in Rows([path, path])] == list(range(14))


@each_format
def test_a_shuffle_is_a_permutation_by_seed_and_number(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"{n}", "label": "x\ny"} for n in range(23)]
    path = WRITERS[suffix](tmp_path / f"d.{suffix}", rows)
    first, again, other = (list(Rows([path], shuffle=True, seed=seed)) for seed in (3, 3, 4))
    assert [row.values for row in first] == [row.values for row in again]
    assert sorted(row.number for row in first) == list(range(23))
    assert [row.number for row in first] != [row.number for row in other]
    assert [row.values["text"] for row in first] == [str(row.number) for row in first]
    kept = Rows([path], shuffle=True, seed=3, limit=5)
    assert [row.number for row in kept] == [row.number for row in first][:5]
    assert list(kept) == list(kept)


def test_a_shuffle_goes_over_all_files_and_does_not_depend_on_their_format(tmp_path: Path) -> None:
    parts = [jsonl(tmp_path / "a.jsonl", SENTENCES[:3]), table(tmp_path / "b.csv", SENTENCES[3:])]
    whole = jsonl(tmp_path / "c.jsonl")
    assert values(*parts, shuffle=True) == values(whole, shuffle=True)
    assert values(whole, shuffle=True) != SENTENCES


def test_a_shuffled_parquet_file_is_read_group_by_group(tmp_path: Path) -> None:
    path = parquet(tmp_path / "d.parquet", [{"n": n} for n in range(12)])
    groups = [row.values["n"] // 3 for row in Rows([path], shuffle=True, seed=1)]  # type: ignore[operator]
    assert sum(a != b for a, b in pairwise(groups)) == 3
    assert groups != sorted(groups)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=9), min_size=1, max_size=9))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    rows = [{"text": text, "n": str(n)} for n, text in enumerate(texts)]
    for path in (jsonl(folder / "d.jsonl", rows), table(folder / "d.csv", rows)):
        assert values(path) == rows
        assert sorted(values(path, shuffle=True), key=lambda row: int(str(row["n"]))) == rows


def test_lines_of_a_text_file_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_bytes("\ufeffone\r\n\n  \ntwö words \nlast".encode())
    assert values(path) == [{"text": "one"}, {"text": "twö words "}, {"text": "last"}]
    assert [row.where for row in Rows([path])] == [f"{path}: line {n}" for n in (1, 4, 5)]


def test_a_record_is_named_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('text,label\n"one\ntwo",a\n\nthree,b\n')
    assert [row.where for row in Rows([path])] == [f"{path}: line {n}" for n in (2, 5)]
    shuffled = Rows([path], shuffle=True)
    assert {(row.where, str(row["text"])) for row in shuffled} == {(r.where, str(r["text"])) for r in Rows([path])}


def test_images_lie_in_a_folder_for_each_class(tmp_path: Path) -> None:
    for name in ("dog/2.png", "dog/10.JPG", "cat/1.png", "cat/notes.txt", ".cache/x.png", "cat/.hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    rows = list(Rows([tmp_path]))
    found = [(str(row["image"]), row["label"], row.folder) for row in rows]
    assert found == [(name, name[:3], tmp_path) for name in ("cat/1.png", "dog/10.JPG", "dog/2.png")]
    assert {row.number for row in Rows([tmp_path], shuffle=True)} == {0, 1, 2}
    (tmp_path / "bird").mkdir()
    assert f"{tmp_path / 'bird'}: holds no images" in refused(tmp_path).fact
    assert "holds no folder for any class" in refused(tmp_path / "bird").fact


BROKEN = {
    "a.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2: is not valid JSON"),
    "list.jsonl": (b"[1]\n", "line 1: holds list, not a JSON object"),
    "twice.jsonl": (b'{"a": 1, "a": 2}\n', "line 1: the key a occurs twice"),
    "deep.jsonl": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "latin.txt": ("ä".encode("latin-1"), "line 1 is not UTF-8 text"),
    "ragged.csv": (b"text,label\na,1\nb,2,3\n", "line 3 has 3 fields, the header has 2"),
    "short.csv": (b"text,label\na\n", "line 2 has 1 field, the header has 2"),
    "quote.csv": (b'text\n"a\nb\n', "line 2 is not valid CSV"),
    "same.csv": (b"text,text\na,b\n", "line 1 names the column 'text' twice"),
    "none.csv": (b"\n\n", "none.csv: is empty"),
    "header.csv": (b"text,label\n", "header.csv: is empty"),
    "none.jsonl": (b"\n \n", "none.jsonl: is empty"),
    "none.txt": (b"", "none.txt: is empty"),
    "table.xlsx": (b"PK", ".xlsx is no known kind of data"),
    "rows.json": (b"[]", ".json is no known kind of data"),
    "rows": (b"a", "no suffix is no known kind of data"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("shuffle", [False, True])
def test_damage_is_named_with_file_and_line(tmp_path: Path, name: str, shuffle: bool) -> None:
    data, told = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(data)
    error = refused(path, shuffle=shuffle)
    assert str(path) in error.fact
    assert told in error.fact


def test_a_line_without_an_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_LONGEST", 10)
    path = tmp_path / "d.txt"
    path.write_bytes(b"1234567890\n" * 2)
    assert "line 1 is longer than 10 bytes" in refused(path).fact


def test_files_that_are_not_there_or_are_no_files(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl")
    assert f"{tmp_path / 'b.csv'}: does not exist" in refused(path, tmp_path / "b.csv", limit=1).fact
    os.mkfifo(tmp_path / "pipe.txt")
    assert "is a named pipe" in refused(tmp_path / "pipe.txt").fact
    assert "no data given" in refused().fact
    hostile = refused(tmp_path / "x\x1b[31m.csv").fact
    assert "\x1b" not in hostile


def test_fewer_rows_than_asked_for(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl")
    for shuffle in (False, True):
        error = refused(path, limit=8, shuffle=shuffle)
        assert (error.fact, error.hint) == (
            "8 examples are asked for, the data has 7",
            "--limit 7, or more data",
        )
    assert "0 examples" in refused(path, limit=0).fact


def test_a_missing_column_has_a_nearest_one(tmp_path: Path) -> None:
    row = next(iter(Rows([jsonl(tmp_path / "a.jsonl")])))
    with pytest.raises(InvalidInput) as caught:
        row["txt"]
    assert caught.value.fact == f"{tmp_path / 'a.jsonl'}: line 1 has no column 'txt'"
    assert caught.value.hint == "did you mean 'text'? it has text, label"


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "d.parquet").touch()
    error = refused(tmp_path / "d.parquet")
    assert error.fact == f"{tmp_path / 'd.parquet'}: reading parquet needs pyarrow, which is not installed"
    assert error.hint == "pip install 'paramsmith[parquet]'"


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    path = parquet(tmp_path / "d.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    assert "is no sound parquet file" in refused(path).fact
    path.write_bytes(b"PAR1" + b"\xff" * 200 + whole[204:])
    assert "is no sound parquet file" in refused(path).fact


def test_a_file_is_never_held(tmp_path: Path) -> None:
    """Rows are read one by one: the first comes although the file goes on with garbage."""
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a"}\ngarbage\n')
    rows = iter(Rows([path]))
    assert next(rows)["text"] == "a"
    with pytest.raises(InvalidInput, match="line 2"):
        next(rows)
