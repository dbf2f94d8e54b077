"""Fits the placement rule on the sample: encoder, centroids, labels, and the held-out threshold. One task.

```
sample's documents ─► their vectors, from encode (or lexical.fit ─► encode, here)
    ─► hierarchy ─► placement/<sha>.safetensors + .json
                 ├► label ─► keywords and representatives, in the receipt
                 └► gate  ─► measures, in the receipt
```

Memory: the sample's texts and vectors, and twice 4 bytes × sample × domains where domains are balanced.
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from lmsplit.manifests.executor import Executor
from lmsplit.manifests.layout import placement_path
from lmsplit.manifests.lexical import describe_lexical
from lmsplit.manifests.placement import Floats, is_unit
from lmsplit.manifests.rule_files import PlacementFiles, store_rule
from lmsplit.partition import lexical
from lmsplit.partition.config import MAX_HELDOUT_DOCUMENTS, MAX_HELDOUT_FRACTION, MIN_HELDOUT_PER_DOMAIN, Partition
from lmsplit.partition.encode import sample_vectors
from lmsplit.partition.gate import measure
from lmsplit.partition.hierarchy import PointsOf, fit_rule
from lmsplit.partition.label import Label, excerpt, label_domains
from lmsplit.partition.planning import Planned
from lmsplit.partition.points import NumpyPoints, TorchPoints
from lmsplit.partition.refit import parent_of
from lmsplit.partition.run import Run
from lmsplit.partition.sample import has_gpu, pinned_encoder, sample_rows
from lmsplit.partition.scan import total

TIER: Final = "fit: reproducible on one CPU type; placement: byte-identical"
MAX_LEXICAL_DOCUMENTS: Final = 16_384
"""Sample documents that the lexical encoder is fitted on: more cost time, and its words are common ones (assumption)."""
GPU_TIER: Final = "fit and placement: reproducible on one GPU type as far as its kernels are; not measured"


@dataclass(frozen=True)
class Fit:
    """The fit stage.

    Args:
        run: the run.
    """

    run: Run
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
        accepted = total(self.run, "scan", Planned(self.run).num_units, "accepted").records
        sample = encode_sample(self.run, configuration.seed)
        branching, seed = configuration.domains, configuration.seed
        points_of = where_to_fit(sample.description, configuration.executor)
        fitted = fit_rule(
            sample.embeddings_ND,
            sample.weight_N,
            branching,
            seed,
            max_imbalance=configuration.max_imbalance,
            sampled_fraction=len(sample.rows) / accepted,
            points_of=points_of,
        )
        rule, placed = fitted.rule, fitted.placed
        texts, ids = sample.rows["text"].to_list(), sample.rows["doc_id"].to_list()
        labels = label_domains(texts, placed.domain, placed.distance, rule.num_domains)
        facts = {
            "documents": len(texts),
            "heldout_fraction": self._heldout_fraction(accepted, placed.domain, rule.num_domains),
            "measures": measure(fitted, sample.embeddings_ND, sample.weight_N, sample.rows["source"], branching, seed, points_of),
            "prices": rule.prices_K.tolist(),
            "paths": [list(path) for path in rule.paths],
            "tier": GPU_TIER if points_of is TorchPoints or sample.description.get("device") == "cuda" else TIER,
            "labels": [_label(label, ids, texts) for label in labels],
        }
        files = store_rule(rule, sample.description, sample.arrays)
        self.run.finish(self.name, task, {}, facts | self._store(files))

    def _heldout_fraction(self, num_documents: int, domain_N: npt.NDArray[np.int64], num_domains: int) -> float:
        """What is held out is frozen by the first commit."""
        parent = parent_of(self.run)
        if parent is not None and parent.body.heldout_fraction is not None:
            return parent.body.heldout_fraction
        return heldout_fraction(Planned(self.run).configuration, num_documents, domain_N, num_domains)

    def _store(self, files: PlacementFiles) -> dict[str, Any]:
        entries = []
        for data, suffix in ((files.arrays, "safetensors"), (files.description, "json")):
            sha256 = hashlib.sha256(data).hexdigest()
            path = placement_path(sha256, suffix)
            self.run.store.put_bytes(data, path)
            entries.append({"path": path, "bytes": len(data), "rows": None, "sha256": sha256})
        return {"files": entries, "placement": entries[1]["path"], "placement_sha256": entries[1]["sha256"]}


class EncodedSample(NamedTuple):
    """The clustering sample's documents that have a vector, and what pins their encoder."""

    rows: pl.DataFrame
    """by rising sample hash."""
    embeddings_ND: Floats
    description: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]

    @property
    def weight_N(self) -> npt.NDArray[np.float64]:  # noqa: N802
        """(N,) the length of each document, in tokens or bytes; what is balanced."""
        return np.asarray(self.rows["weight"].to_numpy(), np.float64)


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
        embeddings_ND, (description, arrays) = sample_vectors(run)[1][order], pinned
    else:
        texts = rows["text"].to_list()
        encoder, arrays = lexical.fit(texts[:MAX_LEXICAL_DOCUMENTS], seed)
        embeddings_ND = encoder.encode(texts)
        description = describe_lexical(encoder.features, encoder.projection_BD.shape[1])
    usable = is_unit(embeddings_ND)
    return EncodedSample(rows.filter(pl.Series(usable)), embeddings_ND[usable], description, arrays)


def where_to_fit(encoder: dict[str, Any], executor: Executor) -> PointsOf:
    """Return what puts vectors where clustering is computed: on a GPU where the encoder or fit was given one, else on the CPU."""
    if has_gpu() and (encoder.get("device") == "cuda" or executor.resources("fit").gpus):
        return TorchPoints
    return partial(NumpyPoints, num_threads=executor.num_threads("fit"))


def _label(label: Label, ids: list[str], texts: list[str]) -> dict[str, Any]:
    return {
        "label": label.label,
        "keywords": label.keywords,
        "representatives": [ids[i] for i in label.representatives],
        "excerpts": [excerpt(texts[i]) for i in label.representatives],
    }


def heldout_fraction(configuration: Partition, num_documents: int, domain_N: npt.NDArray[np.int64], num_domains: int) -> float:
    """Return the share to hold out: as configured, but at least 200 documents expected of each domain, at most a tenth.

    Where near-duplicates are searched for, also at most so many documents as their index takes.

    Args:
        configuration: its `heldout_fraction`; 0 holds nothing out.
        num_documents: of the corpus.
        domain_N: the sample's domains; the smallest one's share decides.
        num_domains: K.
    """
    if configuration.heldout_fraction == 0:
        return 0.0
    smallest = np.bincount(domain_N, minlength=num_domains).min() / len(domain_N)
    needed = MIN_HELDOUT_PER_DOMAIN / max(num_documents * smallest, 1)
    indexed = np.inf if configuration.near_duplicate_threshold is None else MAX_HELDOUT_DOCUMENTS / max(num_documents, 1)
    return float(min(MAX_HELDOUT_FRACTION, indexed, max(configuration.heldout_fraction, needed)))
