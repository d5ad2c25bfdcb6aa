"""A generator as an artifact: what a folder holds, and that what comes out of it is what went in."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from paramsmith.errors import GenerateWarning, InvalidInput, Refused
from paramsmith.hypernet.artifact import INDEX, files_of
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.kinds import HYPERNETWORK, SAMPLER
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.writing.generation import Request, generate, prepare
from paramsmith.hypernet.writing.output import write_sample
from paramsmith.hypernet.zoos.writing import ZooWriter
from paramsmith.hypernet.zoos.zoo import Entry, Zoo
from paramsmith.parts import generators
from paramsmith.seal import ours
from tests.hypernet.stubparts import small_spec
from tests.shared.staged import ROOT, listing

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.usefixtures("stub_parts")]

ASKED = {"vector": torch.tensor([0.3, 0.7])}
FILES = files_of(HYPERNETWORK)


def made(**options: object) -> Generator:
    """A generator for any architecture, asked for a vector of two."""
    return Generator.build("stub", condition={"vector": (2,)}, **options)  # type: ignore[arg-type]


def fixed(**options: object) -> Generator:
    """One for the small target alone, asked for nothing."""
    return Generator.build("stub", spec=small_spec(), fixed=True, **options)  # type: ignore[arg-type]


def digest(samples: list[dict[str, Tensor]]) -> str:
    found = hashlib.sha256()
    for sample in samples:
        for name, tensor in sample.items():
            found.update(name.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


class TestFolder:
    def test_holds_safetensors_and_plain_data_alone(self, tmp_path: Path) -> None:
        made().save_pretrained(tmp_path / "gen")
        assert set(listing(tmp_path / "gen")) == {*FILES, "README.md"}
        assert len({(tmp_path / "gen" / name).stat().st_mode for name in FILES}) == 1  # the umask's

    def test_names_the_classes_by_the_paths_that_every_version_keeps(self, tmp_path: Path) -> None:
        made().save_pretrained(tmp_path / "gen")
        assert json.loads((tmp_path / "gen" / INDEX).read_text()) == {
            "_class_name": "Generator",
            "_diffusers_version": __import__("diffusers").__version__,
            "format": 1,
            "hypernetwork": ["paramsmith.hypernet.hypernetwork", "Hypernetwork"],
            "learned_from": None,
            "paramsmith": __import__("paramsmith").__version__,
            "sampler": [None, None],
            "seconds": None,
        }
        assert f"{Generator.__module__}.{Generator.__name__}" == "paramsmith.hypernet.generator.Generator"

    def test_is_the_same_when_saved_again_and_names_no_place(self, tmp_path: Path) -> None:
        fixed().save_pretrained(tmp_path / "one" / "gen")
        Generator.from_pretrained(tmp_path / "one" / "gen").save_pretrained(tmp_path / "two" / "gen")
        assert listing(tmp_path / "one") == listing(tmp_path / "two")
        alone = Hypernetwork.from_pretrained(tmp_path / "one" / "gen" / "hypernetwork")
        Generator(alone).save_pretrained(tmp_path / "three" / "gen")
        assert str(tmp_path).encode() not in b"".join(listing(tmp_path / "three").values())

    def test_tells_what_the_training_took(self, tmp_path: Path) -> None:
        generator = made()
        generator.seconds = 12.5
        generator.save_pretrained(tmp_path / "gen")
        assert Generator.from_pretrained(tmp_path / "gen").seconds == 12.5

    def test_card(self, tmp_path: Path) -> None:
        folder = tmp_path / "a `b` <c>"
        made().save_pretrained(folder)
        text = (folder / "README.md").read_text()
        assert text.startswith("---\nlibrary_name: paramsmith\n")
        assert "arxiv.org/abs/2405.16287" in text
        assert "`vector` 2" in text
        assert [line for line in text.splitlines() if "<c>" in line] == [
            "# ``a `b` <c>``",
            "paramsmith generate a `b` <c> --like CONFIG --task vector=... -o OUT",  # in a fence
        ]
        assert ours(folder / "README.md")

    def test_a_card_of_somebody_stays(self, tmp_path: Path) -> None:
        made().save_pretrained(tmp_path / "gen")
        (tmp_path / "gen" / "README.md").write_text("mine")
        made(seed=1).save_pretrained(tmp_path / "gen")
        assert (tmp_path / "gen" / "README.md").read_text() == "mine"

    @pytest.mark.parametrize("wrong", [{"safe_serialization": False}, {"variant": "fp16"}, {"push_to_hub": True}])
    def test_other_formats_are_no_choice(self, tmp_path: Path, wrong: dict[str, object]) -> None:
        with pytest.raises(InvalidInput, match="safetensors"):
            made().save_pretrained(tmp_path / "gen", **wrong)
        assert not (tmp_path / "gen").exists()


class TestSave:
    def test_appears_complete_and_replaces_only_when_told(self, tmp_path: Path) -> None:
        made().save(tmp_path / "gen")
        before = listing(tmp_path)
        assert b"# `gen`" in before["gen/README.md"]
        with pytest.raises(Refused, match="already exists"):
            made(seed=1).save(tmp_path / "gen")
        assert listing(tmp_path) == before
        made(seed=1).save(tmp_path / "gen", force=True)
        assert listing(tmp_path)["gen/" + FILES[2]] != before["gen/" + FILES[2]]

    def test_leaves_nothing_when_it_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*arguments: object) -> None:
            raise OSError("broken")

        monkeypatch.setattr("paramsmith.disk.replace_file", broken)
        with pytest.raises(OSError, match="broken"):
            made().save(tmp_path / "gen")
        assert not any(tmp_path.iterdir())


class TestLoad:
    def test_every_tensor_comes_back_and_what_is_not_saved_is_made_anew(self, tmp_path: Path) -> None:
        generator = made()
        generator.save_pretrained(tmp_path / "gen")
        back = Generator.from_pretrained(tmp_path / "gen")
        assert same(generator.hypernetwork.state_dict(), back.hypernetwork.state_dict())
        assert torch.equal(generator.hypernetwork.decoder.bank, back.hypernetwork.decoder.bank)
        assert back.hypernetwork.decoder.calls.dtype == torch.int64
        assert not back.hypernetwork.training

    def test_half_precision_is_read_into_the_types_of_the_parts(self, tmp_path: Path) -> None:
        made().to(torch.bfloat16).save_pretrained(tmp_path / "gen")
        back = Generator.from_pretrained(tmp_path / "gen")
        assert back.hypernetwork.decoder.rows.dtype == torch.float32
        assert torch.equal(back.hypernetwork.decoder.rows, made().hypernetwork.decoder.rows.bfloat16().float())

    def test_the_preset_is_known(self, tmp_path: Path) -> None:
        made(rank=3).save_pretrained(tmp_path / "gen")
        back = Generator.from_pretrained(tmp_path / "gen")
        name, options = back.preset or ("", {})
        assert (name, options["rank"], options["largest"]) == ("stub", 3, 64)
        assert back.design().objective.name == "stub_loss"
        assert back.shapes == {"vector": (2,)}

    def test_in_a_new_process_the_same_bytes(self, tmp_path: Path) -> None:
        generator = made()
        generator.save_pretrained(tmp_path / "gen")
        program = (
            "import sys, torch; from tests.hypernet import stubparts, test_generator as t; "
            "from paramsmith.parts import decoders; decoders.all(); stubparts.register(); "
            "g = t.Generator.from_pretrained(sys.argv[1]); "
            "print(t.digest(g.sample(t.ASKED, 2, seed=5, like=t.small_spec())))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "gen")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[-1] == digest(generator.sample(ASKED, 2, seed=5, like=small_spec()))
        assert done.stderr == ""  # neither a progress bar nor a warning

    def test_not_with_the_keywords_that_run_code(self, tmp_path: Path) -> None:
        made().save_pretrained(tmp_path / "gen")
        with pytest.raises(TypeError, match="trust_remote_code"):
            Generator.from_pretrained(tmp_path / "gen", trust_remote_code=True)  # type: ignore[call-arg]


class TestBuild:
    def test_seed_decides_and_torch_is_left_alone(self, tmp_path: Path) -> None:
        before = torch.random.get_rng_state()
        a, b, c = made(seed=1), made(seed=1), made(seed=2)
        assert same(a.hypernetwork.state_dict(), b.hypernetwork.state_dict())
        assert not same(a.hypernetwork.state_dict(), c.hypernetwork.state_dict())
        a.sample(ASKED, 2, like=small_spec())
        a.save_pretrained(tmp_path / "gen")
        Generator.from_pretrained(tmp_path / "gen")
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_the_seed_is_also_the_preset_s(self) -> None:
        assert made(seed=4).hypernetwork.config["preset"]["options"]["seed"] == 4

    def test_mistakes(self) -> None:
        with pytest.raises(InvalidInput, match="no generator is called 'stubb'") as caught:
            Generator.build("stubb")
        assert "'stub'" in caught.value.hint
        with pytest.raises(InvalidInput, match="no parameter rnk") as caught:
            made(rnk=2)
        assert caught.value.hint == "see: paramsmith generators stub"


class TestSample:
    def test_names_shapes_ties_and_buffers(self) -> None:
        (sample,) = fixed().sample()
        spec = small_spec()
        assert list(sample)[:3] == ["embed.weight", "lm_head.weight", "layer.0.weight"]
        assert sample["lm_head.weight"] is sample["embed.weight"]
        assert all(tuple(sample[slot.name].shape) == slot.shape for slot in spec.slots)
        assert sample["norm.running_var"].tolist() == [1.0] * 6
        assert (sample["norm.num_batches_tracked"].dtype, int(sample["norm.num_batches_tracked"])) == (torch.int64, 0)

    def test_a_sample_does_not_depend_on_how_many_there_are(self) -> None:
        generator = made()
        five = generator.sample(ASKED, 5, seed=3, like=small_spec())
        two = generator.sample(ASKED, 2, seed=3, like=small_spec())
        assert all(same(a, b) for a, b in zip(five, two, strict=False))
        assert len({digest([sample]) for sample in five}) == 5
        assert digest(generator.sample(ASKED, 1, seed=4, like=small_spec())) != digest(five[:1])

    def test_however_few_are_decoded_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = made().sample(ASKED, 5, like=small_spec())
        monkeypatch.setattr("paramsmith.hypernet.writing.samples.CHUNK", 1)
        assert digest(made().sample(ASKED, 5, like=small_spec())) == digest(whole)

    def test_many_conditions(self) -> None:
        generator = made()
        asked = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5]])
        three = generator.sample({"vector": asked}, seed=3, like=small_spec())
        assert len(three) == 3
        alone = generator.sample({"vector": asked[:1]}, seed=3, like=small_spec())
        assert same(alone[0], three[0])
        with pytest.raises(InvalidInput, match="the condition vector is list"):
            generator.sample({"vector": [1.0]}, like=small_spec())
        for seed in (-1, 2**63):
            with pytest.raises(InvalidInput, match=f"the seed {seed} is out of range"):
                generator.sample({"vector": asked[0]}, seed=seed, like=small_spec())
        with pytest.raises(InvalidInput, match="3 conditions make a sample each"):
            generator.sample({"vector": asked}, 2, like=small_spec())

    def test_one_is_what_the_hypernetwork_gives(self) -> None:
        generator, spec = made(), small_spec()
        from paramsmith.hypernet.writing.samples import sample_seed

        whole = generator.hypernetwork({"vector": torch.tensor([[0.3, 0.7]])}, spec, [sample_seed(3, 0)])
        (sample,) = generator.sample(ASKED, seed=3, like=spec)
        for slot in spec.slots:
            torch.testing.assert_close(sample[slot.name], whole[slot.name][0].detach())

    def test_types(self) -> None:
        (half,) = made().sample(ASKED, like=small_spec("F16"))
        assert half["head.weight"].dtype == half["norm.running_var"].dtype == torch.float16
        (brain,) = made().sample(ASKED, like=small_spec("F16"), dtype="bf16")
        assert brain["head.weight"].dtype == torch.bfloat16
        assert brain["norm.num_batches_tracked"].dtype == torch.int64
        with pytest.raises(InvalidInput, match="I64"):
            made().sample(ASKED, like=small_spec(), dtype="int64")

    def test_classes(self) -> None:
        (sample,) = made().sample(ASKED, like=small_spec(), classes=7)
        assert sample["head.weight"].shape == (7, 6)
        with pytest.raises(InvalidInput, match="another number of classes"):
            fixed().sample(classes=7)
        assert fixed().sample(classes=3)[0]["head.weight"].shape == (3, 6)
        with pytest.raises(InvalidInput, match="0 classes"):
            made().sample(ASKED, like=small_spec(), classes=0)

    def test_a_target_must_be_there_and_fit(self) -> None:
        with pytest.raises(InvalidInput, match="any architecture, and none is given"):
            made().sample(ASKED)
        with pytest.raises(InvalidInput, match="made for another target"):
            fixed().sample(like=small_spec().with_classes(9))

    def test_training_goes_on_after_a_sample(self) -> None:
        generator = made()
        generator.sample(ASKED, like=small_spec())
        out = generator.hypernetwork({"vector": torch.ones(1, 2)}, small_spec())
        sum(value.sum() for value in out.values()).backward()  # type: ignore[union-attr]
        assert generator.hypernetwork.decoder.rows.grad is not None


SITES = [
    {},
    {"vector": (2,)},
    {"set": (5, 4)},
    {"classes": (3, 5, 6)},
]


PRESETS: dict[str, tuple[str, dict[str, object]]] = {name: (name, {}) for name in generators.all()}
PRESETS["d2nwg by layers"] = ("d2nwg", {"chunk": 16})


@pytest.mark.parametrize("case", PRESETS)
def test_every_preset_can_be_saved_loaded_and_written(case: str, tmp_path: Path) -> None:
    """Whatever its parts are: the check of its files finds them right, and the bytes are as before."""
    generator, spec = any_of(*PRESETS[case])
    shapes = {name: [size or 3 for size in shape] for name, shape in generator.shapes.items()}  # 0 is any number
    if generator.kind is SAMPLER and not dict(generator.design().course)["steps"]:  # it is computed from a zoo
        with pytest.warns(GenerateWarning, match="expect copies"):
            generator.fit(zoo_of(spec, shapes, tmp_path / "zoo"))
    generator.save_pretrained(tmp_path / "gen")
    back = Generator.from_pretrained(tmp_path / "gen")
    assert same(generator.model.state_dict(), back.model.state_dict())
    asked = {name: torch.rand(3, *shape, generator=torch.Generator()) for name, shape in shapes.items()}
    first, again = (g.sample(asked, seed=1, like=spec) for g in (generator, back))
    assert digest(first) == digest(again)
    if asked:  # the last of three is the same with no others beside it
        job = prepare(back, Request(like=spec, condition=asked, seed=1))
        write_sample(job.sample(2, tmp_path / "out"), 2, False, lambda count: None)
        (last,) = first[2:]
    else:
        generate(tmp_path / "gen", tmp_path / "out", like=spec, seed=1, threads=2)
        (last,) = first
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(stored[name], last[name]) for name in stored)


def zoo_of(spec: TargetSpec, shapes: Mapping[str, Sequence[int]], folder: Path) -> Zoo:
    """Some networks of a target, and as many conditions."""
    rng = torch.Generator().manual_seed(0)
    networks = {slot.name: torch.randn(12, *slot.shape, generator=rng) for slot in spec.slots}
    conditions = [{name: torch.rand(*shape, generator=rng) for name, shape in shapes.items()} for _ in range(12)]
    with ZooWriter(folder) as writer:
        writer.add(spec, networks, [Entry(path="?", task=i) for i in range(12)], conditions)
        return Zoo.open(writer.publish())


def any_of(name: str, options: Mapping[str, object]) -> tuple[Generator, TargetSpec]:
    """A generator of a preset, for whatever target and condition it can be for."""
    whole = Target.of(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(2, 6)).spec
    head = Target.of(nn.Linear(6, 3), torch.zeros(2, 6), classes=3).spec
    row = TargetSpec((Slot("row", (128,), "F32", "bias", 128, 0.02),))
    wrong = []
    few = {"steps": 2} if "steps" in generators.find(name).params.model_fields else {}
    for spec in (whole, head, row):
        for condition in SITES:
            try:
                return Generator.build(name, spec=spec, condition=condition, **few, **options), spec
            except InvalidInput as problem:
                wrong.append(problem.fact)
    raise AssertionError(f"{name} can be built for none of the sites of this test: {wrong}")


def test_fit() -> None:
    generator = made()
    before = generator.hypernetwork.decoder.rows.detach().clone()
    told: list[int] = []
    report = generator.fit(None, {"steps": 3, "lr": 0.1}, progress=lambda done, total: told.append(total))
    assert report.steps == 3
    assert float(generator.hypernetwork.decoder.rows.detach().square().mean()) < float(before.square().mean())
    assert generator.seconds == report.seconds
    generator.fit(None, {"steps": 1})
    assert (generator.seconds or 0) > report.seconds
    with pytest.raises(InvalidInput, match="stps"):
        generator.fit(None, {"stps": 3})
    with pytest.raises(InvalidInput, match="needs no training"):
        Generator.build("stub_untrained").fit(None)


def test_importing_the_package_waits_for_nothing() -> None:
    program = (
        "import sys, paramsmith.hypernet as h; assert set(h.__all__) <= set(dir(h)); "
        "print('torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["False", "False"]), done.stderr


def test_what_the_package_names_is_there() -> None:
    import paramsmith.hypernet

    names = paramsmith.hypernet.__all__
    assert [getattr(paramsmith.hypernet, name).__name__ for name in names] == names
    with pytest.raises(AttributeError, match="nothing"):
        _ = paramsmith.hypernet.nothing
