"""Folders of tiny models of the transformers library, each with a tokenizer of a dozen words, and data for them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "far", "away", "good", "bad"]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZES: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
LABELS = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}


@contextmanager
def quiet() -> Iterator[None]:
    """Saving draws no bars and tells nothing."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(50)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def pretrained(folder: Path, architecture: str, seed: int = 0, *, bert: bool = True, **config: Any) -> Path:
    """A model of that class with its own small configuration, weights of the seed, and a tokenizer."""
    import transformers

    known = getattr(transformers, architecture)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        model = known(known.config_class(**config))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))  # no bias is zero, no norm is one
        model.save_pretrained(folder)
        tokenizer(bert).save_pretrained(folder)
    return folder


def tokenizer(bert: bool) -> Any:
    """Words between blanks; with BERT's marks around a text, or none."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if not bert:
        return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    marks = [("[CLS]", 2), ("[SEP]", 3)]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=marks)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names
    )


def bert(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A classifier of texts into neg and pos."""
    return pretrained(folder, "BertForSequenceClassification", seed, **{**SIZES, **LABELS, **config})


def llama(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A causal language model without a padding token."""
    sizes = {**SIZES, "num_key_value_heads": 1, "pad_token_id": None, **config}
    return pretrained(folder, "LlamaForCausalLM", seed, bert=False, **sizes)


def gpt2(folder: Path, architecture: str = "GPT2LMHeadModel") -> Path:
    """A causal language model whose head is its embedding."""
    return pretrained(folder, architecture, bert=False, vocab_size=17, n_embd=16, n_layer=2, n_head=2, n_positions=32)


def sentences(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Rows of a text of the words and a label."""
    drawn = random.Random(seed)
    texts = [" ".join(drawn.choices(WORDS, k=drawn.randint(2, 9))) for _ in range(count)]
    return [{"text": text, "label": ("neg", "pos")[n % 2]} for n, text in enumerate(texts)]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    """Rows as lines of JSON, or only their texts where the name ends in .txt."""
    lines = (str(row["text"]) if path.suffix == ".txt" else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
