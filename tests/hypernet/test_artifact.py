"""Generators that somebody else has saved: each of these is refused in a sentence before anything is loaded or run."""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from paramsmith.cli.app import cli
from paramsmith.errors import InvalidInput
from paramsmith.hypernet.artifact import INDEX, files_of, open_artifact
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.kinds import HYPERNETWORK
from paramsmith.hypernet.targets.specfile import spec_to_json
from tests.hypernet.stubparts import small_spec
from tests.shared.staged import listing

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.usefixtures("stub_parts")]

Change = Callable[[Path], None]
ROWS = "decoder.rows"
CONFIG, TENSORS, FILES = HYPERNETWORK.config, HYPERNETWORK.tensors, files_of(HYPERNETWORK)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound generator for one target."""
    Generator.build("stub", spec=small_spec(), fixed=True).save_pretrained(tmp_path / "gen")
    return tmp_path / "gen"


def edited(name: str, **changes: object) -> Change:
    """Set keys of a JSON file, `a__b` for those inside; None removes."""

    def change(folder: Path) -> None:
        plain = json.loads((folder / name).read_text())
        for path, value in changes.items():
            *outer, key = path.split("__")
            inner = plain
            for step in outer:
                inner = inner[step]
            if value is None:
                del inner[key]
            else:
                inner[key] = value
        (folder / name).write_text(json.dumps(plain))

    return change


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content) and None


def removed(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Write the tensors anew, changed."""

    def rewrite(folder: Path) -> None:
        held = load_file(folder / TENSORS)
        held = {name: tensor.clone() for name, tensor in held.items()}
        change(held)
        save_file(held, folder / TENSORS, {"format": "pt"})

    return rewrite


def cut(folder: Path) -> None:
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(data[:-40])


class _Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("PWNED",)


def pickled(name: str, *, alone: bool = False) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(_Payload()))
        if alone:
            (folder / TENSORS).unlink()

    return change


