"""`paramsmith generate`: what it prints, what it is asked, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from paramsmith.cli.app import cli
from paramsmith.hypernet.generator import Generator
from tests.hypernet import new_vocabulary
from tests.hypernet.conftest import stub_parts  # noqa: F401 - a fixture
from tests.hypernet.stubparts import small_spec
from tests.shared.staged import ROOT, listing

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.usefixtures("stub_parts")]

NET = f"{ROOT}/tests/hypernet/nets.py:net"
SHAPES = {"vector": (2,), "level": ()}


@pytest.fixture
def gen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A generator for one target, asked for two things; the working directory is empty but for it."""
    Generator.build("stub", spec=small_spec(), condition=SHAPES, fixed=True).save_pretrained(tmp_path / "gen")
    monkeypatch.chdir(tmp_path)
    return "gen"


@pytest.fixture
def free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A generator for any target, asked for nothing."""
    Generator.build("stub").save_pretrained(tmp_path / "free")
    monkeypatch.chdir(tmp_path)
    return "free"


def invoke(*words: object) -> Result:
    return CliRunner().invoke(cli, ["generate", *map(str, words)])


class TestOutput:
    def test_says_what_was_written(self, gen: str) -> None:
        done = invoke(gen, "-o", "out", "--task", "vector=0.3,0.7", "--task", "level=1")
        assert (done.exit_code, done.stderr) == (0, "")
        first, last = done.stdout.splitlines()
        assert first == "out: 708 B"
        assert last.startswith("708 B in ")
        assert set(listing(Path("out"))) == {"README.md", "generation.json", "model.safetensors"}

    def test_json_and_quiet(self, gen: str) -> None:
        words = (gen, "--task", "vector=0.3,0.7", "--task", "level=1", "--seed", 7)
        told = json.loads(invoke(*words, "-o", "a", "--json").stdout)
        assert [sample["path"] for sample in told["samples"]] == ["a"]
        assert told["samples"][0]["nbytes"] == 708
        assert told["warnings"] == []
        assert invoke(*words, "-o", "b", "-q").output == ""
        assert listing(Path("a"))["model.safetensors"] == listing(Path("b"))["model.safetensors"]

    def test_several(self, gen: str) -> None:
        done = invoke(gen, "-o", "out", "-n", 2, "--task", "vector=0.3,0.7", "--task", "level=1")
        assert done.stdout.splitlines()[:2] == ["out/0: 708 B", "out/1: 708 B"]

    def test_dry_run_writes_nothing(self, gen: str, tmp_path: Path) -> None:
        before = listing(tmp_path)
        words = (gen, "--task", "vector=0.3,0.7", "--task", "level=1", "--dry-run", "-n", 3)
        assert "3 samples of 9 tensors (176 parameters)" in " ".join(invoke(*words).stdout.split())
        told = json.loads(invoke(*words, "--json").stdout)
        assert (told["samples"], told["bytes_written"], told["files"]) == (3, 3 * 708, ["model.safetensors"])
        assert listing(tmp_path) == before

    def test_like_a_module(self, free: str) -> None:
        assert invoke(free, "--like", NET, "-o", "out", "--dtype", "bf16").exit_code == 0
        stored = load_file("out/model.safetensors")
        assert stored["1.weight"].shape == (8, 8)
        assert stored["1.weight"].dtype == torch.bfloat16
        assert json.loads(Path("out/generation.json").read_text())["asked"]["target"] == "nets.py:net"


class TestTask:
    def test_numbers_and_files_are_the_same(self, gen: str) -> None:
        Path("both.json").write_text('{"vector": [0.5, 2], "level": 1}')
        save_file({"vector": torch.tensor([0.5, 2.0]), "level": torch.tensor(1.0)}, "both.safetensors")
        Path("level.json").write_text('{"level": 1}')
        for name, words in {
            "a": ("--task", "vector=0.5,2", "--task", "level=1"),
            "b": ("--task", "both.json"),
            "c": ("--task", "both.safetensors"),
            "d": ("--task", "level.json", "--task", "vector=0.5,2"),
        }.items():
            assert invoke(gen, "-o", name, *words).exit_code == 0
        found = [listing(Path(name))["model.safetensors"] for name in "abcd"]
        assert found == found[:1] * 4

    @pytest.mark.parametrize(
        ("tasks", "fact", "hint"),
        [
            (["vector=1,2"], "lacks 'level'", "level a number, vector 2"),
            ([], "lacks 'level'", "vector 2"),
            (["vektor=1,2", "level=1"], "no condition 'vektor'", "did you mean 'vector'?"),
            (["vector=1,2,3", "level=1"], "has the shape 3, expected 2", "several conditions"),
            (["vector=1,x", "level=1"], "its values are no numbers", "name=0.3,0.7"),
            (["vector=1,nan", "level=1"], "holds a value that is not finite", "finite"),
            (["vector", "level=1"], "'vector' is no condition", "name=0.3,0.7"),
            (["short.safetensors", "vector=1,2"], "level holds a value that is not finite", "finite"),
            (["complex.safetensors", "vector=1,2"], "level is complex64 of 0 axes", "real numbers"),
            (["empty.json", "level=1"], "has the shape 0, expected 2", "several conditions"),
            (["vector=1,2", "vector=1,2", "level=1"], "gives 'vector' twice", "once"),
            (["ragged.json"], "ragged.json: vector is no number", "for example"),
            (["deep.json"], "nested too deeply", ""),
            (["list.json"], "list where a JSON object", ""),
            (["nowhere.json"], "nowhere.json: does not exist", "check the name"),
            (["pickle.safetensors"], "is a pickle", "safetensors"),
            (["vector=1,2", "level.json"], "asked for 2 for level, 1 for vector", "as many"),
        ],
    )
    def test_what_cannot_be_asked(self, gen: str, tmp_path: Path, tasks: list[str], fact: str, hint: str) -> None:
        Path("ragged.json").write_text('{"vector": [[1], [1, 2]], "level": 1}')
        Path("deep.json").write_text('{"vector": ' + "[" * 100_000)
        Path("list.json").write_text("[1]")
        Path("empty.json").write_text('{"vector": []}')
        save_file({"level": torch.tensor(torch.nan).to(torch.float8_e4m3fn)}, "short.safetensors")
        save_file({"level": torch.tensor(1j)}, "complex.safetensors")
        Path("level.json").write_text('{"level": [1, 2]}')
        Path("pickle.safetensors").write_bytes(b"\x80\x04" + b"x" * 100)
        before = listing(tmp_path)
        done = invoke(gen, "-o", "out", *(word for task in tasks for word in ("--task", task)))
        assert done.exit_code == 2
        assert fact in done.stderr
        assert hint in done.stderr
        assert listing(tmp_path) == before

    def test_one_that_is_asked_for_nothing(self, free: str) -> None:
        done = invoke(free, "-o", "out", "--like", NET, "--task", "x=1")
        assert done.exit_code == 2
        assert "asked for nothing but the target" in done.stderr


class TestNames:
    def test_a_preset_that_needs_no_training(self, free: str) -> None:
        for name in ("a", "b"):
            assert invoke("stub_untrained", "--like", NET, "-o", name, "--seed", 4).exit_code == 0
        assert listing(Path("a"))["model.safetensors"] == listing(Path("b"))["model.safetensors"]
        told = json.loads(Path("a/generation.json").read_text())["generator"]
        assert (told["preset"], told["files"]) == ("stub_untrained", {})

    @pytest.mark.parametrize(
        ("name", "fact", "hint"),
        [
            ("stub", "stub is a way to make a generator", "paramsmith train stub"),
            ("stub_untraned", "no such folder, and no generator", "did you mean 'stub_untrained'?"),
            ("qqqq", "no such folder, and no generator", "folder of a generator"),
            ("./qqqq", "no such folder", ""),
        ],
    )
    def test_others(self, free: str, name: str, fact: str, hint: str) -> None:
        done = invoke(name, "--like", NET, "-o", "out")
        assert (done.exit_code, Path("out").exists()) == (2, False)
        assert fact in done.stderr
        assert hint in done.stderr

    def test_a_local_folder_wins(self, free: str, tmp_path: Path) -> None:
        (tmp_path / free).rename("stub_untrained")
        assert invoke("stub_untrained", "--like", NET, "-o", "out").exit_code == 0
        assert json.loads(Path("out/generation.json").read_text())["generator"]["files"]


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "fact", "code"),
        [
            ([], "no output given", 2),
            (["-o", "out", "--dtype", "int8"], "cannot be int8", 2),
            (["-o", "out", "--dtype", "flaot32"], "unknown dtype", 2),
            (["-o", "out", "--shard-size", "big"], "is no size", 2),
            (["-o", "out", "--classes", "7"], "another number of classes", 2),
            (["-o", "out", "-n", "0"], "-n", 2),
            (["-o", "no/out"], "is not an existing folder", 2),
            (["-o", "gen"], "overlap", 2),
            (["-o", "taken"], "already exists", 3),
            (["-o", "out", "--device", "tpu"], "no device", 2),
            (["-o", "circle"], "circle is a symbolic link", 3),
            (["-o", "circle/out"], "is not an existing folder", 2),
            (["-o", "out", "--like", f"{'x' * 5000}.py:net"], "does not exist", 2),
        ],
    )
    def test_with_a_sentence(self, gen: str, words: list[str], fact: str, code: int) -> None:
        Path("taken").mkdir()
        Path("taken/config.json").write_text("{}")
        Path("circle").symlink_to("circle")
        done = invoke(gen, "--task", "vector=1,2", "--task", "level=1", *words)
        assert (done.exit_code, Path("out").exists()) == (code, False)
        assert fact in done.stderr
        told = invoke(gen, "--task", "vector=1,2", "--task", "level=1", *words, "--json")
        assert json.loads(told.stdout)["error"]["exit_code"] == code

    def test_without_an_architecture(self, free: str) -> None:
        done = invoke(free, "-o", "out")
        assert done.exit_code == 2
        assert "--like" in done.stderr

    def test_values_that_are_not_finite(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Generator.build("stub", poison="1.weight").save_pretrained("gen")
        done = invoke("gen", "--like", NET, "-o", "out")
        assert done.exit_code == 1
        assert "tensor 1.weight: 1 of the values" in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["gen"]


def test_help_does_not_wait_for_torch() -> None:
    program = (
        "import sys; from paramsmith.cli.app import cli\n"
        "try: cli.main([sys.argv[1], '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'diffusers', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    for name in ("generate", "generators"):
        done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stderr) == (0, "")
        assert "--json" in done.stdout


class TestVocabulary:
    """`--vocabulary`: rows for another tokenizer."""

    def test_a_model_gets_the_new_tokens(self, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        source = new_vocabulary.source(tmp_path / "source")
        tokenizer = new_vocabulary.target(tmp_path / "tokenizer")
        words, _ = new_vocabulary.words(tmp_path)
        asked = ["--like", source, "--vocabulary", tokenizer, "--words", words]
        done = CliRunner().invoke(cli, ["generate", "ridge", *map(str, asked), "-o", str(tmp_path / "out")])
        assert done.exit_code == 0, done.output
        assert "copied" in done.stdout
        rows = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["vocab_size"] == rows

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["--vocabulary", "t"], "a vocabulary is for a model, and none is given"),
            (["--vocabulary", "t", "--like", "m", "-n", "2"], "-n does not go with --vocabulary"),
            (["--vocabulary", "t", "--like", "m", "--dry-run"], "--dry-run does not go with --vocabulary"),
            (["--words", "w.vec"], "--words goes with --vocabulary"),
        ],
    )
    def test_refused(self, tmp_path: Path, words: list[str], told: str) -> None:
        done = CliRunner().invoke(cli, ["generate", "ridge", *words, "-o", str(tmp_path / "out")])
        assert done.exit_code == 2
        assert told in done.stderr
        assert list(tmp_path.iterdir()) == []
