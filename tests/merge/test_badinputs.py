"""Every broken or hostile checkpoint of the corpus, through the command line: refused by name, or merged soundly."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from paramsmith.checkpoint import Checkpoint
from tests import badinputs
from tests.merge.folders import Done, assert_clean, config_of, ended, failed, leftovers, merge, start


@dataclass(frozen=True)
class Wanted:
    """What a case is expected to end in."""

    verdict: str
    names: tuple[str, ...] = field(default=())


# Where we answer otherwise than the manifest asks.
OTHERWISE = {
    # without a checksum no reader can tell the zeros of a hole from weights: every tensor that is all zeros is named
    "zero_tail": Wanted("warn", (badinputs.Q0.replace("layers.0", "layers.1"), "lm_head.weight", "all zeros")),
    # none of the extra names holds the word "extra"; the names themselves are told
    "name_hostile": Wanted("warn", ("7 tensors left out", "../../etc/passwd", r"a\x00b", r"\x1b[31mred")),
    "name_unicode_twins": Wanted("warn", ("2 tensors left out", "caf\u00e9", "cafe\u0301")),
}
IDS = [case["id"] for case in badinputs.CASES]
# What the system must bear, so to speak: everything that is about size, blocking or code.
ALONE = ["header_over_cap", "header_padded_30mb", "offsets_bomb", "shard_is_fifo", "pickle_legacy", "pickle_zip_bomb"]


@dataclass(frozen=True)
class Corpus:
    """The written corpus."""

    root: Path
    cases: dict[str, dict[str, object]]

    def model(self, name: str) -> Path:
        """The folder of one case."""
        return self.root / str(self.cases[name]["path"])

    @property
    def base(self) -> Path:
        """The sound base."""
        return self.root / "_good" / "base"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("badinputs")
    badinputs.write_all(str(root))
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    return Corpus(root, {case["id"]: case for case in manifest["cases"]})


@pytest.mark.parametrize("name", IDS)
def test_linear(corpus: Corpus, tmp_path: Path, name: str) -> None:
    done = merge(corpus.base, corpus.model(name), "-o", tmp_path / "out", "--method", "linear")
    judge(corpus, name, done, tmp_path)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
@pytest.mark.parametrize("name", IDS)
def test_with_a_base(corpus: Corpus, tmp_path: Path, name: str, method: str) -> None:
    done = merge(corpus.model(name), "--base", corpus.base, "-o", tmp_path / "out", "--method", method)
    judge(corpus, name, done, tmp_path)


@pytest.mark.parametrize("name", [i for i in IDS if i.startswith(("model_", "config_", "name_", "index_", "value_"))])
def test_as_the_base(corpus: Corpus, tmp_path: Path, name: str) -> None:
    """A broken base is refused as a broken model is."""
    done = merge(corpus.base, "--base", corpus.model(name), "-o", tmp_path / "out", "--method", "task_arithmetic")
    if corpus.cases[name]["verdict"] == "error":
        judge(corpus, name, done, tmp_path)
    else:
        assert_clean(done)
        assert done.code in (0, 2), done
        assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ALONE)
def test_alone_within_its_limits(corpus: Corpus, tmp_path: Path, name: str) -> None:
    case = corpus.cases[name]
    began = time.perf_counter()
    done = ended(start("merge", corpus.base, corpus.model(name), "-o", tmp_path / "out"))
    assert time.perf_counter() - began < float(str(case["max_seconds"]))
    assert 0 < done.peak <= int(str(case["max_rss_mb"])) * 1_000_000
    judge(corpus, name, done, tmp_path)


def judge(corpus: Corpus, name: str, done: Done, folder: Path) -> None:
    """Hold what happened against the manifest."""
    case = corpus.cases[name]
    if "skipped" in case:
        pytest.skip(str(case["skipped"]))
    plain = Wanted(str(case["verdict"]), tuple(case["names"]))  # type: ignore[arg-type]
    wanted = OTHERWISE.get(name, plain)
    assert not [path for path in case["forbidden"] if (corpus.root / path).exists()]  # type: ignore[attr-defined]
    assert leftovers(folder) == []
    if wanted.verdict == "error":
        failed(done, 2)
        assert str(corpus.model(name)) in done.err
        assert not [words for words in wanted.names if words not in done.err], done.err
        assert list(folder.iterdir()) == []
        return
    assert done.code == 0, done
    assert_clean(done)
    assert len(done.err) < 10_000
    if wanted.verdict == "warn":
        told = "\n".join(done.warnings)
        assert not [words for words in wanted.names if words not in told], told
    sound(folder / "out", corpus)


def sound(out: Path, corpus: Corpus) -> None:
    """The output opens, here and with the library, holds the base's tensors, and nothing that could run."""
    with Checkpoint.open(out) as opened, Checkpoint.open(corpus.base) as base:
        assert {n: (i.shape, i.dtype) for n, i in opened.tensors.items()} == {
            n: (i.shape, i.dtype) for n, i in base.tensors.items()
        }
        assert opened.warnings == []
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert set(file.metadata() or {}) <= {"format"}
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "config.json", "recipe.yaml", "merge.json"}


