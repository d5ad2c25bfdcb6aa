"""What a user installs is what lies in the tree: each file once, under paramsmith/, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import paramsmith

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("merge", "hypernet", "cli")
DIST_INFO = f"paramsmith-{paramsmith.__version__}.dist-info"


def build(project: Path, target: str, out: Path) -> Path:
    """Run the build backend on a project; the one file that it makes."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    """Name -> bytes of a wheel; a name that comes twice is an error."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert len(names) == len(set(names))
        return {name: archive.read(name) for name in names}


def tree() -> dict[str, bytes]:
    """What the wheel should hold, by a walk of our own over the four folders."""
    found = {}
    for folder in ("paramsmith", *LINKED):
        for where, folders, files in os.walk(ROOT / folder):  # does not follow the links
            folders[:] = [name for name in folders if name != "__pycache__"]
            inside = Path(where).relative_to(ROOT)
            prefix = inside if folder == "paramsmith" else "paramsmith" / inside
            found |= {(prefix / name).as_posix(): (Path(where) / name).read_bytes() for name in files}
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The contents of the wheel that this checkout makes."""
    return contents(build(ROOT, "wheel", tmp_path_factory.mktemp("wheel")))


def test_the_wheel_holds_the_tree_and_nothing_else(wheel: dict[str, bytes]) -> None:
    packed = {name: data for name, data in wheel.items() if not name.startswith(f"{DIST_INFO}/")}
    expected = tree()
    assert sorted(packed) == sorted(expected)
    assert [name for name in packed if packed[name] != expected[name]] == []


def test_the_wheel_is_typed_licensed_and_has_its_command(wheel: dict[str, bytes]) -> None:
    assert "paramsmith/py.typed" in wheel
    assert all(f"paramsmith/{name}/__init__.py" in wheel for name in LINKED)
    assert wheel[f"{DIST_INFO}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert b"paramsmith = paramsmith.cli.app:main" in wheel[f"{DIST_INFO}/entry_points.txt"]
    assert {name.split("/")[0] for name in wheel} == {"paramsmith", DIST_INFO}


def test_the_source_archive_builds_the_same_wheel(wheel: dict[str, bytes], tmp_path: Path) -> None:
    for name in ("sdist", "unpacked", "again"):
        (tmp_path / name).mkdir()
    archive = build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as packed:
        assert not [member.name for member in packed if member.issym() or member.islnk()]
        unpack(packed, tmp_path / "unpacked")
    (project,) = (tmp_path / "unpacked").iterdir()
    assert not (project / "tests").exists()
    assert contents(build(project, "wheel", tmp_path / "again")) == wheel


def unpack(packed: tarfile.TarFile, folder: Path) -> None:
    """By hand: the `filter` of extractall came with Python 3.11.4, and leaving it out is a warning from 3.12 on."""
    for member in packed:
        content = packed.extractfile(member)
        assert content is not None, f"{member.name} is not a plain file"
        path = folder / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.read())


def test_pins_are_exact_and_cover_what_is_required() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line and "@" not in line for line in pins), pins
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in pins}
    project = read_project()
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["demo"], *extras["test"], *extras["dev"]]
    names = {requirement.split(">")[0].split("[")[0] for requirement in required}
    assert names <= pinned, f"not pinned: {sorted(names - pinned)}"


def read_project() -> dict[str, Any]:
    """The [project] table."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
