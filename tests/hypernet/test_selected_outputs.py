"""From samples to one checkpoint: what was selected, finished or merged is what is written, and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.finishing.recalibration import recalibrate
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.selection.drawing import around
from paramsmith.hypernet.selection.latent import latent_merge
from paramsmith.hypernet.selection.outputs import write_selected
from paramsmith.hypernet.selection.roles import Data, Weights
from paramsmith.hypernet.selection.selectors import BestOf, Bootstrap, GreedyLayers, MeanOf
from paramsmith.hypernet.selection.spectrum import layers_of, ranked, top
from paramsmith.hypernet.targets.describe import spec_of
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.writing.generation import Request, generate
from paramsmith.hypernet.writing.provenance import check_outputs, read_generation
from tests.hypernet.stubparts import small_spec

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.usefixtures("stub_parts")]

DATA = Data({}, {"x": torch.zeros(2, 1)}, {"x": torch.ones(2, 1)})


def first(weights: Weights, batch: Any) -> float:
    """Any number that tells samples apart."""
    return float(weights["head.weight"].sum())


def stub() -> Generator:
    return Generator.build("stub", spec=small_spec(), fixed=True)


def sampler(spec: TargetSpec | None = None) -> Generator:
    """One with a codec; what it draws from is not asked."""
    return Generator.build("gaussian", spec=spec or small_spec(), condition={"vector": (2,)}, gauge=False)


def networks(folder: Path, count: int, spec: TargetSpec | None = None) -> list[dict[str, Tensor]]:
    """Files 0.safetensors and so on."""
    made = []
    for number in range(count):
        rng = torch.Generator().manual_seed(number)
        weights = {slot.name: torch.randn(slot.shape, generator=rng) for slot in (spec or small_spec()).slots}
        weights["norm.running_var"] = torch.full((6,), float(number + 2))
        save_file(weights, folder / f"{number}.safetensors")
        made.append(weights)
    return made


class TestSelected:
    def test_the_best_is_the_sample_itself(self, tmp_path: Path) -> None:
        written, selected = write_selected(
            stub(),
            tmp_path / "best",
            Request(seed=4),
            DATA.shown(),
            lambda draw, spec, shown: BestOf(k=5).select(draw, shown, first),
        )
        generate(stub(), tmp_path / "all", n=5, seed=4)
        kept = selected.kept
        assert kept == max(range(5), key=lambda i: selected.scores[i])
        best = load_file(written.path / "model.safetensors")
        same = load_file(tmp_path / "all" / str(kept) / "model.safetensors")
        assert best.keys() == same.keys()
        assert all(torch.equal(values, same[name]) for name, values in best.items())
        told = read_generation(written.path)
        assert told.asked.index == kept
        assert told.made is not None
        assert told.made["selected"] == json.loads(json.dumps(selected.record(rows=2)))
        check_outputs(written.path, told)
        assert "`best_of, k = 5, by 2 rows`" in (written.path / "README.md").read_text()

    def test_a_mean(self, tmp_path: Path) -> None:
        write_selected(
            stub(),
            tmp_path / "mean",
            Request(),
            DATA.shown(),
            lambda draw, spec, shown: MeanOf(k=4, aligned=True).select(draw, shown, first, spec),
        )
        samples = stub().sample(n=4)
        found = load_file(tmp_path / "mean" / "model.safetensors")
        expected = torch.stack([sample["layer.0.weight"] for sample in samples]).double().mean(0).float()
        assert torch.equal(found["layer.0.weight"], expected)

    def test_greedy_by_spectrum(self, tmp_path: Path) -> None:
        begin = networks(tmp_path, 1)[0]
        spec = small_spec()
        order = layers_of(spec, top(ranked(begin, spec), 0.5))
        names = {name for layer in order for name in layer}

        def size(weights: Weights, batch: Any) -> float:
            return -float(sum(values.double().norm() for values in weights.values()))

        _, selected = write_selected(
            stub(),
            tmp_path / "out",
            Request(),
            DATA.shown(),
            lambda draw, spec, shown: GreedyLayers(k=3).select(draw, shown, size, begin, order),
        )
        assert selected.before is not None
        assert selected.score >= selected.before
        found = load_file(tmp_path / "out" / "model.safetensors")
        changed = {slot.name for slot in spec.slots if not torch.equal(found[slot.name], begin[slot.name])}
        kept = {name for step in selected.steps if step.kept is not None for name in step.names}
        assert changed == kept <= names

    def test_bootstrap_of_a_sampler(self) -> None:
        generator, spec = sampler(), small_spec()
        made = [{s.name: torch.full(s.shape, float(i)) for s in spec.slots} for i in range(4)]
        seen: list[int] = []

        def anchored(anchors: list[Weights], number: int) -> Any:
            seen.append(len(anchors))
            return around(generator.sampler, anchors, spec, seed=number, width=0.0)

        found = Bootstrap(k=4, keep=2, rounds=2).select(lambda i, names=None: made[i], DATA.shown(), first, anchored)
        assert seen == [2]
        # anchors of 2 and 3 with no noise give tokens of 2 and 3; the tensor of one number is from a template
        drawn = anchored([made[2], made[3]], 7)(0)
        numbers = torch.cat([values.flatten() for name, values in drawn.items() if name != "scale"])
        assert set(numbers.tolist()) == {2.0, 3.0}
        assert found.score == first(made[3], None)

    def test_finished(self, tmp_path: Path) -> None:
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        batches = [torch.randn(8, 3, generator=torch.Generator().manual_seed(0))]
        generator = Generator.build("stub", spec=spec_of(module), fixed=True)
        write_selected(
            generator,
            tmp_path / "out",
            Request(),
            DATA.shown(),
            lambda draw, spec, shown: BestOf(k=1).select(draw, shown, lambda weights, batch: 0.0),
            steps=[recalibrate(module, batches)],
        )
        found = load_file(tmp_path / "out" / "model.safetensors")
        x = batches[0] @ found["0.weight"].T + found["0.bias"]
        torch.testing.assert_close(found["1.running_mean"], x.mean(0))
        torch.testing.assert_close(found["1.running_var"], x.var(0))
        told = read_generation(tmp_path / "out").made
        assert told is not None
        assert {step["tensor"] for step in told["finished"]} == {"1.running_mean", "1.running_var"}  # type: ignore[attr-defined]

    def test_an_output_over_the_generator(self, tmp_path: Path) -> None:
        stub().save(tmp_path / "gen")
        with pytest.raises(InvalidInput, match="overlap"):
            write_selected(
                str(tmp_path / "gen"),
                tmp_path / "gen",
                Request(),
                DATA.shown(),
                lambda draw, spec, shown: BestOf(k=2).select(draw, shown, first),
                force=True,
            )

    def test_several_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="one is selected"):
            write_selected(stub(), tmp_path / "out", Request(n=2), DATA.shown(), lambda *_: None)  # type: ignore[arg-type, return-value]


class TestLatentMerge:
    def test_without_a_codec_to_speak_of_it_is_the_weighted_mean(self, tmp_path: Path) -> None:
        held = networks(tmp_path, 2)
        models = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
        report = latent_merge(sampler(), models, tmp_path / "out", weights=[1.0, 3.0])
        found = load_file(tmp_path / "out" / "model.safetensors")
        for slot in small_spec().slots:
            expected = 0.25 * held[0][slot.name] + 0.75 * held[1][slot.name]
            torch.testing.assert_close(found[slot.name], expected)
        assert report.weights == (0.25, 0.75)
        assert torch.equal(found["norm.running_var"], held[0]["norm.running_var"])
        assert "running statistics" in report.warnings[0]
        told = read_generation(tmp_path / "out").made
        assert told is not None
        said: Any = told["latent_merge"]
        assert [model["reference"] for model in said["models"]] == ["0.safetensors", "1.safetensors"]
        card = (tmp_path / "out" / "README.md").read_text()
        assert "the average of 2 models in the latent space of a generator, by `gaussian`" in card
        assert str(tmp_path) not in (tmp_path / "out" / "generation.json").read_text() + card

    def test_what_the_codec_loses_is_told(self, tmp_path: Path) -> None:
        spec = TargetSpec((Slot("w", (4, 6), "F32", "matrix", 6), Slot("v", (3, 4), "F32", "head", 4, class_axis=0)))
        networks(tmp_path, 2, spec)
        generator = sampler(spec)
        kept = generator.sampler.codec.decode
        generator.sampler.codec.decode = lambda latent, layout: 0.5 * kept(latent, layout)
        report = latent_merge(generator, [str(tmp_path / "0.safetensors")], tmp_path / "out")
        assert report.lost == (pytest.approx(0.5),)

    def test_another_number_of_classes(self, tmp_path: Path) -> None:
        spec = TargetSpec((Slot("v", (3, 4), "F32", "head", 4, class_axis=0),))
        held = networks(tmp_path, 1, spec.with_classes(5))
        latent_merge(sampler(spec), [str(tmp_path / "0.safetensors")], tmp_path / "out")
        torch.testing.assert_close(load_file(tmp_path / "out" / "model.safetensors")["v"], held[0]["v"])

    def test_refused(self, tmp_path: Path) -> None:
        networks(tmp_path, 2)
        models = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
        save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
        cases: list[tuple[Any, list[str], dict[str, Any], str]] = [
            (stub(), models, {}, "has no codec"),
            (sampler(), models, {"weights": [1.0]}, "1 weights for 2 models"),
            (sampler(), models, {"weights": [1.0, -1.0]}, "sum to 0"),
            (sampler(), [], {}, "0 weights for 0 models"),
            (sampler(), [*models, str(tmp_path / "other.safetensors")], {}, "embed.weight is missing"),
        ]
        for generator, given, options, words in cases:
            with pytest.raises(InvalidInput, match=words):
                latent_merge(generator, given, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
