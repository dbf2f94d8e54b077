"""Chooses the clustering sample, and pins what encodes it. One task.

```
scan's proposals ─► minus repeated ids and all that may be held out ─► the wanted_sample lowest hashes ─► by unit, in chunks
configuration + this machine ─► device, precision, batch shape, probe ─► the pinned encoder, in the receipt
```

It runs on a machine of the kind that encodes and places, so that what is pinned can be had there. The sample and the held-out
set are disjoint: what is evaluated on did not shape the rule. Memory: the proposals' texts, each cut to 10,000 characters.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.manifests.lexical import LEXICAL
from lmsplit.manifests.model_files import find_model
from lmsplit.manifests.parquet import parquet_file
from lmsplit.manifests.placement import Floats, is_unit
from lmsplit.manifests.sentence import Precision, SentenceEncoder, describe_model, load_model
from lmsplit.manifests.sentence_pinned import has_fast_bfloat16
from lmsplit.partition.config import MAX_HELDOUT_FRACTION, Encoder
from lmsplit.partition.hashing import chosen
from lmsplit.partition.ids import losers
from lmsplit.partition.planning import Planned
from lmsplit.partition.refit import parent_of
from lmsplit.partition.run import Run, piece
from lmsplit.partition.scan import counting_scan, total, wanted_sample

CHUNK_DOCUMENTS: Final = 512
"""Sample documents that one task encodes: a few seconds on a core (assumption: little to lose, and enough for 128 workers)."""
CPU_BATCH: Final = 16
"""Texts of 128 tokens. Measured (benchmarks/results/sentence_encoder_speed.md): in bfloat16 the fastest of 1, 4, 16 and 32."""
GPU_BATCH: Final = 256
"""Assumption, not measured: enough to fill a data-centre GPU with texts of 128 tokens."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """The stage that settles what is encoded first, and by what.

    Args:
        run: the run.
    """

    run: Run
    name: str = "sample"

    @property
    def num_tasks(self) -> int:
        """One: the lowest hashes are known only when all are."""
        return 1

    def do(self, task: int) -> None:
        """Choose the sample and pin the encoder.

        Raises:
            InputError: the corpus has no documents, or all of them may be held out.
            ConfigurationError: the encoder cannot be had as configured.
        """
        planned = Planned(self.run)
        rows = select_sample(self.run)
        if rows.is_empty():
            raise InputError(_nothing_to_cluster(total(self.run, "scan", planned.num_units, "accepted").records))
        facts: dict[str, Any] = {"documents": len(rows), "encoder": None, "probe": None, "first_units": []}
        refits = parent_of(self.run) is not None
        if planned.configuration.encoder.model != LEXICAL and not refits:
            description, probe_PD = pin(planned.configuration.encoder)
            _check_as_planned(description, self.run.plan["configuration"]["encoder"])
            facts |= {"encoder": description, "probe": probe_PD.tolist()}
        if facts["encoder"] is not None or refits:
            facts["first_units"] = rows["unit"].gather_every(CHUNK_DOCUMENTS).to_list()
        with self.run.store.spool() as path:
            pq.write_table(rows.to_arrow(), path, compression="zstd", write_page_checksum=True, row_group_size=CHUNK_DOCUMENTS)
            self.run.finish(self.name, task, {"sample": path}, facts)


def _check_as_planned(description: Mapping[str, Any], planned: Mapping[str, Any]) -> None:
    """Refuse a model whose files changed since the run was planned: the run's id names others."""
    for name in ("weights_sha256", "tokenizer_sha256"):
        if description[name] != planned[name]:
            raise InputError(
                f"the encoder's {name.removesuffix('_sha256')} has sha256 {description[name]}, planned was {planned[name]}: "
                "restore it, or run the same command again"
            )


def _nothing_to_cluster(num_documents: int) -> str:
    if num_documents:
        return (
            f"all {num_documents} usable documents are in groups that may be held out: set heldout_fraction: 0, "
            "or name a group column with more groups"
        )
    return "the input has 0 usable documents: nothing to cluster. Is the text column right?"


