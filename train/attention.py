"""Keeps attention inside documents: what a model must be given so that no document in a row sees another.

Eager and SDPA attention get one mask for a batch; flash attention gets the bounds of the pieces (see `batches.RowCollator`).
Every other kind is refused by name, and `check_attention` runs the model once on two documents in one row and apart: whatever
the model is made of (recurrent layers, a mask that is passed over), a leak is found before the first step. Cost: three
forward passes over 16 tokens. This does *not* choose the attention: that is `attn_implementation` of the model.
"""

from typing import Any, Final

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from lmsplit.train.batches import RowCollator

MASKED: Final = frozenset({"eager", "sdpa"})
FLAT: Final = frozenset(
    {"flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2", "kernels-community/flash-attn3"}
)
_PIECE: Final = 8
_LARGEST_DIFFERENCE: Final = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Of logits, relative to their standard deviation. Seen on the presets 1m to 30m with fresh weights: rounding is below 5e-6 in
float32, a leak above 5. In 16 bits: assumption.
"""


def is_flat(model: PreTrainedModel) -> bool:
    """Whether the model wants the documents of a batch end to end in one row.

    Raises:
        ValueError: its attention is not known to stay within documents.
    """
    kind = str(model.config._attn_implementation)
    if kind not in MASKED | FLAT:
        raise ValueError(
            f"attention {kind!r} is not known to stay within the documents of a packed row: "
            f"load the model with attn_implementation one of {', '.join(sorted(MASKED | FLAT))}"
        )
    return kind in FLAT


def confine(batch: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Return what the model is given: `document_ids` are replaced by a mask that confines attention to them.

    Args:
        batch: of a `RowCollator`, on the model's device; one without `document_ids` is returned as it is.
        model: whose configuration names the attention.
    """
    if "document_ids" not in batch:
        return batch
    batch = dict(batch)
    documents = batch.pop("document_ids")
    config = model.config.get_text_config()
    if not _has_plain_layers(config):
        return batch  # such layers have masks of their own, which transformers makes from the positions
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    allowed = (documents[:, None, :, None] == documents[:, None, None, :]) & causal
    if config._attn_implementation == "eager":  # adds its mask to the scores
        blocked = torch.zeros(allowed.shape, dtype=model.dtype, device=documents.device)
        batch["attention_mask"] = blocked.masked_fill_(~allowed, torch.finfo(model.dtype).min)
    else:
        batch["attention_mask"] = allowed
    return batch


def _has_plain_layers(config: PreTrainedConfig) -> bool:
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and getattr(config, "sliding_window", None) is None


def probe_precision(model: PreTrainedModel) -> torch.autocast:
    """Return the context in which a model can be tried out: flash attention computes in 16 bits only."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=is_flat(model))


@torch.no_grad()
def check_attention(model: PreTrainedModel) -> None:
    """Compare the logits of two documents in one row with those of each alone.

    Raises:
        ValueError: they differ, so the model lets one document see another.
    """
    flat = is_flat(model)
    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(2 * _PIECE).mul(7919).remainder(size).tolist()
    first, second = ids[:_PIECE], ids[_PIECE:]
    collate = RowCollator(0, flat=flat)
    was_training = model.training
    model.eval()
    try:
        together = _logits(model, collate([{"input_ids": ids, "seq_lengths": [_PIECE, _PIECE]}]))
        alone = [_logits(model, collate([{"input_ids": each, "seq_lengths": [_PIECE]}])) for each in (first, second)]
    finally:
        model.train(was_training)
    apart = torch.cat(alone, dim=1)
    difference = float((together - apart).abs().max() / apart.std())
    dtype = torch.bfloat16 if flat else model.dtype
    if difference > _LARGEST_DIFFERENCE.get(dtype, 1e-3):
        raise ValueError(
            f"{type(model).__name__} with attention {model.config._attn_implementation!r} lets documents of a row see each other "
            f"(logits differ by {difference:.2g} standard deviations): packed rows would mix them; choose another model or "
            "attention"
        )


def _logits(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    on_device = {name: value.to(model.device) if hasattr(value, "to") else value for name, value in batch.items()}
    del on_device["labels"]
    with probe_precision(model):
        logits: torch.Tensor = model(**confine(on_device, model), use_cache=False).logits
    return logits.float()
