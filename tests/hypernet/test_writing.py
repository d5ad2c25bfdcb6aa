"""Generated checkpoints on the disk: the bytes, what lies beside them, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from paramsmith.checkpoint import Checkpoint
from paramsmith.cli.app import cli
from paramsmith.errors import Failed, InvalidInput, Refused
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.targets.target import Buffer, Slot, TargetSpec
from paramsmith.hypernet.writing.generation import Report, Request, generate, outlook, prepare
from paramsmith.hypernet.writing.output import Sample
from paramsmith.hypernet.writing.provenance import NAME, completed, read_generation
from paramsmith.hypernet.writing.stream import Outline, working_memory
from paramsmith.staging import Writer
from tests.hypernet.stubparts import small_spec
from tests.shared.staged import ROOT, hidden, listing

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.usefixtures("stub_parts")]

VECTOR = {"vector": torch.tensor([0.3, 0.7])}


def anyone(**options: object) -> Generator:
    return Generator.build("stub", condition={"vector": (2,)}, **options)  # type: ignore[arg-type]


def alone(**options: object) -> Generator:
    return Generator.build("stub", **options)  # type: ignore[arg-type]


def written(folder: Path, generator: Generator | str | None = None, **options: object) -> Report:
    options = {"like": small_spec(), **options}
    return generate(generator or alone(), folder, **options)  # type: ignore[arg-type]


def file_of(folder: Path) -> Path:
    return folder / "model.safetensors"


class TestBytes:
    def test_are_those_of_the_library_and_of_a_sample(self, tmp_path: Path) -> None:
        generator, spec = anyone(), small_spec()
        written(tmp_path / "out", generator, condition=VECTOR, seed=3)
        (sample,) = generator.sample(VECTOR, seed=3, like=spec)
        del sample["lm_head.weight"]  # tied, and stored once
        with Checkpoint.open(tmp_path / "out" / "model.safetensors") as found:
            metadata, aliases = dict(found.metadata), found.aliases
        assert aliases == {"lm_head.weight": "embed.weight"}
        assert metadata["paramsmith.spec"] == spec.hash
        assert (metadata["paramsmith.seed"], metadata["paramsmith.index"]) == ("3", "0")
        stored = load_file(file_of(tmp_path / "out"))
        assert {name: tensor.tolist() for name, tensor in stored.items()} == {n: t.tolist() for n, t in sample.items()}
        save_file(sample, tmp_path / "again.safetensors", metadata)
        assert _data(tmp_path / "again.safetensors") == _data(file_of(tmp_path / "out"))

    def test_do_not_depend_on_threads_or_on_when(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("paramsmith.hypernet.model.CHUNK", 20)  # so that there is something to share out
        for threads in (1, 2, 5):
            written(tmp_path / str(threads) / "out", threads=threads) if (
                tmp_path / str(threads)
            ).mkdir() is None else 0
        found = [listing(tmp_path / threads) for threads in ("1", "2", "5")]
        assert found[0] == found[1] == found[2]

    def test_shards(self, tmp_path: Path) -> None:
        report = written(tmp_path / "out", shard_size=300)
        names = [f"model-0000{i}-of-00003.safetensors" for i in range(1, 4)]
        assert report.samples[0].files[:3] == tuple(names)
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        stored = {name: tensor for file in names for name, tensor in load_file(tmp_path / "out" / file).items()}
        assert set(index["weight_map"]) == set(stored) == set(small_like()) - {"lm_head.weight"}

    def test_types(self, tmp_path: Path) -> None:
        written(tmp_path / "out", dtype="bf16")
        stored = load_file(file_of(tmp_path / "out"))
        (sample,) = alone().sample(like=small_spec(), dtype="bf16")
        assert stored["head.weight"].dtype == torch.bfloat16
        assert torch.equal(stored["head.weight"], sample["head.weight"])
        assert stored["norm.num_batches_tracked"].dtype == torch.int64

    def test_a_single_file(self, tmp_path: Path) -> None:
        written(tmp_path / "out.safetensors")
        written(tmp_path / "out")
        assert (tmp_path / "out.safetensors").read_bytes() == file_of(tmp_path / "out").read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.safetensors"]

    def test_the_name_that_architectures_look_for_is_stored(self) -> None:
        head = Slot("lm_head.weight", (4, 2), "F32", "head", 2, copies=("transformer.wte.weight",))
        outline = Outline(TargetSpec((head,)))
        assert outline.tensors[0].name == "transformer.wte.weight"
        assert outline.aliases == {"lm_head.weight": "transformer.wte.weight"}

    def test_buffers_of_its_own(self) -> None:
        buffers = (Buffer("steps", (2,), "I64", None), Buffer("other", (1,), "F32", None))
        spec = replace(small_spec(), buffers=buffers)
        outline = Outline(spec, own={"steps": torch.tensor([1, 2])})
        assert outline.buffers["steps"].tolist() == [1, 2]
        assert outline.left_out == ("other",)
        job = prepare(alone(), Request(like=spec))
        assert outlook(job, Path("out")).warnings == ("steps and 1 more: left out, as the target's own code fills it",)


class TestRefused:
    def test_what_is_not_finite(self, tmp_path: Path) -> None:
        with pytest.raises(Failed, match=r"tensor layer\.1\.weight: 1 of the values") as caught:
            written(tmp_path / "out", alone(poison="layer.1.weight"))
        assert caught.value.exit_code == 1
        assert not any(tmp_path.iterdir())

    def test_what_the_type_cannot_hold(self, tmp_path: Path) -> None:
        generator = alone()
        with torch.no_grad():
            generator.hypernetwork.decoder.rows.mul_(1e6)
        with pytest.raises(Failed, match="not finite") as caught:
            written(tmp_path / "out", generator, dtype="float16")
        assert "beyond F16" in caught.value.hint
        written(tmp_path / "out", generator)

    def test_what_is_there_already(self, tmp_path: Path) -> None:
        written(tmp_path / "out")
        before = listing(tmp_path)
        with pytest.raises(Refused, match="already exists"):
            written(tmp_path / "out", seed=1)
        assert listing(tmp_path) == before
        written(tmp_path / "out", seed=1, force=True)
        assert listing(tmp_path)["out/model.safetensors"] != before["out/model.safetensors"]

    def test_an_output_inside_of_the_generator(self, tmp_path: Path) -> None:
        alone().save(tmp_path / "gen")
        with pytest.raises(InvalidInput, match="overlap"):
            written(tmp_path / "gen" / "out", str(tmp_path / "gen"))
        with pytest.raises(InvalidInput, match="overlap"):
            written(tmp_path / "gen", str(tmp_path / "gen"), force=True)

    def test_an_output_beside_the_config(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "config.json").write_text("{}")
        spec = small_spec()
        like = SimpleNamespace(spec=spec, label="config.json", folder=tmp_path, own=dict)
        monkeypatch.setattr("paramsmith.hypernet.targets.like.open_like", lambda *words, **options: like)
        assert written(tmp_path / "out", like=str(tmp_path / "config.json")).samples
        with pytest.raises(InvalidInput, match="overlap"):
            written(tmp_path, like=str(tmp_path / "config.json"), force=True)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"condition": {}}, "lacks 'vector'"),
            ({"condition": {"vectr": torch.ones(2)}}, "no condition 'vectr'"),
            ({"condition": {"vector": torch.ones(3)}}, "has the shape 3, expected 2"),
            ({"condition": {"vector": torch.ones(2, 3)}}, "has the shape 2x3"),
            ({"condition": {"vector": torch.tensor([1.0, torch.inf])}}, "not finite"),
            ({"like": None}, "none is given"),
            ({"dtype": "int8"}, "cannot be"),
            ({"device": "tpu"}, "no device"),
            ({"threads": 0}, "0 threads"),
            ({"seed": -1}, "out of range"),
            ({"n": 0}, "0 samples"),
        ],
    )
    def test_what_cannot_be_asked(self, tmp_path: Path, options: dict[str, object], words: str) -> None:
        with pytest.raises(InvalidInput, match=words):
            written(tmp_path / "out", anyone(), **{"condition": VECTOR, **options})
        assert not any(tmp_path.iterdir())


class TestSeveral:
    def test_each_is_a_folder_and_the_same_as_alone(self, tmp_path: Path) -> None:
        report = written(tmp_path / "out", n=3, seed=5)
        assert [sample.path.name for sample in report.samples] == ["0", "1", "2"]
        samples = alone().sample(n=3, seed=5, like=small_spec())
        for i, sample in enumerate(samples):
            stored = load_file(file_of(tmp_path / "out" / str(i)))
            assert all(torch.equal(sample[name], stored[name]) for name in stored)
        written(tmp_path / "one", seed=5)
        assert file_of(tmp_path / "one").read_bytes() == file_of(tmp_path / "out" / "0").read_bytes()

    def test_a_condition_each(self, tmp_path: Path) -> None:
        asked = torch.tensor([[0.3, 0.7], [1.0, 0.0]])
        written(tmp_path / "out", anyone(), condition={"vector": asked})
        told = [read_generation(tmp_path / "out" / str(i)).asked for i in range(2)]
        assert [each.index for each in told] == [0, 1]
        assert told[1].values == {"vector": [[1.0, 0.0]]}
        assert told[0].condition != told[1].condition
        with pytest.raises(InvalidInput, match="2 conditions make a sample each"):
            written(tmp_path / "more", anyone(), condition={"vector": asked}, n=3)

    def test_what_is_done_is_not_done_again(self, tmp_path: Path) -> None:
        written(tmp_path / "out", n=2)
        before = listing(tmp_path)
        os.truncate(file_of(tmp_path / "out" / "1"), 100)
        with pytest.raises(Refused, match="already exists"):  # it is not what this run would make
            written(tmp_path / "out", n=2)
        for path in (tmp_path / "out" / "1").iterdir():
            path.unlink()
        times = file_of(tmp_path / "out" / "0").stat().st_mtime_ns
        report = written(tmp_path / "out", n=2)
        assert [sample.resumed > 0 for sample in report.samples] == [True, False]
        assert file_of(tmp_path / "out" / "0").stat().st_mtime_ns == times
        assert listing(tmp_path) == before

    def test_other_things_are_in_the_way(self, tmp_path: Path) -> None:
        written(tmp_path / "out", n=3)
        with pytest.raises(Refused, match="2 is in the way"):
            written(tmp_path / "out", n=2)
        with pytest.raises(InvalidInput, match="is one file"):
            written(tmp_path / "out.safetensors", n=2)
        (tmp_path / "file").write_text("x")
        with pytest.raises(Refused, match="is a file"):
            written(tmp_path / "file", n=2)
        with pytest.raises(Refused, match="cannot be made"):
            written(tmp_path / "no" / "out", n=2)

    def test_a_failure_leaves_no_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(Failed):
            written(tmp_path / "out", alone(poison="scale"), n=2)
        assert not any(tmp_path.iterdir())


class TestBeside:
    def test_provenance(self, tmp_path: Path) -> None:
        alone(seed=2).save(tmp_path / "gen")
        written(tmp_path / "out", str(tmp_path / "gen"), seed=9, classes=4, dtype="f16")
        found = read_generation(tmp_path / "out")
        assert (found.generator.reference, found.generator.preset) == ("gen", "stub")
        assert found.generator.options["rank"] == 2
        assert set(found.generator.files) == {
            "model_index.json",
            "hypernetwork/config.json",
            "hypernetwork/diffusion_pytorch_model.safetensors",
        }
        asked = found.asked
        assert (asked.seed, asked.index, asked.classes, asked.dtype) == (9, 0, 4, "F16")
        assert asked.spec == small_spec().with_classes(4).hash
        assert str(tmp_path).encode() not in b"".join(listing(tmp_path / "out").values())

    def test_hashes_are_completed_later_and_tell_what_was_changed(self, tmp_path: Path) -> None:
        import hashlib

        written(tmp_path / "out", shard_size=300)
        found = completed(tmp_path / "out")
        for name, record in found.outputs.items():
            data = (tmp_path / "out" / name).read_bytes()
            assert (record.size, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        (tmp_path / "out" / NAME).write_bytes(found.to_bytes())
        assert completed(tmp_path / "out") == found
        shard = tmp_path / "out" / "model-00001-of-00003.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
        with pytest.raises(InvalidInput, match=r"model-00001-of-00003.* is not what"):
            completed(tmp_path / "out")

    def test_files_are_held_against_what_is_told_of_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def command(*words: object) -> tuple[int, str]:
            done = CliRunner().invoke(cli, list(map(str, words)))
            return done.exit_code, done.output

        (tmp_path / "tokenizer.json").write_text("{}")
        like = SimpleNamespace(spec=small_spec(), label="net", folder=tmp_path, own=dict)
        monkeypatch.setattr("paramsmith.hypernet.targets.like.open_like", lambda *words, **options: like)
        out = tmp_path / "out"
        written(out, like="net")
        told = command("verify", out)
        assert told[0] == 2
        assert "generation.json has no hash of model.safetensors" in told[1]
        assert command("card", out, "--license", "mit")[0] == 2
        assert command("card", out) == (0, f"{out}: generation.json\n")
        assert command("verify", out) == (0, "ok       model.safetensors\nok       tokenizer.json\n")
        (out / "tokenizer.json").write_text("[]")
        (out / "run.py").touch()
        data = bytearray((out / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (out / "model.safetensors").write_bytes(data)
        listed = "differs  model.safetensors\ndiffers  tokenizer.json\nextra    run.py\n"
        assert command("verify", out) == (1, listed)
        (out / NAME).write_text("{")
        assert command("verify", out)[0] == 2

    def test_another_generator_is_told_from_this_one(self, tmp_path: Path) -> None:
        for seed in (1, 2):
            written(tmp_path / str(seed), alone(seed=seed))
        a, b = (read_generation(tmp_path / str(seed)) for seed in (1, 2))
        assert a.generator.id != b.generator.id
        assert a.asked == b.asked
        assert a.key != b.key

    @pytest.mark.parametrize("text", ["{", '{"format": 2}', '{"format": 1, "x": 1}'])
    def test_a_broken_record(self, tmp_path: Path, text: str) -> None:
        (tmp_path / NAME).write_text(text)
        with pytest.raises(InvalidInput, match=r"generation\.json"):
            read_generation(tmp_path)

    def test_card(self, tmp_path: Path) -> None:
        written(tmp_path / "out", anyone(), condition=VECTOR)
        text = (tmp_path / "out" / "README.md").read_text()
        assert text.startswith("---\nlibrary_name: paramsmith\n")
        assert "Nobody has trained them" in text
        assert '`{"vector": [[' in text

    def test_diffusers(self, tmp_path: Path) -> None:
        config = {"_class_name": "UNet2DModel", "sample_size": 8}
        written(tmp_path / "out", like=small_spec(config=config))
        assert (tmp_path / "out" / "diffusion_pytorch_model.safetensors").is_file()
        assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
        assert "library_name: diffusers" in (tmp_path / "out" / "README.md").read_text()


class TestInterrupted:
    def test_goes_on_to_the_same_bytes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("paramsmith.hypernet.model.CHUNK", 20)
        written(tmp_path / "whole", threads=1)
        finish, count = Writer.finish, 0

        def interrupted(self: Writer, ranges: object) -> None:
            nonlocal count
            finish(self, ranges)  # type: ignore[arg-type]
            count += 1
            if count == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(Writer, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path / "out", threads=1)
        assert not (tmp_path / "out").exists()
        report = written(tmp_path / "out", threads=1)
        assert report.samples[0].resumed > 0
        assert _same(tmp_path / "whole", tmp_path / "out")
        assert hidden(tmp_path) == []

    def test_killed(self, tmp_path: Path) -> None:
        alone().save(tmp_path / "gen")
        words = ["generate", str(tmp_path / "gen"), "--like", f"{ROOT}/tests/hypernet/nets.py:net"]
        stuck = "import itertools, time, paramsmith.hypernet.writing.stream as w; "
        stuck += "f, count = w.finished, itertools.count(); "
        stuck += "w.finished = lambda *a: (time.sleep(3600 * (next(count) > 2)), f(*a))[1]; "
        process = _cli([*words, "-o", str(tmp_path / "out")], stuck)
        journal = tmp_path / ".out.partial" / "journal"
        deadline = time.monotonic() + 500
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 1):  # something is known to be done
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "out").exists()
        net = f"{ROOT}/tests/hypernet/nets.py:net"
        for name in ("out", "whole"):
            report = written(tmp_path / name, str(tmp_path / "gen"), like=net)
            assert (report.samples[0].resumed > 0) == (name == "out")
        assert _same(tmp_path / "whole", tmp_path / "out")
        assert hidden(tmp_path) == []


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """200 MB of weights by a process that may hold little more than one of their tensors."""
    program = (
        "import resource, sys; from tests.hypernet import test_writing as t; from paramsmith.parts import decoders; "
        "from tests.hypernet import stubparts; from paramsmith.hypernet import model; decoders.all(); "
        "from paramsmith.hypernet.writing import stream; "
        "stubparts.register(); model.CHUNK = stream.CHUNK = 1 << 20; "
        "spec = t.TargetSpec(tuple(t.Slot(f'w{i}', (1024, 1024), 'F32', 'matrix', 1) for i in range(50))); "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "g = t.alone(); g.sample(like=t.small_spec()); "
        "before = peak(); t.generate(g, sys.argv[1], like=spec, threads=2); print((peak() - before) * 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    spec = TargetSpec(tuple(Slot(f"w{i}", (1024, 1024), "F32", "matrix", 1) for i in range(2)))
    assert int(done.stdout) < working_memory(spec, 2) + 30_000_000
    assert file_of(tmp_path / "out").stat().st_size > 200_000_000


def test_transformers_loads_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 33, "n_positions": 12}
    config = GPT2Config(**sizes, architectures=["GPT2LMHeadModel"], dtype="float32")
    config.save_pretrained(tmp_path / "like")
    generator = alone(largest=128)
    report = generate(generator, tmp_path / "out", like=tmp_path / "like")
    assert report.warnings == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    stored = load_file(file_of(tmp_path / "out"))
    assert "lm_head.weight" not in stored
    state = model.state_dict()
    assert torch.equal(state["lm_head.weight"], stored["transformer.wte.weight"])
    assert all(torch.equal(state[name], stored[name]) for name in stored)
    assert "library_name: transformers" in (tmp_path / "out" / "README.md").read_text()
    with Checkpoint.open(tmp_path / "out") as found:  # merging takes it, too
        assert found.warnings == []


def small_like() -> dict[str, torch.Tensor]:
    return alone().sample(like=small_spec())[0]


def _data(path: Path) -> bytes:
    """The bytes after the header, whose metadata the library orders as it likes."""
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def _same(a: Path, b: Path) -> bool:
    """The same files, but for the name of the folder in the card."""
    one, two = listing(a), listing(b)
    cards = [held.pop("README.md").partition(b"<!--")[0].replace(b"whole", b"out") for held in (one, two)]
    return one == two and cards[0] == cards[1]


def _cli(words: list[str], before: str) -> subprocess.Popen[str]:
    program = (
        "import sys; from paramsmith.parts import decoders; from tests.hypernet import stubparts; decoders.all(); "
        f"stubparts.register(); {before}from paramsmith.cli.app import cli; cli.main(sys.argv[1:])"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_an_outlook_on_many_samples_does_not_go_through_them() -> None:
    job, one = (prepare(alone(), Request(like=small_spec(), n=n)) for n in (10**9, 1))
    found, single = outlook(job, Path("out")), outlook(one, Path("out"))
    assert found.bytes_written == 10**9 * single.bytes_written
    assert found.files == single.files


def test_the_seed_of_a_sample_is_its_own() -> None:
    job = prepare(alone(), Request(like=small_spec(), n=3, seed=1))
    samples = list(job.samples(Path("out")))
    assert len({sample.seed for sample in samples}) == 3
    assert all(isinstance(sample, Sample) and 0 <= sample.seed < 2**63 for sample in samples)
