"""How samples are drawn: steps and guidance, and blocks of samples that the files of one run share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from paramsmith.errors import InvalidInput, Refused
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.latents import Sampling
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.hypernet.writing.draws import Draws
from paramsmith.hypernet.writing.generation import Request, generate, outlook, prepare
from paramsmith.hypernet.writing.provenance import NAME, read_generation
from paramsmith.hypernet.writing.samples import sample_seed
from tests.shared.staged import listing

pytestmark = pytest.mark.usefixtures("one_thread")

ASKED = {"vector": torch.tensor([0.3, 0.7])}
MANY = {"vector": torch.tensor([[0.3, 0.7], [0.1, 0.2], [0.9, 0.4]])}


def spec_of() -> TargetSpec:
    with torch.device("meta"):
        return Target.of(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))).spec


def awake(preset: str = "flow", condition: Mapping[str, Any] | None = None, **options: object) -> Generator:
    """A sampler that nobody trained, none of whose numbers are zero: all that it is told changes what it draws."""
    shapes = {"vector": (2,)} if condition is None else condition
    made = Generator.build(preset, spec=spec_of(), condition=shapes, **options)  # type: ignore[arg-type]
    with seeded(1), torch.no_grad():
        for parameter in made.model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return made


@pytest.fixture(scope="module")
def flow() -> Generator:
    return awake(steps=2)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(values, b[name]) for name, values in a.items())


def counted(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples the prior draws, call by call."""
    calls: list[int] = []
    own = generator.model.prior.sample

    def sample(asked: Tensor, *rest: Any) -> Tensor:
        calls.append(len(asked))
        drawn: Tensor = own(asked, *rest)
        return drawn

    monkeypatch.setattr(generator.model.prior, "sample", sample)
    return calls


