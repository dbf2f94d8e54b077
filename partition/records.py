"""Turn raw records into documents, or into rejections that say why: every record becomes one of the two.

It knows JSON lines and Arrow batches from Parquet; `corpus` opens the files and decides what of them to read.
It does not skip duplicates, or judge whether too much was rejected.

Cost: orjson parses a line once; only a refused line is parsed again, slowly. A Parquet batch is judged by
columns, without a Python object per row. Memory: one batch and one record of at most `max_record_bytes`.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from lmsplit.manifests.errors import ConfigurationError

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
_MAX_SLOW_DEPTH: Final = 512  # json recurses: below Python's limit of 1,000 frames wherever it is called from
_BOM: Final = b"\xef\xbb\xbf"
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_ZONED_TIMESTAMP = re.compile(r"timestamp\[(s|ms|us|ns), tz=(.+)\]")

REJECTED_SCHEMA: Final = pa.schema([
    pa.field("source_path", pa.string(), nullable=False),
    pa.field("source_row", pa.int64(), nullable=False),
    pa.field("byte_offset", pa.int64()),
    pa.field("reason", pa.string(), nullable=False),
    pa.field("detail", pa.string()),
    pa.field("num_bytes", pa.int64(), nullable=False),
    pa.field("sha256", pa.string(), nullable=False),
    pa.field("record", pa.binary()),
])  # fmt: skip


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
        rejected: the others, in `REJECTED_SCHEMA`.
        num_records: rows of both together.
        num_bytes: their raw bytes: a JSON line without its newline, or the UTF-8 length of a Parquet text.
    """

    documents: pa.RecordBatch
    rejected: pa.RecordBatch
    num_records: int
    num_bytes: int


class LongLine(NamedTuple):
    """A line too long to be held: its length, SHA-256, first bytes, and whether it is only white space."""

    num_bytes: int
    sha256: str
    head: bytes
    blank: bool


class _Rejected(Exception):  # noqa: N818 - a verdict on a record, caught here, never an error of the program
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def type_named(name: str) -> pa.DataType:
    """Return the Arrow type of a kept column.

    Args:
        name: as Arrow writes it: "string", "int64", "float64", "bool", "date32", "timestamp[us, tz=UTC]", …

    Raises:
        ConfigurationError: no such type, or one that a kept column cannot have.

    Example:
        >>> type_named("timestamp[us]")
        TimestampType(timestamp[us])
    """
    if zoned := _ZONED_TIMESTAMP.fullmatch(name):
        return pa.timestamp(zoned[1], tz=zoned[2])
    try:
        kind = pa.type_for_alias(name)
    except ValueError:
        kind = pa.null()
    scalar = pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind)
    if not (scalar or kind in (pa.float32(), pa.float64(), pa.date32()) or pa.types.is_timestamp(kind)):
        choices = "string, bool, int64 (or another integer), float32, float64, date32 or timestamp[us]"
        raise ConfigurationError(f"a kept column cannot have the type {name!r}: choose {choices}")
    return kind


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