def half(corpus: Corpus, name: str, out: Path) -> dict[str, torch.Tensor]:
    """The merge of the base and a case by halves."""
    done = merge(corpus.base, corpus.model(name), "-o", out)
    assert done.code == 0, done
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("name", ["misaligned", "zero_size_tensor", "index_total_size_lies", "metadata_injection"])
def test_values_are_right_however_the_file_is_laid_out(corpus: Corpus, tmp_path: Path, name: str) -> None:
    base, tuned = (load_file(corpus.root / "_good" / n / "model.safetensors") for n in ("base", "ft"))
    found = half(corpus, name, tmp_path / "out")
    assert all(torch.equal(found[n], (base[n] + tuned[n]) / 2) for n in base)


def test_dtypes_are_widened_and_the_result_has_the_bases(corpus: Corpus, tmp_path: Path) -> None:
    base = load_file(corpus.base / "model.safetensors")
    for name in ("model_bf16", "model_mixed_dtypes"):
        tuned = load_file(corpus.model(name) / "model.safetensors")
        found = half(corpus, name, tmp_path / name)
        assert all(torch.equal(found[n], (base[n] + tuned[n].float()) / 2) for n in base)
        assert config_of(tmp_path / name)["torch_dtype"] == "float32"


def test_nan_stays_where_it_was_and_strict_refuses_it(corpus: Corpus, tmp_path: Path) -> None:
    found = half(corpus, "value_nan", tmp_path / "out")
    assert {n: int(t.isnan().sum()) for n, t in found.items() if t.isnan().any()} == {badinputs.Q0: 1}
    done = merge(corpus.base, corpus.model("value_nan"), "-o", tmp_path / "strict", "--strict")
    failed(done, 1, badinputs.Q0, "NaN")
    assert not (tmp_path / "strict").exists()
    assert leftovers(tmp_path) == []


def test_remote_code_is_not_asked_for(corpus: Corpus, tmp_path: Path) -> None:
    """Also when the model that asks for it is the one whose config the result takes."""
    done = merge(corpus.model("config_remote_code"), corpus.base, "-o", tmp_path / "out")
    assert done.code == 0, done
    assert not {"auto_map", "trust_remote_code"} & set(config_of(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.py"))


def test_a_tied_model_meets_an_untied_base(corpus: Corpus, tmp_path: Path) -> None:
    """The head of the tied model is its embedding."""
    base = load_file(corpus.base / "model.safetensors")
    tuned = load_file(corpus.model("model_tied") / "model.safetensors")
    found = half(corpus, "model_tied", tmp_path / "out")
    assert torch.equal(found["lm_head.weight"], (base["lm_head.weight"] + tuned["model.embed_tokens.weight"]) / 2)
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is False
