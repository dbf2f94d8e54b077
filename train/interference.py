"""What an expert learns from documents of the other domains: to be no worse there than the seed it came from.

```
own rows ────► mean loss of the step's own tokens ─────────────────────────┐
other rows ─► token losses ─(− the seed's − margin, cut at 0)─► mean × λ ──┴─► objective
```

    J(θ) = E_own ℓ_t(θ) + λ · E_others max(0, ℓ_t(θ) − ℓ_t(θ₀) − m)

The hinge, drawn above, is our own proposal. The cut excess over a reference is that of DoReMi (arXiv 2305.10429), the
constraint that of GEM (arXiv 1706.08840). Where an expert is no worse than the seed there is no gradient, unlike replay, which
always pulls, and unlike the divergence from the seed's predictions (`kl`), which also resists where the expert has become
better. It pays no more than replay does; `kl` pays more than both and is the default (measured:
benchmarks/results/interference.md).

Both expectations are over tokens, estimated in each step by sums over its own tokens' number, and over the number of other
tokens that a step has on average: a step without other rows adds nothing, one with several adds more.

This does *not* choose the other rows (`off_domain`) nor measure the seed (`references`).

Shapes: B rows, T positions, V words.
"""

from typing import Any, Final, NamedTuple

import torch
from torch.nn import functional
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from lmsplit.train.batches import IGNORED
from lmsplit.train.config import Dual, Interference

_SUMS: Final = ("own_nats", "own_tokens", "off_nats", "off_excess", "off_tokens")


class Penalty(NamedTuple):
    """What a batch of the other domains' rows costs."""

    total: torch.Tensor
    """Sum of the penalties p over the tokens; what is minimised."""
    excess: torch.Tensor | None
    """The same, as a number: what a dual weight follows. None for replay, which compares with nothing."""
    nats: torch.Tensor
    """Sum of the losses."""
    num_tokens: torch.Tensor
    """Tokens predicted."""


