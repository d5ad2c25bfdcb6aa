"""When the disk, its permissions or its limits say no, one sentence says so and nothing is left behind."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from paramsmith import staging
from paramsmith.disk import replace_file
from paramsmith.dtypes import DTYPES
from paramsmith.errors import Failed, Refused
from paramsmith.header import TensorSpec
from paramsmith.shards import plan_files
from paramsmith.staging import Writer
from tests.shared.staged import complete, cuts, fill, interrupt, output_of, plan, staged, start


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A target whose writing was interrupted after the first ten pieces."""
    with pytest.raises(KeyboardInterrupt):
        staged(tmp_path / "out", interrupt)
    return tmp_path / "out"


READ_ONLY = """
    os.chmod(target.parent, 0o555)
    if os.getuid() == 0:
        os.chmod(target.parent.parent, 0o755)
        os.setgid(65534), os.setuid(65534)
    try:
        Writer(target, plan(), "k").__enter__()
    except ParamsmithError as error:
        print(error.exit_code, error.fact)
"""


def test_read_only_parent(tmp_path: Path) -> None:
    # a child gives up being root, for whom nothing is read-only; it must be able to reach the folder
    folder = tmp_path / "shelf"
    folder.mkdir()
    for parent in [tmp_path, *tmp_path.parents]:
        if os.getuid() == 0 and parent.stat().st_uid == 0 and ("pytest" in parent.name or "popen" in parent.name):
            parent.chmod(0o755)  # pytest's own folders and those of its workers
    if os.getuid() == 0:
        tmp_path.chmod(0o755)
    assert output_of(start(folder / "out", READ_ONLY)) == f"3 {folder} cannot be written to: permission denied\n"
    folder.chmod(0o755)


SIZE_LIMIT = """
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    try:
        with Writer(target, plan(), "k") as writer:
            pass
    except ParamsmithError as error:
        print(error.exit_code, error.fact)
        print(error.hint)
"""


def test_limit_on_the_file_size(tmp_path: Path) -> None:
    fact, hint = output_of(start(tmp_path / "out", SIZE_LIMIT)).splitlines()
    assert fact.startswith("1 ")
    assert "model-00001-of-00003.safetensors: a file of this size is not allowed" in fact
    assert "--shard-size" in hint
    assert list(tmp_path.iterdir()) == []


def test_free_space_is_checked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    layout = plan()
    needed = sum(file.size for file in layout.files) + 1_000_000
    fields = [*real]
    fields[0], fields[1] = 1, 1  # f_bsize, f_frsize
    for free in (needed - 1, needed):
        fields[4] = free  # f_bavail
        monkeypatch.setattr(os, "statvfs", lambda _, fields=tuple(fields): os.statvfs_result(fields))
        if free == needed:
            complete(tmp_path / "out")
            break
        with pytest.raises(Refused, match=f"{needed:,} bytes are needed, {free:,} bytes are free"):
            complete(tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


def test_interrupted_run_needs_room_only_for_the_rest(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(staging, "check_space", lambda _, missing: seen.append(missing))
    total = sum(file.size for file in plan().files)
    with Writer(interrupted, plan(), "k"):
        pass
    complete(interrupted)
    assert 0 <= seen[0] < seen[1] == total


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disk_too_small_from_the_start(small_disk: Path) -> None:
    layout = plan_files([TensorSpec("w", DTYPES["U8"], (5_000_000,))], None)
    with pytest.raises(Refused, match=r"disk: 6,000,\d+ bytes are needed, [\d,]+ bytes are free"):
        Writer(small_disk / "out", layout, "k").__enter__()
    assert list(small_disk.iterdir()) == []


def test_disk_filled_by_another_while_writing(small_disk: Path) -> None:
    layout = plan_files([TensorSpec("w", DTYPES["U8"], (2_000_000,))], None)

    def write(writer: Writer) -> None:
        (small_disk / "other").write_bytes(bytes(3_500_000))
        writer.write("w", 0, memoryview(bytes(2_000_000)))

    with pytest.raises(Failed, match=r"no space left while writing .*/model.safetensors") as error:
        staged(small_disk / "out", write, layout=layout)
    assert error.value.hint
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def test_error_of_the_journal_reaches_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int, path: Path) -> None:
        raise Failed(f"{path}: the disk reported an error while writing")

    monkeypatch.setattr(staging, "sync_data", broken)
    with pytest.raises(Failed, match="disk reported"):
        complete(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with Writer(tmp_path / "out", plan(), "k") as writer:
            for cut in cuts():
                fill(writer, *cut)
            writer.add_file("1_Pooling/config.json", b"{}")
            writer.publish()
    finally:
        os.umask(before)
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        wanted = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == wanted & ~umask, path


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(Failed, match="pipe: is no file that could be replaced"):
        replace_file(pipe, b"{}")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]
    os.symlink("nowhere", tmp_path / "link")
    replace_file(tmp_path / "link", b"{}")
    assert (tmp_path / "link").read_bytes() == b"{}"
