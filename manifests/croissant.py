"""Describes a manifest in Croissant 1.0 (MLCommons, JSON-LD), so that tools that know nothing of us find its files and columns.

```
commit        ─► name, version, date, licences
data files    ─► one FileObject each (path relative to the description, SHA-256, size), one FileSet a domain
domains       ─► one RecordSet a domain, a field a column; and the RecordSet `domains`, with its rows in the description
```

Paths are relative to the description; those of a manifest on an object store are URLs. `mlcroissant` loads a record set where the
description lies in the manifest's directory or in one above it, for it looks for a FileSet's files below the description only;
elsewhere the description is valid, and its FileObjects are found. It checks no digest of a FileSet's file, as `lmsplit verify
--deep` does. A record set holds all splits: whoever trains must leave out the rows whose `split` is not `train`.

Size: about 0.5 kB a data file, and 7 kB a domain. Loaders parse it slowly, and more than twice as slowly for twice the fields, so
beyond 100 domains there is one RecordSet, `documents`, for all of them. Cost: one pass over the licences, where a column holds
them. It does *not* change the manifest and is no part of it: another version of this program may describe it otherwise.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pyarrow as pa

from lmsplit.manifests import schema
from lmsplit.manifests.composition import LICENCE_COLUMNS
from lmsplit.manifests.crosstab import MAX_CHARACTERS, count_by
from lmsplit.manifests.export import new_file
from lmsplit.manifests.reader import Domain, Manifest

CONFORMS_TO: Final = "http://mlcommons.org/croissant/1.0"
PARQUET: Final = "application/x-parquet"

MAX_RECORD_SETS: Final = 100
"""Domains that have a record set each. Measured with mlcroissant 1.1.1 on two cores: 50 domains are parsed in 1.5 s, 200 in 12 s,
8 domains of 3,000 files in 3 s."""

ALL: Final = "documents"
"""The one record set beyond."""

_MAX_LICENCES: Final = 100
"""More are not listed: the column has them."""

_CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""As the specification gives it: validators warn of any other."""

_DOMAIN_COLUMNS: Final = ("domain", "label", "keywords", "num_documents", "num_bytes", "num_train", "num_heldout", "num_excluded")


def export_croissant(manifest: Manifest, output: Path) -> None:
    """Write a manifest's description.

    Args:
        manifest: the manifest.
        output: the file to make, inside the manifest's directory (`croissant.json` beside its card) or elsewhere.

    Raises:
        ConfigurationError: `output` exists or cannot be there.
        DamagedError: the domain table or a data file cannot be read.
    """
    with new_file(manifest, output) as path:
        content = describe(manifest, output.absolute().parent)
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def describe(manifest: Manifest, directory: Path) -> dict[str, Any]:
    """Return a manifest's description.

    Args:
        manifest: the manifest.
        directory: where the description shall lie; the paths of a local manifest are relative to it.
    """
    prefix = _prefix(manifest, directory)
    short = manifest.digest[:12]
    published = manifest.commit.created_at
    title = f"A corpus in {len(manifest.domains):,} domains"
    licences = _licences(manifest)
    groups = _groups(manifest)
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": f"lmsplit-{short}",
        "description": _description(manifest, title),
        "citeAs": f"@misc{{lmsplit-{short}, title={{{title}}}, year={{{published[:4]}}}, note={{commit {manifest.digest}}}}}",
        **({"license": licences} if licences else {}),
        "version": f"{manifest.version}.0.0",
        "datePublished": published,
        "distribution": [*_file_objects(manifest, prefix), *(_file_set(name, paths, prefix) for name, _, paths in groups)],
        "recordSet": [_domain_rows(manifest), *(_record_set(manifest, name, about) for name, about, _ in groups)],
    }


def _prefix(manifest: Manifest, directory: Path) -> str:
    """Return what leads from the description to the manifest's files."""
    if not manifest.store.is_local:
        return f"{manifest.store.location}/"
    root = Path(os.path.relpath(Path(manifest.store.location).resolve(), directory.resolve())).as_posix()
    return "" if root == "." else f"{root}/"


def _description(manifest: Manifest, title: str) -> str:
    counts = manifest.body.counts
    return (
        f"{title}: {counts.published.records:,} documents, {counts.text_bytes:,} bytes of text. Made by lmsplit, commit "
        f"{manifest.digest}. Train on rows whose split is train only; heldout is for evaluation, excluded for neither."
    )


