"""Builds the seed's starting weights: fresh ones of a preset or an inline configuration, or a given model's.

Weights are read from safetensors only and no code that comes with a model is run. Weights are held in
float32; mixed precision is the trainer's affair. This does *not* train.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import is_flash_attn_2_available

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.store import file_sha256
from lmsplit.train.config import InlineModel
from lmsplit.train.presets import GIVEN, PRESETS, Preset


class ParameterCount(NamedTuple):
    """How large a model is."""

    total: int
    """Every parameter, tied embeddings once."""
    non_embedding: int
    """Without the input and output embeddings."""


def preset_of(model: str | InlineModel) -> Preset:
    """Return the preset that `model` names, or the training defaults of given models."""
    return PRESETS.get(model, GIVEN) if isinstance(model, str) else GIVEN


def has_given_weights(model: str | InlineModel) -> bool:
    """Whether `model` is a path or a hub id, and not a shape with fresh weights."""
    return isinstance(model, str) and model not in PRESETS


def describe_model(model: str | InlineModel) -> dict[str, Any]:
    """Return what determines the starting weights besides tokenizer and seed, for the configuration's digest.

    A local directory is described by the digests of its weights, a hub id by its name.
    """
    if isinstance(model, InlineModel):
        return {"config": model.config}
    if not has_given_weights(model):
        return {"preset": model}
    weights = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    return {"weights": {path.name: file_sha256(path) for path in weights}} if weights else {"hub": model}


def attention_kind(wanted: str) -> str:
    """Return the attention that the configuration's `attention` means on this machine, as transformers calls it."""
    if wanted != "auto":
        return wanted
    return "flash_attention_2" if torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"


def build_model(
    model: str | InlineModel, tokenizer: PreTrainedTokenizerBase, seed: int, attention: str = "sdpa"
) -> PreTrainedModel:
    """Return the model that the seed's training starts from.

    Args:
        model: a preset, an inline configuration, a local path or a hub id.
        tokenizer: decides the vocabulary's size and the special tokens of fresh models.
        seed: of fresh weights.
        attention: how it is computed, as transformers calls it.

    Raises:
        ConfigurationError: the configuration is no causal language model's, the model cannot be had, or its
            vocabulary is too small for the tokenizer.
    """
    if isinstance(model, str) and model not in PRESETS:
        return _given(model, tokenizer, attention)
    fields = dict(model.config) if isinstance(model, InlineModel) else PRESETS[model].model_config(len(tokenizer))
    fields |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    fields |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    set_seed(seed)
    try:
        config = AutoConfig.for_model(**fields)
        built: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    except (ValueError, TypeError, KeyError, ImportError, StrictDataclassError) as error:
        raise ConfigurationError(f"model.config: {str(error).partition('. ')[0]}") from error
    return built


def load_model(directory: Path, attention: str = "sdpa") -> PreTrainedModel:
    """Open a model that this project wrote, in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, use_safetensors=True, attn_implementation=attention
    )
    return model


def count_parameters(model: PreTrainedModel) -> ParameterCount:
    """Count a model's parameters."""
    total = sum(parameter.numel() for parameter in model.parameters())
    ends = {layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None}
    return ParameterCount(total, total - sum(weight.numel() for weight in ends))


def _given(name: str, tokenizer: PreTrainedTokenizerBase, attention: str) -> PreTrainedModel:
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, attn_implementation=attention
        )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigurationError(
            f"model {name!r} is no preset ({', '.join(PRESETS)}), "
            f"and no usable model is at that path or on the hub: {str(error).strip().partition(chr(10))[0]}"
        ) from error
    if (rows := model.get_input_embeddings().weight.shape[0]) < len(tokenizer):
        raise ConfigurationError(
            f"model {name!r} has {rows} embeddings, the tokenizer {len(tokenizer)} tokens: "
            "leave out the key tokenizer to use the model's own"
        )
    return model


def copy_model(model: PreTrainedModel, attention: str = "sdpa") -> PreTrainedModel:
    """Return a model with the same weights, on the same device; what a trainer hung onto it is left out."""
    copy: PreTrainedModel = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype, attn_implementation=attention)
    copy.load_state_dict(model.state_dict())
    return copy.to(model.device)
