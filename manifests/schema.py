"""The Arrow schemas of format version 1: every column with its type, meaning and unit.

One table per kind of file. A new format version gets new tables beside these, and `SCHEMA_VERSION` goes up; a reader refuses a
version it does not know. `manifests/README.md` is the specification in prose.
"""

import re
from typing import Final

import pyarrow as pa

from lmsplit.manifests.errors import ConfigurationError

SCHEMA_VERSION: Final = 1

SPLITS: Final = ("train", "heldout", "excluded")

Row = tuple[str, pa.DataType, bool, str]

# name, type, nullable, meaning
DOCUMENT_FIELDS: Final[tuple[Row, ...]] = (
    ("doc_id", pa.string(), False, "the document's id column, else <source_path>:<source_row>; unique in a manifest"),
    ("text", pa.string(), False, "the document, unchanged"),
    ("source", pa.string(), True, "the input's source column; null where it has none"),
    ("group", pa.string(), True, "what must not be torn between splits (a book, a site); null: the text itself"),
    ("source_path", pa.string(), False, "input file, relative to the input root"),
    ("source_row", pa.int64(), False, "row of the Parquet file or line of the (decompressed) JSONL file, from 0"),
    ("text_sha256", pa.string(), False, "SHA-256 of the text's UTF-8 bytes, 64 hexadecimal digits"),
    ("domain", pa.string(), False, "the domain the document was placed on"),
    ("distance", pa.float32(), True, "1 - cosine to the domain's centroid, 0 to 2; null where a student placed it"),
    ("second_domain", pa.string(), True, "the runner-up; null with one domain"),
    ("second_distance", pa.float32(), True, "1 - cosine to the runner-up's centroid"),
    ("margin", pa.float32(), True, "second cost - first cost, prices included; in a tree, where it is smallest"),
    ("placed_by", pa.string(), False, "which stored rule placed it: 'centroids' or 'student'"),
    ("confidence", pa.float32(), True, "the student's probability, 0 to 1; null where centroids placed it"),
    ("num_bytes", pa.int64(), False, "length of the text in UTF-8 bytes"),
    ("num_tokens", pa.int32(), True, "length in tokens of the configured tokenizer; null without one"),
    ("split", pa.string(), False, "'train', 'heldout', or 'excluded' (a near-duplicate of a held-out document)"),
)

FIXED_COLUMNS: Final = tuple(name for name, _, _, _ in DOCUMENT_FIELDS)
"""The columns that every data file has; those that the configuration keeps follow them."""

DOMAIN_FIELDS: Final[tuple[Row, ...]] = (
    ("domain", pa.string(), False, "d00000, d00001, …: the leaf's name"),
    ("path", pa.list_(pa.int32()), False, "branches from the root of the tree to this leaf; one number when flat"),
    ("label", pa.string(), False, "a short name made of the keywords; data, never a path"),
    ("keywords", pa.list_(pa.string()), False, "terms that set the domain apart, best first"),
    ("representatives", pa.list_(pa.string()), False, "doc_id of documents nearest the centroid, nearest first"),
    ("excerpts", pa.list_(pa.string()), False, "the beginnings of the representatives"),
    ("num_documents", pa.int64(), False, "documents in all splits"),
    ("num_bytes", pa.int64(), False, "UTF-8 bytes of text in all splits"),
    ("num_tokens", pa.int64(), True, "tokens in all splits; null without a tokenizer"),
    ("num_train", pa.int64(), False, "documents of split train"),
    ("num_heldout", pa.int64(), False, "documents of split heldout"),
    ("num_excluded", pa.int64(), False, "documents of split excluded"),
    ("mean_distance", pa.float64(), True, "mean of distance over the domain's documents"),
    (
        "price",
        pa.float64(),
        False,
        "additive cost in placement: half the centroid's squared length, and what balances",
    ),
)

ID_FIELDS: Final[tuple[Row, ...]] = (
    ("id_hash", pa.uint64(), False, "first 8 bytes, big-endian, of SHA-256(doc_id); the file is sorted by it, then doc_id"),
    ("doc_id", pa.string(), False, "the document's id"),
    ("domain", pa.string(), False, "the domain it is in"),
    ("part", pa.int32(), False, "which part of the domain's data"),
    ("row", pa.int64(), False, "row in that part, from 0"),
)

