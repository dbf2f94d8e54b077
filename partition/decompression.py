"""A segment's bytes, decompressed: damage, truncation and bombs stop it instead of reading short.

Cost: one chunk of output, and one of input. It knows no lines or records.
"""

import gzip
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

import zstandard

from lmsplit.manifests.errors import InputError
from lmsplit.partition.units import Segment

CHUNK_BYTES: Final = 2**20
_ZSTD_INPUT_BYTES: Final = 2048  # a frame may expand 32,000-fold: at most 64 MiB for one such piece
BOMB_RATIO: Final = 1000
BOMB_FREE_BYTES: Final = 64 * 2**20
_DAMAGED: Final = (EOFError, OSError, zlib.error, zstandard.ZstdError)


def chunks(raw: BinaryIO, segment: Segment) -> Iterator[bytes]:
    """Yield a segment's bytes, decompressed.

    Args:
        raw: the segment's file, opened.
        segment: which part of it; never one of a Parquet file.

    Raises:
        InputError: the data is truncated or damaged, or expands more than a thousandfold.
    """
    if segment.format == "jsonl":
        raw.seek(segment.start)
        while chunk := raw.read(min(CHUNK_BYTES, segment.stop - raw.tell())):
            yield chunk
        return
    num_bytes = 0
    try:
        for chunk in _gunzipped(raw) if segment.format == "jsonl.gz" else _unzstd(raw):
            num_bytes += len(chunk)
            if num_bytes > max(BOMB_FREE_BYTES, BOMB_RATIO * raw.tell()):
                raise InputError(
                    f"{segment.path}: its first {raw.tell()} bytes expand to {num_bytes}, expected at most "
                    f"{BOMB_RATIO} times as many: taken for a bomb; decompress it yourself if it is sound"
                )
            yield chunk
    except _DAMAGED as error:
        raise InputError(
            f"{segment.path}: compressed data is truncated or damaged near byte {raw.tell()} of "
            f"{segment.stop} ({error}): fetch or write the file again"
        ) from error


def _gunzipped(raw: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=raw) as stream:  # reads every member, and checks the last one's end
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _unzstd(raw: BinaryIO) -> Iterator[bytes]:
    # Neither stream_reader nor read_to_iter tells a truncated frame from a finished one: go frame by frame.
    decompressor = zstandard.ZstdDecompressor()
    frame, parts, num_bytes = None, list[bytes](), 0
    while data := raw.read(_ZSTD_INPUT_BYTES):
        while data:
            frame = frame or decompressor.decompressobj()
            if part := frame.decompress(data):  # there may be millions of empty frames
                parts.append(part)
                num_bytes += len(part)
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
        if num_bytes >= CHUNK_BYTES // 8:
            yield b"".join(parts)
            parts, num_bytes = [], 0
    yield b"".join(parts)
    if frame:
        raise EOFError("the last zstd frame is not complete")
