"""What must not happen is refused: one line of fact, one of hint, the right exit code, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramsmith import disk
from paramsmith.checkpoint import TensorReader
from paramsmith.errors import InvalidInput
from paramsmith.merge import merge_state_dicts
from paramsmith.staging import Writer
from tests.merge.folders import (
    Done,
    assert_clean,
    config_of,
    contents,
    ended,
    failed,
    leftovers,
    llama,
    llamas,
    merge,
    save,
    start,
)

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with a base and models a, b, c."""
    llamas(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(folder: Path, done: Done, code: int, *told: str) -> None:
    """A refusal that leaves nothing behind."""
    failed(done, code, *told)
    assert not (folder / "out").exists()
    assert leftovers(folder) == []


# -- what is asked for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("a --method slerp", "slerp merges 2 models, 1 given"),
        ("a b c --method slerp", "slerp merges 2 models, 3 given"),
        ("a b --method passthrough", "passthrough merges 1 models, 2 given"),
        ("a b --method ties", "ties needs a base"),
        ("a a", "a is given twice"),
        ("a ./b/../a", "a is given twice"),
        ("a a/model.safetensors", "a/model.safetensors is given twice"),
        ("a b --base a --method task_arithmetic", "a is both the base and one of the models"),
        ("a b --weight 1,-1", "sum to zero"),
        ("a b --weight nan,1", "nan"),
        ("a b --weight inf", "inf"),
        ("a b --weight 1e999", "inf"),
        ("a b --weight 1,2,3", "weight has 3 values for 2 models"),
        ("a b --weight x", "weight"),
        ("a b --base base --method task_arithmetic --weight 1,2,3", "weight has 3 values for 2 models"),
        ("a b --base base --method ties --density 0", "density"),
        ("a b --base base --method ties --density 1.5", "density"),
        ("a nowhere", "nowhere"),
        ("a b --dtype bf17", "bf17"),
        ("a b --out-dtype int8", "cannot be stored as I8"),
        ("a b --shard-size 0", "0"),
        ("a b --memory lots", "lots"),
        ("a b --device tpu", "tpu"),
        ("a b --threads 0", "threads"),
        ("a b --missing all", "missing"),
    ],
)
def test_what_cannot_be_asked_for(here: Path, words: str, told: str) -> None:
    refused(here, merge(*words.split(), "-o", "out"), 2, told)


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("a b --method tise", "ties"),
        ("a b --methd ties", "--method"),
        ("a b --wieght 1", "--weight"),
        ("a b --base base --method task_arithmetic --density 1", "--weight"),
        ("a b --dtype bfloat17", "bfloat16"),
    ],
)
def test_the_nearest_match_is_named(here: Path, words: str, near: str) -> None:
    done = merge(*words.split(), "-o", "out")
    refused(here, done, 2)
    assert near in done.err.splitlines()[-1]


def test_the_same_model_by_another_way(here: Path) -> None:
    (here / "link").symlink_to("a")
    refused(here, merge("a", "link", "-o", "out"), 2, "link is given twice")
    (here / "cache").mkdir()
    (here / "cache" / "config.json").symlink_to(here / "a" / "config.json")
    (here / "cache" / "model.safetensors").symlink_to(here / "a" / "model.safetensors")
    refused(here, merge("a", "cache", "-o", "out"), 2, "cache is given twice")
    shutil.copytree("a", "copy")
    assert merge("a", "copy", "-o", "out").code == 0


def test_other_architectures(here: Path) -> None:
    save(here / "other", llama(9), model_type="mistral", architectures=["MistralForCausalLM"])
    refused(here, merge("a", "other", "-o", "out"), 2, "other/config.json", "mistral", "llama")
    save(here / "deeper", llama(9, layers=3), num_hidden_layers=3)
    refused(here, merge("deeper", "a", "-o", "out"), 2, "a: the tensor model.layers.2.", "is missing")
    done = merge("a", "deeper", "-o", "out")
    assert done.code == 0
    assert "9 tensors left out" in done.warnings[0]


# -- where it goes ---------------------------------------------------------------------------


def test_output_and_inputs_apart(here: Path) -> None:
    for out in ("a/out", "a", ".", "a/../b", "a/model.safetensors", "a/out.safetensors"):
        done = merge("a", "b", "-o", out, "--force")
        failed(done, 2, "lie in one another")
    assert contents(here / "a") == contents(save(here / "again", llama(1)))
    (here / "link").symlink_to("a")
    failed(merge("a", "b", "-o", "link/out"), 2, "lie in one another")


