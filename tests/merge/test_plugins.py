"""A method of somebody else's: one file and one entry point, and it is everywhere a method of ours is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

METHOD = """
    from pydantic import Field
    from paramsmith.params import Number, Params, PerModel
    from paramsmith.registry import merge_method

    class Loudest(Params):
        \"\"\"Options.\"\"\"
        loudness: PerModel[Number] = Field(1.0, description="how loud each model is")

    @merge_method({name!r}, Loudest, base="unused", paper="arXiv:0000.00000")
    def loudest(models, seen, p):
        \"\"\"The largest of the models, each times its loudness.

        x = max_i l_i x_i
        \"\"\"
        return (p.loudness * models).amax(0)
"""
# Runs commands in one process, so that torch is imported once: [[code, stdout, stderr], ...]
RUN = """
    import json, sys
    from click.testing import CliRunner
    from paramsmith.cli.app import cli
    done = [CliRunner().invoke(cli, words) for words in json.loads(sys.argv[1])]
    print(json.dumps([[d.exit_code, d.stdout, d.stderr] for d in done]))
"""


def install(folder: Path, code: str) -> Path:
    """A package called `vendor` in a folder of its own, as pip would leave it."""
    info = folder / "vendor-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vendor\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[paramsmith.merge_methods]\nvendor = vendor_methods\n")
    (folder / "vendor_methods.py").write_text(textwrap.dedent(code))
    return folder


def commands(site: Path, folder: Path, *lines: str) -> Sequence[tuple[int, str, str]]:
    """What each `paramsmith` command did where that package is installed."""
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUN), json.dumps([line.split() for line in lines])],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
    )
    assert child.returncode == 0, child.stderr
    return [(code, out, err) for code, out, err in json.loads(child.stdout)]


def test_a_method_in_one_file(tmp_path: Path) -> None:
    for name, values in (("a", [1.0, -2.0]), ("b", [0.5, 3.0])):
        save_file({"w": torch.tensor(values)}, tmp_path / f"{name}.safetensors")
    recipe = "method: loudest\nmodels:\n- {model: a.safetensors, loudness: 3}\n- model: b.safetensors\n"
    (tmp_path / "r.yaml").write_text(recipe)
    listed, described, helped, flags, by_recipe, overridden, misspelt, wrong, again = commands(
        install(tmp_path / "site", METHOD.format(name="loudest")),
        tmp_path,
        "methods --json",
        "methods loudest",
        "merge --help",
        "merge a.safetensors b.safetensors --method loudest --loudness 1,2 -o flags",
        "merge r.yaml -o recipe",
        "merge r.yaml -o overridden --loudness 2",
        "merge a.safetensors b.safetensors --method loudset -o out",
        "merge a.safetensors b.safetensors --method linear --loudness 2 -o out",
        "merge flags/recipe.yaml -o again",
    )
    assert "loudest" in [m["name"] for m in json.loads(listed[1])["methods"]]
    assert described[0] == 0
    assert "how loud each model is" in described[1]
    assert "--loudness VALUE" in helped[1]
    assert "how loud each model is [loudest]" in " ".join(helped[1].split())
    for done, out, wanted in (
        (flags, "flags", [1.0, 6.0]),
        (by_recipe, "recipe", [3.0, 3.0]),
        (overridden, "overridden", [2.0, 6.0]),
        (again, "again", [1.0, 6.0]),
    ):
        assert done[0] == 0, done
        assert load_file(tmp_path / out / "model.safetensors")["w"].tolist() == wanted
    assert misspelt[0] == 2
    assert "did you mean 'loudest'?" in misspelt[2]
    assert wrong[0] == 2
    assert 'has no parameter "loudness"' in wrong[2]


def refused(site: Path, folder: Path) -> list[str]:
    """The one line of fact that every command ends in that asks for the methods; the others work."""
    for name in "ab":
        save_file({"w": torch.ones(2)}, folder / f"{name}.safetensors")
    *asking, plain = commands(
        site, folder, "methods", "merge a.safetensors b.safetensors -o out", "inspect a.safetensors"
    )
    for code, _, err in asking:
        assert code in (1, 2)
        assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]
        assert "Traceback" not in err
    assert plain[0] == 0, plain
    return [err.splitlines()[0] for _, _, err in asking]


def test_a_clash_of_names(tmp_path: Path) -> None:
    for fact in refused(install(tmp_path / "site", METHOD.format(name="linear")), tmp_path):
        assert "'linear' is registered twice" in fact


@pytest.mark.parametrize(
    ("code", "told"), [("import no_such_library", "no_such_library"), ("1 / 0", "division by zero")]
)
def test_a_plug_in_that_fails_is_named(tmp_path: Path, code: str, told: str) -> None:
    for fact in refused(install(tmp_path / "site", code), tmp_path):
        assert "vendor" in fact
        assert told in fact
