"""Which rows of the other domains an expert is given, and how a trainer is told which ones they are.

```
tokens, centroids ─► shares ─(order.draw_rows)─► rows ─columns─► off_domain, reference_losses
```

A domain j is drawn from in proportion to π_j·exp(−‖c − c_j‖²/T): its tokens, and how near it is. Near domains are where a text
that belongs elsewhere is most often routed to, so that is where an expert must not be worse than the seed.

This does *not* read any text, nor does it know losses.
"""

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from lmsplit.manifests.placement import Floats

# Shapes: J domains, D dimensions, R rows.


def shares_of_others(
    tokens_J: npt.ArrayLike, centroids_JD: Floats, own_D: Floats, temperature: float | None
) -> npt.NDArray[np.float64]:
    """Return (J,) the share of each of the other domains; they add up to 1, or are all 0 where there are no tokens.

    Args:
        tokens_J: training tokens of each.
        centroids_JD: unit centroids of each.
        own_D: the unit centroid of the expert's domain.
        temperature: T, above 0; None: in proportion to the tokens.

    >>> shares_of_others([1, 1], np.eye(2, dtype=np.float32), np.array([1, 0], np.float32), 2.0).round(3).tolist()
    [0.731, 0.269]
    """
    weights_J = np.asarray(tokens_J, np.float64).copy()
    if temperature is not None:
        distances_J = np.square(centroids_JD.astype(np.float64) - own_D).sum(axis=1)
        # The nearest one's exponent is 0, so that a low temperature leaves it with a share.
        nearest = distances_J[weights_J > 0].min(initial=np.inf)
        weights_J[weights_J > 0] *= np.exp(-(distances_J - nearest)[weights_J > 0] / temperature)
    return weights_J / (weights_J.sum() or 1.0)


def mark_rows(rows: Dataset, num_own: int) -> Dataset:
    """Return the rows with the column `off_domain`: false for the first `num_own`, true for the others."""
    marks = np.arange(len(rows)) >= num_own
    return rows.add_column("off_domain", marks.tolist())


def marked(rows: Dataset) -> npt.NDArray[np.bool_]:
    """Return (R,) whether each row is of another domain."""
    return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in rows.data.column("off_domain").chunks])
