"""Tasks made of tiny models of the transformers library: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call, grad, vmap

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput, MergeWarning
from paramsmith.merge.pretrained.task import transformers_task
from paramsmith.merge.task import IGNORED, ModelTask, checked_batches, example_losses, tensor_names
from tests.merge.pretrained.folders import SIZES, bert, gpt2, llama, pretrained, quiet, sentences, write_rows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model of each kind, and data; nothing in it is changed."""
    made = tmp_path_factory.mktemp("models")
    bert(made / "bert")
    llama(made / "llama")
    gpt2(made / "gpt2")
    pretrained(made / "mlm", "BertForMaskedLM", **SIZES)
    pretrained(made / "bare", "BertModel", **SIZES)
    write_rows(made / "rows.jsonl", sentences(20))
    write_rows(made / "numbers.jsonl", [{**row, "label": n % 2} for n, row in enumerate(sentences(20))])
    write_rows(made / "rows.txt", sentences(20))
    return made


def names_of(task: ModelTask, folder: Path) -> dict[str, str]:
    with Checkpoint.open(folder) as checkpoint:
        return tensor_names(task, checkpoint)


def refused(*words: object, **how: object) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        list(transformers_task(*words, **how).batches())  # type: ignore[arg-type]
    assert "\n" not in caught.value.fact
    assert caught.value.hint
    return caught.value


def copied(source: Path, target: Path, **config: object) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    said = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**said, **config}))
    return target


