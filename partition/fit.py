"""Fits the placement rule on the sample: encoder, centroids, labels, and the held-out threshold. One task.

```
scan's sample ─► minus duplicates and held-out groups ─► the wanted_sample lowest hashes
    ─► lexical.fit ─► encode ─► cluster ─► placement/<sha>.safetensors + .json
                                      └─► label ─► keywords and representatives, in the receipt
```

Memory: the sample's texts and vectors. The sample and the held-out set are disjoint: what is evaluated on did not shape the rule.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from lmsplit.manifests.commit import Amount
from lmsplit.manifests.encoder import describe_lexical
from lmsplit.manifests.errors import InputError
from lmsplit.manifests.layout import placement_path
from lmsplit.manifests.placement import PlacementFiles, PlacementRule, is_unit, store_rule
from lmsplit.partition import lexical
from lmsplit.partition.cluster import spherical_kmeans
from lmsplit.partition.config import MAX_HELDOUT_FRACTION, MIN_HELDOUT_PER_DOMAIN, Partition
from lmsplit.partition.hashing import chosen
from lmsplit.partition.ids import losers
from lmsplit.partition.label import excerpt, label_domains
from lmsplit.partition.planning import Planned
from lmsplit.partition.run import Run

TIER: Final = "fit: reproducible on one CPU type; placement: byte-identical"


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
        planned = Planned(self.run)
        configuration = planned.configuration
        accepted = total(self.run, self.scan, planned.num_units, "accepted")
        sample = select_sample(self.run, self.scan)
        if sample.is_empty():
            raise InputError(_nothing_to_cluster(accepted.records))
        texts = sample["text"].to_list()
        encoder, arrays = lexical.fit(texts, configuration.seed)
        embeddings_ND = encoder.encode(texts)
        usable = np.flatnonzero(is_unit(embeddings_ND))
        clusters = spherical_kmeans(embeddings_ND[usable], configuration.domains, configuration.seed)
        rule = PlacementRule(clusters.centroids_KD, np.zeros(configuration.domains))
        placed = rule.place(embeddings_ND[usable])
        labels = label_domains([texts[i] for i in usable], placed.domain, placed.distance, configuration.domains)
        ids = sample["doc_id"].to_list()
        facts = {
            "documents": len(sample),
            "heldout_fraction": heldout_fraction(configuration, accepted.records, placed.domain),
            "mean_cosine": clusters.mean_cosine,
            "tier": TIER,
            "labels": [_label(label, [int(usable[i]) for i in label.representatives], ids, texts) for label in labels],
        }
        description = describe_lexical(encoder.features, encoder.projection_BD.shape[1])
        self.run.finish(self.name, task, {}, facts | self._store(store_rule(rule, description, arrays)))

    def _store(self, files: PlacementFiles) -> dict[str, Any]:
        entries = []
        for data, suffix in ((files.arrays, "safetensors"), (files.description, "json")):
            sha256 = hashlib.sha256(data).hexdigest()
            path = placement_path(sha256, suffix)
            self.run.store.put_bytes(data, path)
            entries.append({"path": path, "bytes": len(data), "rows": None, "sha256": sha256})
        return {"files": entries, "placement": entries[1]["path"], "placement_sha256": entries[1]["sha256"]}


def _nothing_to_cluster(num_documents: int) -> str:
    if num_documents:
        return (
            f"all {num_documents} usable documents are in groups that may be held out: set heldout_fraction: 0, "
            "or name a group column with more groups"
        )
    return "the input has 0 usable documents: nothing to cluster. Is the text column right?"


def _label(label: Any, representatives: list[int], ids: list[str], texts: list[str]) -> dict[str, Any]:
    return {
        "label": label.label,
        "keywords": label.keywords,
        "representatives": [ids[i] for i in representatives],
        "excerpts": [excerpt(texts[i]) for i in representatives],
    }


def total(run: Run, stage: str, num_tasks: int, key: str) -> Amount:
    """Return the sum of an amount over a stage's receipts."""
    return sum((Amount.model_validate(receipt[key]) for receipt in run.receipts(stage, num_tasks)), Amount())


def heldout_fraction(configuration: Partition, num_documents: int, domain_N: npt.NDArray[np.int64]) -> float:
    """Return the share to hold out: as configured, but at least 200 documents expected of each domain, at most a tenth.

    Args:
        configuration: its `heldout_fraction`; 0 holds nothing out.
        num_documents: of the corpus.
        domain_N: the sample's domains; the smallest one's share decides.
    """
    if configuration.heldout_fraction == 0:
        return 0.0
    smallest = np.bincount(domain_N, minlength=configuration.domains).min() / len(domain_N)
    needed = MIN_HELDOUT_PER_DOMAIN / max(num_documents * smallest, 1)
    return float(min(MAX_HELDOUT_FRACTION, max(configuration.heldout_fraction, needed)))


def sample_is_short(run: Run, scan: str) -> bool:
    """Return whether a scan proposed fewer documents than the sample needs, though there are more."""
    planned = Planned(run)
    accepted = total(run, scan, planned.num_units, "accepted")
    proposed = sum(receipt["pieces"].get("sample", {"rows": 0})["rows"] for receipt in run.receipts(scan, planned.num_units))
    # Held-out groups and losers are dropped from the proposals, at most a tenth and few.
    return bool(proposed < min(1.2 * planned.configuration.wanted_sample, accepted.records))


def select_sample(run: Run, scan: str) -> pl.DataFrame:
    """Return the clustering sample, by rising hash: no repeated id, nothing that may be held out, at most as many as wanted.

    How much is held out is known only after the fit, so all that could be, a tenth at most, stays out of the sample.
    """
    planned = Planned(run)
    receipts = run.receipts(scan, planned.num_units)
    tables = [run.table(receipt, "sample") for receipt in receipts if "sample" in receipt["pieces"]]
    if not tables:
        return pl.DataFrame(schema={"doc_id": pl.String, "text": pl.String})
    frame = pl.from_arrow(pa.concat_tables(tables))
    assert isinstance(frame, pl.DataFrame)
    reserved = MAX_HELDOUT_FRACTION if planned.configuration.heldout_fraction else 0.0
    kept = frame.filter(~pl.Series(chosen(frame["heldout_hash"].to_numpy(), reserved)))
    kept = kept.join(losers(run), on=["unit", "ordinal"], how="anti")
    return kept.sort("sample_hash", "unit", "ordinal").head(planned.configuration.wanted_sample)