class _Line:
    """A line being put together from chunks; past the limit only its length, digest and head remain."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._reset()

    def _reset(self) -> None:
        self.num_bytes = 0
        self._parts: list[bytes] = []
        self._digest: Any = None
        self._head = b""
        self._blank = True

    def add(self, data: bytes) -> None:
        self.num_bytes += len(data)
        self._parts.append(data)
        if self.num_bytes > self._max_bytes:
            self._digest = self._digest or hashlib.sha256()
            for part in self._parts:
                self._digest.update(part)
                self._blank = self._blank and not part.strip()
                if len(self._head) < KEPT_RECORD_BYTES:
                    self._head = (self._head + part)[:KEPT_RECORD_BYTES]
            self._parts.clear()

    def take(self) -> bytes | LongLine:
        if self._digest is None:
            line: bytes | LongLine = b"".join(self._parts)
        else:
            line = LongLine(self.num_bytes, self._digest.hexdigest(), self._head, self._blank)
        self._reset()
        return line


def split_lines(chunks: Iterable[bytes], max_bytes: int, offset: int = 0) -> Iterator[tuple[int, bytes | LongLine]]:
    r"""Cut a stream into lines, never holding more than `max_bytes` and a chunk of it.

    Args:
        chunks: the stream from byte `offset` of the (decompressed) file on, in pieces of any size.
        max_bytes: a longer line comes as a `LongLine`.
        offset: where the stream begins; a byte order mark at 0 belongs to no line.

    Yields:
        (byte offset, line without its newline); a last line needs no newline.

    Example:
        >>> list(split_lines([b"a\nb", b"c\n", b"d"], max_bytes=9))
        [(0, b'a'), (2, b'bc'), (5, b'd')]
    """
    line = _Line(max_bytes)

    def finished() -> tuple[int, bytes | LongLine]:
        whole = line.take()
        if offset == 0 and isinstance(whole, bytes) and whole.startswith(_BOM):
            return len(_BOM), whole[len(_BOM) :]
        return offset, whole

    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        line.add(first)
        for other in others:
            num_bytes = line.num_bytes
            yield finished()
            offset += num_bytes + 1
            line.add(other)
    if line.num_bytes:
        yield finished()


def _parse_int(digits: str) -> int:
    # Python refuses to convert more than 4,300 digits; any number that long is out of every range alike.
    return int(digits) if len(digits) < 4000 else 10**4000


def _parse_float(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise _Rejected(NAN_OR_INFINITY, "a number is too large for a double")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _Rejected(NAN_OR_INFINITY, f"{name} is no JSON value")


_STRICT: Final = json.JSONDecoder(parse_int=_parse_int, parse_float=_parse_float, parse_constant=_refuse_constant)


def _parse_slowly(line: bytes, used: Iterable[str]) -> Any:
    """Parse a line that orjson refused or misread, to find out why."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise _Rejected(INVALID_UTF8, f"byte {error.start} of the line: {error.reason}") from None
    steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[][{}]", _STRING.sub("", text)))
    if max(itertools.accumulate(steps), default=0) > _MAX_SLOW_DEPTH:
        raise _Rejected(NESTED_TOO_DEEP, f"nested deeper than {_MAX_SLOW_DEPTH} levels")
    try:
        record = _STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise _Rejected(MALFORMED_JSON, f"{error.msg} at character {error.pos}") from None
    for name in used if isinstance(record, dict) else ():
        if isinstance(value := record.get(name), str) and re.search("[\ud800-\udfff]", value):
            raise _Rejected(LONE_SURROGATE, f"column {name!r} holds half of a surrogate pair")
    return record


def _reader_of(name: str | None, kind: pa.DataType, *, numbers: bool = False) -> Callable[[Any], Any]:
    """Return the function that checks one JSON value of a column and gives what `pa.array` takes for it."""
    types: tuple[type, ...] = (str, int) if numbers else (str,)
    low: float = -(2**63)
    high: float = 2**64 - 1
    convert: Callable[[Any], Any] = str
    if pa.types.is_integer(kind):
        types, convert = (int,), int
        low, high = np.iinfo(kind.to_pandas_dtype()).min, np.iinfo(kind.to_pandas_dtype()).max
    elif pa.types.is_floating(kind):
        types, convert = (int, float), float
        high = float(np.finfo(kind.to_pandas_dtype()).max)
        low = -high
    elif pa.types.is_boolean(kind):
        types, convert = (bool,), bool
    temporal = pa.types.is_temporal(kind)

    def read(value: Any) -> Any:
        if type(value) not in types:
            expected = " or ".join(accepted.__name__ for accepted in types)
            found = type(value).__name__
            raise _Rejected(BAD_VALUE, f"column {name!r} holds a {found}, expected {expected} ({kind})")
        if type(value) is not str and not low <= value <= high:
            raise _Rejected(INTEGER_OUT_OF_RANGE, f"column {name!r} holds a number outside {low} to {high}")
        if temporal:
            try:
                pa.scalar(value).cast(kind)
            except pa.ArrowInvalid:
                raise _Rejected(BAD_VALUE, f"column {name!r} holds a string that is no {kind}") from None
        return convert(value)

    return read


def _rejected_batch(rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(REJECTED_SCHEMA)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, REJECTED_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=REJECTED_SCHEMA)


