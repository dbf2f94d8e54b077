"""What a manifest's documents are made of: licences and sources, by domain and by one another, for the data-set card.

Cost: one pass over four or five narrow columns. Memory: the combinations of domain, source and licence, and at most a million of
them; beyond that (a source for every document) sources are left out and the card says so. Values are what the input says: nothing
here knows what a licence means.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import polars as pl

from lmsplit.manifests.crosstab import MAX_CHARACTERS, count_by
from lmsplit.manifests.markdown import shown, table
from lmsplit.manifests.reader import Manifest

LICENCE_COLUMNS: Final = ("license", "licence")
MAX_COMBINATIONS: Final = 1_000_000
"""Of domain, source and licence: some hundred MB. Assumption: who has more sources than this has one a document, or nearly."""

_TOP_LICENCES: Final = 20
_TOP_SOURCES: Final = 5
_SIZES: Final = ("documents", "bytes")
_TOO_MANY: Final = "There are too many different ones to count."


@dataclass(frozen=True)
class Composition:
    """Documents and bytes by domain, source and licence. Make it with `Composition.of`."""

    counts: pl.DataFrame
    """`domain`, `source` and `licence`, where they were counted, `documents` and `bytes`."""
    licence_column: str | None
    """The kept column with the licences; None where there is none."""

    @classmethod
    def of(cls, manifest: Manifest) -> "Composition":
        """Count a manifest's documents.

        Raises:
            DamagedError: a data file is missing or cannot be read.
        """
        column = next((name for name in LICENCE_COLUMNS if name in manifest.body.columns), None)
        licence = {} if column is None else {"licence": column}
        for keys in ({"domain": "domain", "source": "source"} | licence, {"domain": "domain"} | licence, {"domain": "domain"}):
            counts = count_by(manifest, list(keys.values()), MAX_COMBINATIONS)
            if counts is not None:
                break
        assert counts is not None, "domains are few"
        names = {f"value_{number}": key for number, key in enumerate(keys)}
        return cls(counts.rename(names).select(*keys, *_SIZES), column)

    @cached_property
    def only_licence(self) -> str | None:
        """The licence that every document has; None where there are several, where one has none, or where it is a long text."""
        values = self.licences
        return values[0] if values is not None and len(values) == 1 else None

    @cached_property
    def licences(self) -> list[str | None] | None:
        """Every licence, the commonest first, None among them where a document has none; None where they were not counted.

        A text so long that only its beginning was read is no licence by name: then this is None, too.
        """
        if "licence" not in self.counts.columns:
            return None
        values = _summed(self.counts, ["licence"])["licence"].to_list()
        return None if any(value is not None and len(value) >= MAX_CHARACTERS for value in values) else values

    def licence_lines(self) -> list[str]:
        """Return the section on licences; nothing where no column holds any."""
        if self.licence_column is None:
            return []
        lines = ["## Licences", "", f"As the input's column `{self.licence_column}` has them; nothing was checked.", ""]
        if "licence" not in self.counts.columns:
            return [*lines, _TOO_MANY, ""]
        whole = _top(_summed(self.counts, ["licence"]), "licence", _TOP_LICENCES)
        lines += table(["licence", " documents", " bytes"], ([name, f"{n:,}", f"{size:,}"] for name, n, size in whole))
        lines += ["", *table(["domain", "licences, documents"], self._by("domain", "licence", _TOP_LICENCES)), ""]
        if "source" in self.counts.columns and self._has_sources:
            lines += [*table(["source", " documents", "licences, documents"], self._licences_of_sources()), ""]
        return lines

    def source_lines(self) -> list[str]:
        """Return the section on sources."""
        lines = ["## Sources", ""]
        if "source" not in self.counts.columns:
            return [*lines, _TOO_MANY, ""]
        if not self._has_sources:
            return [*lines, "The input names none.", ""]
        return [*lines, *table(["domain", "sources, documents"], self._by("domain", "source", _TOP_SOURCES)), ""]

    @property
    def _has_sources(self) -> bool:
        return bool(self.counts["source"].null_count() < len(self.counts))

    def _by(self, key: str, value: str, limit: int) -> Iterator[list[str]]:
        for (name,), own in (
            _summed(self.counts, [key, value]).sort(key, maintain_order=True).group_by([key], maintain_order=True)
        ):
            yield [shown(name if name is None else str(name)), _listed(_top(own, value, limit))]

    def _licences_of_sources(self) -> Iterator[list[str]]:
        """Yield the largest sources with their licences, then all the others together."""
        order = _summed(self.counts, ["source"]).select("source").with_row_index("rank")
        ranked = _summed(self.counts, ["source", "licence"]).join(order, on="source", nulls_equal=True)
        ranked = ranked.with_columns(pl.col("rank").clip(upper_bound=_TOP_LICENCES))
        for rank, own in enumerate(ranked.sort("rank", maintain_order=True).partition_by("rank", maintain_order=True)):
            name = f"*{len(order) - _TOP_LICENCES:,} other*" if rank == _TOP_LICENCES else shown(own["source"][0])
            licences = _top(_summed(own, ["licence"]), "licence", _TOP_LICENCES)
            yield [name, f"{own['documents'].sum():,}", _listed(licences)]


def _summed(counts: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Return the counts by fewer keys, the commonest first; equals in the order of their values."""
    summed = counts.group_by(keys).agg(pl.col(*_SIZES).sum())
    return summed.sort(["documents", *keys], descending=[True, *(False for _ in keys)])


def _top(counts: pl.DataFrame, key: str, limit: int) -> list[tuple[str, int, int]]:
    """Return the first rows as shown name, documents and bytes, and what is beyond them as one more."""
    rows = counts.select(key, *_SIZES)
    top = [(shown(name), documents, size) for name, documents, size in rows.head(limit).iter_rows()]
    rest = rows.slice(limit)
    return top + ([(f"*{len(rest):,} other*", rest["documents"].sum(), rest["bytes"].sum())] if len(rest) else [])


def _listed(counts: Iterable[tuple[str, int, int]]) -> str:
    return "; ".join(f"{name} {documents:,}" for name, documents, _ in counts)
