"""Places a single text by a manifest's rule, and says how near it comes to the other domains.

Cost: encoding the text, and one product with every centroid. This does *not* decide whether a placement confirms what is
recorded (that is `recheck`); whole corpora are placed elsewhere.

Shape legend: D dimensions of the vectors, M nodes of the tree.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.explanation import Score
from lmsplit.manifests.layout import domain_name
from lmsplit.manifests.placement import Encoder, Floats, is_unit, lengths
from lmsplit.manifests.reader import Manifest

_NUM_SCORES = 5


class Placed(NamedTuple):
    """Where a text belongs by the rule, as the columns of the same names say it."""

    domain: str
    distance: float
    second_domain: str | None
    second_distance: float | None
    margin: float | None


def encoded(encoder: Encoder, text: str) -> Floats | None:
    """Return the unit vector of a text, (D,); None where the encoder finds nothing in it."""
    vectors_ND = encoder.encode([text])
    return vectors_ND[0] if is_unit(vectors_ND)[0] else None


def place(manifest: Manifest, vector_D: Floats) -> Placed:
    """Place a unit vector by the manifest's rule."""
    placed = manifest.rule().place(vector_D[None])
    second = int(placed.second_domain[0])
    distance, second_distance, margin = (float(value[0]) for value in (placed.distance, placed.second_distance, placed.margin))
    domain = domain_name(int(placed.domain[0]))
    if second < 0:
        return Placed(domain, distance, None, None, None)
    return Placed(domain, distance, domain_name(second), second_distance, margin)


def scores(manifest: Manifest, vector_D: Floats, placed: Placed) -> tuple[Score, ...]:
    """Return the five domains that a vector comes nearest to, nearest first: the domain itself, the runner-up, and so on.

    In a tree the costs of leaves with different parents do not compare: the choice falls among siblings, level by level. So
    domains are ordered by what all rules have: the largest advantage, on the way from the root, of the cheapest sibling over
    the one that leads there. For the runner-up that is the margin.

    Args:
        manifest: the manifest.
        vector_D: a unit vector.
        placed: where it belongs.
    """
    rule = manifest.rule()
    dots_M = np.einsum("md,d->m", rule.centroids_MD, vector_D, dtype=np.float64)
    cost_M = (1.0 - dots_M) + rule.prices_M
    margin_M = _margins(cost_M, rule.tree.parent_M.tolist())
    names = [domain_name(k) for k in range(rule.num_domains)]
    # A plain product may order what ties to the last bit otherwise than the rule's exact sums.
    order = sorted(
        zip(names, rule.leaf_nodes_K.tolist(), strict=True),
        key=lambda item: (item[0] != placed.domain, item[0] != placed.second_domain, margin_M[item[1]]),
    )
    norms_M = lengths(rule.centroids_MD)
    return tuple(
        Score(name, manifest.label(name), float(cost_M[node]), _distance(dots_M[node], norms_M[node]), margin_M[node])
        for name, node in order[:_NUM_SCORES]
    )


def _margins(cost_M: npt.NDArray[np.float64], parent_M: Sequence[int]) -> list[float]:
    """Return of each node the largest lead of a cheapest sibling, over itself or over a node above it."""
    cheapest: dict[int, float] = {}
    for parent, cost in zip(parent_M, cost_M.tolist(), strict=True):
        cheapest[parent] = min(cost, cheapest.get(parent, math.inf))
    margins: list[float] = []
    for parent, cost in zip(parent_M, cost_M.tolist(), strict=True):  # a parent stands before its children
        margins.append(max(cost - cheapest[parent], margins[parent] if parent >= 0 else 0.0))
    return margins


def _distance(dot: float, norm: float) -> float:
    return float(np.float32(1.0 - dot / (1.0 if abs(norm - 1) <= 1e-6 else norm)))


def cosine(first_D: Floats, second_D: Floats) -> float:
    """Return the cosine of two vectors, in float64, -1 to 1."""
    dot, norms = np.einsum("d,d->", first_D, second_D, dtype=np.float64), lengths(np.stack([first_D, second_D]))
    return float(np.clip(dot / norms.prod(), -1.0, 1.0))
