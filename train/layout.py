"""The names inside a training output that a router needs too, and which manifest it belongs to.

Imports nothing heavy, so that routing needs no torch.
"""

import json
from pathlib import Path
from typing import Final

from lmsplit.manifests.errors import ManifestError

SEED: Final = "seed"
EXPERTS: Final = "experts"
PLACEMENT: Final = "placement"


def placement_manifest(output: Path) -> str:
    """Return the digest of the manifest whose placement rule was copied into a training output.

    Raises:
        ManifestError: there is no copy.
    """
    path = output / PLACEMENT / "placement-index.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["manifest"])
    except (OSError, ValueError, KeyError) as error:
        raise ManifestError(f"{output} is no training output ({path}: {error}): run lmsplit train first") from error