def test_the_output_is_not_where_an_inputs_links_lead(here: Path) -> None:
    """Replacing it would delete the input."""
    (here / "cached").mkdir()
    for name in ("config.json", "model.safetensors"):
        (here / "cached" / name).symlink_to(here / "c" / name)
    failed(merge("cached", "b", "-o", "c", "--force"), 2, "lie in one another")
    assert (here / "c" / "model.safetensors").exists()


def test_an_existing_output_is_kept_or_replaced_whole(here: Path) -> None:
    save(here / "out", llama(7))
    (here / "out" / "tokenizer.json").write_text("old")
    before = contents(here / "out")
    failed(merge("a", "b", "-o", "out"), 3, "out already exists")
    assert contents(here / "out") == before
    assert merge("a", "b", "-o", "out", "--force").code == 0
    assert set(contents(here / "out")) == {"model.safetensors", "config.json", "recipe.yaml", "merge.json"}
    assert leftovers(here) == []


def test_an_existing_output_outlives_a_failure(here: Path) -> None:
    before = contents(save(here / "out", llama(7)))
    save(here / "odd", {**llama(1), HEAD: torch.full((32, 8), float("nan"))})
    failed(merge("a", "odd", "-o", "out", "--force", "--strict"), 1, "NaN")
    assert contents(here / "out") == before
    assert leftovers(here) == []


def test_no_space_is_seen_before_anything_is_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: object) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=3, f_frsize=1000, f_blocks=10_000)

    def unread(self: TensorReader, start: int, buffer: memoryview) -> None:
        raise AssertionError

    monkeypatch.setattr(disk.os, "statvfs", full)
    monkeypatch.setattr(TensorReader, "__call__", unread)
    done = merge("a", "b", "-o", "out")
    refused(here, done, 3, "bytes are needed, 3,000 bytes are free")
    needed = int(re.sub(r"\D", "", done.err.partition("bytes are needed")[0].rpartition(": ")[2]))
    assert needed > (here / "a" / "model.safetensors").stat().st_size


def big(folder: Path, count: int = 2, mega: int = 24) -> list[Path]:
    """Models large enough that something can happen while they are read."""
    made = [{"w": torch.full((mega, 1 << 18), float(i))} for i in range(count)]
    return [save(folder / f"big{i}", tensors, model_type="big") for i, tensors in enumerate(made)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_no_space_in_the_middle(here: Path) -> None:
    big(here)
    (here / "disk").mkdir()
    if os.system(f"mount -t tmpfs -o size=8m none {here}/disk 2>/dev/null"):
        pytest.skip("no right to mount here")
    try:
        before = "import os; os.statvfs = lambda folder: os.statvfs_result((4096, 4096, *[10**9] * 7, 255))"
        done = ended(start("merge", "big0", "big1", "-o", "disk/out", before=before))
        failed(done, 1, "no space left", "disk/.out.partial")
        assert list((here / "disk").iterdir()) == []
    finally:
        os.system(f"umount {here}/disk")


def test_a_file_too_large_for_the_system(here: Path) -> None:
    big(here)
    before = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))"
    done = ended(start("merge", "big0", "big1", "-o", "out", before=before))
    refused(here, done, 1, "model.safetensors", "ulimit -f")


def test_a_target_that_cannot_be_written() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own cannot be entered by another user
        here, before = Path(folder), ""
        a, b = llamas(here, "ab")
        (here / "locked").mkdir()
        (here / "locked").chmod(0o555)
        if os.geteuid() == 0:  # for whom nothing is locked; the code is imported before the right to read it is gone
            before = "import os, encodings.ascii, paramsmith.merge.setup, paramsmith.staging\n"
            before += "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
            for path in (here, *here.rglob("*")):
                path.chmod(0o755)
        done = ended(start("merge", a, b, "-o", here / "locked" / "out", before=before))
        failed(done, 3, "locked cannot be written to: permission denied")
        assert list((here / "locked").iterdir()) == []


# -- what happens while it runs --------------------------------------------------------------


