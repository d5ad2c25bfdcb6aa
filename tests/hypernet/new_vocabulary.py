"""Small tokenizers and a small model that has one of them, for the tests of vocabularies."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Fast
from torch import Tensor

PIECES = ["the", "cat", "dog", "##ing", "run", ",", "Paris"]
WIDTH = 8


def word_piece() -> Fast:
    """Whole words, and pieces that go on: ##."""
    listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    listed += [*(f"##{letter}" for letter in string.ascii_lowercase), *PIECES]
    made = Fast(models.WordPiece({token: i for i, token in enumerate(listed)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens([AddedToken(token, special=True) for token in listed[:5]])
    return made


def byte_level() -> Fast:
    """Bytes and merges; what begins a word begins with the mark of a space."""
    listed = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("c", "a"), ("ca", "t"), ("\u0120", "cat"), ("i", "n")]
    merges += [("in", "g"), ("\u0120", "r"), ("o", "w"), ("\u0120", "c"), ("\u0120c", "ow")]
    listed += ["".join(pair) for pair in merges]
    made = Fast(models.BPE({token: i for i, token in enumerate(listed)}, merges, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in listed[:5]])
    return made


def save_tokenizer(made: Fast, folder: Path, **roles: str) -> Path:
    """tokenizer.json and, with the special tokens by role, tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    told = {f"{role}_token": token for role, token in roles.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **told}))
    return folder


def target(folder: Path) -> Path:
    """The byte-level tokenizer in a folder."""
    return save_tokenizer(byte_level(), folder, bos="<s>", pad="<pad>", eos="</s>", unk="<unk>", mask="<mask>")


def source(folder: Path, tied: bool = False, padding: int = 3, dtype: torch.dtype = torch.float32) -> Path:
    """A model whose embedding has a few rows more than its tokenizer has tokens."""
    made = word_piece()
    save_tokenizer(made, folder, pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    draw = torch.Generator().manual_seed(0)
    rows = made.get_vocab_size() + padding
    tensors = {"model.embed_tokens.weight": torch.randn(rows, WIDTH, generator=draw)}
    if padding:
        tensors["model.embed_tokens.weight"][-padding:] = 1e6  # never trained, and not to be counted
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.randn(16, WIDTH, generator=draw)
    tensors["model.norm.weight"] = torch.ones(WIDTH)
    if not tied:
        tensors["lm_head.weight"] = 0.01 * torch.randn(rows, WIDTH, generator=draw)
        tensors["lm_head.bias"] = torch.arange(float(rows))
    save_file(
        {name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": rows, "hidden_size": WIDTH, "num_hidden_layers": 1}
    config |= {"tie_word_embeddings": tied, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config |= {"sep_token_id": 3, "auto_map": {"AutoModel": "modeling.Net"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 3, "temperature": 0.5}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 4}))
    (folder / "vocab.txt").write_text("\n".join(made.get_vocab()))
    return folder


def words(folder: Path, dim: int = 6) -> tuple[Path, Tensor]:
    """A file of word vectors, and they themselves."""
    listed = ["the", "cat", "cats", "running", "cow", "dog", "in", "ring", "than", "brow"]
    listed += [a + b for a in "abcdefgh" for b in "ijklmnop"]
    vectors = torch.randn(len(listed), dim, generator=torch.Generator().manual_seed(5))
    lines = [f"{word} {' '.join(f'{x:.6f}' for x in row.tolist())}" for word, row in zip(listed, vectors, strict=True)]
    path = folder / "words.vec"
    path.write_text(f"{len(listed)} {dim}\n" + "\n".join(lines) + "\n")
    return path, vectors
