"""`diff`: what became of every document between two manifests, or two commits of one, and why.

```
A's data ─┐                         ┌─► documents in each pair of domains ─► alignment ─┐
          ├─► joined by doc_id ─────┤                                                   ├─► counts, causes, churn, examples
B's data ─┘   (a bucket of the ids) └─► status and cause of each row ◄── both rules ◄───┘   and the file of the documents
```

- Documents are matched by `doc_id`, and domains are aligned by the documents they share (see `alignment`). With one placement
  rule in both, equal names decide between equally good alignments, and for domains that share no document.
- A document is *unchanged* (the same text, in the aligned domain), *moved* (in both, not in the aligned domain), *changed* (in
  the aligned domain, with another text), *added* or *removed*. What moved or changed has one cause: see `causes`.
- Tokens and bytes of a document that both have are those of B.

It reads eleven columns of the data files, never a text. It does *not* verify: it trusts digests, footers and rules as stored, and
page checksums are not looked at (that is `verify --deep`). Of equal bodies it reads the domain tables alone.

Cost: with at most ROWS_PER_PASS documents in both together, one read of these columns. With more, the ids are divided into
buckets by a hash, and both manifests are read twice for each: time grows with the square of the size, memory does not grow.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from lmsplit.manifests.alignment import NOT_ALIGNED, Counts, Indices, adjusted_rand, align
from lmsplit.manifests.causes import CAUSES, STATUSES, Causes, RuleChange
from lmsplit.manifests.diff_documents import documents_file
from lmsplit.manifests.difference import Amount, Diff, Example, Flow, Side, render
from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.layout import domain_name
from lmsplit.manifests.reader import Manifest

__all__ = ["Diff", "diff", "render"]

MAX_EXAMPLES: Final = 20
ROWS_PER_PASS = 4_000_000
"""Documents of both manifests together that are joined at once."""

Progress = Callable[[int, int], None]

_PLACES: Final = ("doc_id", "domain")
_FACTS: Final = (
    *("doc_id", "text_sha256", "domain", "distance", "second_domain", "margin"),
    *("num_bytes", "num_tokens", "split", "source_path", "source_row"),
)
_CELL: Final = ("domain_a", "domain_b", "status", "cause")
_SUMS: Final = ("documents", "bytes", "tokens", "split_changed", "heldout_to_train")


def diff(a: Manifest, b: Manifest, *, documents: Path | None = None, progress: Progress | None = None) -> Diff:
    """Compare two manifests.

    Args:
        a: the manifest to compare from.
        b: the manifest to compare with.
        documents: a new Parquet file for every document that is not unchanged (see `diff_documents`).
        progress: called after each pass with the passes done and those in all.

    Returns:
        What differs.

    Raises:
        ConfigurationError: `documents` is there already, has no directory, or lies in the first manifest's own folders.
        DamagedError: a file of one of them is missing or cannot be read.
    """
    if documents is None:
        return _diff(a, b, None, progress)
    with documents_file(a, documents) as write:
        return _diff(a, b, write, progress)


def _diff(a: Manifest, b: Manifest, write: Callable[[pl.DataFrame], None] | None, progress: Progress | None) -> Diff:
    if a.digest == b.digest:
        return _same(a, b)
    passes = _Passes(a, b, progress)
    shared_AB = np.zeros((len(_leaves(a)), len(_leaves(b))), np.int64)
    for rows in passes.places():
        _count_shared(rows, shared_AB)
        del rows  # or it would stay while the next are joined
    aligned_A = align(shared_AB, same_rule=_placement_sha256(a) == _placement_sha256(b))
    causes = Causes(a.stored_rule, b.stored_rule, aligned_A)
    cells, examples = pl.DataFrame(), pl.DataFrame()
    for rows in passes.facts():
        classified = causes.classify(rows)
        cells = _added_up(cells, _cells(classified))
        differing = _named(classified.filter(pl.col("status") != "unchanged"), a, b)
        examples = _most_telling(pl.concat([examples, _most_telling(differing)], how="diagonal"))
        if write is not None:
            write(differing)
        del rows, classified, differing
    return _difference(a, b, _Found(cells, examples, aligned_A, adjusted_rand(shared_AB), causes.rule))


class _Passes:
    """Reads both manifests bucket by bucket of the ids; where there is one bucket, it is read once."""

    def __init__(self, a: Manifest, b: Manifest, progress: Progress | None) -> None:
        self._sides = {"a": a, "b": b}
        rows = sum(entry.rows or 0 for side in (a, b) for entry in side.data_files())
        self._buckets = max(1, -(-rows // ROWS_PER_PASS))
        self._progress = progress
        self._done = 0
        self._kept: list[pl.DataFrame] = []

    def places(self) -> Iterator[pl.DataFrame]:
        """Yield at least `domain_a` and `domain_b` of every document."""
        if self._buckets == 1:
            self._kept = [self._joined(_FACTS, 0)]
        for bucket in range(self._buckets):
            yield self._kept[0] if self._kept else self._joined(_PLACES, bucket)
            self._tick()

    def facts(self) -> Iterator[pl.DataFrame]:
        """Yield every column that is compared of every document, with `_a` or `_b` at the end of its name."""
        for bucket in range(self._buckets):
            yield self._kept.pop() if self._kept else self._joined(_FACTS, bucket)
            self._tick()

    def _tick(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, 2 * self._buckets)

    def _joined(self, columns: tuple[str, ...], bucket: int) -> pl.DataFrame:
        frames = [
            self._read(manifest, columns, bucket).rename(_suffixed(columns, side)) for side, manifest in self._sides.items()
        ]
        return frames[0].join(frames[1], on="doc_id", how="full", coalesce=True)

    def _read(self, manifest: Manifest, columns: tuple[str, ...], bucket: int) -> pl.DataFrame:
        frame = manifest.scan().select(columns)
        if self._buckets > 1:  # a hash that is stable within one version of polars, which is all that a run needs
            frame = frame.filter(pl.col("doc_id").hash() % self._buckets == bucket)
        # Numbers for names: a name that the rule lacks is an error.
        names = pl.Enum(_leaves(manifest))
        placed = pl.col([name for name in columns if name.endswith("domain")])
        frame = frame.with_columns(placed.cast(names).to_physical().cast(pl.Int32))
        try:
            return frame.collect(engine="streaming")
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:  # it panics at some damaged headers
            where, what = manifest.store.location, str(error).partition("\n")[0]
            raise DamagedError("data", f"the documents of {where} cannot be read ({what}): run lmsplit verify {where}") from error


def _suffixed(columns: tuple[str, ...], side: str) -> dict[str, str]:
    return {name: f"{name}_{side}" for name in columns if name != "doc_id"}


def _leaves(manifest: Manifest) -> list[str]:
    """Return the domain on each leaf of the rule, also those that a hand-over left behind."""
    return [domain_name(leaf) for leaf in range(manifest.stored_rule.rule.num_domains)]


def _placement_sha256(manifest: Manifest) -> str:
    return next(entry.sha256 for entry in manifest.body.files if entry.path == manifest.body.placement)


def _count_shared(rows: pl.DataFrame, shared_AB: Counts) -> None:
    counted = rows.select("domain_a", "domain_b").drop_nulls().group_by("domain_a", "domain_b").len()
    a, b, documents = (counted[name].to_numpy() for name in counted.columns)
    shared_AB[a, b] += documents  # each pair once


def _cells(classified: pl.DataFrame) -> pl.DataFrame:
    """Count the documents of each pair of domains, status and cause: every figure is a sum of these."""
    num_bytes = pl.coalesce("num_bytes_b", "num_bytes_a")
    num_tokens = pl.coalesce("num_tokens_b", "num_tokens_a").cast(pl.Int64)
    leaked = (pl.col("split_a") == "heldout") & (pl.col("split_b") == "train")
    return classified.group_by(_CELL).agg(
        pl.len().cast(pl.Int64).alias("documents"),
        num_bytes.sum().alias("bytes"),
        num_tokens.sum().alias("tokens"),
        (pl.col("split_a") != pl.col("split_b")).sum().cast(pl.Int64).alias("split_changed"),
        leaked.sum().cast(pl.Int64).alias("heldout_to_train"),
    )


def _added_up(cells: pl.DataFrame, more: pl.DataFrame) -> pl.DataFrame:
    return _summed(pl.concat([cells, more], how="diagonal"), *_CELL)


def _summed(cells: pl.DataFrame, *keys: str) -> pl.DataFrame:
    return cells.group_by(keys).agg(pl.col(_SUMS).sum()).sort(keys)


def _named(rows: pl.DataFrame, a: Manifest, b: Manifest) -> pl.DataFrame:
    """Put the domains' names for their numbers."""
    names_a, names_b = (pl.lit(pl.Series(_leaves(side))) for side in (a, b))
    return rows.with_columns(
        names_a.gather(pl.col("domain_a")).alias("domain_a"),
        names_b.gather(pl.col("domain_b")).alias("domain_b"),
        names_b.gather(pl.col("aligned")).alias("aligned"),
    )