def select_sample(run: Run) -> pl.DataFrame:
    """Return the clustering sample by unit and ordinal: no repeated id, nothing that may be held out, at most as many as wanted.

    How much is held out is known only after the fit, so all that could be, a tenth at most, stays out of the sample.
    """
    planned = Planned(run)
    scan = counting_scan(run)
    receipts = run.receipts(scan, planned.num_units)
    tables = [run.table(receipt, "sample") for receipt in receipts if "sample" in receipt["pieces"]]
    if not tables:
        return pl.DataFrame()
    frame = pl.from_arrow(pa.concat_tables(tables))
    assert isinstance(frame, pl.DataFrame)
    reserved = MAX_HELDOUT_FRACTION if planned.configuration.heldout_fraction else 0.0
    kept = frame.filter(~pl.Series(chosen(frame["heldout_hash"].to_numpy(), reserved))).drop("heldout_hash")
    kept = kept.join(losers(run), on=["unit", "ordinal"], how="anti")
    lowest = kept.sort("sample_hash", "unit", "ordinal").head(wanted_sample(run, scan))
    return lowest.sort("unit", "ordinal")


def pin(configuration: Encoder) -> tuple[dict[str, Any], Floats]:
    """Decide how texts are encoded in this run, here.

    Args:
        configuration: the model, and what is wished of it.

    Returns:
        The description that pins the encoder, JSON values only, and its probe's vectors.

    Raises:
        ConfigurationError: the model, its library or the wished device cannot be had.
    """
    device = configuration.device or ("cuda" if has_gpu() else "cpu")
    if device == "cuda" and not has_gpu():
        raise ConfigurationError("encoder.device is cuda, but no GPU can be used here: leave it out, or set cpu")
    files = find_model(configuration.model, configuration.revision)
    precision = configuration.precision or _fast_precision(device)
    loaded = load_model(files.directory, device, precision, configuration.trust_remote_code)
    batch = CPU_BATCH if device == "cpu" else GPU_BATCH
    description = describe_model(
        files,
        loaded,
        max_tokens=configuration.max_tokens,
        batch_size=configuration.batch_size or max(1, batch * 128 // configuration.max_tokens),
        trust_remote_code=configuration.trust_remote_code,
    )
    encoder = SentenceEncoder(description, loaded)
    encoder.check_tokens()
    if not encoder.is_independent():
        _log.warning("vectors depend on their neighbours in a batch here: a text encoded alone may differ in the last bits")
    probe_PD = encoder.probe()
    if not is_unit(probe_PD).all():
        raise ConfigurationError(
            f"encoder {configuration.model} gives no finite unit vectors in {precision}: set encoder.precision"
        )
    return description.model_dump(mode="json"), probe_PD


def has_gpu() -> bool:
    """Return whether a GPU can be used here; False without torch."""
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return bool(torch.cuda.is_available())


def _fast_precision(device: str) -> Precision:
    import torch

    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "bfloat16" if has_fast_bfloat16() else "float32"


def sample_rows(run: Run, chunk: int | None = None) -> pl.DataFrame:
    """Return the chosen sample, or one chunk of it: unit, ordinal, sample_hash, doc_id, source, weight, text."""
    receipt = run.receipt("sample", 0)
    with parquet_file(run.store, piece(receipt, "sample")) as file:
        frame = pl.from_arrow(file.read() if chunk is None else file.read_row_group(chunk))
    assert isinstance(frame, pl.DataFrame)
    return frame


def pinned_encoder(run: Run) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the pinned encoder's description and arrays; None for one that is yet to be fitted. A refit keeps its parent's."""
    if (parent := parent_of(run)) is not None:
        return parent.stored_rule.encoder, parent.stored_rule.encoder_arrays
    receipt = run.receipt("sample", 0)
    if receipt["encoder"] is None:
        return None
    return receipt["encoder"], {"probe_PD": np.array(receipt["probe"], np.float32)}
