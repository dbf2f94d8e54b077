"""The rows that a run draws from several packs, as a trainer wants them: one data set, and an order of positions in it.

```
shares, RowOrder ─► the packs' rows end to end, positions ─► off_domain, reference_losses where an expert has interference
```

The first share of an expert is its own domain. This reads no tokens, and does *not* decide which rows are drawn: see `order`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel

from lmsplit.train.config import Interference
from lmsplit.train.off_domain import mark_rows
from lmsplit.train.order import RowOrder
from lmsplit.train.pack import Packed
from lmsplit.train.processes import main_first
from lmsplit.train.references import cached_reference_losses
from lmsplit.train.trainer import DomainConfig

# Shapes: S rows drawn.


class Share(NamedTuple):
    """A domain's packed documents, and how much of a run's tokens come from them."""

    packed: Packed
    share: float
    """At least 0; only the ratios between a run's shares matter."""


def joined_rows(shares: Sequence[Share], order: RowOrder) -> tuple[Dataset, npt.NDArray[np.int64]]:
    """Return the rows of all packs, and (S,) the order as positions among them."""
    packs = [share.packed for share in shares]
    offsets = np.concatenate([[0], np.cumsum([packed.num_rows for packed in packs])])
    rows = concatenate_datasets([packed.rows() for packed in packs if packed.num_rows])
    return rows.with_format("numpy"), offsets[order.pack_S] + order.row_S


def with_others_marked(
    rows: Dataset,
    positions: npt.NDArray[np.int64],
    shares: Sequence[Share],
    settings: Interference,
    seed: tuple[PreTrainedModel, str | None],
    args: DomainConfig,
    cache: Path,
) -> tuple[Dataset, str | None]:
    """Return the rows with what `interference` needs to know of those of other domains; every process calls it.

    Args:
        rows: of all packs, the own domain's first.
        positions: (S,) the order.
        shares: the packs.
        settings: what the others are trained on.
        seed: the model and the digest of its weights.
        args: the training's.
        cache: directory of the seed's losses.

    Returns:
        The rows, and the digest of the seed's losses; None where the kind needs none.
    """
    num_own = shares[0].packed.num_rows
    rows = mark_rows(rows, num_own)
    if settings.kind != "hinge":
        return rows, None
    model, weights = seed
    drawn = np.unique(positions)
    with main_first():
        return cached_reference_losses(
            rows,
            drawn[drawn >= num_own],
            model.to(args.device),
            {"seed": weights, "packs": [share.packed.digest for share in shares if share.packed.num_rows]},
            cache,
            bf16=bool(args.bf16),
            batch_size=args.per_device_train_batch_size,
        )


def tokens_of_steps(shares: Sequence[Share], order: RowOrder) -> npt.NDArray[np.int64]:
    """Return (steps + 1,) the tokens trained on after each step, from 0."""
    tokens_S = np.zeros(len(order.row_S), np.int64)
    for number, share in enumerate(shares):
        drawn = order.pack_S == number
        tokens_S[drawn] = share.packed.row_lengths()[order.row_S[drawn]]
    return np.concatenate([[0], tokens_S.reshape(order.num_steps, -1).sum(axis=1).cumsum()])