def _most_telling(differing: pl.DataFrame) -> pl.DataFrame:
    """Return the first few: other texts, then moves, then what came and went; each by its margin in A or B, the smaller one."""
    rank = pl.when(pl.col("cause") == "text_changed").then(0).when(pl.col("status") == "moved").then(1).otherwise(2)
    margin = pl.min_horizontal("margin_a", "margin_b")
    ids = differing.select("doc_id", rank.alias("rank"), margin.alias("margin")).with_row_index("row")
    order = ids.sort("rank", "margin", "doc_id", descending=[False, True, False], nulls_last=True)
    return differing[order["row"].head(MAX_EXAMPLES)]


class _Found:
    """What the passes found."""

    def __init__(
        self, cells: pl.DataFrame, examples: pl.DataFrame, aligned_A: Indices, agreement: float | None, rule: RuleChange
    ) -> None:
        self.cells = cells
        self.examples = examples
        self.aligned_A = aligned_A
        self.agreement = agreement
        self.rule = rule


def _difference(a: Manifest, b: Manifest, found: _Found) -> Diff:
    names_a, names_b = _leaves(a), _leaves(b)
    held_a, held_b = ({domain.domain for domain in side.domains} for side in (a, b))
    cells = found.cells
    amounts = {row["status"]: row for row in _summed(cells, "status").to_dicts()}
    causes = {row["cause"]: row["documents"] for row in _summed(cells.drop_nulls("cause"), "cause").to_dicts()}
    churn = _summed(cells.drop_nulls(["domain_a", "domain_b"]), "domain_a", "domain_b")
    counts_tokens = _count_tokens(a, b)
    return Diff(
        same=False,
        a=_side(a),
        b=_side(b),
        amounts={status: _amount(amounts.get(status, {}), counts_tokens) for status in STATUSES},
        causes=dict(sorted(causes.items(), key=lambda item: (-item[1], CAUSES.index(item[0])))),
        alignment={
            name: None if index == NOT_ALIGNED or names_b[index] not in held_b else names_b[index]
            for name, index in zip(names_a, found.aligned_A.tolist(), strict=True)
            if name in held_a
        },
        adjusted_rand=found.agreement,
        churn=tuple(
            Flow(names_a[row["domain_a"]], names_b[row["domain_b"]], _amount(row, counts_tokens)) for row in churn.to_dicts()
        ),
        rule=found.rule,
        configuration=_changes(_dotted(a.body.configuration), _dotted(b.body.configuration)),
        software=_changes(a.body.software, b.body.software),
        examples=tuple(map(_example, found.examples.to_dicts())),
        split_changed=int(cells["split_changed"].sum()),
        heldout_to_train=int(cells["heldout_to_train"].sum()),
    )


