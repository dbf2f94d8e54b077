"""The names inside a training output that a router needs too, and which manifest it belongs to.

Imports nothing heavy, so that routing needs no torch.
"""

from enum import StrEnum
from pathlib import Path
from typing import Final

from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.reader import placement_origin

SEED: Final = "seed"
EXPERTS: Final = "experts"
PLACEMENT: Final = "placement"
MERGED: Final = "merged"
DENSE: Final = "dense"
"""The seed continued as one model, on what all experts are trained on: `dense/per-model` and `dense/total`."""
EVALUATION: Final = "evaluation"
"""What `lmsplit evaluate` writes."""
FITTED: Final = "routing.npz"
"""In the evaluation's directory: what was fitted for the router."""
REFERENCES: Final = "references"
"""Losses of the seed that experts are compared with while they train."""
PROGRESS: Final = "progress.json"
"""In a run's unfinished directory: its newest line of progress."""


class Matched(StrEnum):
    """What a dense baseline is trained on as many tokens as: one expert, on average, or all of them together."""

    PER_MODEL = "per-model"
    TOTAL = "total"


def placement_manifest(output: Path) -> str:
    """Return the digest of the manifest whose placement rule was copied into a training output.

    Raises:
        ManifestError: there is no copy.
    """
    try:
        return placement_origin(output / PLACEMENT)
    except ManifestError as error:
        raise ManifestError(f"{output} is no training output ({error}): run lmsplit train first") from error