@contextlib.contextmanager
def at_byte(when: int, act: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Do something once that many bytes have been read."""
    real, lock, read = TensorReader.__call__, threading.Lock(), [0]

    def counting(self: TensorReader, start: int, buffer: memoryview) -> None:
        with lock:
            read[0] += len(buffer)
            due, read[0] = read[0] >= when, read[0] if read[0] < when else -(1 << 60)
        if due:
            act()  # type: ignore[operator]
        real(self, start, buffer)

    with monkeypatch.context() as patch:
        patch.setattr(TensorReader, "__call__", counting)
        yield


def test_a_file_that_shrinks_or_changes_while_being_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = big(here, mega=4)
    file = second / "model.safetensors"
    with at_byte(2 << 20, lambda: os.truncate(file, 1 << 20), monkeypatch):
        refused(here, merge(first, second, "-o", "out"), 1, "big1/model.safetensors", "shrank")
    big(here, mega=4)
    with at_byte(2 << 20, lambda: os.utime(file, ns=(1, 1)), monkeypatch):
        refused(here, merge(first, second, "-o", "out"), 1, "big1/model.safetensors", "changed while being read")


def test_the_hint_of_too_little_memory_works(here: Path) -> None:
    big(here)
    done = ended(start("merge", "big0", "big1", "-o", "out", "--memory", "1MB", "--compile", "never"))
    refused(here, done, 3, "a memory budget of 1.00 MB is too small")
    size = re.search(r"--memory (\S+)", done.err)
    assert size is not None
    again = ended(start("merge", "big0", "big1", "-o", "out", "--memory", size[1], "--compile", "never"))
    assert again.code == 0, again
    assert torch.equal(load_file("out/model.safetensors")["w"].unique(), torch.tensor([0.5]))


# -- tensors that do not match ---------------------------------------------------------------


def test_missing_tensors(here: Path) -> None:
    gone = "model.layers.1.mlp.up_proj.weight"
    save(here / "less", {n: t for n, t in llama(1).items() if n != gone})
    refused(here, merge("a", "less", "-o", "out"), 2, "less", gone, "is missing")
    for missing, names in (("base", set(llama(1))), ("skip", set(llama(1)) - {gone})):
        done = merge("b", "less", "-o", f"by {missing}", "--missing", missing)
        assert done.code == 0
        assert gone in "".join(done.warnings)
        found = load_file(f"by {missing}/model.safetensors")
        assert set(found) == names
        if missing == "base":
            assert torch.equal(found[gone], llama(2)[gone])
        assert torch.equal(found[HEAD], (llama(1)[HEAD] + llama(2)[HEAD]) / 2)
    refused(here, merge("a", "less", "-o", "out", "--missing", "base", "--strict"), 1, gone)
    refused(here, merge("a", "less", "-o", "out", "--missing", "base", "--dtype", "bf16"), 2, gone)


def test_mixed_dtypes_are_computed_wide_and_stored_as_asked(here: Path) -> None:
    save(here / "half", llama(1, torch.bfloat16))
    save(here / "double", llama(2, torch.float64))
    wide = {n: (llama(1, torch.bfloat16)[n].double() + t) / 2 for n, t in llama(2, torch.float64).items()}
    for words, dtype in (("half double", torch.bfloat16), ("double half", torch.float64)):
        assert merge(*words.split(), "-o", dtype).code == 0
        found = load_file(f"{dtype}/model.safetensors")
        assert all(torch.equal(found[n], wide[n].to(dtype)) for n in wide)
    assert merge("half", "double", "-o", "asked", "--out-dtype", "float16").code == 0
    found = load_file("asked/model.safetensors")
    assert all(torch.equal(found[n], wide[n].half()) for n in wide)
    assert config_of(here / "asked")["torch_dtype"] == "float16"


def test_integers_and_flags(here: Path) -> None:
    extra = {"model.steps": torch.tensor([1, 2, 3]), "model.mask": torch.tensor([True, False])}
    for seed, name in enumerate(("base", "a", "b")):
        save(here / name, {**llama(seed), **extra})
    assert merge("a", "b", "-o", "same").code == 0
    assert all(torch.equal(load_file("same/model.safetensors")[n], t) for n, t in extra.items())
    other = {"model.steps": torch.tensor([1, 2, 4]), "model.mask": torch.tensor([True, True])}
    save(here / "b", {**llama(2), **other})
    refused(here, merge("a", "b", "-o", "out"), 1, "model.mask", "differs")
    done = merge("a", "b", "--base", "base", "--method", "task_arithmetic", "-o", "out")
    assert done.code == 0
    assert [w.partition(":")[0] for w in done.warnings] == ["model.mask", "model.steps"]
    assert all(torch.equal(load_file("out/model.safetensors")[n], t) for n, t in extra.items())
    save(here / "c", {**llama(3), **extra, "model.steps": torch.tensor([1.0, 2.0, 3.0])})
    failed(merge("a", "c", "-o", "mixed"), 2, "model.steps", "F32", "I64")


# -- ties ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["tt", "tu", "ut", "uu"])
@pytest.mark.parametrize("base", [None, "t", "u"])
def test_tied_and_untied(here: Path, pattern: str, base: str | None) -> None:
    """The head is written where any model needs one of its own, and config.json says so."""
    named = {name: kind == "t" for name, kind in zip(("a", "b", "base"), (*pattern, base or "u"), strict=True)}
    tensors = {name: llama(seed, tied=tied) for seed, (name, tied) in enumerate(named.items())}
    for name, tied in named.items():
        save(here / name, tensors[name], tie_word_embeddings=tied)
    words = ["--base", "base", "--method", "task_arithmetic", "--weight", "0.5"] if base else []
    done = merge("a", "b", *words, "-o", "out")
    assert done.code == 0, done
    found, used = load_file("out/model.safetensors"), ["a", "b", *(["base"] if base else [])]
    tied = all(named[name] for name in used)
    assert config_of(here / "out")["tie_word_embeddings"] is tied
    assert (HEAD not in found) is tied
    for name in {EMBEDDING, HEAD} & set(found):
        first, second, start = (tensors[n].get(name, tensors[n][EMBEDDING]) for n in ("a", "b", "base"))
        mean = (first + second) / 2 if base is None else start + 0.5 * (first - start) + 0.5 * (second - start)
        torch.testing.assert_close(found[name], mean)


def test_ties_of_the_encoder_say_nothing_about_the_head(here: Path) -> None:
    """An encoder-decoder with a head of its own, whose encoder, decoder and `shared` are one tensor."""
    for seed, name in enumerate("ab"):
        t = llama(seed)
        tensors = {"shared.weight": t[EMBEDDING], HEAD: t[HEAD], "encoder.n.weight": t["model.norm.weight"]}
        tensors["decoder.n.weight"] = t["model.norm.weight"] * 2
        t5 = {"architectures": ["T5ForConditionalGeneration"], "num_hidden_layers": None, "hidden_size": None}
        save(here / name, tensors, model_type="t5", tie_word_embeddings=False, **t5)
    assert merge("a", "b", "-o", "out").code == 0
    assert HEAD in load_file("out/model.safetensors")
    assert config_of(here / "out")["tie_word_embeddings"] is False
    for name in "ab":
        save(here / name, {"w": torch.ones(2)}, architectures=["BertModel"], tie_word_embeddings=True)
    assert merge("a", "b", "-o", "headless").code == 0
    assert config_of(here / "headless")["tie_word_embeddings"] is True


# -- the other files -------------------------------------------------------------------------


def test_companions_come_from_the_base_or_the_first_model_and_code_does_not(here: Path) -> None:
    for name in ("base", "a", "b"):
        (here / name / "tokenizer.json").write_text(name)
        for file in ("modeling.py", "optimizer.pt", "README.md"):
            (here / name / file).write_text(name)
        save(here / name, llama(len(name)), auto_map={"AutoModel": "modeling.Model"})
    assert merge("b", "a", "-o", "first").code == 0
    assert merge("b", "a", "--base", "base", "--method", "task_arithmetic", "-o", "based").code == 0
    for out, source in (("first", "b"), ("based", "base")):
        files = contents(here / out)
        assert set(files) == {"model.safetensors", "config.json", "recipe.yaml", "merge.json", "tokenizer.json"}
        assert files["tokenizer.json"] == source.encode()
        assert "auto_map" not in config_of(here / out)


def test_a_dry_run_writes_nothing(here: Path) -> None:
    before = contents(here)
    done = merge("a", "b", "-o", "out", "--dry-run")
    assert done.code == 0
    assert "write" in done.out
    assert_clean(done)
    refused(here, merge("a", "nowhere", "-o", "out", "--dry-run"), 2, "nowhere")
    assert contents(here) == before


def test_warnings_are_told_once_and_strict_makes_them_errors_before_the_work(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {int8_mask: true}\n"
    (here / "r.yaml").write_text(recipe)
    done = merge("r.yaml", "-o", "out")
    assert done.code == 0
    assert len(done.warnings) == 1
    monkeypatch.setattr(Writer, "__enter__", None)
    shutil.rmtree("out")
    refused(here, merge("r.yaml", "-o", "out", "--strict"), 1, "int8_mask")
    refused(here, merge("r.yaml", "-o", "out", "--strict", "--dry-run"), 1, "int8_mask")


def test_dicts_in_memory_are_guarded_too() -> None:
    one = {"w": torch.ones(2)}
    for models, told in (([], "0 given"), ([one, one], "given twice"), ([one, {"w": torch.ones(3)}], "shape")):
        with pytest.raises(InvalidInput, match=told):
            merge_state_dicts(models)  # type: ignore[arg-type]


def test_bare_files_are_merged_and_the_result_has_no_config(here: Path) -> None:
    for seed, name in enumerate("xy"):
        save_file(llama(seed), f"{name}.safetensors")
    assert merge("x.safetensors", "y.safetensors", "-o", "out").code == 0
    assert set(contents(here / "out")) == {"model.safetensors", "recipe.yaml", "merge.json"}
