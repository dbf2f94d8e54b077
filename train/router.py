"""Finds the expert for a text: the manifest's own encoder and a rule, over a directory of experts.

The rule for short texts is the one for prompts that `lmsplit evaluate` fitted (see `prompt_rule`); for others, where there is
none, or where `by_placement` asks for it, the manifest's own. The same code and the same files placed the training documents, so
a text lands where its like was trained. Where that expert is missing or not what its record says, the seed answers instead, and
the route says so and why.

A text whose margin is below a threshold goes to the seed. Several experts may answer together, each with a weight
(see `mixing`); the weight of one that is missing goes to the seed. A sentence encoder computes each text by itself here, soonest
done for one; its distances differ from the manifest's by at most the tolerance that its description states.

It names models and does not run them, so it needs torch only where the manifest's encoder does (`lexical`
does not). Cost: one encoding of the texts' prefixes; the first route to an expert, and the first after its directory has
changed, digests its weights (about 1 GB/s).
"""

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.errors import ConfigurationError, ManifestError
from lmsplit.manifests.layout import domain_name
from lmsplit.manifests.placement import Encoder, Floats, PlacementRule, Placements, is_unit
from lmsplit.manifests.reader import Domain, open_placement
from lmsplit.manifests.store import local_path
from lmsplit.train.layout import EVALUATION, EXPERTS, PLACEMENT, SEED, placement_manifest
from lmsplit.train.mixing import TEMPERATURE, mixture_weights
from lmsplit.train.prompt_rule import FittedRouting
from lmsplit.train.record import read_record, weights_sha256


class RoutedBy(StrEnum):
    """What decides where a text goes."""

    PROMPTS = "prompts"
    """The rule that an evaluation fitted to prompts."""
    PLACEMENT = "placement"
    """The rule by which the manifest's documents were placed."""
    LIKELIHOOD = "likelihood"
    """The experts' own losses (see `likelihood_router`)."""


@dataclass(frozen=True)
class Routing:
    """How texts are routed."""

    num_experts: int = 1
    """How many experts answer together, at least 1; more than there are domains means all of them."""
    temperature: float | None = None
    """T of their weights: see `mixing`; None: the one that `lmsplit evaluate` fitted, else c-BTM's; 1 by likelihood."""
    min_margin: float = 0.0
    """By how much the runner-up has to be behind, in the units of `Route.margin`, which differ by what decides; texts with less
    go to the seed.
    """
    by_placement: bool = False
    """Route by the manifest's own rule, even where there is one for prompts; a `LikelihoodRouter` asks neither."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: one of them cannot be.
        """
        is_temperature = self.temperature is None or (self.temperature > 0 and math.isfinite(self.temperature))
        if self.num_experts < 1 or not is_temperature or not self.min_margin >= 0:
            raise ConfigurationError(
                f"routing needs num_experts of at least 1, a temperature above 0 and a min_margin of at least 0, found {self}"
            )


@dataclass(frozen=True)
class Route:
    """Where one text goes."""

    domain: str | None
    """Where it is placed, even when another model answers; None for a text the encoder finds nothing in."""
    label: str | None
    margin: float | None
    """By how much the runner-up is behind; None where there is none. By placement the difference in cost, else in nats: the
    logarithm of how many times as likely the domain is.
    """
    runner_up: str | None
    """The domain that comes next; None where there is none."""
    expert: str | None
    """Directory of the model that shall answer, relative to the experts' directory; None where there is none
    at all.
    """
    fallback: bool
    """Whether that is not the domain's own expert, or another one that should answer with it is not to be had."""
    reason: str | None
    """Why it fell back."""
    routed_by: str
    """What decided: see `RoutedBy`."""
    temperature: float
    """T of the weights."""
    scores: dict[str, float]
    """By domain; the highest is where it is placed (ties go to the first): see `scores`, `PromptRule.scores`."""
    weights: dict[str, float]
    """By directory of the models that shall answer together, adding up to 1; one model alone has 1."""

    def to_json(self) -> dict[str, Any]:
        """Return the route as a JSON object."""
        return asdict(self)


