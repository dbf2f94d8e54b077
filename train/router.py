"""Finds the expert for a text: the manifest's own encoder and placement rule, over a directory of experts.

The same code and the same files placed the training documents, so a text lands where its like was trained.
Where that expert is missing or not what its record says, the seed answers instead, and the route says so and
why.

It names a model and does not run one, so it needs torch only where the manifest's encoder does (`lexical`
does not). Cost: one encoding of the text's prefix; the first route to an expert digests its weights (about
1 GB/s). There is no threshold on the margin and no mixing of experts yet.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.layout import domain_name
from lmsplit.manifests.placement import Encoder, Floats, PlacementRule, is_unit
from lmsplit.manifests.reader import Domain, open_placement
from lmsplit.manifests.store import local_path
from lmsplit.train.layout import EXPERTS, PLACEMENT, SEED, placement_manifest
from lmsplit.train.record import read_record, weights_sha256


@dataclass(frozen=True)
class Route:
    """Where one text goes."""

    domain: str | None
    """Where it is placed, even when another model answers; None for a text the encoder finds nothing in."""
    label: str | None
    margin: float | None
    """Cost of the runner-up minus the domain's; None where there is none."""
    expert: str | None
    """Directory of the model that shall answer, relative to the experts' directory; None where there is none
    at all.
    """
    fallback: bool
    """Whether that is not the domain's own expert."""
    reason: str | None
    """Why it fell back."""
    scores: dict[str, float]
    """By domain; the highest is the placement (ties go to the first): see `scores`."""

    def to_json(self) -> dict[str, Any]:
        """Return the route as a JSON object."""
        return asdict(self)


class Router:
    """Routes texts to the experts in a directory. Make it with `Router.open`."""

    def __init__(self, directory: Path, rule: PlacementRule, encoder: Encoder, domains: Sequence[Domain]) -> None:
        self._directory = directory
        self._rule = rule
        self._encoder = encoder
        self._labels = {domain.domain: domain.label for domain in domains}
        self._manifest = placement_manifest(directory)
        self._fault = cache(self._look_for_fault)

    @classmethod
    def open(cls, directory: str | Path, model: str | None = None, *, trust_remote_code: bool = False) -> "Router":
        """Open a training output.

        Args:
            directory: what `output` names in the training configuration.
            model: directory of the encoder's model, where the manifest knows it by its digests alone.
            trust_remote_code: allow a model that needs it to run its own code.

        Raises:
            ManifestError: it has no placement rule, or one with a wrong digest.
            ConfigurationError: the encoder's model or library is not to be had here.
        """
        path = local_path(str(directory))
        placement_manifest(path)
        return cls(path, *open_placement(path / PLACEMENT, model, trust_remote_code=trust_remote_code))

    def route(self, texts: Sequence[str]) -> list[Route]:
        """Return the route of each text."""
        vectors_ND = self._encoder.encode(texts)
        return [self._route(vector_D) for vector_D in vectors_ND]

    def _route(self, vector_D: Floats) -> Route:
        if not is_unit(vector_D[None])[0]:
            seed, reason = self._fall_back("the encoder finds nothing in the text")
            return Route(None, None, None, seed, True, reason, {})
        placed = self._rule.place(vector_D[None])
        domain = domain_name(int(placed.domain[0]))
        margin = float(placed.margin[0])
        own = f"{EXPERTS}/{domain}"
        fault = self._fault(own)
        return Route(
            domain=domain,
            label=self._labels.get(domain),  # a hand-over has some of the rule's domains only
            margin=None if np.isnan(margin) else margin,
            expert=own if fault is None else self._fall_back(fault)[0],
            fallback=fault is not None,
            reason=None if fault is None else self._fall_back(fault)[1],
            scores={domain_name(leaf): score for leaf, score in enumerate(scores(self._rule, vector_D).tolist())},
        )

    def _fall_back(self, reason: str) -> tuple[str | None, str]:
        seed_fault = self._fault(SEED)
        return (SEED, reason) if seed_fault is None else (None, f"{reason}; {seed_fault}")

    def _look_for_fault(self, name: str) -> str | None:
        """Return what is wrong with a model, or None; looked for once."""
        directory = self._directory / name
        if not directory.is_dir():
            return f"{name} is missing"
        try:
            record = read_record(directory)
        except ManifestError:
            return f"{name} has no readable record"
        if record.manifest.digest != self._manifest:
            return f"{name} was trained on another manifest ({record.manifest.digest})"
        if (found := weights_sha256(directory)) != record.weights_sha256:
            return f"{name} has weights with digest {found}, its record says {record.weights_sha256}"
        return None


def scores(rule: PlacementRule, vector_D: Floats) -> npt.NDArray[np.float64]:
    """Return (K,) how well a vector fits each domain; the highest is where the rule places it.

    With flat domains that is the product with the centroid minus the price, 1 - cost. In a tree only the costs of siblings can be
    compared, so a domain has the score of the one that the vector is placed on, minus all that its path costs more at each level
    than the cheapest branch there.
    """
    scores_M = rule.centroids_MD.astype(np.float64) @ vector_D - rule.prices_M
    parents = rule.tree.parent_M + 1
    best_M = np.full(len(scores_M) + 1, -np.inf)
    np.maximum.at(best_M, parents, scores_M)
    behind_M = best_M[parents] - scores_M
    for node, parent in enumerate(rule.tree.parent_M):  # breadth first: a parent's is complete before its children's
        behind_M[node] += behind_M[parent] if parent >= 0 else 0.0
    behind_K = behind_M[rule.leaf_nodes_K]
    return np.asarray(scores_M[rule.leaf_nodes_K[behind_K.argmin()]] - behind_K)
