"""The rule that routes prompts where an evaluation has fitted one, and what else is fitted for a router; on disk, too.

A manifest's centroids are those of whole documents, and the vector of a few words lies elsewhere than its document's, mostly in
the same direction for all. So prompts have a linear rule of their own, in the space of the same encoder:

    log p(k | x) = w_k·x + b_k + constant,    score_k = half of that,    domain = argmax_k score_k

It is fitted to prompts cut from training documents, whose domains are those that the manifest gives the whole documents (see
`routing_fit`). Mixtures weigh by exp(2 · score / T), as they do elsewhere (see `mixing`): T = 1 is the posterior probability.

Imports nothing heavy, so that routing needs no torch.

Shapes: N prompts, D dimensions, K domains.
"""

import hashlib
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.placement import Floats
from lmsplit.train.layout import FITTED, PROMPT_RULE

POSTERIOR: Final = 1.0
"""The T at which scores of half a logarithm weigh by probability."""


@dataclass(frozen=True)
class PromptRule:
    """A linear rule for prompts.

    Args:
        weights_KD: w, float32.
        offsets_K: b, float64; -inf for a domain that nothing is routed to.

    >>> rule = PromptRule(np.eye(2, dtype=np.float32), np.array([0.0, -np.inf]))
    >>> rule.scores(np.array([[0.6, 0.8]], np.float32)).tolist()
    [[0.30000001192092896, -inf]]
    """

    weights_KD: Floats
    offsets_K: npt.NDArray[np.float64]

    def scores(self, vectors_ND: Floats) -> npt.NDArray[np.float64]:
        """Return (N, K) half the logarithms of the domains' probabilities, up to a constant of each prompt."""
        return np.asarray((vectors_ND @ self.weights_KD.astype(np.float64).T + self.offsets_K) / 2)


@dataclass(frozen=True)
class FittedRouting:
    """What an evaluation fits on training documents for the router."""

    placement_temperature: float
    """T of mixtures where the manifest's own rule routes."""
    prompt_rule: PromptRule | None
    """None where the manifest's own routes prompts as well, or the manifest lacks domains of that."""
    prompt_temperature: float
    """T of mixtures where `prompt_rule` routes."""

    def write(self, directory: Path) -> None:
        """Write it; a reader finds the old one or this one, or is told that they do not fit.

        Args:
            directory: of the evaluation.
        """
        # not at the top: `directory` locks files, which a router does not
        from lmsplit.train.directory import whole_file, write_whole

        directory.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {"placement": {"temperature": self.placement_temperature}, "prompts": None}
        if self.prompt_rule is not None:
            stored = BytesIO()
            np.savez(stored, weights_KD=self.prompt_rule.weights_KD, offsets_K=self.prompt_rule.offsets_K)
            with whole_file(directory / PROMPT_RULE) as partial:
                partial.write_bytes(stored.getvalue())
            digest = hashlib.sha256(stored.getvalue()).hexdigest()
            found["prompts"] = {"temperature": self.prompt_temperature, "sha256": digest}
        write_whole(directory / FITTED, json.dumps(found) + "\n")

    @classmethod
    def read(cls, directory: Path, shape: tuple[int, int]) -> "FittedRouting | None":
        """Return what `write` wrote, None where there is nothing.

        Args:
            directory: of the evaluation.
            shape: K and D of the manifest's rule.

        Raises:
            ManifestError: it cannot be read, or its digest or shape is another.
        """
        path = directory / FITTED
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            temperature, prompts = float(found["placement"]["temperature"]), found["prompts"]
            if prompts is None:
                return cls(temperature, None, POSTERIOR)
            return cls(temperature, _read_rule(directory / PROMPT_RULE, prompts["sha256"], shape), float(prompts["temperature"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ManifestError(f"{path} cannot be read ({error!r}): run lmsplit evaluate again") from error


def _read_rule(path: Path, sha256: str, shape: tuple[int, int]) -> PromptRule:
    """Return a stored rule; ValueError where it is not the one that is meant."""
    data = path.read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(f"{path.name} has digest {digest}, expected {sha256}")
    with np.load(BytesIO(data), allow_pickle=False) as arrays:
        rule = PromptRule(arrays["weights_KD"], arrays["offsets_K"])
    if rule.weights_KD.shape != shape or rule.offsets_K.shape != shape[:1]:
        raise ValueError(f"{path.name} has shapes {rule.weights_KD.shape} and {rule.offsets_K.shape}, expected {shape}")
    return rule