class Router:
    """Routes texts to the experts in a directory. Make it with `Router.open`."""

    def __init__(
        self,
        directory: Path,
        rule: PlacementRule,
        encoder: Encoder | None,
        domains: Sequence[Domain],
        settings: Routing,
        fitted: FittedRouting | None = None,
    ) -> None:
        self._directory = directory
        self._rule = rule
        self._encoder = encoder
        self._labels = {domain.domain: domain.label for domain in domains}
        self._names = [domain_name(leaf) for leaf in range(rule.num_domains)]
        self._manifest = placement_manifest(directory)
        self._faults: dict[str, tuple[int, str | None]] = {}
        self._settings = settings
        self._fitted = fitted

    @classmethod
    def open(
        cls,
        directory: str | Path,
        model: str | None = None,
        *,
        trust_remote_code: bool = False,
        settings: Routing = Routing(),
    ) -> "Router":
        """Open a training output.

        Args:
            directory: what `output` names in the training configuration.
            model: directory of the encoder's model, where the manifest knows it by its digests alone.
            trust_remote_code: allow a model that needs it to run its own code.
            settings: how many experts answer, and when the seed does.

        Raises:
            ManifestError: it has no placement rule, or one with a wrong digest; or what was fitted for it cannot be read.
            ConfigurationError: the encoder's model or library is not to be had here.
        """
        path = local_path(str(directory))
        manifest = placement_manifest(path)
        rule, encoder, domains = open_placement(path / PLACEMENT, model, trust_remote_code=trust_remote_code)
        if settings.by_placement and (settings.temperature is not None or settings.num_experts == 1):
            return cls(path, rule, encoder, domains, settings)  # needs nothing that was fitted
        fitted = FittedRouting.read(path / EVALUATION, manifest, (rule.num_domains, rule.centroids_MD.shape[1]))
        return cls(path, rule, encoder, domains, settings, fitted)

    @property
    def placement_rule(self) -> PlacementRule:
        """The manifest's own rule."""
        return self._rule

    def fitted_with(self, fitted: FittedRouting) -> "Router":
        """Return a router of the same encoder and rule that goes by what was fitted, as one that is opened later does."""
        router = copy(self)
        router._fitted, router._settings = fitted, Routing()
        return router

    def route(self, texts: Sequence[str]) -> list[Route]:
        """Return the route of each text."""
        return self.route_vectors(texts, self.vectors(texts))

    def vectors(self, texts: Sequence[str]) -> Floats:
        """Return (N, D) the unit vectors of texts, rows of zeros where the encoder finds nothing."""
        assert self._encoder is not None, "another way to route needs none"
        return self._encoder.encode([well_formed(text) for text in texts])

    def route_vectors(self, texts: Sequence[str], vectors_ND: Floats) -> list[Route]:
        """Return the route of each text, given what `vectors` returned for it."""
        rule = None if self._fitted is None or self._settings.by_placement else self._fitted.prompt_rule
        is_prompt = [rule is not None and len(text) <= rule.max_characters for text in texts]
        prompts = iter(self._by_prompt_rule(vectors_ND[is_prompt]) if any(is_prompt) else [])
        others = iter([] if all(is_prompt) else self._by_placement(vectors_ND[np.logical_not(is_prompt)]))
        return [next(prompts if each else others) for each in is_prompt]

    def _by_prompt_rule(self, vectors_ND: Floats) -> list[Route]:
        assert self._fitted is not None
        assert self._fitted.prompt_rule is not None
        found_N = is_unit(vectors_ND)
        scores_FK = self._fitted.prompt_rule.scores(vectors_ND[found_N])
        return self._routes(found_N, scores_FK, RoutedBy.PROMPTS, self._fitted.prompt_temperature)

    def _by_placement(self, vectors_ND: Floats) -> list[Route]:
        found_N = is_unit(vectors_ND)
        placed = self._rule.place_units(vectors_ND[found_N])
        scores_FK = scores(self._rule, vectors_ND[found_N])
        temperature = TEMPERATURE if self._fitted is None else self._fitted.placement_temperature
        return self._routes(found_N, scores_FK, RoutedBy.PLACEMENT, temperature, placed)

    def _routes(
        self,
        found_N: npt.NDArray[np.bool_],
        scores_FK: npt.NDArray[np.float64],
        by: RoutedBy,
        temperature: float,
        placed: Placements | None = None,
    ) -> list[Route]:
        """Return the routes of texts, of which something was found in F: the settings' temperature goes first.

        They go where they are placed, with its margin; without that to where their score is highest, twice which is in nats.
        """
        temperature = self._settings.temperature or temperature
        weights_F = repeat(None) if self._settings.num_experts == 1 else self._weights(scores_FK, temperature)
        placed_F = repeat(None) if placed is None else zip(placed.domain.tolist(), placed.margin.tolist(), strict=True)
        routes = map(partial(self._route, by, temperature), scores_FK.tolist(), weights_F, placed_F)
        return [next(routes) if found else self._nowhere(by, temperature) for found in found_N.tolist()]

    def _weights(self, scores_FK: npt.NDArray[np.float64], temperature: float) -> Iterator[dict[str, float]]:
        """Yield the weights of the experts that answer each text together."""
        for weights_K in mixture_weights(scores_FK, temperature, self._settings.num_experts).tolist():
            yield {f"{EXPERTS}/{name}": weight for name, weight in zip(self._names, weights_K, strict=True) if weight}

    def _nowhere(self, by: RoutedBy, temperature: float) -> Route:
        seed, reason = self._fall_back("nothing is found in the text that says where it belongs")
        return Route(None, None, None, None, seed, True, reason, by.value, temperature, {}, {seed: 1.0} if seed else {})

    def _route(
        self,
        by: RoutedBy,
        temperature: float,
        scores_K: list[float],
        answering: dict[str, float] | None,
        placed: tuple[int, float] | None,
    ) -> Route:
        scores = {name: score for name, score in zip(self._names, scores_K, strict=True) if math.isfinite(score)}
        domain = max(scores, key=scores.__getitem__) if placed is None else self._names[placed[0]]
        runner_up = max((name for name in scores if name != domain), key=scores.__getitem__, default=None)
        margin = None
        if runner_up is not None:
            margin = 2 * (scores[domain] - scores[runner_up]) if placed is None else placed[1]
        expert: str | None = f"{EXPERTS}/{domain}"
        answering = {f"{EXPERTS}/{domain}": 1.0} if answering is None else answering
        reason = self._fault(f"{EXPERTS}/{domain}")
        if margin is not None and margin < self._settings.min_margin:
            reason = f"the margin of {margin:.4f} is below {self._settings.min_margin:g}"
        if reason is not None:
            expert, reason = self._fall_back(reason)
            answering = {expert: 1.0} if expert else {}
        elif faults := [fault for fault in map(self._fault, answering) if fault]:
            answering, reason = self._without_missing(answering, faults)
        return Route(
            domain=domain,
            label=self._labels.get(domain),  # a hand-over has some of the rule's domains only
            margin=margin,
            runner_up=runner_up,
            expert=expert,
            fallback=reason is not None,
            reason=reason,
            routed_by=by.value,
            temperature=temperature,
            scores=scores,
            weights=answering,
        )

    def _without_missing(self, answering: dict[str, float], faults: list[str]) -> tuple[dict[str, float], str]:
        """Return who answers where some experts cannot: the seed in their place, else the others."""
        there = {expert: weight for expert, weight in answering.items() if not self._fault(expert)}
        seed, reason = self._fall_back("; ".join(faults))
        missing = 1 - sum(there.values())
        if seed:
            return there | {seed: missing}, reason
        return {expert: weight / (1 - missing) for expert, weight in there.items()}, reason

    def _fall_back(self, reason: str) -> tuple[str | None, str]:
        """Return the seed, or None where that is not to be had either, and why."""
        seed_fault = self._fault(SEED)
        return (SEED, reason) if seed_fault is None else (None, f"{reason}; {seed_fault}")

    def _fault(self, name: str) -> str | None:
        """Return what is wrong with a model, or None; looked for when its directory has changed."""
        directory = self._directory / name
        try:
            changed = directory.stat().st_mtime_ns
        except OSError:
            return f"{name} is missing"
        if name not in self._faults or self._faults[name][0] != changed:
            self._faults[name] = (changed, self._look_for_fault(name, directory))
        return self._faults[name][1]

    def _look_for_fault(self, name: str, directory: Path) -> str | None:
        try:
            record = read_record(directory)
        except ManifestError:
            return f"{name} has no readable record"
        if record.manifest.digest != self._manifest:
            return f"{name} was trained on another manifest ({record.manifest.digest})"
        if (found := weights_sha256(directory)) != record.weights_sha256:
            return f"{name} has weights with digest {found}, its record says {record.weights_sha256}"
        return None


