"""What becomes of a record: a document, or a rejection that says why. The words that all readers share.

It holds where a document's parts are, what a record may be at most, the reasons, and the two tables of a batch. It reads
nothing itself: `lines` judges JSON lines, `tables` judges Parquet. Cost: none of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pyarrow as pa

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.schema import QUARANTINE, type_named

INVALID_UTF8: Final = "invalid_utf8"
MALFORMED_JSON: Final = "malformed_json"
NOT_AN_OBJECT: Final = "not_an_object"
MISSING_TEXT: Final = "missing_text"
EMPTY_TEXT: Final = "empty_text"
TEXT_NOT_STRING: Final = "text_not_string"
NAN_OR_INFINITY: Final = "nan_or_infinity"
LONE_SURROGATE: Final = "lone_surrogate"
INTEGER_OUT_OF_RANGE: Final = "integer_out_of_range"
NESTED_TOO_DEEP: Final = "nested_too_deep"
RECORD_TOO_LARGE: Final = "record_too_large"
BAD_VALUE: Final = "bad_value"
REASONS: Final = (
    INVALID_UTF8, MALFORMED_JSON, NOT_AN_OBJECT, MISSING_TEXT, EMPTY_TEXT, TEXT_NOT_STRING, NAN_OR_INFINITY,
    LONE_SURROGATE, INTEGER_OUT_OF_RANGE, NESTED_TOO_DEEP, RECORD_TOO_LARGE, BAD_VALUE,
)  # fmt: skip

BATCH_BYTES: Final = 8 * 2**20  # raw bytes: small enough for a worker to hold several (assumption)
BATCH_DOCUMENTS: Final = 4096
KEPT_RECORD_BYTES: Final = 4096  # of a rejected record: enough to see what it is, too little to fill a disk
_MAX_RECORD_BYTES: Final = 2**30  # a batch's string offsets are 32-bit


@dataclass(frozen=True)
class Columns:
    """Where the parts of a document are in a record.

    Attributes:
        text: column of the document's text; required everywhere.
        id: column of its identifier, string or integer; absent or null: `<source_path>:<source_row>`.
        source: column that names where it came from.
        group: column of what must not be torn between splits, string or integer.
        keep: (column, Arrow type name) of columns carried along; type None: as in Parquet, string in JSONL.
    """

    text: str = "text"
    id: str | None = "id"
    source: str | None = "source"
    group: str | None = None
    keep: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class Limits:
    """What a record may be at most.

    Attributes:
        max_record_bytes: raw bytes, 1 to 2**30; a larger record is rejected, a larger line never held whole.

    Raises:
        ConfigurationError: the limit is outside its range.
    """

    max_record_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        """Refuse a limit that a batch could not hold."""
        if not 1 <= self.max_record_bytes <= _MAX_RECORD_BYTES:
            found = self.max_record_bytes
            raise ConfigurationError(f"max_record_bytes is {found}: choose 1 to {_MAX_RECORD_BYTES}")


class Batch(NamedTuple):
    """Consecutive records, each of them in exactly one of the two tables.

    Attributes:
        documents: valid records, in the schema of `documents_schema`.
        rejected: the others, in the schema of the quarantine.
        num_records: rows of both together.
        num_bytes: their raw bytes: a JSON line without its newline, or the UTF-8 length of a Parquet text.
        num_repeated_keys: documents whose JSON object has a key more than once; the last value counts.
    """

    documents: pa.RecordBatch
    rejected: pa.RecordBatch
    num_records: int
    num_bytes: int
    num_repeated_keys: int = 0


class Rejected(Exception):  # noqa: N818 - a verdict on a record, caught by the readers, never an error of the program
    """Why a record is no document: one of `REASONS`, and a sentence; with its id, where one could be read."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.doc_id: str | None = None


def documents_schema(keep_types: Sequence[tuple[str, str]]) -> pa.Schema:
    """Return the schema of `Batch.documents` for kept columns of these (name, type name) pairs."""
    return pa.schema([
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("group", pa.string()),
        pa.field("source_path", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        *[pa.field(name, type_named(kind)) for name, kind in keep_types],
        pa.field("record_bytes", pa.int64(), nullable=False),
    ])  # fmt: skip


def rejected_batch(rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
    """Return rows, given as tuples in the order of the quarantine's columns, as a batch."""
    columns = zip(*rows, strict=True) if rows else [()] * len(QUARANTINE)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, QUARANTINE, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=QUARANTINE)


def too_large(num_bytes: int, limits: Limits) -> Rejected:
    """Return the verdict on a record of more bytes than the limits allow."""
    return Rejected(RECORD_TOO_LARGE, f"{num_bytes} bytes, max_record_bytes is {limits.max_record_bytes}")