def _same(a: Manifest, b: Manifest) -> Diff:
    """Return the empty difference: with equal bodies, the domain table counts all there is."""
    domains, counts = a.domains, a.body.counts
    none = Amount(0, None if counts.tokens is None else 0, 0)
    all_documents = Amount(counts.published.records, counts.tokens, counts.text_bytes)
    return Diff(
        same=True,
        a=_side(a),
        b=_side(b),
        amounts=dict.fromkeys(STATUSES, none) | {"unchanged": all_documents},
        causes={},
        alignment={domain.domain: domain.domain for domain in domains},
        adjusted_rand=1.0 if counts.published.records else None,
        churn=tuple(
            Flow(domain.domain, domain.domain, Amount(domain.documents, domain.num_tokens, domain.num_bytes))
            for domain in domains
            if domain.documents
        ),
        rule=RuleChange(False, 0, 0.0, 0),
        configuration={},
        software={},
        examples=(),
        split_changed=0,
        heldout_to_train=0,
    )


def _side(manifest: Manifest) -> Side:
    body = manifest.body
    location = manifest.store.location
    return Side(location, manifest.version, manifest.digest, body.counts.published.records, manifest.domains, body.encoder)


def _count_tokens(a: Manifest, b: Manifest) -> bool:
    return a.body.counts.tokens is not None and b.body.counts.tokens is not None


def _amount(row: dict[str, Any], counts_tokens: bool) -> Amount:
    return Amount(row.get("documents", 0), row.get("tokens", 0) if counts_tokens else None, row.get("bytes", 0))


def _example(row: dict[str, Any]) -> Example:
    of_b = row["domain_b"] is not None
    facts = {name: row[name] for name in ("doc_id", "status", "cause", "domain_a", "domain_b", "margin_a", "margin_b")}
    return Example(**facts, **{name: row[f"{name}_{'b' if of_b else 'a'}"] for name in ("source_path", "source_row")})


def _changes(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}


def _dotted(configuration: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by their dotted keys.

    >>> _dotted({"input": {"text": "body", "keep": ["year"]}, "seed": 0})
    {'input.text': 'body', 'input.keep': ['year'], 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in configuration.items():
        inner = isinstance(value, dict) and value
        flat |= _dotted(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat
