"""The rule that routes prompts where an evaluation has fitted one, and what else is fitted for a router; on disk, too.

A manifest's centroids are those of whole documents, and the vector of a few words lies elsewhere than its document's. So prompts
have a linear rule of their own, in the space of the same encoder:

    log p(k | x) = w_k·x + b_k + constant,    score_k = half of that,    domain = argmax_k score_k

It decides up to some length; longer texts are more like whole documents, and go by the manifest's rule. It is fitted to prompts
cut from training documents, whose domains are those that the manifest gives the whole documents (see `routing_fit`). Mixtures
weigh by exp(2 · score / T), as they do elsewhere (see `mixing`): T = 1 is the posterior probability.

Imports nothing heavy, so that routing needs no torch.

Shapes: N prompts, D dimensions, K domains.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.placement import Floats
from lmsplit.train.layout import FITTED

POSTERIOR: Final = 1.0
"""The T at which scores of half a logarithm weigh by probability."""


@dataclass(frozen=True)
class PromptRule:
    """A linear rule for prompts.

    Args:
        weights_KD: w, float32.
        offsets_K: b, float64; -inf for a domain that nothing is routed to.
        max_characters: of a text that it routes.

    >>> rule = PromptRule(np.eye(2, dtype=np.float32), np.array([0.0, -np.inf]), 100)
    >>> rule.scores(np.array([[0.6, 0.8]], np.float32)).tolist()
    [[0.30000001192092896, -inf]]
    """

    weights_KD: Floats
    offsets_K: npt.NDArray[np.float64]
    max_characters: int

    def scores(self, vectors_ND: Floats) -> npt.NDArray[np.float64]:
        """Return (N, K) half the logarithms of the domains' probabilities, up to a constant of each prompt."""
        return np.asarray((vectors_ND @ self.weights_KD.astype(np.float64).T + self.offsets_K) / 2)


@dataclass(frozen=True)
class FittedRouting:
    """What an evaluation fits on training documents for the router."""

    manifest: str
    """Digest of the manifest that it was fitted to."""
    placement_temperature: float
    """T of mixtures where the manifest's own rule routes, fitted on prompts that it is left with."""
    prompt_rule: PromptRule | None
    """None where the manifest's own routes prompts as well, or the manifest lacks domains of that."""
    prompt_temperature: float
    """T of mixtures where `prompt_rule` routes."""

    def write(self, directory: Path) -> None:
        """Write it, whole or not at all.

        Args:
            directory: of the evaluation.
        """
        from lmsplit.train.directory import whole_file  # not at the top: it locks files, which a router does not

        directory.mkdir(parents=True, exist_ok=True)
        rule = self.prompt_rule or _NO_RULE
        temperatures = np.array([self.placement_temperature, self.prompt_temperature])
        with whole_file(directory / FITTED) as partial, partial.open("wb") as file:
            np.savez(file, manifest=np.array(self.manifest), temperatures=temperatures, **vars(rule))

    @classmethod
    def read(cls, directory: Path, manifest: str, shape: tuple[int, int]) -> "FittedRouting | None":
        """Return what `write` wrote, None where there is nothing.

        Args:
            directory: of the evaluation.
            manifest: digest of the router's.
            shape: K and D of the manifest's rule.

        Raises:
            ManifestError: it cannot be read, or was fitted to another manifest.
        """
        path = directory / FITTED
        if not path.exists():
            return None
        try:
            with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:  # each array has a checksum
                arrays = dict(file)
            fitted_to, temperatures = str(arrays.pop("manifest")), arrays.pop("temperatures")
            rule = PromptRule(**arrays | {"max_characters": int(arrays["max_characters"])})
        except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, BadZipFile) as error:
            raise ManifestError(f"{path} cannot be read ({error!r}): run lmsplit evaluate again") from error
        if fitted_to != manifest:
            raise ManifestError(f"{path} was fitted to another manifest ({fitted_to}): run lmsplit evaluate again")
        known = rule.weights_KD.shape in (shape, (0, 0)) and rule.offsets_K.shape == rule.weights_KD.shape[:1]
        sound = np.isfinite(rule.weights_KD).all() and (rule.offsets_K < np.inf).all() and (temperatures > 0).all()
        if not known or not sound or temperatures.shape != (2,) or not np.isfinite(temperatures).all():
            raise ManifestError(f"{path} is damaged: run lmsplit evaluate again")
        return cls(manifest, float(temperatures[0]), rule if len(rule.offsets_K) else None, float(temperatures[1]))


_NO_RULE: Final = PromptRule(np.zeros((0, 0), np.float32), np.zeros(0), 0)
