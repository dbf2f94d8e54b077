"""Proves from its lineage what a run, and the seed it continues, has trained on: nothing that was held out or excluded.

```
order.parquet (steps trained) ─► rows ─spans.parquet─► documents and tokens ─manifest─► counts, violations
rows.arrow (lengths) ──────────► packed = trained at least once + not yet reached
```

Every document that a trained row holds a piece of is looked up in the manifest by its id; that is the whole proof,
and it is as good as the span tables. So the second line checks those: the rows that were drawn must have as many
tokens as the documents that the spans name in them. This does *not* compare the rows' tokens with the texts.

Cost: the span tables, the order and the wanted columns of the manifest are scanned once for each run. Memory: for
every document trained on, its id, the wanted columns and about 30 bytes; 8 bytes for each row of a pack.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from lmsplit.manifests.errors import ConfigurationError, ManifestError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.schema import FIXED_COLUMNS
from lmsplit.train.config import Where
from lmsplit.train.lineage import TracedRun

_LISTED: Final = 1000

_ALIAS: Final = "where "
"""Stands before the name of a manifest's column, so that one named `tokens` is not taken for ours."""

UNKNOWN: Final = "not in the manifest"
FILTERED: Final = "does not match where"


class Count(NamedTuple):
    """How much was trained on."""

    documents: int
    """Each counted once."""
    tokens: int
    """Counted as often as they were trained on."""


class Violation(NamedTuple):
    """A document that should not have been trained on."""

    doc_id: str
    reason: str
    """`not in the manifest`, `split heldout`, `split excluded`, or `does not match where`."""
    tokens: int
    """Tokens of it that were trained on, repetitions counted."""


class PackAccount(NamedTuple):
    """Where the tokens of one pack are, for one run."""

    run: str
    domain: str
    digest: str
    packed_tokens: int
    """In all rows of the pack, as `rows.arrow` has them."""
    reached_tokens: int
    """In the rows trained on at least once, as the spans of documents have them."""
    not_reached_tokens: int
    """In the rows not trained on yet, as `rows.arrow` has them."""
    trained_tokens: int
    """In the rows trained on, each row as often as it was, as `rows.arrow` has them."""
    spans_tokens: int
    """The same, as the spans of documents have them."""

    @property
    def conserved(self) -> bool:
        """Whether no token is lost or counted twice: packed = reached + not reached, and rows and spans agree."""
        return self.packed_tokens == self.reached_tokens + self.not_reached_tokens and self.trained_tokens == self.spans_tokens


@dataclass(frozen=True)
class Audit:
    """What a run and its seed have trained on, measured against a manifest."""

    run: str
    manifest: str
    """Digest of the manifest that the documents were looked up in."""
    trained_on: str
    """Digest of the manifest that the run was packed from; another one where the manifest has changed since."""
    trained_steps: dict[str, int]
    """Steps trained, by run."""
    trained: Count
    splits: dict[str, Count]
    """By split; `not in the manifest` for documents that it does not have."""
    columns: dict[str, dict[str, Count]]
    """By column of the row filters and value."""
    packs: tuple[PackAccount, ...]
    num_violations: int
    violations: tuple[Violation, ...]
    """At most 1,000 of them, by id."""

    @property
    def ok(self) -> bool:
        """Whether nothing excluded was seen and no token is unaccounted for."""
        return not self.num_violations and all(pack.conserved for pack in self.packs)

    def to_json(self) -> dict[str, Any]:
        """Return the audit as `lmsplit trace --audit --json` prints it."""
        content = asdict(self)
        content["trained"] = self.trained._asdict()
        content["splits"] = _counts_json(self.splits)
        content["columns"] = {column: _counts_json(counts) for column, counts in self.columns.items()}
        content["packs"] = [pack._asdict() | {"conserved": pack.conserved} for pack in self.packs]
        content["violations"] = [violation._asdict() for violation in self.violations]
        return {"ok": self.ok} | content


def audit(run: Path, manifest: Manifest, where: Where | None = None) -> Audit:
    """Look up every document that a run and its seed have trained on.

    Args:
        run: the run's directory; of an unfinished run, the steps up to its newest checkpoint count.
        manifest: what to look the documents up in: the run's own, or a later commit.
        where: a row filter that all documents must match besides the run's own.

    Raises:
        ConfigurationError: the manifest lacks a column of a row filter, or its type has no such value.
        ManifestError: there is no such run, or a pack or a file of its lineage is missing.
    """
    traced = TracedRun.open(run)
    seed = traced.seed()
    runs = [each for each in (seed, traced) if each is not None]
    filters = [each.lineage.where or {} for each in runs] + [where or {}]
    columns = list(dict.fromkeys(column for each in filters for column in each))
    _check_columns(manifest, columns)
    accounts, pieces = [], []
    for number, each in enumerate(runs):
        for account, documents in _accounts(each):
            accounts.append(account)
            pieces.append(documents.with_columns(pl.lit(number).alias("run")))
    found = _look_up(pl.concat(pieces), manifest, columns)
    found = found.with_columns(_reason(found.schema, len(runs), filters).alias("reason"))
    wrong = found.filter(pl.col("reason").is_not_null()).sort("doc_id")
    return Audit(
        run=traced.lineage.run,
        manifest=manifest.digest,
        trained_on=traced.lineage.manifest,
        trained_steps={each.lineage.run: each.num_trained_steps for each in runs},
        trained=Count(found.height, int(found["tokens"].sum())),
        splits=_count_by(found, pl.col("split").fill_null(UNKNOWN)),
        columns={name: _count_by(found.filter(pl.col("split").is_not_null()), _column(name)) for name in columns},
        packs=tuple(accounts),
        num_violations=wrong.height,
        violations=tuple(Violation(*row) for row in wrong.select(Violation._fields).head(_LISTED).iter_rows()),
    )


