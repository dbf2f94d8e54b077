"""Fits the placement rule on the sample: encoder, centroids, labels, and the held-out threshold. One task.

```
sample's documents ─► their vectors, from encode (or lexical.fit ─► encode, here)
    ─► cluster ─► placement/<sha>.safetensors + .json
               └► label ─► keywords and representatives, in the receipt
```

Memory: the sample's texts and vectors.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from lmsplit.manifests.layout import placement_path
from lmsplit.manifests.lexical import describe_lexical
from lmsplit.manifests.placement import Floats, PlacementFiles, is_unit, store_rule
from lmsplit.partition import lexical
from lmsplit.partition.cluster import kmeans
from lmsplit.partition.config import MAX_HELDOUT_DOCUMENTS, MAX_HELDOUT_FRACTION, MIN_HELDOUT_PER_DOMAIN, Partition
from lmsplit.partition.encode import sample_vectors
from lmsplit.partition.label import excerpt, label_domains
from lmsplit.partition.planning import Planned
from lmsplit.partition.run import Run
from lmsplit.partition.sample import pinned_encoder, sample_rows, total

TIER: Final = "fit: reproducible on one CPU type; placement: byte-identical"
GPU_TIER: Final = "fit and placement: reproducible on one GPU type as far as its kernels are; not measured"


@dataclass(frozen=True)
class Fit:
    """The fit stage.

    Args:
        run: the run.
        scan: name of the scan stage that counts.
    """

    run: Run
    scan: str
    name: str = "fit"

    @property
    def num_tasks(self) -> int:
        """One: k-means sees the whole sample."""
        return 1

    def do(self, task: int) -> None:
        """Fit the rule and store it.

        Raises:
            InputError: the corpus has no documents, or nothing to cluster by.
            ConfigurationError: more domains than different documents.
        """
        configuration = Planned(self.run).configuration
        accepted = total(self.run, self.scan, Planned(self.run).num_units, "accepted")
        encoded = encode_sample(self.run, configuration.seed)
        texts, embeddings_ND = encoded.rows["text"].to_list(), encoded.embeddings_ND
        usable = np.flatnonzero(is_unit(embeddings_ND))
        clusters = kmeans(embeddings_ND[usable], configuration.domains, configuration.seed)
        rule = clusters.rule()
        placed = rule.place(embeddings_ND[usable])
        labels = label_domains([texts[i] for i in usable], placed.domain, placed.distance, configuration.domains)
        ids = encoded.rows["doc_id"].to_list()
        facts = {
            "documents": len(texts),
            "heldout_fraction": heldout_fraction(configuration, accepted.records, placed.domain),
            "mean_squared_distance": clusters.mean_squared_distance,
            "prices": rule.prices_K.tolist(),
            "tier": GPU_TIER if encoded.description.get("device") == "cuda" else TIER,
            "labels": [_label(label, [int(usable[i]) for i in label.representatives], ids, texts) for label in labels],
        }
        files = store_rule(rule, encoded.description, encoded.arrays)
        self.run.finish(self.name, task, {}, facts | self._store(files))

    def _store(self, files: PlacementFiles) -> dict[str, Any]:
        entries = []
        for data, suffix in ((files.arrays, "safetensors"), (files.description, "json")):
            sha256 = hashlib.sha256(data).hexdigest()
            path = placement_path(sha256, suffix)
            self.run.store.put_bytes(data, path)
            entries.append({"path": path, "bytes": len(data), "rows": None, "sha256": sha256})
        return {"files": entries, "placement": entries[1]["path"], "placement_sha256": entries[1]["sha256"]}


class EncodedSample(NamedTuple):
    """The clustering sample with its vectors, and what pins their encoder."""

    rows: pl.DataFrame
    """by rising sample hash."""
    embeddings_ND: Floats
    description: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]


def encode_sample(run: Run, seed: int) -> EncodedSample:
    """Return the sample encoded: by the pinned encoder, which has done so already, or by one fitted here.

    Args:
        run: the run, with its sample chosen, and encoded where an encoder is pinned.
        seed: of the fit.

    Raises:
        InputError: no two documents share a word for `lexical` to go by.
    """
    rows = sample_rows(run)
    order = rows.with_row_index().sort("sample_hash", "unit", "ordinal")["index"].to_numpy()
    rows = rows[order]
    if pinned := pinned_encoder(run):
        return EncodedSample(rows, sample_vectors(run)[1][order], *pinned)
    texts = rows["text"].to_list()
    encoder, arrays = lexical.fit(texts, seed)
    description = describe_lexical(encoder.features, encoder.projection_BD.shape[1])
    return EncodedSample(rows, encoder.encode(texts), description, arrays)


def _label(label: Any, representatives: list[int], ids: list[str], texts: list[str]) -> dict[str, Any]:
    return {
        "label": label.label,
        "keywords": label.keywords,
        "representatives": [ids[i] for i in representatives],
        "excerpts": [excerpt(texts[i]) for i in representatives],
    }


def heldout_fraction(configuration: Partition, num_documents: int, domain_N: npt.NDArray[np.int64]) -> float:
    """Return the share to hold out: as configured, but at least 200 documents expected of each domain, at most a tenth.

    Where near-duplicates are searched for, also at most so many documents as their index takes.

    Args:
        configuration: its `heldout_fraction`; 0 holds nothing out.
        num_documents: of the corpus.
        domain_N: the sample's domains; the smallest one's share decides.
    """
    if configuration.heldout_fraction == 0:
        return 0.0
    smallest = np.bincount(domain_N, minlength=configuration.domains).min() / len(domain_N)
    needed = MIN_HELDOUT_PER_DOMAIN / max(num_documents * smallest, 1)
    indexed = np.inf if configuration.near_duplicate_threshold is None else MAX_HELDOUT_DOCUMENTS / max(num_documents, 1)
    return float(min(MAX_HELDOUT_FRACTION, indexed, max(configuration.heldout_fraction, needed)))
