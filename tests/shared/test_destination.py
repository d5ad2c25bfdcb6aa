"""What stands at the target is replaced when asked for, whole, and never harmed otherwise; one writer at a time."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from paramsmith import destination
from paramsmith.errors import Failed, InvalidInput, Refused
from paramsmith.staging import Writer
from tests.shared.staged import (
    complete,
    cuts,
    fill,
    fill_all,
    hidden,
    listing,
    old_model,
    plan,
    reference,
    staged,
    start,
)

HOLDS = """
    with Writer(target, plan(), "k") as writer:
        print("holding", flush=True)
        time.sleep(60)
"""


def test_second_writer_is_told_who_holds_the_output(tmp_path: Path) -> None:
    target = tmp_path / "out"
    process = start(target, HOLDS)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        with pytest.raises(Refused, match=rf"out is being written by process {process.pid} on host \S+"):
            Writer(target, plan(), "k").__enter__()
        assert (tmp_path / ".out.partial" / "journal").exists()
    finally:
        process.kill()
        process.communicate()
    complete(target)  # the holder is dead


@pytest.mark.parametrize("made_anew", [False, True])
def test_lock_removed_while_it_is_taken_is_not_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_anew: bool
) -> None:
    flock, removed = destination.fcntl.flock, []

    def late(fd: int, operation: int) -> None:
        if not removed:
            removed.append(fd)
            lock = tmp_path / ".out.partial" / "lock"
            lock.rename(tmp_path / "old")  # keeps its number from being used again
            if made_anew:
                lock.touch()
        flock(fd, operation)

    monkeypatch.setattr(destination.fcntl, "flock", late)
    with Writer(tmp_path / "out", plan(), "k"):
        assert (tmp_path / ".out.partial" / "lock").read_text().startswith("process ")
    assert hidden(tmp_path) == []


def test_one_of_two_writers_wins_every_time(tmp_path: Path) -> None:
    def attempt(barrier: threading.Barrier, target: Path) -> str:
        barrier.wait()
        try:
            complete(target)
        except Refused as refusal:
            return refusal.fact
        return "won"

    for turn in range(20):
        target, barrier = tmp_path / str(turn), threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda _: attempt(barrier, target), range(2))  # noqa: B023
        assert sorted([first == "won", second == "won"]) == [False, True]
        assert "being written by" in first + second or "already exists" in first + second
        assert listing(target) == reference()
    assert hidden(tmp_path) == []


def test_existing_output_is_refused_and_untouched(tmp_path: Path) -> None:
    target = old_model(tmp_path / "out")
    with pytest.raises(Refused, match="out already exists") as refusal, Writer(target, plan(), "k"):
        pass
    assert "--force" in refusal.value.hint
    assert listing(tmp_path) == {"out/config.json": b"old"}


def test_force_replaces_only_when_published(tmp_path: Path) -> None:
    target = old_model(tmp_path / "out")
    with Writer(target, plan(), "k", force=True) as writer:
        fill(writer, *cuts()[0])
    assert listing(tmp_path) == {"out/config.json": b"old"}
    complete(target, force=True)
    assert listing(target) == reference()
    assert hidden(tmp_path) == []


def test_force_puts_the_old_output_back_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = old_model(tmp_path / "out")
    rename = os.rename

    def failing(source: Path, place: Path) -> None:
        if Path(source).name == "files":
            raise OSError(5, "Input/output error")
        rename(source, place)

    monkeypatch.setattr(destination.os, "rename", failing)
    with pytest.raises(Failed, match="cannot be put in place: input/output error"):
        complete(target, force=True)
    assert listing(target) == {"config.json": b"old"}
    monkeypatch.undo()
    with Writer(target, plan(), "k", force=True) as writer:
        assert writer.resumed_bytes == writer._layout.nbytes  # nothing of the work is lost
        writer.publish()


def test_output_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="already exists"):
        staged(tmp_path / "out", fill_all, lambda _: old_model(tmp_path / "out"), Writer.publish)
    assert listing(tmp_path / "out") == {"config.json": b"old"}
    with Writer(tmp_path / "out", plan(), "k", force=True) as writer:
        assert writer.resumed_bytes == writer._layout.nbytes
        writer.publish()
    assert listing(tmp_path / "out") == reference()


def test_empty_folder_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    complete(tmp_path / "out")
    assert listing(tmp_path / "out") == reference()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("dangling", [False, True])
def test_link_is_refused(tmp_path: Path, force: bool, dangling: bool) -> None:
    if not dangling:
        old_model(tmp_path / "real")
    (tmp_path / "out").symlink_to("real")
    with pytest.raises(Refused, match="out is a symbolic link"), Writer(tmp_path / "out", plan(), "k", force=force):
        pass
    assert (tmp_path / "out").is_symlink()
    assert dangling or listing(tmp_path / "real") == {"config.json": b"old"}
    assert hidden(tmp_path) == []


def test_file_and_folder_do_not_replace_each_other(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    old_model(tmp_path / "x.safetensors")
    with pytest.raises(Refused, match="is a file, and the output is a folder"):
        complete(tmp_path / "out", force=True)
    with pytest.raises(Refused, match="not a regular file"):
        complete(tmp_path / "x.safetensors", force=True, layout=plan("x.safetensors"))
    assert hidden(tmp_path) == []


def test_force_replaces_a_single_file(tmp_path: Path) -> None:
    target = tmp_path / "x.safetensors"
    target.write_text("old")
    with pytest.raises(Refused, match="already exists"):
        complete(target, layout=plan("x.safetensors"))
    assert target.read_text() == "old"
    complete(target, force=True, layout=plan("x.safetensors"))
    assert target.stat().st_size == plan("x.safetensors").files[0].size


def test_force_deletes_no_folder_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("x")
    with pytest.raises(Refused, match="holds no model"):
        complete(tmp_path / "notes", force=True)
    monkeypatch.chdir(old_model(tmp_path / "here"))
    for target in (Path(), Path("../here"), Path("..")):
        with pytest.raises(Refused, match=r"holds .* and is not replaced"):
            complete(target, force=True)
    assert hidden(tmp_path) == []


def test_foreign_folder_at_the_staging_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "thesis.txt").write_text("x")
    with pytest.raises(Refused, match="not a staging folder"):
        complete(tmp_path / "out")
    assert (tmp_path / ".out.partial" / "thesis.txt").exists()


def test_link_at_the_staging_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.partial").symlink_to("elsewhere")
    with pytest.raises(Refused, match="in the way"):
        complete(tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_missing_parent_comes_with_the_command_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="b is not an existing folder") as error:
        complete(tmp_path / "a" / "b" / "out")
    assert error.value.hint == f"create it first: mkdir -p {tmp_path / 'a' / 'b'}"
