"""A manifest whose documents are shuffled over its domains: the control for what clustering is worth."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from lmsplit.manifests.layout import domain_index
from lmsplit.manifests.reader import Manifest

# Shape: N documents.


class ShuffledManifest(Manifest):
    """The documents of a manifest in random domains of the same sizes, split by split: what clustering is compared with."""

    @classmethod
    def of(cls, manifest: Manifest) -> "ShuffledManifest":
        """Shuffle a manifest's documents; always in the same way."""
        shuffled = cls(manifest.store, manifest.version, manifest.commit)
        table = manifest.scan().select("doc_id", "text", "domain", "split").collect()
        generator = np.random.default_rng(0)
        parts = [
            part.with_columns(part["domain"].gather(generator.permutation(len(part)))) for part in table.partition_by("split")
        ]
        shuffled._table = pl.concat(parts)
        return shuffled

    _table: pl.DataFrame

    def domains_of(self, doc_ids: pl.Series) -> npt.NDArray[np.int64]:
        """Return the number of each document's domain."""
        found = doc_ids.to_frame().join(self._table.select("doc_id", "domain"), on="doc_id", how="left", maintain_order="left")
        return np.array([domain_index(name) for name in found["domain"]])

    @property
    def digest(self) -> str:
        """The manifest's, and that it is shuffled: packs are cached under it."""
        return f"shuffled-{super().digest}"

    def documents(self, domain: str | None = None, split: str | None = None, columns: Any = None) -> Iterator[pa.RecordBatch]:
        """Read the documents of a random domain."""
        chosen = self._table.filter((pl.col("domain") == domain) & (pl.col("split") == split)).select(columns)
        yield from chosen.to_arrow().cast(pa.schema([(name, pa.string()) for name in columns])).to_batches(4096)