def renamed(source: Path, target: Path, old: str, new: str) -> Path:
    """The same model with other names of its tensors."""
    copied(source, target)
    tensors = load_file(target / "model.safetensors")
    save_file({n.replace(old, new): t for n, t in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    return target


def test_classification_is_the_model_of_the_folder(folder: Path) -> None:
    from transformers import AutoTokenizer, BertForSequenceClassification

    task = transformers_task(folder / "bert", [folder / "rows.jsonl"], batch_size=8)
    batches = list(checked_batches(task))
    assert [len(batch["labels"]) for batch in batches] == [8, 8, 4]
    assert torch.cat([b["labels"] for b in batches]).tolist() == [0, 1] * 10
    with quiet():
        plain = BertForSequenceClassification.from_pretrained(folder / "bert").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    texts = [str(row["text"]) for row in sentences(20)]
    for batch, start in zip(batches, (0, 8, 16), strict=True):
        told = tokenizer(texts[start : start + 8], padding=True, return_tensors="pt")
        assert set(told) == {"input_ids", "token_type_ids", "attention_mask"}
        assert all(torch.equal(told[name], batch[name]) for name in told)
        with torch.no_grad():
            torch.testing.assert_close(task.outputs(task.model, batch), plain(**told).logits, rtol=1e-5, atol=1e-6)
    assert names_of(task, folder / "bert") == {n: n for n, _ in plain.named_parameters()}
    assert not task.model.training
    assert {p.dtype for p in task.model.parameters()} == {torch.float32}


def test_causal_models_predict_what_follows(folder: Path) -> None:
    from transformers import LlamaForCausalLM

    task = transformers_task(folder / "llama", [folder / "rows.txt"], batch_size=20)
    batch = next(iter(checked_batches(task)))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert batch["labels"].shape == (20, ids.shape[1] - 1)
    assert torch.equal(batch["labels"] != IGNORED, mask[:, 1:] == 1)
    assert torch.equal(batch["labels"][mask[:, 1:] == 1], ids[:, 1:][mask[:, 1:] == 1])
    losses = example_losses(task.outputs(task.model, batch), batch, task.likelihood)
    with quiet(), torch.no_grad():
        plain = LlamaForCausalLM.from_pretrained(folder / "llama").eval()
        for n in range(3):  # each alone and without padding
            alone = ids[n : n + 1, : int(mask[n].sum())]
            expected = plain(alone, labels=alone).loss * (alone.shape[1] - 1)
            torch.testing.assert_close(losses[n], expected, rtol=1e-4, atol=1e-5)


def test_masks_depend_on_seed_and_row_alone(folder: Path) -> None:
    def labels(**how: object) -> dict[tuple[int, ...], tuple[int, ...]]:
        """{the text: what is asked of it}"""
        task = transformers_task(folder / "mlm", [folder / "rows.txt"], **how)  # type: ignore[arg-type]
        found = {}
        for batch in checked_batches(task):
            whole = torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
            for ids, text, asked, mask in zip(
                batch["input_ids"], whole, batch["labels"], batch["attention_mask"], strict=True
            ):
                length = int(mask.sum())
                chosen = asked[:length] != IGNORED
                assert (ids[:length][chosen] == 4).all()
                assert not chosen[0] | chosen[-1]  # the marks around a text are never asked for
                assert int(chosen.sum()) == max(1, round(0.15 * (length - 2)))
                assert (asked[length:] == IGNORED).all()
                found[tuple(text[:length].tolist())] = tuple(asked[:length].tolist())
        return found

    once = labels(seed=1)
    assert labels(seed=1, batch_size=3) == once
    assert labels(seed=1, shuffle=True) == once
    assert labels(seed=2) != once
    kept = labels(seed=1, limit=6)
    assert kept == {text: once[text] for text in kept}


def test_every_example_has_a_gradient_of_its_own(folder: Path) -> None:
    """Attention under vmap, which the library's own masks refuse, with padding and without."""
    for name, data in (("bert", "rows.jsonl"), ("mlm", "rows.txt"), ("llama", "rows.txt"), ("gpt2", "rows.txt")):
        task = transformers_task(folder / name, [folder / data], batch_size=4, limit=4)
        batch = dict(next(iter(checked_batches(task))))
        weights = {n: p.detach() for n, p in task.model.named_parameters()}

        def loss(weights: dict[str, Tensor], one: dict[str, Tensor], task: ModelTask = task) -> Tensor:
            whole = {n: t[None] for n, t in one.items()}
            inputs = {n: t for n, t in whole.items() if n != "labels"}
            logits = functional_call(task.model, weights, kwargs=inputs).logits
            labels = whole["labels"]
            logits = logits[:, : labels.shape[-1]] if logits.ndim == 3 else logits
            return torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")

        each = vmap(grad(loss), in_dims=(None, 0))(weights, batch)
        task.model.zero_grad()
        example_losses(task.outputs(task.model, batch), batch, task.likelihood).sum().backward()
        for n, parameter in task.model.named_parameters():
            torch.testing.assert_close(each[n].sum(0), parameter.grad, rtol=1e-4, atol=1e-5)


def test_names_are_those_of_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    """Without the prefix of the base model, with one, with the norms of old, and tied weights under either name."""
    data = [folder / "rows.jsonl"]
    bare = renamed(folder / "bert", tmp_path / "bare", "bert.", "")
    task = transformers_task(bare, data)
    assert task.names["bert.encoder.layer.0.output.dense.weight"] == "encoder.layer.0.output.dense.weight"
    assert set(names_of(task, bare).values()) == set(load_file(bare / "model.safetensors"))
    assert torch.equal(
        task.model.get_parameter("bert.encoder.layer.0.output.dense.weight"),
        load_file(bare / "model.safetensors")["encoder.layer.0.output.dense.weight"],
    )
    old = renamed(
        renamed(folder / "bert", tmp_path / "half", "LayerNorm.weight", "LayerNorm.gamma"),
        tmp_path / "old",
        "LayerNorm.bias",
        "LayerNorm.beta",
    )
    assert set(names_of(transformers_task(old, data), old).values()) == set(load_file(old / "model.safetensors"))
    plain = gpt2(tmp_path / "plain", "GPT2Model")
    task = transformers_task(plain, [folder / "rows.txt"], kind="causal-lm")
    assert set(names_of(task, plain).values()) == set(load_file(plain / "model.safetensors"))
    tied = renamed(folder / "gpt2", tmp_path / "tied", "transformer.wte.weight", "lm_head.weight")
    task = transformers_task(tied, [folder / "rows.txt"])
    assert names_of(task, tied)["transformer.wte.weight"] == "lm_head.weight"


def test_names_that_the_library_changes_while_loading(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import ViTImageProcessorPil

    sizes = {**SIZES, "image_size": 8, "patch_size": 4, "id2label": {0: "cat", 1: "dog"}}
    sizes |= {"label2id": {"cat": 0, "dog": 1}}
    vit = pretrained(tmp_path / "vit", "ViTForImageClassification", **sizes)
    with quiet():
        ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(vit)
    for n, name in enumerate(("dog", "cat")):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (9, 10 + n), 90 * n).save(tmp_path / "images" / name / "1.png")
    task = transformers_task(vit, [tmp_path / "images"])
    batch = next(iter(checked_batches(task)))
    assert (batch["labels"].tolist(), list(batch["pixel_values"].shape)) == ([0, 1], [2, 3, 8, 8])
    torch.testing.assert_close(batch["pixel_values"][1], torch.full((3, 8, 8), -1.0))  # black
    stored = load_file(vit / "model.safetensors")
    found = names_of(task, vit)
    assert set(found.values()) == set(stored)
    for name, parameter in task.model.named_parameters():
        assert torch.equal(parameter, stored[found[name]])
    table = tmp_path / "images.csv"
    table.write_text("image,label\nimages/dog/1.png,dog\nimages/cat/1.png,0\n")
    named = next(iter(checked_batches(transformers_task(vit, [table]))))
    assert torch.equal(named["pixel_values"], batch["pixel_values"].flip(0))
    (tmp_path / "images" / "dog" / "2.png").write_bytes(b"no image")
    assert "image 3 is no image that can be read" in refused(vit, [tmp_path / "images"]).fact
    table.write_text("image,label\nx.png,dog\n")
    assert f"{table}: line 2: there is no file {tmp_path / 'x.png'}" in refused(vit, [table]).fact


def test_parameters_that_are_made_of_several_tensors_are_told(folder: Path, tmp_path: Path) -> None:
    sizes = {**SIZES, "num_key_value_heads": 1, "num_local_experts": 2, "pad_token_id": None}
    mixtral = pretrained(tmp_path / "mixtral", "MixtralForCausalLM", bert=False, **sizes)
    with pytest.warns(MergeWarning, match=r"4 of the model's parameters are no tensors.*experts"):
        task = transformers_task(mixtral, [folder / "rows.txt"])
    found = names_of(task, mixtral)
    assert found["model.layers.0.mlp.gate.weight"] == "model.layers.0.block_sparse_moe.gate.weight"


def test_labels_are_names_or_numbers(folder: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": "a cat", "label": label} for label in ("pos", 1, "1", 0.0, "neg")]
    batch = next(iter(transformers_task(folder / "bert", [write_rows(tmp_path / "d.jsonl", rows)]).batches()))
    assert batch["labels"].tolist() == [1, 1, 1, 0, 0]
    digits = bert(tmp_path / "digits", id2label={0: "7", 1: "3"}, label2id={"7": 0, "3": 1})
    rows = [{"text": "a cat", "label": label} for label in (7, "3", 3.0)]
    batch = next(iter(transformers_task(digits, [write_rows(tmp_path / "e.jsonl", rows)]).batches()))
    assert batch["labels"].tolist() == [0, 1, 1]


@pytest.mark.parametrize("label", ["pso", 2, -1, 0.5, True, None, [1], "1" * 5000, "١٢"])
def test_labels_outside_the_head(folder: Path, tmp_path: Path, label: object) -> None:
    data = write_rows(tmp_path / "d.jsonl", [{"text": "a cat", "label": 0}, {"text": "a dog", "label": label}])
    error = refused(folder / "bert", [data])
    assert f"{data}: line 2: " in error.fact
    assert "is none of the model's 2 classes" in error.fact
    assert "its labels are neg, pos, or 0 to 1" in error.hint
    assert ("did you mean 'pos'?" in error.hint) is (label == "pso")


def test_labels_are_needed_unless_told(folder: Path, tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one.jsonl", [{"text": "a cat", "label": "pos"}, {"text": "a dog", "label": 1}])
    bare = write_rows(tmp_path / "bare.jsonl", [{"text": "a cat"}])
    assert "all examples have the label" in refused(folder / "bert", [one]).fact
    error = refused(folder / "bert", [bare], label_column="lable")
    assert "line 1 has no column 'lable'" in error.fact
    for data in (one, bare):
        task = transformers_task(folder / "bert", [data], labels=False)
        assert all("labels" not in batch for batch in checked_batches(task))


def test_regression(folder: Path, tmp_path: Path) -> None:
    model = bert(tmp_path / "scores", num_labels=1, id2label={0: "score"}, label2id={"score": 0})
    data = write_rows(tmp_path / "d.jsonl", [{"text": "a cat", "label": 0.25}, {"text": "a dog", "label": "-3"}])
    task = transformers_task(model, [data])
    batch = next(iter(checked_batches(task)))
    assert task.likelihood == "regression"
    assert batch["labels"].tolist() == [[0.25], [-3.0]]
    predicted = task.outputs(task.model, batch)
    expected = 0.5 * (predicted - batch["labels"])[:, 0] ** 2
    torch.testing.assert_close(example_losses(predicted, batch, "regression"), expected)
    assert transformers_task(model, [data], labels=False).likelihood == "regression"
    data = write_rows(tmp_path / "e.jsonl", [{"text": "a cat", "label": "nan"}])
    assert "'nan' is not a finite number" in refused(model, [data]).fact


def test_pairs_of_texts(folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [{"a": "the cat", "b": "sat", "label": n} for n in (0, 1)])
    batch = next(iter(transformers_task(folder / "bert", [data], text_column=("a", "b")).batches()))
    assert batch["input_ids"][0].tolist() == [2, 5, 6, 3, 7, 3]
    assert batch["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1]
    assert "3 columns of text" in refused(folder / "bert", [data], text_column=("a", "b", "a")).fact


def test_texts_are_cut_where_the_positions_end(folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.txt", [{"text": "the cat " * 99}])
    for model, most in (("llama", 32), ("mlm", 32)):
        batch = next(iter(transformers_task(folder / model, [data], max_length=1000).batches()))
        assert batch["input_ids"].shape == (1, most)
    sizes = {**SIZES, "max_position_embeddings": 12, "pad_token_id": 0}
    roberta = pretrained(tmp_path / "roberta", "RobertaForMaskedLM", **sizes)
    task = transformers_task(roberta, [data])  # whose positions begin after the padding
    batch = next(iter(task.batches()))
    assert batch["input_ids"].shape == (1, 11)
    assert torch.isfinite(task.outputs(task.model, batch)).all()
    assert "1 tokens are less than the tokenizer adds" in refused(folder / "mlm", [data], max_length=1).fact
    assert "cut at one token" in refused(folder / "llama", [data], max_length=1).fact
    assert "a length of 0 tokens" in refused(folder / "llama", [data], max_length=0).fact


@pytest.mark.parametrize(
    ("model", "kind", "told"),
    [
        ("bare", "auto", "is BertModel, which has no head that is known here"),
        ("bare", "text-classification", "the checkpoint has no head: classifier.bias and 1 more"),
        ("bare", "masked-lm", "the checkpoint has no head: cls.predictions.bias"),
        ("mlm", "text-classification", "the checkpoint has no head: classifier.bias and 3 more"),
        ("llama", "masked-lm", "cannot load the model"),
        ("llama", "translation", "no kind of model is called 'translation'"),
        ("nothing", "auto", "nothing"),
        ("bare/model.safetensors", "auto", "config.json is needed to run the model"),
    ],
)
def test_models_that_cannot_be_used(folder: Path, model: str, kind: str, told: str) -> None:
    assert told in refused(folder / model, [folder / "numbers.jsonl"], kind=kind).fact


def test_folders_that_are_not_whole(folder: Path, tmp_path: Path) -> None:
    data = [folder / "rows.jsonl"]
    names = ("neg", "pos", "a", "b", "c")
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    wrong = copied(folder / "bert", tmp_path / "shapes", **labels)
    assert "classifier.bias has shape [2], but config.json makes it [5]" in refused(wrong, data).fact
    wordless = copied(folder / "bert", tmp_path / "wordless")
    for file in wordless.glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer, tokenizer.json or vocab.txt" in refused(wordless, data).fact
    typed = copied(folder / "bert", tmp_path / "typed", num_attention_heads="two")
    assert "transformers cannot load" in refused(typed, data).fact
    several = copied(folder / "bert", tmp_path / "several", problem_type="multi_label_classification")
    assert "several labels" in refused(several, data).fact
    foreign = copied(folder / "mlm", tmp_path / "foreign")
    told = json.loads((foreign / "tokenizer.json").read_text())
    told["model"]["vocab"]["cat"] = 99
    (foreign / "tokenizer.json").write_text(json.dumps(told))
    assert "the tokenizer gives token 99, the model has 17" in refused(foreign, [folder / "rows.txt"]).fact


def test_code_in_a_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    mine = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}
    evil = copied(folder / "bert", tmp_path / "evil", model_type="evil", auto_map=mine)
    (evil / "evil.py").write_text(f"open({str(tmp_path / 'PWNED')!r}, 'w')\nC = M = None\n")
    assert "cannot load the configuration" in refused(evil, [folder / "rows.jsonl"]).fact
    assert not (tmp_path / "PWNED").exists()


def test_pickles_are_not_read(folder: Path, tmp_path: Path) -> None:
    pickled = copied(folder / "bert", tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    refused(pickled, [folder / "rows.jsonl"])


def test_rows_are_checked_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", None)
    rows: list[dict[str, object]] = [*sentences(4), {"text": " ", "label": 1}]
    data = write_rows(tmp_path / "d.jsonl", rows)
    assert "line 5: the column 'text' is blank" in refused(folder / "bert", [data]).fact
    data = write_rows(tmp_path / "e.jsonl", [*rows[:2], {"text": 5, "label": 1}])
    assert "line 3: the column 'text' holds int, not text" in refused(folder / "bert", [data]).fact
    two = write_rows(tmp_path / "two.jsonl", rows[:2])
    assert "3 examples are asked for, the data has 2" in refused(folder / "bert", [two], limit=3).fact


def test_without_transformers_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    error = refused(folder / "bert", [folder / "rows.jsonl"])
    assert error.fact == "running a model on files of data needs transformers, which is not installed"
    assert error.hint == "for --data: pip install 'paramsmith[transformers]'; or give --task file.py:make_task"


def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    list(transformers_task(folder / "bert", [folder / "rows.jsonl"]).batches())
    assert capfd.readouterr() == ("", "")
