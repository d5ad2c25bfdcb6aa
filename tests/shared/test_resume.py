"""An output interrupted or killed at any moment is absent, and the same run completes it to the same bytes."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from paramsmith.errors import Failed, Refused
from paramsmith.staging import Writer
from tests.shared.staged import (
    complete,
    cuts,
    fill,
    hidden,
    interrupt,
    is_there,
    listing,
    output_of,
    plan,
    reference,
    staged,
    start,
)


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A target whose writing was interrupted after the first ten pieces."""
    with pytest.raises(KeyboardInterrupt):
        staged(tmp_path / "out", interrupt)
    return tmp_path / "out"


def test_interrupt_keeps_what_was_done(interrupted: Path) -> None:
    assert not is_there(interrupted)
    done = cuts()[:10]
    with Writer(interrupted, plan(), "k") as writer:
        assert writer.resumed_bytes == sum(end - start for _, start, end in done)
        assert writer.recall("threshold") == 0.1 + 0.2
        assert all(writer.is_finished(*cut) for cut in done)
        rest = [cut for cut in cuts() if not writer.is_finished(*cut)]
        assert sorted([*rest, *done]) == sorted(cuts())
        for cut in rest:
            fill(writer, *cut)
        writer.publish()
    assert listing(interrupted) == reference()
    assert hidden(interrupted.parent) == []


def test_other_key_or_layout_starts_over(interrupted: Path) -> None:
    with Writer(interrupted, plan(), "other") as writer:
        assert writer.resumed_bytes == 0
        assert writer.recall("threshold") is None
        assert not any(writer.is_finished(*cut) for cut in cuts())
        with pytest.raises(Failed, match="not written in full"):
            writer.publish()


def test_other_layout_starts_over(interrupted: Path) -> None:
    with Writer(interrupted, plan(shard_size=None), "k") as writer:
        assert writer.resumed_bytes == 0
    assert list(interrupted.parent.iterdir()) == []


def test_resuming_writes_the_added_files_anew(interrupted: Path) -> None:
    files = interrupted.parent / ".out.partial" / "files"
    (files / "config.json").write_text("half of it")
    (files / "1_Pooling").mkdir()
    (files / "1_Pooling" / "old.json").write_text("{}")
    with Writer(interrupted, plan(), "k") as writer:
        assert writer.resumed_bytes
        for cut in cuts():
            fill(writer, *cut)
        writer.add_file("config.json", b"{}")
        writer.publish()
    assert listing(interrupted) == {**reference(), "config.json": b"{}"}


@pytest.mark.parametrize("damage", ["journal", "size", "absent", "link"])
def test_staging_that_cannot_be_trusted_starts_over(interrupted: Path, damage: str) -> None:
    folder = interrupted.parent / ".out.partial"
    path = folder / "files" / "model-00001-of-00003.safetensors"
    match damage:
        case "journal":
            data = bytearray((folder / "journal").read_bytes())
            data[30] ^= 1
            (folder / "journal").write_bytes(data)
        case "size":
            os.truncate(path, path.stat().st_size - 1)
        case "absent":
            path.unlink()
        case "link":
            path.rename(interrupted.parent / "elsewhere")
            path.symlink_to(interrupted.parent / "elsewhere")
    with Writer(interrupted, plan(), "k") as writer:
        assert writer.resumed_bytes == 0
        for cut in cuts():
            fill(writer, *cut)
        writer.publish()
    assert not any(path.is_symlink() for path in interrupted.iterdir())


KILLED = """
    from paramsmith import staging
    staging.Writer.journal_interval = 0.01
    with Writer(target, plan(), "k") as writer:
        print(writer.resumed_bytes, flush=True)
        assert writer.recall("survey") in (None, [0.1])
        writer.remember("survey", [0.1])
        for cut in cuts(seed=os.getpid()):
            if not writer.is_finished(*cut):
                fill(writer, *cut)
                time.sleep(0.015)
        print("publish", flush=True)
        writer.publish()
"""


def test_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    target, resumed = tmp_path / "out", []
    chance = random.Random(7)
    for _ in range(8):
        process = start(target, KILLED)
        assert process.stdout is not None
        resumed.append(int(process.stdout.readline()))
        time.sleep(chance.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not is_there(target)
    output_of(start(target, KILLED))
    assert resumed == sorted(resumed)
    assert resumed[-1] > 0
    assert listing(target) == reference()
    assert hidden(tmp_path) == []


# Every step of publishing is a moment to die at: the child exits in the n-th call of these.
DIES_PUBLISHING = """
    calls = 0
    def dying(call):
        def step(*args, **options):
            global calls
            calls += 1
            if calls == {moment}:
                os._exit(9)
            return call(*args, **options)
        return step
    with Writer(target, plan(), {key!r}, force=True) as writer:
        for cut in cuts():
            fill(writer, *cut)
        for name in ("rename", "replace", "fsync", "unlink", "rmdir", "pwrite"):
            setattr(os, name, dying(getattr(os, name)))
        writer.publish()
    print("end")
"""


@pytest.mark.parametrize("old", [False, True])
def test_dying_while_publishing_leaves_old_or_new(tmp_path: Path, old: bool) -> None:
    before = {"config.json": b"old"} if old else {}
    states = set()
    for moment in range(1, 100, 1 if old else 3):
        target = tmp_path / str(moment) / "out"
        target.parent.mkdir()
        if old:
            target.mkdir()
            (target / "config.json").write_bytes(b"old")
        process = start(target, DIES_PUBLISHING.format(moment=moment, key="k"))
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) in [(9, ""), (0, "end\n")], err
        replaced = target.parent / ".out.replaced"
        after = listing(target) if is_there(target) else None
        # between the two renames the old output is beside its place
        assert after in [before if old else None, reference()] or (after is None and listing(replaced) == before)
        states.add("between" if after is None and old else "new" if after == reference() else "old")
        complete(target, "k", force=True)
        assert listing(target) == reference()
        assert hidden(target.parent) == []
        if out:
            break
    else:
        pytest.fail("the last moment was never reached")
    assert states == ({"old", "between", "new"} if old else {"old", "new"})


def test_old_output_comes_back_after_a_crash_between_the_renames(tmp_path: Path) -> None:
    target = tmp_path / "out"
    replaced = tmp_path / ".out.replaced"
    replaced.mkdir()
    (replaced / "config.json").write_text("old")
    with pytest.raises(Refused, match="already exists"), Writer(target, plan(), "k"):
        pass
    assert listing(target) == {"config.json": b"old"}
    assert hidden(tmp_path) == []


def test_replaced_output_is_removed_after_a_crash_behind_the_renames(tmp_path: Path) -> None:
    complete(tmp_path / "out")
    (tmp_path / ".out.replaced").mkdir()
    with pytest.raises(Refused, match="already exists"), Writer(tmp_path / "out", plan(), "k"):
        pass
    assert hidden(tmp_path) == []
