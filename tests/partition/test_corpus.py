"""The survey of a corpus: which files it takes, what it says of them, and what it refuses."""

import hashlib
import os
import sys
from pathlib import Path

import pytest

from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.partition.corpus import survey
from lmsplit.partition.records import Columns
from tests.partition.corpora import ROWS, as_lines, write


def test_survey_lists_files_with_sizes_and_digests(tmp_path: Path) -> None:
    write(tmp_path / "b" / "x.jsonl")
    write(tmp_path / "a.parquet")
    seen: list[int] = []
    corpus = survey([str(tmp_path)], Columns(), progress=seen.append)
    assert corpus.root == str(tmp_path)
    for file, name in zip(corpus.files, ["a.parquet", "b/x.jsonl"], strict=True):
        data = (tmp_path / name).read_bytes()
        assert (file.path, file.num_bytes, file.sha256) == (name, len(data), hashlib.sha256(data).hexdigest())
    assert sum(seen) == sum(file.num_bytes for file in corpus.files)
    assert corpus.estimated_documents == 600


@pytest.mark.parametrize("threads", [1, 5])
def test_survey_is_the_same_for_any_number_of_threads_and_any_place(tmp_path: Path, threads: int) -> None:
    for place in ("one", "two"):
        for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.json"):
            write(tmp_path / place / name)
    first = survey([str(tmp_path / "one")], Columns(), unit_bytes=5000)
    second = survey([str(tmp_path / "two")], Columns(), unit_bytes=5000, num_threads=threads)
    assert (first.files, first.units) == (second.files, second.units)


def test_survey_counts_a_file_once_and_skips_hidden_ones(tmp_path: Path) -> None:
    for name in ("a.jsonl", ".hidden.jsonl", "_work/b.jsonl", ".git/c.jsonl", "deep/er/d.JSONL", "note.txt"):
        write(tmp_path / name)
    (tmp_path / "same.jsonl").symlink_to(tmp_path / "a.jsonl")
    paths = [
        str(tmp_path),
        str(tmp_path / "**" / "a.jsonl"),
        f"file://{tmp_path}/a.jsonl",
        f"{tmp_path}/deep/../a.jsonl",
    ]
    assert [file.path for file in survey(paths, Columns()).files] == ["a.jsonl", "deep/er/d.JSONL"]


def test_survey_takes_a_literal_name_before_a_pattern(tmp_path: Path) -> None:
    write(tmp_path / "a[1].jsonl")
    assert [file.path for file in survey([str(tmp_path / "a[1].jsonl")], Columns()).files] == ["a[1].jsonl"]


def test_survey_says_what_to_install_for_a_store_whose_library_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigurationError, match=r"s3://bucket/x.jsonl: .*: pip install 'lmsplit\[s3\]'"):
        survey(["s3://bucket/x.jsonl"], Columns())


def test_survey_refuses_a_mixture_of_places(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is partly local and partly on an object store: put it in one place"):
        survey([str(write(tmp_path / "a.jsonl")), "s3://bucket/x.jsonl"], Columns())


def test_survey_refuses_input_it_cannot_resolve(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ftp:// is not supported; expected a local path, or file://, s3://, gs://"):
        survey(["ftp://host/x.jsonl"], Columns())
    with pytest.raises(ConfigurationError, match="names no path"):
        survey([], Columns())
    with pytest.raises(InputError, match=r"none\*.jsonl' matches no file: expected .parquet"):
        survey([str(tmp_path / "none*.jsonl")], Columns())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="matches no file"):
        survey([str(tmp_path / "empty")], Columns())
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(ConfigurationError, match=r"'x.csv' has no known suffix: expected .parquet"):
        survey([str(tmp_path / "*.csv")], Columns())
    (tmp_path / "broken.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match=r"'broken.jsonl' is not a regular file"):
        survey([str(tmp_path / "broken.jsonl")], Columns())


@pytest.mark.parametrize("link", ["in/link.jsonl", "in/folder"])
def test_survey_refuses_a_link_that_leads_out_of_the_root(tmp_path: Path, link: str) -> None:
    write(tmp_path / "out" / "x.jsonl")
    write(tmp_path / "in" / "y.jsonl")
    (tmp_path / link).symlink_to(tmp_path / "out" / ("x.jsonl" if link.endswith("l") else ""))
    with pytest.raises(InputError, match="is a link that leads out of the input root"):
        survey([str(tmp_path / "in")], Columns())


def test_survey_refuses_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")).write_bytes(as_lines(ROWS))
    with pytest.raises(InputError, match="has a name that is not UTF-8"):
        survey([str(tmp_path)], Columns())