QUARANTINE_FIELDS: Final[tuple[Row, ...]] = (
    ("source_path", pa.string(), False, "input file, relative to the input root"),
    ("source_row", pa.int64(), False, "row or line in it, from 0"),
    ("byte_offset", pa.int64(), True, "offset of the line in the (decompressed) file; null for Parquet"),
    ("reason", pa.string(), False, "why: a short fixed word, counted in the commit"),
    ("detail", pa.string(), True, "why, in a sentence"),
    ("num_bytes", pa.int64(), False, "raw bytes of the record"),
    ("sha256", pa.string(), False, "SHA-256 of the raw record, hexadecimal"),
    ("record", pa.binary(), True, "the raw record, at most its first 4 KiB"),
    ("doc_id", pa.string(), True, "its id, where one could be read"),
)

EXCLUSION_FIELDS: Final[tuple[Row, ...]] = (
    ("doc_id", pa.string(), False, "a document of split 'excluded'"),
    ("heldout_doc_id", pa.string(), False, "the held-out document that it nearly repeats"),
    ("similarity", pa.float32(), False, "Jaccard similarity of their sets of word 5-grams, 0 to 1"),
)

EMBEDDING_FIELDS: Final[tuple[Row, ...]] = (
    ("doc_id", pa.string(), False, "a document of the manifest"),
    ("ordinal", pa.int64(), False, "its place among the usable documents of its work unit, from 0; the file is sorted by it"),
    (
        "vector",
        pa.list_(pa.float32()),
        False,
        "its unit vector, by the encoder that the placement rule pins; a list of fixed size",
    ),
)


def _schema(fields: tuple[Row, ...]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=nullable) for name, kind, nullable, _ in fields])


DOMAINS: Final = _schema(DOMAIN_FIELDS)
IDS: Final = _schema(ID_FIELDS)
QUARANTINE: Final = _schema(QUARANTINE_FIELDS)
EXCLUSIONS: Final = _schema(EXCLUSION_FIELDS)


def embeddings(dimensions: int) -> pa.Schema:
    """Return the schema of a file of kept vectors of so many dimensions."""
    fields = (*EMBEDDING_FIELDS[:-1], ("vector", pa.list_(pa.float32(), dimensions), *EMBEDDING_FIELDS[-1][2:]))
    return _schema(fields)


def documents(keep: pa.Schema | None = None, *, placement_sha256: str | None = None) -> pa.Schema:
    """Return the schema of a data file.

    Args:
        keep: the columns that the configuration keeps from the input; they follow the fixed ones, by name.
        placement_sha256: digest of the placement file, for the file's key-value metadata.

    Returns:
        The schema; its metadata holds the schema version and the placement digest, and nothing else.

    Raises:
        ValueError: a kept column has the name of a fixed one.
    """
    fixed = _schema(DOCUMENT_FIELDS)
    kept = sorted(keep or [], key=lambda field: field.name)  # the commit's JSON objects know no other order
    if clash := sorted({field.name for field in kept} & set(fixed.names)):
        raise ValueError(f"kept columns {clash} have the names of fixed columns: rename them in the input")
    metadata = {"lmsplit.schema_version": str(SCHEMA_VERSION)}
    if placement_sha256:
        metadata["lmsplit.placement_sha256"] = placement_sha256
    return pa.schema([*fixed, *kept], metadata=metadata)


_ZONED_TIMESTAMP: Final = re.compile(r"timestamp\[(s|ms|us|ns), tz=(.+)\]")


def type_named(name: str) -> pa.DataType:
    """Return the Arrow type of a kept column.

    Args:
        name: as Arrow writes it: "string", "int64", "double", "bool", "date32", "timestamp[us, tz=UTC]", …

    Raises:
        ConfigurationError: no such type, or one that a kept column cannot have.

    >>> str(type_named("timestamp[us]"))
    'timestamp[us]'
    """
    try:
        zoned = _ZONED_TIMESTAMP.fullmatch(name)
        kind = pa.timestamp(zoned[1], tz=zoned[2]) if zoned else pa.type_for_alias(name)
    except ValueError:
        kind = pa.null()
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        raise ConfigurationError(f"a kept column cannot have the type {name!r}, which Parquet lacks: choose timestamp[ms]")
    scalar = pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind)
    if not (scalar or kind in (pa.float32(), pa.float64(), pa.date32()) or pa.types.is_timestamp(kind)):
        choices = "string, bool, int64 (or another integer), float32, float64, date32 or timestamp[us]"
        raise ConfigurationError(f"a kept column cannot have the type {name!r}: choose {choices}")
    return kind
