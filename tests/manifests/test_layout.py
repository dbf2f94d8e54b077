"""Paths: what each looks like, and that they read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsplit.manifests import layout

SHA = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (layout.commit_path(3), "commits/00003.json"),
        (layout.plan_path(SHA), "plans/0123456789abcdef.json"),
        (layout.domains_path(SHA), "domains/0123456789abcdef.parquet"),
        (layout.placement_path(SHA, "json"), "placement/0123456789abcdef.json"),
        (layout.ids_path(2, SHA), "ids/00002-0123456789abcdef.parquet"),
        (layout.data_path("d00007", 1, SHA), "data/d00007/part-00001-0123456789abcdef.parquet"),
        (layout.quarantine_path(0, SHA), "quarantine/part-00000-0123456789abcdef.parquet"),
        (layout.work_path("run"), "_work/run"),
    ],
)
def test_path_is_as_specified(path, expected):
    assert path == expected


@given(st.integers(0, 10**7))
def test_commit_version_reads_back(version):
    assert layout.commit_version(layout.commit_path(version).removeprefix("commits/")) == version


@given(st.integers(0, 10**6))
def test_domain_name_reads_back(index):
    assert layout.domain_index(layout.domain_name(index)) == index


@pytest.mark.parametrize(
    "name", ["0.json", "000000.json", "00000.json~", "x00000.json", "00000.JSON", "٠٠٠٠٠.json", "00000.json\n"]
)
def test_commit_version_is_none_for_other_files(name):
    assert layout.commit_version(name) is None
