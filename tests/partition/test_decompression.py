"""Compressed input: every member and frame is read, and damage never reads short."""

from pathlib import Path

import pytest
import zstandard

from lmsplit.manifests.errors import InputError
from tests.partition.corpora import ROWS, as_lines, documents, packed, read_path, write


def test_concatenated_members_and_frames_are_read_to_the_end(tmp_path: Path) -> None:
    skippable = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    for suffix, between in (("gz", b""), ("zst", skippable)):
        path = tmp_path / f"x.jsonl.{suffix}"
        path.write_bytes(between + packed(suffix, as_lines(ROWS[:150])) + between + packed(suffix, as_lines(ROWS[150:])))
        assert documents(read_path(path))["doc_id"].to_pylist() == [row["id"] for row in ROWS]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_truncated_compression_never_reads_short(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"whole.jsonl.{suffix}", ROWS[:20]).read_bytes()
    path = tmp_path / f"x.jsonl.{suffix}"
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(
            InputError,
            match=rf"x.jsonl.{suffix}: compressed data is truncated or damaged near byte \d+ of {cut} ",
        ):
            read_path(path)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_damaged_compression_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"x.jsonl.{suffix}").read_bytes()
    path = tmp_path / f"x.jsonl.{suffix}"
    for position in (0, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with pytest.raises(InputError, match="compressed data is truncated or damaged"):
            read_path(path)
    path.write_bytes(whole + b"garbage")
    with pytest.raises(InputError, match="compressed data is truncated or damaged"):
        read_path(path)


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(zstandard.compress(bytes(256 * 2**20)))
    with pytest.raises(
        InputError,
        match=r"x.jsonl.zst: its first \d+ bytes expand to \d+, expected at most 1000 times as many",
    ):
        read_path(path)
