"""What is written is what the library would have written, and nothing but a whole output appears."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from paramsmith.dtypes import DTYPES
from paramsmith.errors import Failed, InvalidInput
from paramsmith.header import TensorSpec
from paramsmith.shards import INDEX_NAME, plan_files
from paramsmith.staging import Writer
from tests.shared.staged import complete, content, cuts, fill, fill_all, hidden, listing, plan, reference, specs, staged


def test_files_are_what_the_library_writes(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save

    complete(tmp_path / "out")
    layout = plan()
    assert len(layout.files) == 3
    data = {spec.name: bytearray(content(spec.name, spec.nbytes)) for spec in specs()}
    tensors = {
        spec.name: torch.frombuffer(data[spec.name], dtype=torch.bfloat16).reshape(spec.shape)
        if spec.count
        else torch.zeros(spec.shape, dtype=torch.bfloat16)
        for spec in specs()
    }
    expected = {
        file.name: save({name: tensors[name] for name in file.tensors}, {"format": "pt"}) for file in layout.files
    }
    assert layout.index is not None
    assert listing(tmp_path / "out") == {**expected, INDEX_NAME: layout.index}
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("seed", range(3))
def test_any_order_and_any_number_of_threads(tmp_path: Path, seed: int) -> None:
    with Writer(tmp_path / "out", plan(), "k") as writer:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda cut: fill(writer, *cut), cuts(seed)))
        writer.publish()
    assert listing(tmp_path / "out") == reference()


def test_single_file(tmp_path: Path) -> None:
    layout = plan("x.safetensors")
    complete(tmp_path / "x.safetensors", layout=layout)
    data = (tmp_path / "x.safetensors").read_bytes()
    assert (data[: len(layout.files[0].header)], len(data)) == (layout.files[0].header, layout.files[0].size)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_writing_outside_a_tensor_is_refused(tmp_path: Path) -> None:
    with Writer(tmp_path / "out", plan(), "k") as writer:
        for start, nbytes in [(-1, 1), (0, 4001), (4000, 1)]:
            with pytest.raises(ValueError, match="outside"):
                writer.write("z.weight", start, memoryview(bytes(nbytes)))
            with pytest.raises(ValueError, match="outside"):
                writer.finish([("z.weight", start, start + nbytes)])


@pytest.mark.parametrize("missing", ["a.weight", "scalar"])
def test_hole_is_never_published(tmp_path: Path, missing: str) -> None:
    last = max(start for name, start, _ in cuts() if name == missing)

    def fill_most(writer: Writer) -> None:
        for name, start, end in cuts():
            if (name, start) != (missing, last):
                fill(writer, name, start, end)

    with pytest.raises(Failed, match=f"tensor {missing} was not written in full"):
        staged(tmp_path / "out", fill_most, Writer.publish)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["header", "size"])
def test_file_changed_from_outside_is_not_published(tmp_path: Path, damage: str) -> None:
    def change(_: Writer) -> None:
        path = next(tmp_path.glob(".out.partial/files/*-00002-*"))
        if damage == "header":
            with path.open("r+b") as file:
                file.seek(20)
                file.write(b"~")
        else:
            os.truncate(path, path.stat().st_size - 1)

    with pytest.raises(Failed, match="changed by another program"):
        staged(tmp_path / "out", fill_all, change, Writer.publish)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, None])
def test_staging_is_removed(tmp_path: Path, error: type[BaseException] | None) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    try:
        with Writer(tmp_path / "out", plan(), "k") as writer:
            fill(writer, *cuts()[0])
            (tmp_path / ".out.partial" / "files" / "link").symlink_to(elsewhere)
            (tmp_path / ".out.partial" / "link").symlink_to(elsewhere)
            if error is not None:
                raise error
    except (RuntimeError, SystemExit):
        assert error is not None
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert (elsewhere / "precious").exists()


def test_nothing_works_after_the_end(tmp_path: Path) -> None:
    complete(tmp_path / "one")
    with Writer(tmp_path / "out", plan(), "k") as writer:
        pass
    for call in (lambda: fill(writer, *cuts()[0]), writer.publish, lambda: writer.add_file("a", b"")):
        with pytest.raises(Failed, match="not open"):
            call()


def test_added_files_are_published(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(3_000_000))
    (tmp_path / "tokenizer.json").symlink_to("blob")  # as in the Hub's cache
    with Writer(tmp_path / "out", plan(), "k") as writer:
        writer.add_copy(tmp_path / "tokenizer.json", "tokenizer.json")
        writer.add_file("1_Pooling/config.json", b"{}")
        writer.add_file("journal", b"")  # no name is taken by the machinery
        for cut in cuts():
            fill(writer, *cut)
        writer.publish()
    added = {"tokenizer.json": bytes(3_000_000), "1_Pooling/config.json": b"{}", "journal": b""}
    assert listing(tmp_path / "out") == {**reference(), **added}
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()


@pytest.mark.parametrize("name", ["../a", "/a", "a/b/c", "", ".", "..", "a/", "a//b", "a/..", "a\0b", "a\\b"])
def test_added_file_stays_inside(tmp_path: Path, name: str) -> None:
    with Writer(tmp_path / "out", plan(), "k") as writer, pytest.raises(InvalidInput, match="not a name"):
        writer.add_file(name, b"x")
    assert list(tmp_path.iterdir()) == []


def test_added_file_replaces_no_other(tmp_path: Path) -> None:
    with Writer(tmp_path / "out", plan(), "k") as writer:
        writer.add_file("a", b"x")
        for name in ("a", plan().files[0].name, INDEX_NAME):
            with pytest.raises(ValueError, match="twice"):
                writer.add_file(name, b"x")


def test_copy_of_what_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with Writer(tmp_path / "out", plan(), "k") as writer:
        with pytest.raises(Failed, match="pipe is not a regular file"):
            writer.add_copy(tmp_path / "pipe", "a")
        with pytest.raises(Failed, match="absent: cannot read: no such file"):
            writer.add_copy(tmp_path / "absent", "b")


# --- cost


def test_many_tiny_tensors_cost_little(tmp_path: Path) -> None:
    tensors = [TensorSpec(f"t{number}", DTYPES["U8"], (4,)) for number in range(36_000)]
    layout = plan_files(tensors, None)
    data = memoryview(b"abcd")
    with Writer(tmp_path / "out", layout, "k") as writer:
        start = time.process_time()
        for tensor in tensors:
            if not writer.is_finished(tensor.name, 0, 4):
                writer.write(tensor.name, 0, data)
                writer.finish([(tensor.name, 0, 4)])
        writer.publish()
        spent = time.process_time() - start
    assert (tmp_path / "out" / "model.safetensors").read_bytes().endswith(b"abcd" * 36_000)
    assert spent < 5  # a third of a second on an idle machine


def test_publishing_waits_for_no_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "journal_interval", 60)
    start = time.monotonic()
    complete(tmp_path / "out")
    assert time.monotonic() - start < 10
    assert not [thread for thread in threading.enumerate() if thread.name == "paramsmith-journal"]