def fifo(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def dangling(folder: Path) -> None:
    (folder / TENSORS).unlink()
    (folder / TENSORS).symlink_to("nowhere")


HUGE = {**spec_to_json(small_spec()), "slots": "nonsense"}
NESTED = json.loads("[" * 100 + "]" * 100)
PAIR = "hypernetwork"
WEIGHTS = "diffusion_pytorch_model"

# what is wrong -> (how it is made so, the file that the message names, words of the message)
HOSTILE: dict[str, tuple[Change, str, str]] = {
    "no index": (removed(INDEX), "gen", "is no generator: it has no model_index.json"),
    "index is no JSON": (text(INDEX, "{"), INDEX, "not valid JSON"),
    "index is a list": (text(INDEX, "[]"), INDEX, "list where a JSON object is expected"),
    "index names a key twice": (text(INDEX, '{"format": 1, "format": 2}'), INDEX, "format occurs twice"),
    "index is nested without end": (text(INDEX, '{"a":' + "[" * 100_000), INDEX, "nested too deeply"),
    "index is a pipe": (fifo(INDEX), INDEX, "named pipe"),
    "index is too long": (text(INDEX, " " * 2_000_000), INDEX, "at most 1,000,000"),
    "another pipeline": (edited(INDEX, _class_name="StableDiffusionPipeline"), INDEX, "no generator"),
    "a pipeline of a file": (edited(INDEX, _class_name=["pipeline", "Generator"]), INDEX, "no generator"),
    "a component that runs": (edited(INDEX, hypernetwork=["os", "system"]), INDEX, "os.system"),
    "a module beside": (edited(INDEX, hypernetwork=["evil_module", "Hypernetwork"]), INDEX, "evil_module"),
    "another class of ours": (edited(INDEX, hypernetwork=[f"{Generator.__module__}", "Generator"]), INDEX, "Generator"),
    "one component more": (edited(INDEX, scheduler=["diffusers", "DDIMScheduler"]), INDEX, "component scheduler"),
    "no component": (edited(INDEX, hypernetwork=None), INDEX, "no model where one is expected"),
    "a component of null": (edited(INDEX, hypernetwork=[None, None]), INDEX, "there is no model"),
    "another format": (edited(INDEX, format=7, paramsmith="9.9"), INDEX, "by paramsmith 9.9 in format 7"),
    "format in words": (edited(INDEX, format="1"), INDEX, "format"),
    "a key that nobody knows": (edited(INDEX, custom_pipeline="x"), INDEX, "no key custom_pipeline"),
    "no config": (removed(CONFIG), "gen", f"{CONFIG} is missing"),
    "another class in config": (edited(CONFIG, _class_name="UNet2DModel"), CONFIG, "_class_name"),
    "quantised": (edited(CONFIG, quantization_config={"quant_method": "bitsandbytes"}), CONFIG, "quantization_config"),
    "code in config": (edited(CONFIG, auto_map={"AutoModel": "evil.Model"}), CONFIG, "no key auto_map"),
    "width in words": (edited(CONFIG, width="8"), CONFIG, "width"),
    "width beyond all": (edited(CONFIG, width=10**12), CONFIG, "width"),
    "another width": (edited(CONFIG, width=9), TENSORS, "has the shape"),
    "a part that nobody knows": (edited(CONFIG, decoder__name="stub_factor"), CONFIG, "stub_factor"),
    "no part": (edited(CONFIG, decoder=None), CONFIG, "decoder"),
    "an option that nobody knows": (edited(CONFIG, decoder__options__rnk=2), CONFIG, "no parameter rnk"),
    "an option out of range": (edited(CONFIG, decoder__options__rank=10**9), CONFIG, "rank"),
    "layers without end": (edited(CONFIG, decoder__options__depth=10**9), CONFIG, "larger than what is in the file"),
    "a table without end": (edited(CONFIG, decoder__options__largest=10**6), TENSORS, "has the shape"),
    "a condition without end": (edited(CONFIG, condition={"vector": [10**6, 10**6]}), CONFIG, "larger than"),
    "a condition of no shape": (edited(CONFIG, condition={"vector": [-1]}), CONFIG, "condition.vector"),
    "a target that is none": (edited(CONFIG, target=HUGE), CONFIG, "slots"),
    "a target of nothing": (edited(CONFIG, target={}), CONFIG, ""),
    "options without end": (edited(CONFIG, preset__options={"a": NESTED}), CONFIG, "levels deep"),
    "options that are no JSON": (edited(CONFIG, preset__options={"a": float("nan")}), CONFIG, "preset.options"),
    "no tensors": (removed(TENSORS), "gen", f"{TENSORS} is missing"),
    "a link to nothing": (dangling, TENSORS, "does not exist"),
    "a tensor is missing": (tensors(lambda held: held.pop(ROWS)), TENSORS, f"{ROWS} is missing"),
    "a tensor more": (tensors(lambda held: held.update(x=torch.ones(1))), TENSORS, "x belongs to no part"),
    "another shape": (tensors(lambda held: held.update({ROWS: torch.ones(3)})), TENSORS, f"{ROWS} has the shape [3]"),
    "another type": (tensors(lambda held: held.update({ROWS: held[ROWS].long()})), TENSORS, f"{ROWS} holds I64"),
    "a wider type": (tensors(lambda held: held.update({ROWS: held[ROWS].double()})), TENSORS, f"{ROWS} holds F64"),
    "cut short": (cut, TENSORS, "the file ends before it"),
    "a pickle under its name": (pickled(TENSORS), TENSORS, "pickle"),
    "a pickle alone": (pickled(f"{PAIR}/{WEIGHTS}.bin", alone=True), f"{WEIGHTS}.bin", "is a pickle"),
    "a pickle beside": (pickled(f"{PAIR}/{WEIGHTS}.bin"), f"{WEIGHTS}.bin", "is a pickle"),
    "a checkpoint of torch": (pickled(f"{PAIR}/model.PT"), "model.PT", "is a pickle"),
    "shards beside": (text(f"{TENSORS}.index.json", "{}"), f"{WEIGHTS}.safetensors.index.json", "one file of tensors"),
    "another format of weights": (text(f"{PAIR}/model.flashpack", ""), "model.flashpack", "one file of tensors"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, named, words = HOSTILE[case]
    monkeypatch.chdir(folder.parent)
    (folder.parent / "evil_module.py").write_text("open('PWNED', 'w')")
    monkeypatch.syspath_prepend(str(folder.parent))
    change(folder)
    started = time.monotonic()
    for attempt in (open_artifact, Generator.from_pretrained):
        with pytest.raises(InvalidInput) as caught:
            attempt(folder)
        told = caught.value.fact
        assert words in told
        assert named in told
        assert "\n" not in told
    done = CliRunner().invoke(cli, ["generate", str(folder), "-o", "out"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "evil_module" not in sys.modules
    assert {path.name for path in folder.parent.iterdir()} <= {"gen", "evil_module.py", "__pycache__"}
    assert time.monotonic() - started < 60


def test_the_sound_one_is_not_refused(folder: Path) -> None:
    """So that what the table changes is what is refused."""
    found = open_artifact(folder)
    assert (found.index.format, found.config.decoder.name) == (1, "stub_factors")
    Generator.from_pretrained(folder).sample()


def test_other_files_do_no_harm(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit")
    (folder / "training.json").write_text("{")
    (folder / "optimizer.bin").write_bytes(b"x")
    open_artifact(folder)


def test_links_are_followed(folder: Path, tmp_path: Path) -> None:
    """As the cache of the Hub is full of them."""
    for number, name in enumerate(FILES):
        os.rename(folder / name, tmp_path / f"blob{number}")
        (folder / name).symlink_to(tmp_path / f"blob{number}")
    Generator.from_pretrained(folder).sample()


@pytest.mark.parametrize(
    ("name", "words"), [("nowhere", "no such folder"), ("gen/README.md", "is a file"), ("hf://", "names nothing")]
)
def test_no_folder(folder: Path, name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    before = listing(folder.parent)
    done = CliRunner().invoke(cli, ["generate", name, "-o", "out"])
    assert done.exit_code == 2
    assert words in done.stderr
    assert listing(folder.parent) == before