def _licences(manifest: Manifest) -> list[str]:
    """Return the licences by name; none where there are very many, or texts instead of names."""
    column = next((name for name in LICENCE_COLUMNS if name in manifest.body.columns), None)
    found = None if column is None else count_by(manifest, [column], _MAX_LICENCES)
    values = [] if found is None else [value for value in found["value_0"] if value is not None and value.strip()]
    return [] if any(len(value) >= MAX_CHARACTERS for value in values) else values


def _groups(manifest: Manifest) -> list[tuple[str, str, list[str]]]:
    """Return name, meaning and files of the record sets of documents; a domain without documents has none."""
    if len(manifest.domains) > MAX_RECORD_SETS:
        about = f"{manifest.body.counts.published.records:,} documents of all domains"
        groups = [(ALL, about, [entry.path for entry in manifest.data_files()])]
    else:
        files = [(each, [entry.path for entry in manifest.data_files(each.domain)]) for each in manifest.domains]
        groups = [(each.domain, f"{each.documents:,} documents: {each.label}", paths) for each, paths in files]
    return [group for group in groups if group[2]]


def _file_objects(manifest: Manifest, prefix: str) -> Iterator[dict[str, Any]]:
    for entry in manifest.data_files():
        yield {
            "@type": "cr:FileObject",
            "@id": entry.path,
            "name": entry.path,
            "contentUrl": prefix + entry.path,
            "contentSize": f"{entry.bytes} B",
            "encodingFormat": PARQUET,
            "sha256": entry.sha256,
        }


def _file_set(name: str, paths: Iterable[str], prefix: str) -> dict[str, Any]:
    """Name a record set's files one by one: a pattern would match what no commit names."""
    return {
        "@type": "cr:FileSet",
        "@id": f"files/{name}",
        "name": f"files/{name}",
        "description": f"Data files of {name}.",
        "encodingFormat": PARQUET,
        "includes": [re.sub(r"([*?\[])", r"[\1]", prefix + path) for path in paths],
    }


def _record_set(manifest: Manifest, name: str, about: str) -> dict[str, Any]:
    source = {"fileSet": {"@id": f"files/{name}"}}
    kept = ((column, schema.type_named(kind), "kept from the input") for column, kind in sorted(manifest.body.columns.items()))
    columns = [*((column, kind, meaning) for column, kind, _, meaning in schema.DOCUMENT_FIELDS), *kept]
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": about,
        "key": {"@id": _field_id(name, "doc_id")},
        "field": [_field(name, *column) | {"source": source | {"extract": {"column": column[0]}}} for column in columns],
    }


def _domain_rows(manifest: Manifest) -> dict[str, Any]:
    """Return the domain table, with its rows; keywords as one text, for fields with rows of their own hold no lists."""
    kinds = {name: (kind, meaning) for name, kind, _, meaning in schema.DOMAIN_FIELDS}
    kinds["keywords"] = (pa.string(), "terms that set the domain apart, best first, separated by commas")
    rows = zip(*(_domain_column(manifest.domains, name) for name in _DOMAIN_COLUMNS), strict=True)
    return {
        "@type": "cr:RecordSet",
        "@id": "domains",
        "name": "domains",
        "description": "The domains, and what is in them.",
        "key": {"@id": _field_id("domains", "domain")},
        "field": [_field("domains", name, *kinds[name]) for name in _DOMAIN_COLUMNS],
        "data": [{_field_id("domains", name): value for name, value in zip(_DOMAIN_COLUMNS, row, strict=True)} for row in rows],
    }


def _domain_column(domains: Iterable[Domain], name: str) -> list[str | int]:
    readers: dict[str, Callable[[Domain], str | int]] = {
        "domain": lambda domain: domain.domain,
        "label": lambda domain: domain.label,
        "keywords": lambda domain: ", ".join(domain.keywords),
        "num_documents": lambda domain: domain.documents,
        "num_bytes": lambda domain: domain.num_bytes,
    }
    return [readers[name](domain) if name in readers else domain.splits[name.removeprefix("num_")] for domain in domains]


def _field(record_set: str, name: str, kind: pa.DataType, meaning: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": _field_id(record_set, name),
        "name": name,
        "description": meaning,
        "dataType": _data_type(kind),
    }


def _field_id(record_set: str, name: str) -> str:
    """Return a field's identifier; a kept column may be called anything."""
    return f"{record_set}/{quote(name, safe='')}"


def _data_type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind):
        return "sc:Float"
    if pa.types.is_timestamp(kind):
        return "sc:DateTime"
    if pa.types.is_date(kind):
        return "sc:Date"
    return "sc:Text"
