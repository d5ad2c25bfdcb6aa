"""Example inputs for a model of transformers or diffusers, from the signature of its forward and from its config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn

TOKENS = 8  # of a text


def example_inputs(module: nn.Module) -> dict[str, Tensor]:
    """Inputs by name, one of a batch, of the right shapes; values are zero. Empty where the model is of another kind.

    Text as `input_ids` (1, 8), images as `pixel_values` (1, channels, size, size), sound as `input_values` or
    `input_features`; for diffusers `sample`, `timestep` and `encoder_hidden_states`.
    """
    taken = inspect.signature(module.forward).parameters
    config = getattr(module, "config", None)
    main = getattr(module, "main_input_name", None)
    if main is None:
        return _of_diffusers(taken, config)
    made: dict[str, Tensor] = {}
    if "input_ids" in taken and main in ("input_ids", "pixel_values"):
        made["input_ids"] = torch.zeros(1, TOKENS, dtype=torch.long)
        if _said(config, "is_encoder_decoder") and "decoder_input_ids" in taken:
            made["decoder_input_ids"] = torch.zeros(1, TOKENS, dtype=torch.long)
    if "pixel_values" in taken and (main == "pixel_values" or "logit_scale" in dict(module.named_parameters())):
        vision = _said(config, "vision_config") or config
        height, width = _pair(_said(vision, "image_size"), 224)
        made["pixel_values"] = torch.zeros(1, _number(_said(vision, "num_channels"), 3), height, width)
    if main == "pixel_values" and "logit_scale" not in dict(module.named_parameters()):
        made.pop("input_ids", None)
    if main == "input_values":
        made["input_values"] = torch.zeros(1, 16_000)
    if main == "input_features":
        length = 2 * _number(_said(config, "max_source_positions"), 1_500)
        made["input_features"] = torch.zeros(1, _number(_said(config, "num_mel_bins"), 80), length)
        if "decoder_input_ids" in taken:
            made["decoder_input_ids"] = torch.zeros(1, TOKENS, dtype=torch.long)
    return made


def _of_diffusers(taken: Mapping[str, inspect.Parameter], config: object) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    spatial = next((name for name in ("sample", "hidden_states") if name in taken), None)
    if spatial is not None and _said(config, "in_channels"):
        height, width = _pair(_said(config, "sample_size"), 32)
        made[spatial] = torch.zeros(1, _number(_said(config, "in_channels"), 3), height, width)
    if made and "timestep" in taken:
        made["timestep"] = torch.zeros(1, dtype=torch.long)
    across = _said(config, "cross_attention_dim")
    if made and "encoder_hidden_states" in taken and isinstance(across, int):
        made["encoder_hidden_states"] = torch.zeros(1, TOKENS, across)
    return made


def _said(config: object, key: str) -> object:
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def _number(found: object, otherwise: int) -> int:
    return found if isinstance(found, int) and found > 0 else otherwise


def _pair(found: object, otherwise: int) -> tuple[int, int]:
    if isinstance(found, list | tuple) and len(found) == 2:
        return _number(found[0], otherwise), _number(found[1], otherwise)
    return _number(found, otherwise), _number(found, otherwise)