class LineRecords:
    """Collects JSON lines, of any number of files, into batches.

    Args:
        columns: where the parts of a document are.
        keep_types: (name, type name) of the kept columns.
        limits: the limits that lines were cut with.
    """

    def __init__(self, columns: Columns, keep_types: Sequence[tuple[str, str]], limits: Limits) -> None:
        self._text = columns.text
        self._limits = limits
        self._schema = documents_schema(keep_types)
        numbers_too = ((columns.id, True), (columns.source, False), (columns.group, True))
        self._readers = [(name, _reader_of(name, pa.string(), numbers=also)) for name, also in numbers_too]
        self._readers += [(name, _reader_of(name, type_named(kind))) for name, kind in keep_types]
        self._used = [columns.text, *(name for name, _ in self._readers if name is not None)]
        self._start()

    def _start(self) -> None:
        self.num_records = 0
        self.num_bytes = 0
        self._documents: list[tuple[Any, ...]] = []
        self._rejected: list[tuple[Any, ...]] = []

    @property
    def full(self) -> bool:
        """Whether the batch should be taken before the next line is added."""
        return self.num_records >= BATCH_DOCUMENTS or self.num_bytes >= BATCH_BYTES

    def add(self, path: str, row: int, offset: int, line: bytes | LongLine) -> None:
        """Judge one line that is not blank: `row` and byte `offset` say where it is in the file `path`."""
        num_bytes = len(line) if isinstance(line, bytes) else line.num_bytes
        self.num_records += 1
        self.num_bytes += num_bytes
        try:
            doc_id, text, source, group, *kept = self._values(line)
        except _Rejected as verdict:
            if isinstance(line, bytes):
                line = LongLine(num_bytes, hashlib.sha256(line).hexdigest(), line[:KEPT_RECORD_BYTES], False)
            why = (verdict.reason, verdict.detail)
            self._rejected.append((path, row, offset, *why, num_bytes, line.sha256, line.head))
        else:
            doc_id = f"{path}:{row}" if doc_id is None else doc_id
            self._documents.append((doc_id, text, source, group, path, row, *kept, num_bytes))

    def _values(self, line: bytes | LongLine) -> list[Any]:
        if isinstance(line, LongLine):
            raise _too_large(line.num_bytes, self._limits)
        try:
            return self._document(orjson.loads(line))
        except (orjson.JSONDecodeError, _Rejected):
            # A refused document is judged again, as orjson reads an integer beyond 64 bits as a float.
            return self._document(_parse_slowly(line, self._used))

    def _document(self, record: Any) -> list[Any]:
        if type(record) is not dict:
            raise _Rejected(NOT_AN_OBJECT, f"the line holds a {type(record).__name__}, expected an object")
        text = record.get(self._text)
        if text is None:
            raise _Rejected(MISSING_TEXT, f"column {self._text!r} is absent or null")
        if type(text) is not str:
            found = type(text).__name__
            raise _Rejected(TEXT_NOT_STRING, f"column {self._text!r} holds a {found}, expected a string")
        if not text or text.isspace():
            raise _Rejected(EMPTY_TEXT, f"column {self._text!r} is empty or only white space")
        values = [record.get(name) for name, _ in self._readers]
        doc_id, *others = [None if value is None else read(value) for value, (_, read) in zip(values, self._readers, strict=True)]
        return [doc_id, text, *others]

    def take(self) -> Batch:
        """Return the lines added since the last call."""
        columns = zip(*self._documents, strict=True) if self._documents else [()] * len(self._schema)
        arrays = [
            # Arrow reads times from strings in a cast only; everything else is built in its own type.
            pa.array(values, pa.string() if pa.types.is_temporal(field.type) else field.type).cast(field.type)
            for values, field in zip(columns, self._schema, strict=True)
        ]
        documents = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        batch = Batch(documents, _rejected_batch(self._rejected), self.num_records, self.num_bytes)
        self._start()
        return batch


def _too_large(num_bytes: int, limits: Limits) -> _Rejected:
    return _Rejected(RECORD_TOO_LARGE, f"{num_bytes} bytes, max_record_bytes is {limits.max_record_bytes}")


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def _rows_where(mask: pa.Array) -> list[int]:
    return [int(row) for row in np.flatnonzero(mask.fill_null(False).to_numpy(zero_copy_only=False))]


