"""A task from a model folder of the transformers library and files of data: nothing to program."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol, cast

from torch import Tensor, nn

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput, printable
from paramsmith.inputs import place
from paramsmith.merge.task import Batch, ModelTask

from .data import Row, Rows
from .encoding import ImageProcessor, Images, Labels, Texts, Tokenizer, check_rows, image_of, text_of
from .loading import (
    Pretrained,
    load,
    load_model,
    load_tokenizer,
    plain_attention,
    quiet,
    stored_names,
    text_positions,
    transformers_library,
)

Kind = Literal["auto", "text-classification", "causal-lm", "masked-lm", "image-classification"]
_HEADS: Mapping[Kind, tuple[str, str]] = {  # kind -> class of transformers, how architectures of it are called
    "text-classification": ("AutoModelForSequenceClassification", r"ForSequenceClassification$"),
    "causal-lm": ("AutoModelForCausalLM", r"ForCausalLM$|(?<!With)LMHeadModel$"),
    "masked-lm": ("AutoModelForMaskedLM", r"ForMaskedLM$|WithLMHeadModel$"),
    "image-classification": ("AutoModelForImageClassification", r"ForImageClassification$"),
}
Encode = Callable[[Sequence[Row]], dict[str, Tensor]]


class _Config(Protocol):
    num_labels: int
    label2id: Mapping[str, int]
    problem_type: str | None
    use_cache: bool
    pad_token_id: int | None


class _Model(Protocol):
    config: _Config

    def get_input_embeddings(self) -> nn.Embedding: ...


def transformers_task(
    model_path: str | Path,
    data_files: Sequence[str | Path],
    *,
    kind: Kind = "auto",
    text_column: str | Sequence[str] | None = None,
    label_column: str | None = None,
    max_length: int = 128,
    batch_size: int = 16,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    device: str = "cpu",
    labels: bool = True,
) -> ModelTask:
    """A task for a model and data: classification of texts or images, causal or masked language models.

    The columns are `text` (or `image`) and `label` unless told; two text columns are pairs. Labels are names of the
    model's config.json or numbers; without `labels` the column is not read. Causal models predict every next token,
    masked ones 15 % of the tokens, drawn from seed and row. Texts are cut at `max_length` tokens, or where the model's
    positions end. The model is a folder, or on the Hub; all rows are checked before it is loaded, in float32, from
    safetensors only, and no code of it is run. InvalidInput for what cannot be used, with file and line.
    """
    if min(max_length, batch_size) < 1:
        raise InvalidInput(f"a length of {max_length} tokens, {batch_size} examples a batch", "give 1 or more of each")
    library = transformers_library()
    with Checkpoint.open(model_path) as checkpoint:
        folder, tensors = _folder(checkpoint), dict(checkpoint.tensors)
        kind = _kind(kind, checkpoint)
    rows = Rows(data_files, limit=limit, shuffle=shuffle, seed=seed)
    columns = _columns(text_column, "image" if kind == "image-classification" else "text")
    with quiet(library):
        likelihood, wanted = _labels(_config(library, folder), label_column or "label", kind)
        wanted = wanted if labels else None
        _check(rows, wanted, columns, kind)
        attention = "eager" if kind == "causal-lm" else plain_attention(library)
        model = load_model(folder, getattr(library, _HEADS[kind][0]), attention).to(device)
        encode = _encoder(library, folder, model, kind, columns, max_length, seed)

    def batches() -> Iterator[Batch]:
        remaining = iter(rows)
        while group := list(islice(remaining, batch_size)):
            batch = encode(group) | (wanted.batch(group) if wanted else {})
            yield {name: tensor.to(device) for name, tensor in batch.items()}

    forward = _next_logits if kind == "causal-lm" else _logits
    return ModelTask(model, batches, forward, likelihood, stored_names(model, tensors))


def _folder(checkpoint: Checkpoint) -> Path:
    folder = checkpoint.whole_folder()
    if folder is None:
        fact = f"{place(Path(checkpoint.label))}: is a file of weights, and config.json is needed to run the model"
        raise InvalidInput(fact, "give the model's folder, or --task file.py:make_task")
    return folder


def _kind(kind: Kind, checkpoint: Checkpoint) -> Kind:
    if kind in _HEADS:
        return kind
    if kind != "auto":
        raise InvalidInput(f"no kind of model is called {printable(kind)!r}", f"auto, {', '.join(_HEADS)}")
    raw = checkpoint.config.raw.get("architectures") if checkpoint.config else None
    said = str(raw[0]) if isinstance(raw, list) and raw else "nothing"
    for known, (_, pattern) in _HEADS.items():
        if re.search(pattern, said):
            return known
    fact = f"{place(Path(checkpoint.label))}: config.json says that the model is {printable(said)}"
    raise InvalidInput(f"{fact}, which has no head that is known here", f"--kind {', '.join(_HEADS)}")


def _columns(given: str | Sequence[str] | None, otherwise: str) -> tuple[str, ...]:
    columns = (given,) if isinstance(given, str) else tuple(given or (otherwise,))
    if len(columns) > (1 if otherwise == "image" else 2):
        raise InvalidInput(f"{len(columns)} columns of {otherwise} are given", "one, or two for pairs of texts")
    return columns


def _config(library: ModuleType, folder: Path) -> _Config:
    return cast(_Config, load(cast(Pretrained, library.AutoConfig), folder, "configuration"))


def _labels(config: _Config, column: str, kind: Kind) -> tuple[Literal["categorical", "regression"], Labels | None]:
    if kind not in ("text-classification", "image-classification"):
        return "categorical", None
    if config.problem_type == "multi_label_classification":
        raise InvalidInput("the model gives an example several labels at once", "give --task file.py:make_task")
    regression = kind == "text-classification" and (config.problem_type == "regression" or config.num_labels == 1)
    names = {str(name): int(n) for name, n in config.label2id.items() if 0 <= int(n) < config.num_labels}
    labels = Labels(column, config.num_labels, names, regression)
    return ("regression" if regression else "categorical"), labels


def _check(rows: Rows, labels: Labels | None, columns: Sequence[str], kind: Kind) -> None:
    read: Callable[[Row, str], object] = image_of if kind == "image-classification" else text_of
    check_rows(rows, labels, lambda row: [read(row, column) for column in columns])


def _encoder(
    library: ModuleType, folder: Path, model: nn.Module, kind: Kind, columns: tuple[str, ...], length: int, seed: int
) -> Encode:
    if kind == "image-classification":
        processor = load(library.AutoImageProcessor, folder, "image processor", backend="pil")
        channels = getattr(getattr(model, "config", None), "num_channels", 3)
        return Images(columns[0], cast(ImageProcessor, processor), "L" if channels == 1 else "RGB").batch
    tokenizer = load_tokenizer(library, folder)
    texts = _texts(tokenizer, model, columns, length)
    if kind == "causal-lm":
        return texts.next_tokens
    mask = getattr(tokenizer, "mask_token_id", None)
    if kind == "masked-lm" and not isinstance(mask, int):
        fact = f"{place(folder)}: the tokenizer has no mask token"
        raise InvalidInput(fact, "--kind causal-lm, or the tokenizer that belongs to the model")
    return texts.batch if kind != "masked-lm" else lambda rows: texts.masked(rows, seed, int(mask or 0))


def _texts(tokenizer: object, model: nn.Module, columns: tuple[str, ...], length: int) -> Texts:
    """How texts become tokens for this model, which is told what padding is where it does not know."""
    pretrained = cast(_Model, model)
    words = pretrained.get_input_embeddings().num_embeddings
    said = [getattr(pretrained.config, "pad_token_id", None)]
    said += [getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")]
    padding = next((n for n in said if isinstance(n, int) and 0 <= n < words), 0)
    pretrained.config.use_cache, pretrained.config.pad_token_id = False, padding
    limits = (length, getattr(tokenizer, "model_max_length", None), text_positions(model))
    length = min(n for n in limits if isinstance(n, int) and n > 0)
    inputs = frozenset(inspect.signature(model.forward).parameters)
    return Texts(columns, cast(Tokenizer, tokenizer), length, words, padding, inputs)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """(examples, classes) or (examples, positions, classes)."""
    logits: Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    return logits


def _next_logits(model: nn.Module, batch: Batch) -> Tensor:
    """(examples, positions - 1, classes): nothing follows the last token."""
    return _logits(model, batch)[:, :-1]
