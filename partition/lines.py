"""JSON lines: cut a stream into lines, and turn each line into a document or into a rejection.

It does not open files (see `reading`), skip duplicates, or judge whether too much was rejected.

Cost: orjson parses a line once; only a refused line is parsed again, slowly. Looking for repeated keys is a tenth of
the whole. Memory: one batch and one record of at most `max_record_bytes`.
"""

import contextlib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
import orjson
import pyarrow as pa

from lmsplit.manifests.schema import type_named
from lmsplit.partition.records import (
    BAD_VALUE,
    BATCH_BYTES,
    BATCH_DOCUMENTS,
    EMPTY_TEXT,
    INTEGER_OUT_OF_RANGE,
    INVALID_UTF8,
    KEPT_RECORD_BYTES,
    LONE_SURROGATE,
    MALFORMED_JSON,
    MISSING_TEXT,
    NAN_OR_INFINITY,
    NESTED_TOO_DEEP,
    NOT_AN_OBJECT,
    TEXT_NOT_STRING,
    Batch,
    Columns,
    Limits,
    Rejected,
    documents_schema,
    rejected_batch,
    too_large,
)

_MAX_SLOW_DEPTH: Final = 512  # json recurses: below Python's limit of 1,000 frames wherever it is called from
_BOM: Final = b"\xef\xbb\xbf"
# The last quote may be missing: else each quote in a string that never ends would be tried, in quadratic time.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_STRING_OR_KEY = re.compile(rb'"(?:[^"\\]++|\\.)*+"[ \t\r]*+(:?)', re.DOTALL)


class LongLine(NamedTuple):
    """A line too long to be held: its length, SHA-256, first bytes, and whether it is only white space."""

    num_bytes: int
    sha256: str
    head: bytes
    blank: bool


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
        """Append a chunk of the line."""
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
        """Return what was put together, and start the next line."""
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
        """Return the line that just ended, without a byte order mark."""
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
        raise Rejected(NAN_OR_INFINITY, "a number is too large for a double")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise Rejected(NAN_OR_INFINITY, f"{name} is no JSON value")


_STRICT: Final = json.JSONDecoder(parse_int=_parse_int, parse_float=_parse_float, parse_constant=_refuse_constant)


def _parse_slowly(line: bytes, used: Iterable[str]) -> Any:
    """Parse a line that orjson refused or misread, to find out why."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise Rejected(INVALID_UTF8, f"byte {error.start} of the line: {error.reason}") from None
    steps = (1 if bracket[0] in "[{" else -1 for bracket in re.finditer(r"[][{}]", _STRING.sub("", text)))
    if any(depth > _MAX_SLOW_DEPTH for depth in itertools.accumulate(steps)):
        raise Rejected(NESTED_TOO_DEEP, f"nested deeper than {_MAX_SLOW_DEPTH} levels")
    try:
        record = _STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise Rejected(MALFORMED_JSON, f"{error.msg} at character {error.pos}") from None
    for name in used if isinstance(record, dict) else ():
        if isinstance(value := record.get(name), str) and re.search("[\ud800-\udfff]", value):
            raise Rejected(LONE_SURROGATE, f"column {name!r} holds half of a surrogate pair")
    return record


def _repeats_a_key(line: bytes, record: Any) -> bool:
    """Return whether an object of the line has a key more than once, of which the parsed record has the last only."""
    num_keys, values = 0, [record]
    while values:
        value = values.pop()
        if type(value) is dict:
            num_keys += len(value)
            values.extend(value.values())
        elif type(value) is list:
            values.extend(value)
    return line.count(b":") > num_keys and _STRING_OR_KEY.findall(line).count(b":") > num_keys


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
        """Return one value as the column has it."""
        if type(value) not in types:
            expected = " or ".join(accepted.__name__ for accepted in types)
            found = type(value).__name__
            raise Rejected(BAD_VALUE, f"column {name!r} holds a {found}, expected {expected} ({kind})")
        if type(value) is not str and not low <= value <= high:
            raise Rejected(INTEGER_OUT_OF_RANGE, f"column {name!r} holds a number outside {low} to {high}")
        if temporal:
            try:
                pa.scalar(value).cast(kind)
            except pa.ArrowInvalid:
                raise Rejected(BAD_VALUE, f"column {name!r} holds a string that is no {kind}") from None
        return convert(value)

    return read


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
        self._num_repeated_keys = 0
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
        except Rejected as verdict:
            if isinstance(line, bytes):
                line = LongLine(num_bytes, hashlib.sha256(line).hexdigest(), line[:KEPT_RECORD_BYTES], False)
            why = (verdict.reason, verdict.detail)
            self._rejected.append((path, row, offset, *why, num_bytes, line.sha256, line.head, verdict.doc_id))
        else:
            doc_id = f"{path}:{row}" if doc_id is None else doc_id
            self._documents.append((doc_id, text, source, group, path, row, *kept, num_bytes))

    def _values(self, line: bytes | LongLine) -> list[Any]:
        if isinstance(line, LongLine):
            raise too_large(line.num_bytes, self._limits)
        try:
            record = orjson.loads(line)
            values = self._document(record)
        except (orjson.JSONDecodeError, Rejected):
            # A refused document is judged again, as orjson reads an integer beyond 64 bits as a float.
            record = _parse_slowly(line, self._used)
            values = self._document(record)
        self._num_repeated_keys += _repeats_a_key(line, record)
        return values

    def _document(self, record: Any) -> list[Any]:
        if type(record) is not dict:
            raise Rejected(NOT_AN_OBJECT, f"the line holds a {type(record).__name__}, expected an object")
        try:
            return self._parts(record)
        except Rejected as verdict:
            name, read = self._readers[0]
            value = None if name is None else record.get(name)
            with contextlib.suppress(Rejected):
                verdict.doc_id = None if value is None else read(value)
            raise

    def _parts(self, record: dict[Any, Any]) -> list[Any]:
        text = record.get(self._text)
        if text is None:
            raise Rejected(MISSING_TEXT, f"column {self._text!r} is absent or null")
        if type(text) is not str:
            found = type(text).__name__
            raise Rejected(TEXT_NOT_STRING, f"column {self._text!r} holds a {found}, expected a string")
        if not text or text.isspace():
            raise Rejected(EMPTY_TEXT, f"column {self._text!r} is empty or only white space")
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
        rejected = rejected_batch(self._rejected)
        batch = Batch(documents, rejected, self.num_records, self.num_bytes, self._num_repeated_keys)
        self._start()
        return batch