def _valid_strings(values: pa.Array) -> tuple[pa.Array, list[int]]:
    """Return the strings, null where they are not UTF-8 (Parquet readers do not look), and these rows."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        raw = values.cast(pa.binary()).to_pylist()
        broken = [row for row, value in enumerate(raw) if not _is_utf8(value)]
        for row in broken:
            raw[row] = None
        # Built anew: if_else would leave the bad bytes under the nulls, where kernels still read them.
        return pa.array(raw, pa.binary()).cast(pa.string()), broken
    return values, []


class TableRecords:
    """Judges the rows of Parquet files.

    Args:
        columns: where the parts of a document are.
        keep_types: (name, type name) of the kept columns.
        limits: texts of more bytes than these allow are rejected.
    """

    def __init__(self, columns: Columns, keep_types: Sequence[tuple[str, str]], limits: Limits) -> None:
        self._text = columns.text
        self._limits = limits
        self._schema = documents_schema(keep_types)
        self._parts = {"doc_id": columns.id, "text": columns.text}
        self._parts |= {
            "source": columns.source,
            "group": columns.group,
            **{name: name for name, _ in keep_types},
        }
        self.used = frozenset(name for name in self._parts.values() if name is not None)

    def judge(self, table: pa.RecordBatch, path: str, first_row: int) -> Batch:
        """Judge consecutive rows, from row `first_row` of the file `path` on; absent columns are null.

        Raises:
            pyarrow.ArrowInvalid: a column has another type than when the corpus was surveyed.
        """
        parts, verdicts = self._parts_of(table)
        raw_text = parts.pop("raw_text")
        rows = pa.array(np.arange(first_row, first_row + table.num_rows))
        num_bytes = pc.binary_length(raw_text).cast(pa.int64()).fill_null(0)
        for row in _rows_where(pc.greater(num_bytes, self._limits.max_record_bytes)):
            verdicts[row] = _too_large(num_bytes[row].as_py(), self._limits)
        if parts["doc_id"].null_count:
            stand_in = pc.binary_join_element_wise(path, rows.cast(pa.string()), ":")
            parts["doc_id"] = pc.coalesce(parts["doc_id"], stand_in)
        paths = pa.repeat(pa.scalar(path, pa.string()), table.num_rows)
        parts |= {"source_path": paths, "source_row": rows, "record_bytes": num_bytes}
        arrays = [parts[name] for name in self._schema.names]
        documents = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        if verdicts:
            valid = np.ones(table.num_rows, dtype=bool)
            valid[list(verdicts)] = False
            documents = documents.filter(pa.array(valid))
        rejected = []
        for row in sorted(verdicts):
            value, verdict = raw_text[row].as_py() or b"", verdicts[row]
            where = (path, first_row + row, None, verdict.reason, verdict.detail)
            digest = hashlib.sha256(value).hexdigest()
            rejected.append((*where, len(value), digest, value[:KEPT_RECORD_BYTES]))
        return Batch(documents, _rejected_batch(rejected), table.num_rows, pc.sum(num_bytes).as_py() or 0)

    def _parts_of(self, table: pa.RecordBatch) -> tuple[dict[str, pa.Array], dict[int, _Rejected]]:
        """Return the columns in their final types, with the text's bytes, and what is wrong where."""
        parts: dict[str, pa.Array] = {}
        verdicts: dict[int, _Rejected] = {}
        for part, name in self._parts.items():
            kind = self._schema.field(part).type
            if name is None or name not in table.schema.names:
                parts[part] = pa.nulls(table.num_rows, kind)
                continue
            values = table.column(name).cast(kind)
            if part == "text":
                parts["raw_text"] = values.cast(pa.binary())
            if pa.types.is_string(kind):
                values, broken = _valid_strings(values)
                verdicts |= {row: _Rejected(INVALID_UTF8, f"column {name!r} is not UTF-8") for row in broken}
            parts[part] = values
        text = parts["text"]
        blank = pc.or_(pc.equal(pc.binary_length(text), 0), pc.utf8_is_space(text))
        empty = _Rejected(EMPTY_TEXT, f"column {self._text!r} is empty or only white space")
        missing = _Rejected(MISSING_TEXT, f"column {self._text!r} is null")
        verdicts |= dict.fromkeys(_rows_where(blank), empty)
        verdicts |= dict.fromkeys(_rows_where(parts["raw_text"].is_null()), missing)
        return parts, verdicts
