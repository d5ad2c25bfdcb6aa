"""A generated head in a base, differences added to one, adapters as PEFT has them; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.writing.adapter import peft_name
from paramsmith.hypernet.writing.changes import Change
from paramsmith.hypernet.writing.generation import Request, generate, outlook, prepare
from paramsmith.hypernet.writing.provenance import completed, read_generation
from paramsmith.staging import Writer

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.usefixtures("stub_parts")]

WIDTH, LABELS = 8, 3
QUERY = "bert.encoder.layer.0.attention.self.query"
VALUE = "bert.encoder.layer.1.attention.self.value"


def bert(folder: Path, labels: int = LABELS) -> Any:
    """A tiny classifier of transformers, saved with something beside it."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config = BertConfig(vocab_size=20, max_position_embeddings=16, num_labels=labels, **sizes)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    return model


def head(labels: int = LABELS, prefix: str = "classifier.") -> Generator:
    """A generator of heads."""
    slots = (
        Slot(f"{prefix}weight", (labels, WIDTH), "F32", "head", WIDTH, class_axis=0),
        Slot(f"{prefix}bias", (labels,), "F32", "bias", WIDTH, class_axis=0),
    )
    return Generator.build("stub", spec=TargetSpec(slots), fixed=True)


def low_rank(ranks: tuple[int, int] = (2, 2), prefix: str = "base_model.model.") -> Generator:
    """A generator of adapters for two modules."""
    slots = []
    for module, rank in zip((QUERY, VALUE), ranks, strict=True):
        slots.append(Slot(f"{prefix}{module}.lora_A.weight", (rank, WIDTH), "F32", "matrix", WIDTH))
        slots.append(Slot(f"{prefix}{module}.lora_B.weight", (WIDTH, rank), "F32", "matrix", rank))
    return Generator.build("stub", spec=TargetSpec(tuple(slots)), fixed=True)


def product(weights: dict[str, Tensor], module: str) -> Tensor:
    """B A."""
    return weights[f"base_model.model.{module}.lora_B.weight"] @ weights[f"base_model.model.{module}.lora_A.weight"]


