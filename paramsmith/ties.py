"""Tied weights: names that a model uses but does not store, because another tensor is the same storage.

One table says which names of which architectures belong together; the rest follows from what a file stores, what its
config.json says and what `safetensors.torch.save_model` noted in the metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from paramsmith.header import TensorInfo
    from paramsmith.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class Tie:
    """`alias` is the same storage as the first of `sources` that is stored.

    A leading `*` of a source stands for the name of the model. `beside`: an alias that is absent counts only when a
    tensor with this prefix is stored, as a model without that head has none. "head" ties follow `tie_word_embeddings`;
    "input" ties hold by architecture.
    """

    alias: str
    sources: tuple[str, ...]
    beside: str = ""
    kind: Literal["head", "input"] = "head"


_DECODER_ONLY = (
    "shared.weight",
    "model.shared.weight",
    "led.shared.weight",
    "model.language_model.shared.weight",
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "model.text_model.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "model.tok_embeddings.weight",
    "transformer.wte.weight",
    "transformer.word_embeddings.weight",
    "transformer.tokens_embed.weight",
    "gpt_neox.embed_in.weight",
    "backbone.embeddings.weight",
    "backbone.embedding.weight",
    "funnel.embeddings.word_embeddings.weight",
    "prophetnet.word_embeddings.weight",
    "embed_tokens.weight",
)
_ENCODER = ("*.embeddings.word_embeddings.weight",)
_SHARED = ("shared.weight",)
_MODEL_SHARED = ("model.shared.weight",)

TIES: tuple[Tie, ...] = (
    Tie("encoder.embed_tokens.weight", _SHARED, "encoder.", "input"),
    Tie("decoder.embed_tokens.weight", _SHARED, "decoder.", "input"),
    Tie("model.encoder.embed_tokens.weight", _MODEL_SHARED, "model.encoder.", "input"),
    Tie("model.decoder.embed_tokens.weight", _MODEL_SHARED, "model.decoder.", "input"),
    Tie("text_encoder.embed_tokens.weight", _SHARED, "text_encoder.", "input"),
    Tie("text_decoder.embed_tokens.weight", _SHARED, "text_decoder.", "input"),
    Tie("led.encoder.embed_tokens.weight", ("led.shared.weight",), "led.encoder.", "input"),
    Tie("led.decoder.embed_tokens.weight", ("led.shared.weight",), "led.decoder.", "input"),
    Tie("transformer.encoder.embed_tokens.weight", ("transformer.shared.weight",), "transformer.encoder.", "input"),
    Tie("transformer.decoder.embed_tokens.weight", ("transformer.shared.weight",), "transformer.decoder.", "input"),
    Tie("lm_head.weight", _DECODER_ONLY),
    Tie("lm_loss.weight", ("transformer.word_embedding.weight",)),
    Tie("embed_out.weight", ("gpt_neox.embed_in.weight", "gpt_neox_japanese.embed_in.weight")),
    Tie("output.weight", ("tok_embeddings.weight", "model.tok_embeddings.weight")),
    Tie("proj_out.weight", ("model.decoder.embed_tokens.weight",), "model.encoder.conv"),
    Tie("output_projection.weight", ("biogpt.embed_tokens.weight",)),
    Tie("decoder.weight", ("model.embeddings.tok_embeddings.weight",), "head."),
    Tie("language_model.lm_head.weight", ("language_model.model.embed_tokens.weight",)),
    Tie("text_model.lm_head.weight", ("text_model.model.embed_tokens.weight",)),
    Tie("cls.predictions.decoder.weight", _ENCODER, "cls.predictions."),
    Tie("cls.predictions.decoder.bias", ("cls.predictions.bias",), "cls.predictions."),
    Tie("predictions.decoder.weight", _ENCODER, "predictions."),
    Tie("predictions.decoder.bias", ("predictions.bias",), "predictions."),
    Tie("lm_head.decoder.weight", _ENCODER, "lm_head."),
    Tie("lm_head.decoder.bias", ("lm_head.bias",), "lm_head."),
    Tie("generator_lm_head.weight", _ENCODER, "generator_"),
    Tie("vocab_projector.weight", _ENCODER, "vocab_"),
)

# Classes of transformers that predict words; others have no head that could be tied.
_SPEAKS = re.compile(
    r"LMHead|ForCausalLM|ForConditionalGeneration|ForMaskedLM|ForPreTraining|MTModel|ForTextToText|ForSpeechSeq2Seq"
)


def tied_names(
    config: ModelConfig | None, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> dict[str, str]:
    """Every name that is another name of a stored tensor: {alias: stored name}.

    An alias may itself be stored: config.json then says that the copy is not used. A model whose config.json is
    silent about ties counts as tied when its head is absent from the file (the default of many architectures).
    """
    found = {
        alias: kept for alias, kept in metadata.items() if alias not in tensors and kept in tensors and alias != kept
    }
    if config is not None:
        for alias, kept in _from_table(config, tensors):
            found.setdefault(alias, kept)
    return {alias: _follow(kept, found) for alias, kept in found.items()}


def has_language_head(config: ModelConfig) -> bool:
    """Whether the architecture predicts words; a config.json that names no architecture leaves it possible."""
    named = config.raw.get("architectures")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    return not names or any(_SPEAKS.search(name) for name in names)


def _from_table(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, str]]:
    speaks = has_language_head(config)
    apart = config.raw.get("share_encoder_decoder_embeddings") is False
    for tie in TIES:
        kept = next((name for source in tie.sources for name in _stored(source, tensors)), None)
        if kept is None or (tie.kind == "head" and (config.tie is False or not speaks)):
            continue
        if tie.kind == "input" and apart:
            continue
        stored = tensors.get(tie.alias)
        if stored is not None:
            if config.tie is True and stored.shape == tensors[kept].shape:
                yield tie.alias, kept
        elif not tie.beside or any(name.startswith(tie.beside) for name in tensors):
            yield tie.alias, kept


def _stored(source: str, tensors: Mapping[str, TensorInfo]) -> list[str]:
    if not source.startswith("*"):
        return [source] if source in tensors else []
    matching = [name for name in tensors if name.endswith(source[1:]) and name.count(".") == source.count(".")]
    return matching if len(matching) == 1 else []


def _follow(kept: str, aliases: Mapping[str, str]) -> str:
    seen = {kept}
    while kept in aliases and aliases[kept] not in seen:
        kept = aliases[kept]
        seen.add(kept)
    return kept
