"""Sound files of every format that the corpus reader takes, and random damage to them; what `fuzz.py` tries."""

import gzip
import json
import random
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

NUM_RECORDS: Final = 80
_TOPICS: Final = ("river boat fish bridge stream", "violin concert melody choir", "bread oven flour yeast dough")
_TAILS: Final = (
    "",
    " é 日本",
    ' "quoted": \\ back',
    "\nnext line\tand a tab",
    " {braces: [1, 2]}",
    " \0 nul",
    " https://a.b/c?d=e",
)


class Damage(NamedTuple):
    """One damage to a file: which, where (as fractions of its length), how many bytes, and a seed for what is random in it."""

    kind: str
    start: float
    to: float
    num_bytes: int
    seed: int


def records() -> list[dict[str, Any]]:
    """Return the records of every sound file; every text is another one."""
    generator = random.Random(0)
    return [
        {
            "id": f"doc-{number}" if number % 5 else None,
            "text": f"{number} {' '.join(generator.choices(_TOPICS[number % 3].split(), k=12))}{_TAILS[number % 7]}",
            "source": f"site {number % 4}",
            "year": None if number % 6 == 0 else 1990 + number,
            "extra": {"a": [number, 0.5, None]},
        }
        for number in range(NUM_RECORDS)
    ]


def lines(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return records as JSON lines."""
    return b"".join(json.dumps(row, ensure_ascii=row["year"] is None).encode() + b"\n" for row in rows)


def _frames(*, write_checksum: bool) -> bytes:
    compressor = zstandard.ZstdCompressor(write_checksum=write_checksum, write_content_size=False)
    data = lines(records())
    return b"".join(compressor.compress(data[start : start + 5000]) for start in range(0, len(data), 5000))


def _parquet(**options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records()), sink, row_group_size=30, data_page_size=1000, **options)
    data: bytes = sink.getvalue().to_pybytes()
    return data


class Format(NamedTuple):
    """A format: its file's suffix, a sound file, and whether a checksum covers its texts."""

    suffix: str
    sound: bytes
    checked: bool


FORMATS: Final[dict[str, Format]] = {
    "jsonl": Format("jsonl", lines(records()), False),
    "jsonl.gz": Format(
        "jsonl.gz", b"".join(gzip.compress(lines(part), mtime=0) for part in (records()[:33], records()[33:])), True
    ),
    "jsonl.zst": Format("jsonl.zst", _frames(write_checksum=True), True),
    "jsonl.zst, no checksums": Format("jsonl.zst", _frames(write_checksum=False), False),
    "parquet": Format("parquet", _parquet(compression="zstd", write_page_checksum=True), True),
    "parquet, no checksums": Format("parquet", _parquet(compression="snappy", data_page_version="2.0"), False),
    "parquet, plain": Format("parquet", _parquet(compression="none", use_dictionary=False), False),
}


DAMAGES: Final = (
    "flip", "truncate", "delete", "double", "move", "zero", "insert", "splice", "beginning", "end", "line ends"
)  # fmt: skip


def _apply(data: bytearray, damage: Damage) -> None:
    generator = random.Random(damage.seed)
    start, to = int(damage.start * len(data)), int(damage.to * len(data))
    part = slice(start, start + damage.num_bytes)
    match damage.kind:
        case "flip":
            for _ in range(damage.num_bytes % 4 + 1):
                data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        case "truncate":
            del data[start:]
        case "delete":
            del data[part]
        case "double":
            data[to:to] = data[part]
        case "move":
            moved = data[part]
            del data[part]
            data[min(to, len(data)) : to] = moved
        case "zero":
            data[part] = bytes(len(data[part]))
        case "insert":
            data[start:start] = generator.randbytes(damage.num_bytes % 64 + 1)
        case "splice":
            other = generator.choice(list(FORMATS.values())).sound
            begin = int(damage.to * len(other))
            data[start : start + generator.choice((0, damage.num_bytes))] = other[begin : begin + damage.num_bytes]
        case "beginning":
            data[damage.seed % min(32, len(data))] = damage.num_bytes % 256
        case "end":
            data[-1 - damage.seed % min(600, len(data))] ^= damage.num_bytes % 255 + 1
        case _:
            ending = (b"\r\n", b"\n\n", b"\r", b"", b" \n\v\n")[damage.seed % 5]
            data[:] = data.replace(b"\n", ending, damage.num_bytes % 40 + 1)


def damaged(data: bytes, damages: Sequence[Damage]) -> bytes:
    """Return a file after its damages, one after the other."""
    found = bytearray(data)
    for damage in damages:
        if found:
            _apply(found, damage)
    return bytes(found)


def draw(seed: int, index: int) -> tuple[str, list[Damage]]:
    """Return the format and the damages of one input; the same for the same numbers."""
    generator = random.Random(f"{seed} {index}")
    name = list(FORMATS)[index % len(FORMATS)]
    sizes = (1, 8, 100, 1000, 5000)
    return name, [
        Damage(
            generator.choice(DAMAGES),
            generator.random(),
            generator.random(),
            generator.randrange(1, generator.choice(sizes) + 1),
            generator.randrange(2**32),
        )
        for _ in range(generator.choice((1, 1, 2, 3)))
    ]
