"""Routes a text to the expert that finds its beginning least surprising: needs no encoder, and a run of every expert.

An alternative to the manifest's rule (see `router`), the way of SmallTalk LM.
Scores are half the log-likelihoods of the prompt, so that mixtures with T = 1 weigh the experts by their posterior probability
under equal priors: exp(2 · score / T). Cost: one forward pass of every expert over the prompt, all of them in memory.

Shapes: N texts, K domains of the rule.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.layout import domain_index
from lmsplit.manifests.reader import read_placement
from lmsplit.manifests.store import local_path
from lmsplit.train.layout import EXPERTS, PLACEMENT, placement_manifest
from lmsplit.train.models import load_model
from lmsplit.train.prompt_rule import POSTERIOR
from lmsplit.train.router import Route, RoutedBy, Router, Routing, well_formed
from lmsplit.train.text_losses import document_losses
from lmsplit.train.tokenizer import DocumentEncoder, open_tokenizer


class LikelihoodRouter(Router):
    """Routes texts to the experts in a directory by their likelihood. Make it with `LikelihoodRouter.open`."""

    def __init__(self, directory: Path, settings: Routing, prompt_tokens: int, max_length: int) -> None:
        stored, domains = read_placement(directory / PLACEMENT)
        super().__init__(directory, stored.rule, None, domains, settings)
        self._prompt_tokens, self._max_length = prompt_tokens, max_length
        self._tokens = DocumentEncoder(open_tokenizer(str(directory / "tokenizer")))
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        self._experts = {}
        for domain in domains:
            name = f"{EXPERTS}/{domain.domain}"
            if fault := self._fault(name):
                raise ConfigurationError(f"{fault}: routing by likelihood needs every expert")
            self._experts[domain_index(domain.domain)] = load_model(directory / name).to(device)

    @classmethod
    def open(  # type: ignore[override]
        cls,
        directory: str | Path,
        *,
        settings: Routing = Routing(),  # noqa: B008 - frozen
        prompt_tokens: int = 64,
        max_length: int = 1024,
    ) -> "LikelihoodRouter":
        """Open a training output with all its experts.

        Args:
            directory: what `output` names in the training configuration.
            settings: how many experts answer, and when the seed does; margins are in nats of the whole prompt.
            prompt_tokens: a text's first tokens that are looked at, at least 1.
            max_length: tokens that a model sees at once, at least 2.

        Raises:
            ManifestError: it has no placement rule, or one with a wrong digest.
            ConfigurationError: an expert is missing or not what its record says.
        """
        path = local_path(str(directory))
        placement_manifest(path)
        return cls(path, settings, prompt_tokens, max_length)

    def route(self, texts: Sequence[str]) -> list[Route]:
        """Return the route of each text; one without a token goes to the seed."""
        prompts = self._tokens.beginnings([well_formed(text) for text in texts], self._prompt_tokens)
        has_tokens_N = np.array([bool(ids) for ids in self._tokens.encode(prompts)], bool)
        asked = [prompt for prompt, has_tokens in zip(prompts, has_tokens_N, strict=True) if has_tokens]
        scores_FK = np.full((len(asked), len(self._rule.leaf_nodes_K)), -np.inf)
        for leaf, expert in self._experts.items():
            scores_FK[:, leaf] = -document_losses(expert, self._tokens, [asked], self._max_length).nats_N / 2
        return self._routes(has_tokens_N, scores_FK, RoutedBy.LIKELIHOOD, POSTERIOR)
