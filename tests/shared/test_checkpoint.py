from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model

from paramsmith.checkpoint import Checkpoint
from paramsmith.dtypes import DTYPES
from paramsmith.errors import Failed, InvalidInput
from paramsmith.header import TensorSpec, layout
from tests import badinputs

# Faults that no header of the one model shows: they need its values, or the model it is merged with.
ONLY_IN_A_MERGE = {"zero_tail", "model_vocab_resized"}
# What opening the model alone must already warn of; the other warnings compare two models or look at values.
WARNED_ON_OPENING = {"index_unlisted_tensor", "shard_case_collision"}


def write_model(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def read(checkpoint: Checkpoint, name: str) -> bytes:
    info = checkpoint.info(name)
    assert info is not None
    buffer = bytearray(info.nbytes)
    checkpoint.read_into(name, 0, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize("name", [case["id"] for case in badinputs.CASES])
def test_corpus(corpus, name):
    case = corpus.cases[name]
    if "skipped" in case:
        pytest.skip(case["skipped"])
    folder = corpus.root / case["path"]
    if case["verdict"] == "error" and name not in ONLY_IN_A_MERGE:
        descriptors = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0
        with pytest.raises(InvalidInput) as caught:
            Checkpoint.open(folder)
        said = f"{caught.value.fact}\n{caught.value.hint}"
        assert all(wanted in said for wanted in case["names"]), said
        assert not any(ord(c) < 32 for c in caught.value.fact + caught.value.hint)
        assert len(said) < 2000
        assert len(os.listdir("/dev/fd")) == descriptors if descriptors else True
    else:
        with Checkpoint.open(folder) as checkpoint:
            said = "\n".join(checkpoint.warnings)
            assert not any(ord(c) < 32 for warning in checkpoint.warnings for c in warning)
            assert bool(said) == (name in WARNED_ON_OPENING)
            if name in WARNED_ON_OPENING:
                assert all(wanted in said for wanted in case["names"]), said
            assert "extra.weight" not in checkpoint.tensors
    assert not any((corpus.root / path).exists() for path in case["forbidden"])


def test_the_lists_of_exceptions_are_current():
    verdicts = {case["id"]: case["verdict"] for case in badinputs.CASES}
    assert {verdicts[name] for name in ONLY_IN_A_MERGE} == {"error"}
    assert {verdicts[name] for name in WARNED_ON_OPENING} == {"warn"}


def test_reads_exactly_the_bytes_asked_for(tmp_path):
    tensors = {"a": torch.randn(7, 5), "b": torch.randn(3).to(torch.bfloat16), "empty": torch.empty(0, 2)}
    with Checkpoint.open(write_model(tmp_path / "m", tensors)) as checkpoint:
        for name, tensor in tensors.items():
            assert read(checkpoint, name) == bytes(tensor.reshape(-1).view(torch.uint8).numpy())
        part = torch.empty(3)
        checkpoint.read_into("a", 8, memoryview(part.numpy()))
        assert torch.equal(part, tensors["a"].reshape(-1)[2:5])
        for start, count in ((0, 141), (-1, 4), (140, 1)):
            with pytest.raises(ValueError, match="never there"):
                checkpoint.read_into("a", start, memoryview(bytearray(count)))
        with pytest.raises(ValueError, match="never there"):
            checkpoint.read_into("no such name", 0, memoryview(bytearray(1)))
    with pytest.raises(ValueError, match="closed"):
        checkpoint.read_into("a", 0, memoryview(bytearray(1)))


def test_many_threads_read_one_checkpoint(tmp_path):
    tensors = {f"t{i}": torch.full((1000,), float(i)) for i in range(20)}
    wrong: list[str] = []
    with Checkpoint.open(write_model(tmp_path / "m", tensors)) as checkpoint:

        def work() -> None:
            for name, tensor in tensors.items():
                if read(checkpoint, name) != bytes(tensor.view(torch.uint8).numpy()):
                    wrong.append(name)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_file_that_shrinks_or_changes_is_an_error_not_a_crash(tmp_path):
    folder = write_model(tmp_path / "m", {"a": torch.zeros(1000)})
    with Checkpoint.open(folder) as checkpoint:
        checkpoint.check_unchanged()
        os.truncate(folder / "model.safetensors", 2000)
        with pytest.raises(Failed, match=r"model\.safetensors: tensor a: .*shrank"):
            read(checkpoint, "a")
        with pytest.raises(Failed, match=r"model\.safetensors: changed"):
            checkpoint.check_unchanged()


def test_a_file_written_again_with_the_same_size_is_noticed(tmp_path):
    folder = write_model(tmp_path / "m", {"a": torch.zeros(10)})
    with Checkpoint.open(folder) as checkpoint:
        os.utime(folder / "model.safetensors", ns=(1, 1))
        with pytest.raises(Failed, match="changed"):
            checkpoint.check_unchanged()


def test_fingerprint_is_json_and_tells_models_apart(tmp_path):
    folder = write_model(tmp_path / "m", {"a": torch.zeros(10)}, hidden_size=4)
    with Checkpoint.open(folder) as checkpoint, Checkpoint.open(folder) as again:
        first = checkpoint.fingerprint()
        assert json.loads(json.dumps(first)) == first == again.fingerprint()
    write_model(folder, {"b": torch.zeros(10)}, hidden_size=4)
    with Checkpoint.open(folder) as changed:
        assert changed.fingerprint() != first


def test_one_file_is_a_bare_state_dict(tmp_path):
    folder = write_model(tmp_path / "m", {"model.embed_tokens.weight": torch.zeros(4, 2)}, tie_word_embeddings=True)
    with Checkpoint.open(str(folder / "model.safetensors")) as checkpoint:
        assert (checkpoint.folder, checkpoint.config, checkpoint.aliases) == (None, None, {})
        assert checkpoint.label == str(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "anything.safetensors"])
def test_other_names_of_a_single_file(tmp_path, name):
    folder = write_model(tmp_path / "m", {"conv.weight": torch.zeros(2)})
    (folder / "model.safetensors").rename(folder / name)
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.tensors["conv.weight"].file.name == name


def test_a_snapshot_of_the_hubs_cache(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number in (1, 2):
        save_file({f"t{number}": torch.full((2,), float(number))}, blobs / f"{number}f")
        (snapshot / f"model-0000{number}-of-00002.safetensors").symlink_to(f"../../blobs/{number}f")
    weight_map = {f"t{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (blobs / "c").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/c")
    with Checkpoint.open(snapshot) as checkpoint:
        assert read(checkpoint, "t2") == bytes(torch.full((2,), 2.0).view(torch.uint8).numpy())
        assert sorted(checkpoint.fingerprint()) == ["config.json", *sorted(weight_map.values())]


def test_an_index_of_the_single_file_itself_is_no_contradiction(tmp_path):
    folder = write_model(tmp_path / "m", {"a": torch.zeros(2)})
    index = {"weight_map": {"a": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with Checkpoint.open(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


@pytest.mark.parametrize(
    ("path", "fact", "hint"),
    [
        ("user/repo.safetensors", "user/repo.safetensors: does not exist", "hf://"),
        ("hf://user/../repo", "hf://user/../repo: names nothing on the hub", "hf://user/repo"),
        ("no such\x1b folder", r"no such\x1b folder: does not exist", "spelling"),
        ("a\0b", "cannot be opened", ""),
        ("x" * 5000, "cannot be opened", ""),
        ("", "empty", ""),
    ],
)
def test_paths_that_lead_nowhere(tmp_path, monkeypatch, path, fact, hint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        Checkpoint.open(path)
    assert fact in caught.value.fact
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "model.gguf", "model.safetensors.bin"])
def test_files_of_other_kinds_are_refused_unopened(tmp_path, name):
    os.mkfifo(tmp_path / name)  # opening it would wait for ever
    with pytest.raises(InvalidInput, match=name) as caught:
        Checkpoint.open(tmp_path / name)
    assert "convert" in caught.value.hint


def test_a_missing_config_hints_at_the_file_itself(tmp_path):
    folder = write_model(tmp_path / "m", {"a": torch.zeros(2)})
    (folder / "config.json").unlink()
    with pytest.raises(InvalidInput, match=r"config\.json") as caught:
        Checkpoint.open(folder)
    assert str(folder / "model.safetensors") in caught.value.hint


def test_tied_head_that_is_not_stored(tmp_path):
    embedding = torch.randn(4, 2)
    folder = write_model(tmp_path / "m", {"model.embed_tokens.weight": embedding}, tie_word_embeddings=True)
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
        assert list(checkpoint.tensors) == ["model.embed_tokens.weight"]
        assert read(checkpoint, "lm_head.weight") == read(checkpoint, "model.embed_tokens.weight")
        assert checkpoint.warnings == []


def test_tied_head_that_is_stored_all_the_same(tmp_path):
    tensors = {"model.embed_tokens.weight": torch.zeros(4, 2), "lm_head.weight": torch.ones(4, 2)}
    with Checkpoint.open(write_model(tmp_path / "m", tensors, tie_word_embeddings=True)) as checkpoint:
        assert list(checkpoint.tensors) == ["model.embed_tokens.weight"]
        assert read(checkpoint, "lm_head.weight") == bytes(32)
        assert len(checkpoint.warnings) == 1
        assert "lm_head.weight" in checkpoint.warnings[0]


def test_aliases_noted_by_save_model(tmp_path):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    save_model(model, str(tmp_path / "m.safetensors"), metadata={"format": "pt", "note": "a.weight"})
    with Checkpoint.open(tmp_path / "m.safetensors") as checkpoint:
        assert len(checkpoint.tensors) == 1
        assert checkpoint.info("a.weight") == checkpoint.info("b.weight")
        assert set(checkpoint.aliases) - {"note"} in ({"a.weight"}, {"b.weight"})


@pytest.mark.parametrize("name", ["l.g_idx", "l.qzeros"])
def test_packed_integers_are_refused_but_other_integers_are_data(tmp_path, name):
    with pytest.raises(InvalidInput, match=f"{name}.*integer"):
        Checkpoint.open(write_model(tmp_path / "m", {name: torch.zeros(2, dtype=torch.int32)}))
    kept = {"position_ids": torch.arange(3), "c": torch.zeros(2, dtype=torch.complex64), "flag": torch.tensor(True)}
    with Checkpoint.open(write_model(tmp_path / "n", kept)) as checkpoint:
        assert set(checkpoint.tensors) == set(kept)


def test_many_tensors_open_fast(tmp_path):
    names = [f"model.layers.{i // 400}.mlp.experts.{i % 400}.w.weight" for i in range(36_000)]
    head, _, size = layout([TensorSpec(name, DTYPES["BF16"], (2,)) for name in names], {"format": "pt"})
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(size)
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 90, "tie_word_embeddings": True}))
    started = time.process_time()
    with Checkpoint.open(tmp_path) as checkpoint:
        assert len(checkpoint.tensors) == 36_000
    assert time.process_time() - started < 2  # 0.35 s on two quiet cores
