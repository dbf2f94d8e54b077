"""The language-model loss without handing out the logits, and in float32 or on a GPU without ever holding them all.

The logits of a step are its largest tensor by far (8,192 tokens × 8,192 words: 268 MB in float32, held three times over).
PyTorch's chunked `linear_cross_entropy` keeps a part of them at a time, in the cache: whole steps are 1.32, 1.17 and 1.09 times
as fast as a bare loop's at 1, 5 and 10 million parameters in float32 on 2 cores (`benchmarks/results/training_speed.md`). In
bfloat16 on a CPU chunks gained little or nothing (tried by hand), but accelerate turns every output of a model into float32,
and not handing out the logits saves that.

It is used where it gives the model's own loss on a probe (see `add_lean_loss`): a model that caps, scales or shifts its
logits keeps its own. Needs PyTorch 2.13; older ones keep transformers' loss. This does *not* count or weight tokens.
"""

import functools
from typing import Any, Final

import torch
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from lmsplit.train.attention import probe_precision
from lmsplit.train.batches import IGNORED

_CHUNK_TOKENS: Final = 512
"""256 to 1,024 were much alike in float32 at 5m on a CPU (tried by hand)."""
_TOLERANCE: Final = 1e-2
"""Between the two losses on the probe, relative: above the rounding of 16 bits."""
_LARGE_LOGITS: Final = 100.0
"""Standard deviation of the probe's logits: beyond every cap in use (Gemma 2 caps at 30)."""


def add_lean_loss(model: PreTrainedModel) -> bool:
    """Teach a model's forward the argument `loss_alone=True`, where that gives its own loss.

    The forward is replaced on this one object, so that a wrapper such as DistributedDataParallel still goes through it.

    Args:
        model: a causal language model; its mode and weights are left as they are.

    Returns:
        Whether it was done.
    """
    if not hasattr(functional, "linear_cross_entropy") or not isinstance(model.get_output_embeddings(), torch.nn.Linear):
        return False
    own_forward = model.forward

    @functools.wraps(own_forward)
    def forward(*args: Any, loss_alone: bool = False, **kwargs: Any) -> Any:
        """Do as before, or return the loss alone."""
        return _loss_alone(model, *args, **kwargs) if loss_alone else own_forward(*args, **kwargs)

    model.forward = forward
    if _agrees(model):
        return True
    model.forward = own_forward
    return False


def _loss_alone(
    model: PreTrainedModel,
    *args: Any,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    **kwargs: Any,
) -> CausalLMOutput:
    hidden = model.base_model(*args, **kwargs).last_hidden_state[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()
    total = _total(hidden.contiguous(), model.get_output_embeddings(), targets)
    count = targets.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return CausalLMOutput(loss=total / torch.as_tensor(count, device=total.device).clamp(min=1))


def _total(hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Return the sum of the losses, in float32."""
    device = hidden.device.type
    weight: torch.Tensor = head.weight
    bias: torch.Tensor | None = head.bias
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if device == "cpu" and hidden.dtype != torch.float32:
        logits = functional.linear(hidden, weight, bias).float()
        return functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    exact = hidden.dtype == torch.float32
    loss = functional.linear_cross_entropy(
        hidden,
        weight,
        targets,
        linear_bias=bias,
        reduction="sum" if exact else "none",  # a sum in 16 bits would have 3 digits
        ignore_index=IGNORED,
        options=torch.nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=_CHUNK_TOKENS),
    )
    return loss if exact else loss.sum(dtype=torch.float32)


@torch.no_grad()
def _agrees(model: PreTrainedModel) -> bool:
    """Compare the two losses where the logits are large, so that a cap or a scale shows even with fresh weights."""
    head = model.get_output_embeddings().weight
    ids = torch.arange(16, device=model.device).mul(7919).remainder(head.shape[0])[None]
    was_training, kept = model.training, head.detach().clone()
    model.eval()
    try:
        with probe_precision(model):
            head.mul_(_LARGE_LOGITS / model(input_ids=ids, use_cache=False).logits.float().std())
            own = model(input_ids=ids, labels=ids, use_cache=False).loss
            alone = model(input_ids=ids, labels=ids, use_cache=False, loss_alone=True).loss
    except (TypeError, ValueError, AttributeError, RuntimeError):  # it is made otherwise inside, or wants other inputs
        return False
    finally:
        head.copy_(kept)
        model.train(was_training)
    return bool((own - alone).abs() <= _TOLERANCE * own.abs())