def _check_columns(manifest: Manifest, columns: Sequence[str]) -> None:
    known = [*FIXED_COLUMNS, *manifest.body.columns]
    if unknown := [name for name in columns if name not in known]:
        raise ConfigurationError(
            f"{manifest.store.location} has no columns {unknown} that the row filter names: it has {', '.join(known)}; "
            "audit against the manifest that the run was trained on"
        )


def _accounts(traced: TracedRun) -> Iterator[tuple[PackAccount, pl.DataFrame]]:
    """Yield each pack's account, and the documents trained on in it with their `tokens`."""
    trained = traced.order().filter(pl.col("step") <= traced.num_trained_steps)
    drawn = trained.group_by("pack", "row").agg(pl.len().cast(pl.Int64).alias("times")).collect(engine="streaming")
    for pack, reference in enumerate(traced.lineage.packs):
        rows = drawn.filter(pl.col("pack") == pack)
        lengths_R = _row_lengths(traced.packed(pack))
        if (num_rows := int(rows["row"].to_numpy().max(initial=-1)) + 1) > len(lengths_R):
            raise ManifestError(
                f"{traced.directory} trains on row {num_rows - 1} of {traced.packed(pack)}, which has {len(lengths_R)} rows: "
                "remove that pack and run the same lmsplit train command, which packs it again bit for bit"
            )
        times_R = np.zeros(len(lengths_R), np.int64)
        times_R[rows["row"].to_numpy()] = rows["times"].to_numpy()
        length = (pl.col("end") - pl.col("start")).cast(pl.Int64)
        pieces = traced.spans(pack).join(rows.select("row", "times").lazy(), on="row").with_columns(length.alias("length"))
        tokens = (pl.col("length") * pl.col("times")).sum().alias("tokens")
        documents = pieces.group_by("doc_id").agg(tokens, pl.col("length").sum()).collect(engine="streaming")
        account = PackAccount(
            run=traced.lineage.run,
            domain=reference.domain,
            digest=reference.digest,
            packed_tokens=int(lengths_R.sum()),
            reached_tokens=int(documents["length"].sum()),
            not_reached_tokens=int(lengths_R[times_R == 0].sum()),
            trained_tokens=int((lengths_R * times_R).sum()),
            spans_tokens=int(documents["tokens"].sum()),
        )
        yield account, documents.select("doc_id", "tokens")


def _row_lengths(pack: Path) -> npt.NDArray[np.int64]:
    """Return the tokens in each of R rows as a plain Arrow reader finds them."""
    with pa.memory_map(str(pack / "rows.arrow")) as source, pa.ipc.open_stream(source) as reader:
        lengths = [pc.list_value_length(batch.column("input_ids")).to_numpy() for batch in reader]
    return np.concatenate([np.zeros(0, np.int64), *lengths])


def _look_up(pieces: pl.DataFrame, manifest: Manifest, columns: Sequence[str]) -> pl.DataFrame:
    """Return one row for each document: `doc_id`, `tokens`, `runs`, `split` (null: unknown) and the wanted columns."""
    documents = pieces.group_by("doc_id").agg(pl.col("tokens").sum(), pl.col("run").unique().alias("runs"))
    wanted = [pl.col(name).alias(_ALIAS + name) for name in columns]
    known = manifest.scan().select("doc_id", "split", *wanted)
    hits = known.join(documents.select("doc_id").lazy(), on="doc_id", how="semi").collect(engine="streaming")
    return documents.join(hits, on="doc_id", how="left")


def _reason(schema: pl.Schema, num_runs: int, filters: Sequence[Where]) -> pl.Expr:
    """Return why a document should not have been trained on, or null; the filters of the runs come first."""
    matches = [_matches(where, schema) for where in filters]
    filtered = [pl.col("runs").list.contains(number) & ~matches[number] for number in range(num_runs)]
    filtered += [~each for each in matches[num_runs:]]
    return (
        pl.when(pl.col("split").is_null())
        .then(pl.lit(UNKNOWN))
        .when(pl.col("split") != "train")
        .then(pl.lit("split ") + pl.col("split"))
        .when(pl.any_horizontal(filtered))
        .then(pl.lit(FILTERED))
    )


def _matches(where: Where, schema: pl.Schema) -> pl.Expr:
    every = pl.lit(value=True)
    for name, wanted in where.items():
        kind = schema[_ALIAS + name]
        try:
            values = pl.Series(wanted, dtype=kind)  # 0.1 is another number in a column of 32 bits
        except (TypeError, OverflowError, pl.exceptions.PolarsError) as error:
            raise ConfigurationError(f"where: {name} lists {wanted}, which no {kind} can be: {error}") from error
        every &= _column(name).is_in(values.implode()).fill_null(value=False)
    return every


def _column(name: str) -> pl.Expr:
    return pl.col(_ALIAS + name)


def _count_by(found: pl.DataFrame, key: pl.Expr) -> dict[str, Count]:
    counts = found.group_by(key.alias("key")).agg(pl.len(), pl.col("tokens").sum()).sort("key", nulls_last=True)
    return {"null" if key is None else str(key): Count(documents, tokens) for key, documents, tokens in counts.iter_rows()}


def _counts_json(counts: Mapping[str, Count]) -> dict[str, dict[str, int]]:
    return {key: count._asdict() for key, count in counts.items()}
