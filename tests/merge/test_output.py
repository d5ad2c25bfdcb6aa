"""What a merge leaves: files as the library writes them, a model that loads, the same bytes wherever it is run."""

from __future__ import annotations

import os
import shutil
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paramsmith.merge import merge as merge_files
from paramsmith.merge import merge_state_dicts
from tests.merge.folders import contents, ended, llama, llamas, merge, save, start, stored

PLAIN = {"format": "pt"}
CODES = ("BF16", "F16", "F32", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL")


def assert_as_saved(file: Path, folder: Path) -> None:
    """The file is what the library makes of its tensors."""
    save_file(load_file(file), folder / "saved.safetensors", PLAIN)
    assert file.read_bytes() == (folder / "saved.safetensors").read_bytes()


@pytest.mark.parametrize("code", [*CODES, "mixed"])
@pytest.mark.parametrize("shard", ["5GB", "900B"])
def test_the_files_are_those_of_the_library(tmp_path: Path, code: str, shard: str) -> None:
    shapes = {"b": (7, 3), "a": (5, 5, 2), "z.1.w": (33,), "scalar": (), "none": (0, 4), 'q"\n\u00e9': (2,)}
    mixed = ("BF16", "F32", "I64", "F16", "BOOL", "F64")
    codes = dict(zip(shapes, mixed if code == "mixed" else (code,) * 6, strict=True))
    for name, seed in (("a", 1), ("b", 2)):
        kind = {n: stored(c, shapes[n], seed if c[0] in "BF" and c != "BOOL" else 0) for n, c in codes.items()}
        save_file(kind, tmp_path / f"{name}.safetensors")
    done = merge(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", tmp_path / "out", "--shard-size", shard)
    assert done.code == 0, done
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 1 or shard == "900B"
    for file in files:
        assert_as_saved(file, tmp_path)
    found = {n: t for file in files for n, t in load_file(file).items()}
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {n: (t.dtype, t.shape) for n, t in first.items()}
    for name, tensor in found.items():
        if tensor.is_floating_point():
            wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
            mean = (first[name].to(wide) + second[name].to(wide)) / 2
            assert torch.equal(tensor, mean.to(tensor.dtype))
        else:
            assert torch.equal(tensor, first[name])


# -- loading ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two tuned models, as transformers saves them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("saved")
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        config = LlamaConfig(**shape, num_key_value_heads=2, vocab_size=40, max_position_embeddings=32)
        LlamaForCausalLM(config).save_pretrained(folder / name)
    return folder


def logits(folder: Path) -> Tensor:
    """What the model at `folder` says to four words."""
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    with torch.no_grad():
        said: Tensor = model(torch.tensor([[1, 5, 9, 2]])).logits
    return said


WAYS = {
    "linear": "a b",
    "slerp": "a b --method slerp --t 0.3",
    "karcher": "a b --method karcher",
    "task_arithmetic": "a b --base base --method task_arithmetic --lambda 0.5",
    "ties": "a b --base base --method ties",
    "dare": "a b --base base --method dare --seed 3",
    "pcb": "a b --base base --method pcb",
    "half": "a b --out-dtype bfloat16",
    "sharded": "a b --shard-size 4kB",
}


@pytest.mark.parametrize("way", WAYS)
def test_the_result_loads_and_speaks(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.chdir(saved)
    done = merge(*WAYS[way].split(), "-o", tmp_path / "out")
    assert done.code == 0, done
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 3) is (way == "sharded")
    for file in files:
        assert_as_saved(file, tmp_path)
    assert logits(tmp_path / "out").isfinite().all()


def test_a_merge_with_itself_says_what_the_model_says(saved: Path, tmp_path: Path) -> None:
    assert merge(saved / "a", "-o", tmp_path / "same", "--method", "passthrough", "--shard-size", "4kB").code == 0
    assert torch.equal(logits(tmp_path / "same"), logits(saved / "a"))
    assert merge(saved / "a", saved / "b", "-o", tmp_path / "first", "--weight", "1,0").code == 0
    assert torch.equal(logits(tmp_path / "first"), logits(saved / "a"))


# -- where and how ---------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    a, b = llamas(tmp_path, "ab")
    (a / "tokenizer.json").write_text("{}")
    (a / "tokenizer.json").chmod(0o600)
    before = os.umask(mask)
    try:
        merge_files([a, b], tmp_path / "out", compile="never")
        merge_files([a, b], tmp_path / "one.safetensors", compile="never")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").iterdir()}
    assert set(modes) == {"model.safetensors", "config.json", "recipe.yaml", "merge.json", "tokenizer.json"}
    assert set(modes.values()) == {0o666 & ~mask}
    assert stat.S_IMODE((tmp_path / "one.safetensors").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask


def test_the_hubs_cache(tmp_path: Path) -> None:
    """A snapshot is links into blobs; the result has files of its own, under the links' names."""
    a, b = llamas(tmp_path, "ab")
    cache = tmp_path / "models--x--y"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    merge_files([a], tmp_path / "shards", method="passthrough", shard_size="3kB", compile="never")
    for ours in ("recipe.yaml", "merge.json"):
        (tmp_path / "shards" / ours).unlink()
    (tmp_path / "shards" / "tokenizer.json").write_text("{}")
    for number, path in enumerate(sorted((tmp_path / "shards").iterdir())):
        path.rename(cache / "blobs" / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    merge_files([snapshot, b], tmp_path / "out", compile="never")
    merge_files([a, b], tmp_path / "plain", compile="never")
    found, plain = contents(tmp_path / "out"), contents(tmp_path / "plain")
    assert found.pop("tokenizer.json") == b"{}"
    for ours in ("recipe.yaml", "merge.json"):  # these name the inputs
        del found[ours], plain[ours]
    assert found == plain
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_one_file_in_one_file_out(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        save_file(llama(seed), tmp_path / f"{name}.safetensors")
    words = [tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", tmp_path / "one.safetensors"]
    assert merge(*words).code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "one.safetensors"]
    assert_as_saved(tmp_path / "one.safetensors", tmp_path)
    assert merge(*words).code == 3
    assert merge(*words, "--force", "--weight", "0,1").code == 0
    assert_equal(load_file(tmp_path / "one.safetensors"), llama(1))


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    assert [n for n in found if not torch.equal(found[n], wanted[n])] == []


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {"weight": [0.3, 0.7]}),
        ("slerp", {"t": {"gradient": [0.0, 1.0]}}),
        ("ties", {"density": 0.4, "lambda": 0.7}),
        ("ties", {"flavour": "mergekit"}),
        ("dare", {"rescale": "l1"}),
        ("pcb", {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dicts_in_memory_and_files_give_the_same(
    tmp_path: Path, method: str, parameters: Mapping[str, object], dtype: torch.dtype
) -> None:
    llamas(tmp_path, dtype=dtype)
    tensors = {name: llama(seed, dtype) for seed, name in enumerate(("base", "a", "b"))}
    based = method not in ("linear", "slerp")
    merge_files(
        [tmp_path / "a", tmp_path / "b"],
        tmp_path / "out",
        base=tmp_path / "base" if based else None,
        method=method,
        seed=5,
        compile="never",
        **parameters,
    )
    in_memory = merge_state_dicts(
        [tensors["a"], tensors["b"]], base=tensors["base"] if based else None, method=method, seed=5, **parameters
    )
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), in_memory)


def test_the_recipe_of_a_result_makes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llamas(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = "a b --base base --method dare --density 0.4 --density mlp=0.9 --weight 0..1 --seed 9 --out-dtype bfloat16"
    assert merge(*words.split(), "-o", "out", "--shard-size", "3kB").code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert merge(tmp_path / "out" / "recipe.yaml", "-o", "again").code == 0
    assert contents(tmp_path / "elsewhere" / "again") == contents(tmp_path / "out")
    assert merge(tmp_path / "out" / "recipe.yaml", "-o", "other", "--seed", "8").code == 0
    assert contents(tmp_path / "elsewhere" / "other") != contents(tmp_path / "out")


LATER = "import time; real = time.time; time.time = lambda: real() + 1e8"


def test_surroundings_change_no_byte(tmp_path: Path) -> None:
    """Locale, folder, umask, clock, hash seed, threads."""
    base, a, b, _ = llamas(tmp_path)
    for path in (base, a, b):
        big = {"big.w": torch.randn(300, 1000, generator=torch.Generator().manual_seed(len(path.name)))}
        save(path, {**load_file(path / "model.safetensors"), **big})
    words = ["merge", a, b, "--base", base, "--method", "dare", "--rescale", "l1", "--elect", "--compile", "never"]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    surroundings = (
        ({"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"}, tmp_path, "", "1", 0o022),
        ({"PYTHONHASHSEED": "77", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Tokyo"}, tmp_path / "deep", LATER, "3", 0o027),
    )
    for number, (variables, folder, before, threads, mask) in enumerate(surroundings):
        more = ["-o", tmp_path / str(number), "--threads", threads, "-q"]
        done = ended(start(*words, *more, before=before, env={**os.environ, **variables}, cwd=folder, umask=mask))
        assert done.code == 0, done
    assert contents(tmp_path / "0") == contents(tmp_path / "1")
    shutil.rmtree(tmp_path / "0")