class TestBlocks:
    def test_the_files_of_a_run_share_a_draw(
        self, flow: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert flow.sampler.together(spec_of()) == 16
        calls = counted(flow, monkeypatch)
        generate(flow, tmp_path / "many", condition=ASKED, n=18, seed=3)
        assert calls == [16, 16]
        for number in (0, 15, 17):
            alone = prepare(flow, Request(condition=ASKED, n=18, seed=3)).sample(number, tmp_path / str(number))
            codes = alone.model.codes(alone.condition, spec_of(), [alone.seed], number)
            plain = flow.model.codes(alone.condition, spec_of(), [alone.seed], number)
            assert torch.equal(codes, plain)
        one = flow.sample(ASKED, seed=3)[0]
        assert same(one, load_file(tmp_path / "many" / "0" / "model.safetensors"))

    def test_what_is_left_of_a_run_has_the_same_bytes(self, flow: Generator, tmp_path: Path) -> None:
        generate(flow, tmp_path / "out", condition=ASKED, n=4, seed=3)
        before = listing(tmp_path)
        for number in ("1", "3"):
            for path in (tmp_path / "out" / number).iterdir():
                path.unlink()
            (tmp_path / "out" / number).rmdir()
        report = generate(flow, tmp_path / "out", condition=ASKED, n=4, seed=3)
        assert [sample.resumed > 0 for sample in report.samples] == [True, False, True, False]
        assert listing(tmp_path) == before

    def test_a_sample_is_the_same_in_any_order_and_number(self, flow: Generator) -> None:
        whole = flow.sample(ASKED, 5, seed=3)
        assert same(flow.sample(ASKED, 2, seed=3)[1], whole[1])
        draws, spec = Draws(flow.model, {"vector": ASKED["vector"][None]}, 3), spec_of()
        codes = {i: draws.codes(draws.condition, spec, [sample_seed(3, i)], i) for i in (20, 4, 0, 17, 1)}
        for i, found in codes.items():
            assert torch.equal(found, flow.model.codes(draws.condition, spec, [sample_seed(3, i)], i)), i
        several = draws.codes(draws.condition, spec, [sample_seed(3, i) for i in range(15, 21)], 15)
        assert torch.equal(several[2], codes[17][0])
        assert torch.equal(several[5], codes[20][0])

    def test_a_condition_each(self, flow: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        alone = [flow.sample({"vector": vector}, 3, seed=3)[i] for i, vector in enumerate(MANY["vector"])]
        calls = counted(flow, monkeypatch)
        generate(flow, tmp_path / "out", condition=MANY, seed=3)
        assert calls == [16]
        for i, expected in enumerate(alone):
            assert same(load_file(tmp_path / "out" / str(i) / "model.safetensors"), expected)

    def test_large_tokens_are_decoded_again_and_not_kept(
        self, flow: Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = flow.sample(ASKED, 3, seed=3)
        monkeypatch.setattr("paramsmith.hypernet.writing.draws.KEPT", 0)
        calls, spec = counted(flow, monkeypatch), spec_of()
        draws = Draws(flow.model, {"vector": ASKED["vector"][None]}, 3)
        for i in range(3):
            made = flow.model.decoded(draws.codes({}, spec, [sample_seed(3, i)], i), [0], spec, [0])
            assert torch.equal(made[0, 0], whole[i][spec.slots[0].name])
        assert not draws._tokens.numel()
        assert calls == [16]

    def test_several_threads(self, flow: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        calls, spec = counted(flow, monkeypatch), spec_of()
        draws = Draws(flow.model, {"vector": ASKED["vector"][None]}, 3)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: draws.codes({}, spec, [sample_seed(3, i)], i), range(16)))
        assert calls == [16]
        assert len({float(codes.sum()) for codes in found}) == 16

    def test_seeds_of_another_run(self, flow: Generator) -> None:
        draws = Draws(flow.model, {"vector": ASKED["vector"][None]}, 3)
        with pytest.raises(ValueError, match="other seeds"):
            draws.codes(draws.condition, spec_of(), [sample_seed(4, 0)], 0)

    def test_the_memory_of_a_block_is_told(self, flow: Generator) -> None:
        job = prepare(flow, Request(condition=ASKED))
        layout = flow.sampler.layout(spec_of())
        assert job.draws.held(spec_of()) == 4 * 3 * 16 * len(layout) * layout.width
        assert outlook(job, Path("out")).peak_memory > job.draws.held(spec_of())


class TestHow:
    @pytest.mark.parametrize(
        ("steps", "guidance", "words"),
        [
            (0, 1.0, "0 steps"),
            (-1, 1.0, "-1 steps"),
            (10_001, 1.0, "10,001 steps"),
            (None, -0.5, "a guidance of -0.5"),
            (None, math.nan, "a guidance of nan"),
            (None, math.inf, "a guidance of inf"),
        ],
    )
    def test_out_of_range(
        self, flow: Generator, tmp_path: Path, steps: int | None, guidance: float, words: str
    ) -> None:
        with pytest.raises(InvalidInput, match=words):
            flow.sample(ASKED, steps=steps, guidance=guidance)
        with pytest.raises(InvalidInput, match=words):
            generate(flow, tmp_path / "out", condition=ASKED, steps=steps, guidance=guidance)
        assert not any(tmp_path.iterdir())

    def test_each_changes_what_is_drawn_and_the_model_keeps_nothing_of_it(self, flow: Generator) -> None:
        plain = flow.sample(ASKED, seed=3)[0]
        for how in ({"steps": 3}, {"guidance": 2.0}, {"guidance": 0.0}, {"steps": 3, "guidance": 2.0}):
            assert not same(flow.sample(ASKED, seed=3, **how)[0], plain), how  # type: ignore[arg-type]
        assert same(flow.sample(ASKED, seed=3)[0], plain)
        assert same(flow.sample(ASKED, seed=3, steps=2, guidance=1.0)[0], plain)  # its own

    def test_guidance_without_a_condition_is_whatever_is_asked_for(self, flow: Generator) -> None:
        asked = [flow.sample({"vector": vector}, seed=3, guidance=0.0)[0] for vector in MANY["vector"]]
        torch.testing.assert_close(asked[0], asked[1])
        assert not same(flow.sample({"vector": MANY["vector"][1]}, seed=3)[0], flow.sample(ASKED, seed=3)[0])

    @pytest.mark.parametrize(
        ("preset", "options", "how", "words"),
        [
            ("flow", {"dropout": 0.0}, {"guidance": 2.0}, "never trained without a condition"),
            ("gaussian", {}, {"guidance": 2.0}, "the prior 'gaussian' knows no guidance"),
            ("gaussian", {}, {"steps": 5}, "the prior 'gaussian' takes no number of steps"),
            ("igpg", {}, {"steps": 5}, "takes a step a position"),
            ("pdiff", {}, {"guidance": 2.0}, "asked for nothing"),
            ("pdiff", {}, {"steps": 1001}, "has 1,000 times"),
            ("mip", {}, {"guidance": 2.0}, "a hypernetwork knows no guidance"),
            ("mip", {}, {"steps": 5}, "a hypernetwork takes no number of steps"),
        ],
    )
    def test_what_there_is_not(
        self, tmp_path: Path, preset: str, options: dict[str, Any], how: dict[str, Any], words: str
    ) -> None:
        generator = Generator.build(preset, spec=spec_of(), condition={"vector": (2,)}, **options)
        with pytest.raises(InvalidInput, match=words):
            generate(generator, tmp_path / "out", condition=ASKED if generator.shapes else {}, **how)
        with pytest.raises(InvalidInput, match=words):
            generator.sample(ASKED if generator.shapes else {}, **how)
        assert not any(tmp_path.iterdir())

    def test_autoregression_is_guided(self) -> None:
        sampler = awake("igpg").sampler
        with torch.no_grad():
            asked = sampler.asked({"vector": ASKED["vector"][None]}, spec_of()).expand(2, -1, -1)
            how = (Sampling(), Sampling(guidance=1.0), Sampling(guidance=8.0))
            plain, same_as_plain, guided = (sampler.drawn(asked, spec_of(), [1, 2], each) for each in how)
        assert torch.equal(plain, same_as_plain)
        assert not torch.equal(plain, guided)

    def test_a_model_that_is_called_by_itself_refuses_too(self, flow: Generator) -> None:
        made = Generator.build("mip", spec=spec_of(), condition={"vector": (2,)})
        with pytest.raises(InvalidInput, match="a hypernetwork"):
            made.model.codes({"vector": torch.ones(1, 2)}, spec_of(), [0], 0, Sampling(3))


class TestTold:
    def test_where_it_was_chosen(self, flow: Generator, tmp_path: Path) -> None:
        generate(flow, tmp_path / "plain", condition=ASKED)
        generate(flow, tmp_path / "told", condition=ASKED, steps=3, guidance=1.5)
        assert not {"steps", "guidance"} & set(read_generation(tmp_path / "plain").model_dump()["asked"])
        found = read_generation(tmp_path / "told")
        assert (found.asked.steps, found.asked.guidance) == (3, 1.5)
        assert '"guidance": 1.5' in (tmp_path / "told" / NAME).read_text()
        assert "3 steps, guidance 1.5" in (tmp_path / "told" / "README.md").read_text()
        with safe_open(tmp_path / "told" / "model.safetensors", "pt") as file:
            assert (file.metadata()["paramsmith.steps"], file.metadata()["paramsmith.guidance"]) == ("3", "1.5")
        assert same(load_file(tmp_path / "told" / "model.safetensors"), flow.sample(ASKED, steps=3, guidance=1.5)[0])

    @pytest.mark.parametrize("other", [{"steps": 3}, {"guidance": 2.0}])
    def test_samples_of_another_run_are_not_taken_for_its_own(
        self, flow: Generator, tmp_path: Path, other: dict[str, Any]
    ) -> None:
        generate(flow, tmp_path / "out", condition=ASKED, n=2)
        before = listing(tmp_path)
        with pytest.raises(Refused, match="already exists"):
            generate(flow, tmp_path / "out", condition=ASKED, n=2, **other)
        assert listing(tmp_path) == before
        report = generate(flow, tmp_path / "out", condition=ASKED, n=2)
        assert all(sample.resumed for sample in report.samples)

    def test_an_interrupted_sample_of_another_run_is_begun_anew(
        self, flow: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generate(flow, tmp_path / "whole", condition=ASKED, steps=3)
        expected = listing(tmp_path / "whole")
        own, calls = flow.model.decoded, []

        def stopped(*words: Any) -> Tensor:
            calls.append(words)
            if len(calls) > 2:
                raise KeyboardInterrupt
            made: Tensor = own(*words)
            return made

        with monkeypatch.context() as patch:
            patch.setattr(flow.model, "decoded", stopped)
            with pytest.raises(KeyboardInterrupt):
                generate(flow, tmp_path / "out", condition=ASKED, threads=1)
        assert (tmp_path / ".out.partial" / "journal").exists()
        report = generate(flow, tmp_path / "out", condition=ASKED, steps=3)
        assert report.samples[0].resumed == 0
        assert {**listing(tmp_path / "out"), "README.md": b""} == {**expected, "README.md": b""}  # which has its name
