"""Which documents of a split are packed: all, or those whose columns have one of the values asked for.

```python
where = {"license": ["mit", "apache-2.0"], "source": ["software_docs"]}
```

A document is chosen when for *every* column named its value is one of those listed; a missing value is none of them. This
does *not* know expressions, ranges or patterns. Cost: the columns named are read beside the text.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.schema import DOCUMENT_FIELDS, type_named
from lmsplit.train.config import Where

_NAMES: Final = {str: "texts", bool: "true or false", int: "integers", float: "numbers"}


def selected(manifest: Manifest, domain: str, split: str, where: Where) -> Iterator[tuple[str, str]]:
    """Return a stream of the documents of one split of one domain that have the values asked for, in the manifest's order.

    Args:
        manifest: where they are.
        domain: the domain's name.
        split: train, heldout or excluded.
        where: column to the values wanted; empty for all documents.

    Returns:
        Pairs of id and text.

    Raises:
        ConfigurationError: a column is unknown or cannot be asked for, or a value is not of its type.
        ManifestError: no such domain or split; raised by the stream.
        DamagedError: a file is missing or cannot be read; raised by the stream.
    """
    columns = ("doc_id", "text")
    batches = selected_batches(manifest, domain, split, where, columns)
    return (pair for each in batches for pair in zip(*(each.column(name).to_pylist() for name in columns), strict=True))


def selected_batches(
    manifest: Manifest, domain: str, split: str, where: Where, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Return the same documents as `selected`, some at a time, with the columns asked for, and those that `where` names.

    Args:
        manifest: where they are.
        domain: the domain's name.
        split: train, heldout or excluded.
        where: column to the values wanted; empty for all documents.
        columns: of each document.

    Raises:
        ConfigurationError, ManifestError, DamagedError: as `selected`.
    """
    return _batches(manifest, domain, split, _value_sets(manifest, where), columns)


def canonical(where: Where) -> list[tuple[str, list[str]]]:
    """Return one form for all filters that list the same columns and values, whatever their order: for digests.

    >>> canonical({"b": [2, 1, 2], "a": ["x"]})
    [('a', ['"x"']), ('b', ['1', '2'])]
    """
    return [(name, sorted({json.dumps(value) for value in values})) for name, values in sorted(where.items())]


def _batches(
    manifest: Manifest, domain: str, split: str, wanted: Mapping[str, Any], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for batch in manifest.documents(domain=domain, split=split, columns=[*dict.fromkeys([*columns, *wanted])]):
        chosen = batch
        for name, values in wanted.items():
            chosen = chosen.filter(pc.is_in(chosen.column(name), value_set=values))
        yield chosen


def _value_sets(manifest: Manifest, where: Where) -> dict[str, Any]:
    kinds = {name: kind for name, kind, _, _ in DOCUMENT_FIELDS if name != "text"}
    kinds |= {name: type_named(kind) for name, kind in manifest.body.columns.items()}
    accepted = {name: types for name, kind in kinds.items() if (types := _accepted(kind))}
    if unknown := [name for name in where if name not in accepted]:
        raise ConfigurationError(f"where: documents cannot be chosen by {unknown}: the columns are {', '.join(accepted)}")
    return {name: _value_set(name, values, accepted[name], kinds[name]) for name, values in where.items()}


def _value_set(name: str, values: Sequence[object], accepted: tuple[type, ...], kind: Any) -> Any:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigurationError(f"where: {name} is {values!r}: expected a list of {_NAMES[accepted[-1]]}")
    # Arrow would round 1.5 to an integer and take True for 1.0 without a word.
    if wrong := [value for value in values if type(value) not in accepted]:
        raise ConfigurationError(f"where: {name} lists {wrong[0]!r}: expected {_NAMES[accepted[-1]]}")
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError) as error:
        raise ConfigurationError(f"where: {name} lists a value that no {kind} can be: {error}") from error


def _accepted(kind: Any) -> tuple[type, ...]:
    """Return the Python types that values of a column have; none where the column cannot be asked for."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return (str,)
    if pa.types.is_boolean(kind):
        return (bool,)
    if pa.types.is_integer(kind):
        return (int,)
    return (int, float) if pa.types.is_floating(kind) else ()
