"""Encodes the clustering sample, in parallel; the vectors are kept, and `place` uses them again: nothing is encoded twice.

```
sample's chunk ─► pinned encoder ─► vectors by (unit, ordinal)
```

One task per chunk of 512 documents. An encoder that is fitted on the sample (`lexical`) has nothing to do here. On GPUs each
worker has one to itself (see `engine`).
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests import encoder as encoders
from lmsplit.manifests.model_files import MINILM
from lmsplit.manifests.placement import Encoder, Floats
from lmsplit.manifests.reader import Manifest
from lmsplit.partition.planning import Planned
from lmsplit.partition.refit import kept_vectors, parent_of
from lmsplit.partition.run import Run
from lmsplit.partition.sample import pinned_encoder, sample_rows


@dataclass(frozen=True)
class Encode:
    """The stage that encodes the sample.

    Args:
        run: the run, with its sample chosen.
    """

    run: Run
    name: str = "encode"

    @property
    def num_tasks(self) -> int:
        """One per chunk; none where the encoder is yet to be fitted."""
        return len(self.run.receipt("sample", 0)["first_units"])

    @cached_property
    def _encoder(self) -> Encoder:
        pinned = pinned_encoder(self.run)
        assert pinned is not None, "only a pinned encoder has chunks to encode"
        return build_encoder(self.run, *pinned)

    def do(self, task: int) -> None:
        """Encode one chunk.

        Raises:
            ConfigurationError: this machine does not compute the pinned vectors to the last bit.
        """
        rows = sample_rows(self.run, task)
        parent = parent_of(self.run)
        vectors_ND = self._encoder.encode(rows["text"].to_list()) if parent is None else _kept(parent, rows)
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), vectors_ND.shape[1])
        table = pa.table({"unit": rows["unit"].to_arrow(), "ordinal": rows["ordinal"].to_arrow(), "vector": values})
        with self.run.store.spool() as path:
            pq.write_table(table, path, compression="zstd", write_page_checksum=True)
            self.run.finish(self.name, task, {"vectors": path}, {"documents": len(rows)})


def _kept(parent: Manifest, rows: pl.DataFrame) -> Floats:
    """Return the sample's vectors from those that a manifest keeps; zeros where it has none, as for a text without a place."""
    parts = []
    for (unit,), own in rows.group_by("unit", maintain_order=True):
        ordinals, kept_ND = kept_vectors(parent, int(str(unit)))
        wanted = own["ordinal"].to_numpy()
        found = np.isin(wanted, ordinals)
        vectors_ND = np.zeros((len(wanted), parent.rule().centroids_KD.shape[1]), np.float32)
        vectors_ND[found] = kept_ND[np.searchsorted(ordinals, wanted[found])]
        parts.append(vectors_ND)
    return np.concatenate(parts)


def build_encoder(run: Run, description: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Encoder:
    """Build the run's encoder, which encodes here exactly as everywhere in the run.

    Args:
        run: the run; it knows where a model's directory is.
        description: what pins the encoder.
        arrays: its arrays.

    Raises:
        ConfigurationError: this machine does not compute the pinned vectors to the last bit.
    """
    wished = Planned(run).configuration.encoder
    directory = None if wished.model == MINILM or description.get("model") else wished.model
    return encoders.build(description, arrays, exact=True, model=directory, trust_remote_code=wished.trust_remote_code)


def known_vectors(run: Run, unit: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the vectors of a work unit that need not be encoded again: the sample's, or in a refit all that were kept.

    Returns:
        (N,) positions among the unit's usable documents, rising, and (N, D) vectors.
    """
    if (parent := parent_of(run)) is not None:
        return kept_vectors(parent, unit)
    keys, vectors_ND = sample_vectors(run, unit)
    return keys["ordinal"].to_numpy(), vectors_ND


def sample_vectors(run: Run, unit: int | None = None) -> tuple[pl.DataFrame, Floats]:
    """Return the sample's vectors that were encoded already.

    Args:
        run: the run, with its sample encoded.
        unit: of this work unit only.

    Returns:
        A frame with unit and ordinal, sorted by them, and the (N, D) vectors in the same order; none where nothing was encoded.
    """
    first_units = run.receipt("sample", 0)["first_units"]
    chunks = range(len(first_units))
    if unit is not None:  # the chunk that begins before the unit may end in it
        chunks = range(max(bisect_left(first_units, unit) - 1, 0), bisect_right(first_units, unit))
    tables = [run.table(run.receipt("encode", chunk), "vectors") for chunk in chunks]
    if not tables:
        return pl.DataFrame(schema={"unit": pl.Int64, "ordinal": pl.Int64}), np.zeros((0, 0), np.float32)
    table = pa.concat_tables(tables)
    keys = pl.from_arrow(table.select(["unit", "ordinal"]))
    assert isinstance(keys, pl.DataFrame)
    values: npt.NDArray[np.float32] = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    if unit is not None:
        own = (keys["unit"] == unit).to_numpy()
        return keys.filter(pl.Series(own)), values[own]
    return keys, values