class TestHead:
    def test_transformers_loads_the_base_with_the_head(self, tmp_path: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        before = bert(tmp_path / "base").state_dict()
        generator = head()
        generate(generator, tmp_path / "out", base=tmp_path / "base", form="head", seed=5)
        model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        logits = model.eval()(torch.tensor([[1, 2, 3]])).logits
        assert logits.shape == (1, LABELS)
        assert bool(torch.isfinite(logits).all())
        made = generator.sample(seed=5)[0]
        for name, values in model.state_dict().items():
            assert torch.equal(values, made.get(name, before[name])), name
        assert not torch.equal(made["classifier.weight"], before["classifier.weight"])
        assert (tmp_path / "out" / "vocab.txt").is_file()

    def test_another_number_of_classes(self, tmp_path: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        bert(tmp_path / "base")
        generate(head(5), tmp_path / "out", base=tmp_path / "base", form="head")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
        assert model.config.num_labels == 5
        assert model(torch.tensor([[1]])).logits.shape == (1, 5)

    def test_a_bare_head_finds_its_place(self, tmp_path: Path) -> None:
        bert(tmp_path / "base")
        generate(head(prefix=""), tmp_path / "out", base=tmp_path / "base", form="head")
        same = head(prefix="").sample()[0]
        assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["classifier.bias"], same["bias"])

    def test_what_is_told(self, tmp_path: Path) -> None:
        bert(tmp_path / "base")
        generate(head(), tmp_path / "out", base=tmp_path / "base", form="head")
        told = read_generation(tmp_path / "out")
        assert told.form == "head"
        assert told.base is not None
        assert (told.base.reference, set(told.base.files)) == ("base", {"model.safetensors"})
        assert told.base.files["model.safetensors"].sha256 is not None
        assert completed(tmp_path / "out").outputs["vocab.txt"].sha256
        card = (tmp_path / "out" / "README.md").read_text()
        assert "`classifier.weight`" in card
        assert "with 2 of its" in card
        assert str(tmp_path) not in (tmp_path / "out" / "generation.json").read_text() + card

    def test_an_outlook(self, tmp_path: Path) -> None:
        model = bert(tmp_path / "base")
        found = outlook(prepare(head(), Request(base=tmp_path / "base", form="head")), tmp_path / "out")
        assert found.tensors == len(model.state_dict())
        assert found.parameters == sum(values.numel() for values in model.state_dict().values())
        assert not (tmp_path / "out").exists()

    def test_types_and_shards_are_those_of_the_base(self, tmp_path: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        bert(tmp_path / "first").to(torch.bfloat16).save_pretrained(tmp_path / "base")
        generate(head(), tmp_path / "out", base=tmp_path / "base", form="head", shard_size="2KB")
        assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
        assert model.dtype == torch.bfloat16
        assert torch.equal(model.classifier.weight, head().sample()[0]["classifier.weight"].bfloat16())

    def test_several(self, tmp_path: Path) -> None:
        bert(tmp_path / "base")
        generate(head(), tmp_path / "out", base=tmp_path / "base", form="head", n=2)
        first, second = (load_file(tmp_path / "out" / n / "model.safetensors") for n in ("0", "1"))
        same = {name for name, values in first.items() if torch.equal(values, second[name])}
        assert set(first) - same == {"classifier.weight", "classifier.bias"}


class TestBytes:
    def test_do_not_depend_on_threads_or_on_an_interruption(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bert(tmp_path / "base")
        asked: dict[str, Any] = {"base": tmp_path / "base", "form": "delta", "threads": 1}
        generate(low_rank(), tmp_path / "a", **asked)
        generate(low_rank(), tmp_path / "b", **{**asked, "threads": 3})
        real, left = Writer.finish, [10]

        def interrupted(self: Writer, ranges: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            real(self, ranges)

        monkeypatch.setattr(Writer, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(low_rank(), tmp_path / "c", **asked)
        monkeypatch.setattr(Writer, "finish", real)
        report = generate(low_rank(), tmp_path / "c", **asked)
        assert report.samples[0].resumed > 0
        files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
        assert files == files[:1] * 3

    def test_a_base_that_changes_meanwhile(self, tmp_path: Path) -> None:
        bert(tmp_path / "base")
        job = prepare(head(), Request(base=tmp_path / "base", form="head"))
        bert(tmp_path / "base", 2)
        from paramsmith.hypernet.writing.output import write_sample

        with pytest.raises(Failed, match="changed since"):
            write_sample(job.sample(0, tmp_path / "out"), 1, False, lambda count: None)
        assert not (tmp_path / "out").exists()


class TestDelta:
    def test_low_rank_pairs(self, tmp_path: Path) -> None:
        before = bert(tmp_path / "base").state_dict()
        generate(low_rank(), tmp_path / "out", base=tmp_path / "base", form="delta", alpha=6.0)
        after, made = load_file(tmp_path / "out" / "model.safetensors"), low_rank().sample()[0]
        for module in (QUERY, VALUE):
            expected = before[f"{module}.weight"] + 3 * product(made, module)
            torch.testing.assert_close(after[f"{module}.weight"], expected)
        changed = {name for name, values in after.items() if not torch.equal(values, before[name])}
        assert changed == {f"{QUERY}.weight", f"{VALUE}.weight"}

    def test_whole_differences(self, tmp_path: Path) -> None:
        before = bert(tmp_path / "base").state_dict()
        generate(head(), tmp_path / "out", base=tmp_path / "base", form="delta")
        after, made = load_file(tmp_path / "out" / "model.safetensors"), head().sample()[0]
        for name in made:
            assert torch.equal(after[name], before[name] + made[name])

    def test_a_base_that_stores_it_the_other_way_round(self, tmp_path: Path) -> None:
        (tmp_path / "base").mkdir()
        save_file({"h.c.weight": torch.zeros(6, 4), "h.d.weight": torch.zeros(4, 4)}, tmp_path / "base.safetensors")
        slots = []
        for name, rows in (("h.c", 4), ("h.d", 4)):
            columns = 6 if name == "h.c" else 4
            slots.append(Slot(f"{name}.lora_A.weight", (2, columns), "F32", "matrix", columns))
            slots.append(Slot(f"{name}.lora_B.weight", (rows, 2), "F32", "matrix", 2))
        generator = Generator.build("stub", spec=TargetSpec(tuple(slots)), fixed=True)
        out = tmp_path / "out.safetensors"
        generate(generator, out, base=tmp_path / "base.safetensors", form="delta")
        after, made = load_file(out), generator.sample()[0]
        update = made["h.c.lora_B.weight"] @ made["h.c.lora_A.weight"]
        torch.testing.assert_close(after["h.c.weight"], update.T)
        update = made["h.d.lora_B.weight"] @ made["h.d.lora_A.weight"]
        torch.testing.assert_close(after["h.d.weight"], update)

    def test_square_matrices_of_gpt2(self, tmp_path: Path) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=20, n_embd=WIDTH, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0
        )
        model = GPT2LMHeadModel(config)
        model.save_pretrained(tmp_path / "base")
        name = "transformer.h.0.attn.c_proj"
        slots = (
            Slot(f"{name}.lora_A.weight", (2, WIDTH), "F32", "matrix", WIDTH),
            Slot(f"{name}.lora_B.weight", (WIDTH, 2), "F32", "matrix", 2),
        )
        generator = Generator.build("stub", spec=TargetSpec(slots), fixed=True)
        generate(generator, tmp_path / "out", base=tmp_path / "base", form="delta")
        made, after = generator.sample()[0], load_file(tmp_path / "out" / "model.safetensors")
        update = made[slots[1].name] @ made[slots[0].name]
        torch.testing.assert_close(after[f"{name}.weight"], model.state_dict()[f"{name}.weight"] + update.T)
        generate(generator, tmp_path / "adapter", base=tmp_path / "base", form="adapter")
        assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["fan_in_fan_out"] is True

    def test_convolutions(self) -> None:
        down, up = torch.randn(2, 3, 3, 3), torch.randn(4, 2, 1, 1)
        change = Change("w", (4, 3, 3, 3), ("a", "b"), "pair")
        x = torch.randn(1, 3, 5, 5)
        conv = torch.nn.functional.conv2d
        update = change.made({"a": down, "b": up}, torch.zeros(4, 3, 3, 3))
        torch.testing.assert_close(conv(x, update), conv(conv(x, down), up), rtol=1e-4, atol=1e-4)


class TestAdapter:
    def test_files_and_names_are_those_of_peft(self, tmp_path: Path) -> None:
        bert(tmp_path / "base")
        generate(low_rank(), tmp_path / "out", base=tmp_path / "base", form="adapter", alpha=16.0)
        names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "generation.json"}
        assert {path.name for path in (tmp_path / "out").iterdir()} == names
        stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
        assert set(stored) == {
            f"base_model.model.{module}.lora_{half}.weight" for module in (QUERY, VALUE) for half in "AB"
        }
        made = low_rank().sample()[0]
        assert all(torch.equal(stored[name], values) for name, values in made.items())
        with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
            assert file.metadata()["format"] == "pt"
        told = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        expected = {"peft_type": "LORA", "r": 2, "lora_alpha": 16.0, "target_modules": [QUERY, VALUE], "bias": "none"}
        assert {key: told[key] for key in expected} == expected
        assert (told["base_model_name_or_path"], told["rank_pattern"], told["modules_to_save"]) == ("base", {}, None)

    def test_is_the_same_change_as_a_delta(self, tmp_path: Path) -> None:
        before = bert(tmp_path / "base").state_dict()
        generator = low_rank((2, 4))
        asked: dict[str, Any] = {"base": tmp_path / "base", "alpha": 3.0}
        generate(generator, tmp_path / "adapter", form="adapter", **asked)
        generate(generator, tmp_path / "whole", form="delta", **asked)
        told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        pairs = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        after = load_file(tmp_path / "whole" / "model.safetensors")
        for module in told["target_modules"]:
            # as PEFT scales: the alpha and rank of the module where a pattern names it, else those of all
            rank = told["rank_pattern"].get(module, told["r"])
            scale = told["alpha_pattern"].get(module, told["lora_alpha"]) / rank
            assert pairs[f"base_model.model.{module}.lora_A.weight"].shape[0] == rank
            expected = before[f"{module}.weight"] + scale * product(pairs, module)
            torch.testing.assert_close(after[f"{module}.weight"], expected)

    def test_ranks_that_differ_and_no_alpha(self, tmp_path: Path) -> None:
        generate(low_rank((2, 4)), tmp_path / "out", form="adapter")
        told = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert told["base_model_name_or_path"] is None
        assert (told["r"], told["lora_alpha"]) == (2, 2)
        assert told["rank_pattern"] == told["alpha_pattern"] == {VALUE: 4}

    def test_whole_tensors_beside_pairs(self, tmp_path: Path) -> None:
        before = bert(tmp_path / "base").state_dict()
        spec = TargetSpec((*low_rank().target().slots, *head(prefix="base_model.model.classifier.").target().slots))
        generator = Generator.build("stub", spec=spec, fixed=True)
        generate(generator, tmp_path / "out", base=tmp_path / "base", form="adapter")
        told = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert told["modules_to_save"] == ["classifier"]
        generate(generator, tmp_path / "whole", base=tmp_path / "base", form="delta")
        after = load_file(tmp_path / "whole" / "model.safetensors")
        assert torch.equal(after["classifier.bias"], generator.sample()[0]["base_model.model.classifier.bias"])
        assert not torch.equal(after["classifier.bias"], before["classifier.bias"])

    def test_names(self) -> None:
        for name in ("x.lora_down.weight", "x.lora_A.default.weight", "base_model.model.x.lora_A.weight"):
            assert peft_name(name) == "base_model.model.x.lora_A.weight"
        assert peft_name("e.lora_embedding_B.default") == "base_model.model.e.lora_embedding_B"
        assert peft_name("classifier.bias") == "base_model.model.classifier.bias"

    @pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
    def test_peft_loads_it(self, tmp_path: Path) -> None:
        import peft

        model = bert(tmp_path / "base")
        before = {name: values.clone() for name, values in model.state_dict().items()}
        generate(low_rank((2, 4)), tmp_path / "out", base=tmp_path / "base", form="adapter", alpha=3.0)
        generate(low_rank((2, 4)), tmp_path / "whole", base=tmp_path / "base", form="delta", alpha=3.0)
        merged = peft.PeftModel.from_pretrained(model, tmp_path / "out").merge_and_unload().state_dict()
        after = load_file(tmp_path / "whole" / "model.safetensors")
        for name, values in after.items():
            torch.testing.assert_close(merged[name], values)
        assert not torch.equal(merged[f"{QUERY}.weight"], before[f"{QUERY}.weight"])


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"form": "head"}, "a head is put into a model"),
            ({"form": "delta"}, "a delta is put into a model"),
            ({"base": "base"}, "not what to make with it"),
            ({"base": "base", "form": "head", "dtype": "float16"}, "stored as it is there"),
            ({"base": "base", "form": "head", "alpha": 2.0}, "alpha is a factor"),
            ({"base": "base", "form": "delta", "alpha": -1.0}, "an alpha of"),
            ({"base": "base", "form": "adapter"}, "this generator makes none"),
            ({"base": "nowhere", "form": "head"}, "nowhere"),
            ({"base": "small.safetensors", "form": "head"}, "classifier.weight: is generated, and the base"),
            ({"base": "wide.safetensors", "form": "head"}, "classifier.weight: is generated as"),
            ({"base": "more.safetensors", "form": "head"}, "no config.json to say so in"),
            ({"base": "base", "form": "head", "output": "base"}, "overlap"),
        ],
    )
    def test_with_a_sentence(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        bert(tmp_path / "base")
        save_file({"x": torch.zeros(3)}, "small.safetensors")
        save_file({"classifier.weight": torch.zeros(3, 9), "classifier.bias": torch.zeros(3)}, "wide.safetensors")
        save_file({"classifier.weight": torch.zeros(4, 8), "classifier.bias": torch.zeros(4)}, "more.safetensors")
        options = dict(options)
        output = options.pop("output", "out")
        with pytest.raises(InvalidInput) as caught:
            generate(head(), output, **options)
        assert words in caught.value.fact
        assert not Path("out").exists()

    def test_half_a_pair(self, tmp_path: Path) -> None:
        slots = low_rank().target().slots[:3]
        generator = Generator.build("stub", spec=TargetSpec(slots), fixed=True)
        with pytest.raises(InvalidInput, match="one of a low rank pair"):
            generate(generator, tmp_path / "out", form="adapter")

    def test_a_single_file_adapter(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="is one file"):
            generate(low_rank(), tmp_path / "out.safetensors", form="adapter")

    def test_a_tied_head(self, tmp_path: Path) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(vocab_size=LABELS, n_embd=WIDTH, n_layer=1, n_head=2, n_positions=8)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
        with pytest.raises(InvalidInput, match="is tied to"):
            generate(head(prefix="lm_head."), tmp_path / "out", base=tmp_path / "base", form="head")

    def test_a_part_of_the_head_that_would_stay(self, tmp_path: Path) -> None:
        bert(tmp_path / "base")
        spec = TargetSpec(head(5).target().slots[:1])
        generator = Generator.build("stub", spec=spec, fixed=True)
        with pytest.raises(InvalidInput, match=r"classifier\.bias: would stay"):
            generate(generator, tmp_path / "out", base=tmp_path / "base", form="head")