def well_formed(text: str) -> str:
    r"""Return a text as UTF-8 can have it: a question mark for half a surrogate pair, such as what is left of a cut emoji.

    >>> well_formed("cut \ud83d"), well_formed("whole 🙂")
    ('cut ?', 'whole 🙂')
    """
    return text.encode(errors="replace").decode()


def scores(rule: PlacementRule, vectors_ND: Floats) -> npt.NDArray[np.float64]:
    """Return (N, K) how well vectors fit each domain; the highest is where the rule places them.

    With flat domains that is the product with the centroid minus the price, 1 - cost. In a tree only the costs of siblings can be
    compared, so a domain has the score of the one that the vector is placed on, minus all that its path costs more at each level
    than the cheapest branch there.
    """
    scores_NM = vectors_ND @ rule.centroids_MD.astype(np.float64).T - rule.prices_M
    if rule.depth == 1:
        return np.asarray(scores_NM)
    scores_MN = scores_NM.T
    parents = rule.tree.parent_M + 1
    best_MN = np.full((len(scores_MN) + 1, len(vectors_ND)), -np.inf)
    np.maximum.at(best_MN, parents, scores_MN)
    behind_MN = best_MN[parents] - scores_MN
    for node, parent in enumerate(rule.tree.parent_M):  # breadth first: a parent's is complete before its children's
        behind_MN[node] += behind_MN[parent] if parent >= 0 else 0.0
    behind_KN = behind_MN[rule.leaf_nodes_K]
    placed_N = scores_MN[rule.leaf_nodes_K[behind_KN.argmin(axis=0)], np.arange(len(vectors_ND))]
    return np.asarray((placed_N - behind_KN).T)
