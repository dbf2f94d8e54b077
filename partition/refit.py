"""`--refit`: other domains for the same corpus and the same vectors, as the next commit of the manifest.

```
newest commit + its embeddings/ ─► plan: the same input, encoder and splits, other domains ─► the same stages
                                                                                            but nothing is encoded again
```

What is held out stays held out: the share is the one that commit 0 froze. It does *not* compute anything: see `pipeline`.
"""

import json
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.commit import FileEntry, read_commit, versions
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.parquet import read_rows
from lmsplit.manifests.placement import Floats
from lmsplit.manifests.reader import Manifest
from lmsplit.partition.planning import Plan
from lmsplit.partition.run import Run

CHANGEABLE: Final = frozenset({"domains", "sample_size", "max_imbalance", "shard_size", "keep_embeddings"})
"""Content keys that a refit may change: the others determine the vectors, the documents or what is held out."""


def refit_plan(plan: Plan, output: str) -> Plan:
    """Return the plan of a refit of the newest commit in `output`.

    Args:
        plan: of the configuration and input as they are now.
        output: the manifest's directory.

    Raises:
        ManifestError: there is no manifest.
        ConfigurationError: it kept no embeddings, or more than the domains changed.
    """
    parent = Manifest.open(output)
    before = json.loads(parent.store.read(parent.body.plan))
    if not _embeddings(parent):
        raise ConfigurationError(
            f"{output} has no embeddings to refit from: partition it with keep_embeddings: true once, and refit from then on"
        )
    changed = [key for key in ("files", "units", "keep", "software") if before[key] != plan.content[key]]
    ours, theirs = plan.content["configuration"], before["configuration"]
    changed += [key for key in sorted(ours.keys() | theirs.keys()) if key not in CHANGEABLE and ours.get(key) != theirs.get(key)]
    if changed:
        raise ConfigurationError(
            f"{', '.join(changed)} differ from commit {parent.version} of {output}: a refit may change only "
            f"{', '.join(sorted(CHANGEABLE))}; partition into another output instead"
        )
    return replace(plan, content=plan.content | {"refit": parent.digest})


def parent_of(run: Run) -> Manifest | None:
    """Return the commit that a run refits; None for one that begins a manifest.

    Raises:
        ConfigurationError: that commit is no longer there.
    """
    if (digest := run.plan.get("refit")) is None:
        return None
    for version in versions(run.store):
        _, commit = read_commit(run.store, version)
        if commit.body_sha256 == digest:
            return Manifest(run.store, version, commit)
    raise ConfigurationError(f"{run.output} has no commit {digest[:12]} any more, which run {run.run_id} refits")


def kept_vectors(parent: Manifest, unit: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the vectors that a manifest keeps of one work unit.

    Returns:
        (N,) positions among the unit's usable documents, rising, and (N, D) vectors.
    """
    entry = _embeddings(parent).get(unit)
    if entry is None:
        return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
    table = read_rows(parent.store, entry.path, ["ordinal", "vector"])
    vectors: Floats = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    return table["ordinal"].to_numpy(), vectors


def _embeddings(manifest: Manifest) -> dict[int, FileEntry]:
    files = (entry for entry in manifest.body.files if entry.path.startswith("embeddings/"))
    return {int(entry.path.removeprefix("embeddings/").split("-")[0]): entry for entry in files}