def token_losses(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return (B, T - 1) the loss of predicting each token but the first, nats; 0 where there is no label.

    Args:
        logits_BTV: of each position.
        labels_BT: the tokens; `IGNORED` where none is predicted.
    """
    flat = functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(len(labels_BT), -1)


def penalty(
    settings: Interference,
    margin: float,
    logits_BTV: torch.Tensor,
    batch: dict[str, torch.Tensor],
    seed_logits_BTV: torch.Tensor | None = None,
) -> Penalty:
    """Return what a batch of the other domains' rows costs.

    Args:
        settings: the kind and the level.
        margin: nats of excess that cost nothing.
        logits_BTV: the expert's.
        batch: `labels`, `position_ids` and, for the hinge, the seed's `reference_losses`, all (B, T).
        seed_logits_BTV: the seed's, for `kl`.

    >>> rows = {"labels": torch.tensor([[7, 1]]), "position_ids": torch.tensor([[0, 1]]), "reference_losses": torch.ones(1, 2)}
    >>> round(penalty(Interference(kind="hinge"), 0.0, torch.zeros(1, 2, 8), rows).total.item(), 4)  # ln 8 − 1
    1.0794
    """
    labels_BT = batch["labels"]
    losses = token_losses(logits_BTV, labels_BT)
    counted = labels_BT[:, 1:] != IGNORED
    num_tokens, nats = counted.sum(), losses.detach().sum()
    if settings.kind == "replay":
        return Penalty(losses.sum(), None, nats, num_tokens)
    if settings.kind == "kl":
        assert seed_logits_BTV is not None
        total = (_divergence(seed_logits_BTV, logits_BTV) * counted).sum()
    else:
        excess = (losses - batch["reference_losses"][:, 1:]) * counted
        if settings.level == "document":
            total = _hinge_by_piece(excess, counted, batch["position_ids"][:, 1:], margin)
        else:
            total = (excess - margin).clamp(min=0).sum()
    return Penalty(total, total.detach(), nats, num_tokens)


def _divergence(seed_logits_BTV: torch.Tensor, logits_BTV: torch.Tensor) -> torch.Tensor:
    """Return (B, T - 1) KL(seed ‖ expert) of each prediction, nats."""
    seed, own = (functional.log_softmax(logits[:, :-1].float(), dim=-1) for logits in (seed_logits_BTV, logits_BTV))
    return functional.kl_div(own, seed, log_target=True, reduction="none").sum(-1)


def _hinge_by_piece(excess: torch.Tensor, counted: torch.Tensor, positions: torch.Tensor, margin: float) -> torch.Tensor:
    """Return the sum over pieces of documents of tokens × the cut mean excess; a piece begins where a position is 0."""
    starts = positions == 0
    starts[:, 0] = True  # rows are flattened: a row never goes on with the piece of the one before
    piece = starts.flatten().cumsum(0)
    sums = excess.new_zeros(piece.numel() + 1).index_add(0, piece, excess.flatten())
    counts = excess.new_zeros(piece.numel() + 1).index_add(0, piece, counted.flatten().to(excess.dtype))
    return ((sums / counts.clamp(min=1) - margin).clamp(min=0) * counts).sum()


class InterferenceState(TrainerCallback, ExportableState):
    """The weight λ of a run, its margin, and sums for the next log line; goes with the run's checkpoints.

    Args:
        weight: λ.
        margin: nats of excess that cost nothing.
        noise: numerical noise that was measured before the first step, nats; None before.
    """

    def __init__(self, weight: float, margin: float, noise: float | None = None) -> None:
        self.weight: torch.Tensor = torch.tensor(weight)
        self.margin = margin
        self.noise = noise
        self._sums: dict[str, torch.Tensor] = {}
        self._newest = torch.zeros(2)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {"weight": self.weight.item(), "margin": self.margin, "noise": self.noise}, "attributes": {}}

    def raise_margin(self, noise: float) -> None:
        """Take note of the measured noise: what lies below it is no excess."""
        self.noise = noise
        self.margin = max(self.margin, noise)

    def add(self, **sums: torch.Tensor | float) -> None:
        """Add to the sums of the next log line, without waiting for the device."""
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + torch.as_tensor(value).float()
        if "off_excess" in sums:
            self._newest = torch.stack([torch.as_tensor(sums[name]).float() for name in ("off_excess", "off_tokens")])

    def newest(self) -> torch.Tensor:
        """Return (2,) the excess and the tokens of the newest batch, once; zeros where it had no rows of other domains."""
        found, self._newest = self._newest, torch.zeros_like(self._newest)
        return found

    def follow(self, dual: Dual, excess: torch.Tensor, num_tokens: torch.Tensor) -> None:
        """Move the weight after a batch.

        Args:
            dual: the target and the rate.
            excess: sum over the other domains' tokens of all processes.
            num_tokens: how many there were; the weight stays where there were none.
        """
        step = dual.rate * (excess / num_tokens.clamp(min=1) - dual.target) * (num_tokens > 0)
        self.weight = (self.weight.to(step.device) + step).clamp(min=0)

    def rates(self, reduce: Any) -> dict[str, float]:
        """Return the means since they were last asked for.

        Args:
            reduce: sums a tensor over all processes.
        """
        sums = reduce(torch.tensor([float(self._sums.get(name, 0.0)) for name in _SUMS]))
        was_compared, self._sums = "off_excess" in self._sums, {}
        own_nats, own_tokens, off_nats, off_excess, off_tokens = sums.tolist()
        found = {"interference_weight": self.weight.item()}
        if own_tokens:
            found["own_loss"] = own_nats / own_tokens
        if off_tokens:
            found["off_domain_loss"] = off_nats / off_tokens
            found |= {"off_domain_excess": off_excess / off_tokens} if was_compared else {}
        return found
