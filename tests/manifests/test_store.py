"""The store: create-only, whole or not at all, one winner."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmsplit.manifests.errors import ConfigurationError, LmsplitError
from lmsplit.manifests.store import Store, file_sha256, local_path

RACER = """
import json, sys
from pathlib import Path
from lmsplit.manifests.store import Store
root, mine = Path(sys.argv[1]), sys.argv[2]
store = Store(root / "store")
(root / f"ready-{mine}").touch()
while not (root / "go").exists():
    pass
print(json.dumps([store.put_bytes(mine.encode() * 100_000, f"data/{number}") for number in range(30)]))
"""


def leftovers(store: Store) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file() and "_work" in path.parts]


def test_put_creates_once_and_never_overwrites(tmp_path):
    store = Store(tmp_path / "new")
    assert store.put_bytes(b"first", "data/d00000/a") is True
    assert store.put_bytes(b"second", "data/d00000/a") is False
    assert store.read("data/d00000/a") == b"first"
    assert leftovers(store) == []


def test_put_leaves_nothing_behind_when_the_writer_fails(tmp_path):
    store = Store(tmp_path)

    def write_half() -> None:
        with store.spool() as spooled:
            spooled.write_bytes(b"half a file")
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        write_half()
    assert leftovers(store) == []
    assert store.names("data") == []


def test_put_has_one_winner_when_two_processes_race(tmp_path):
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path), mine], stdout=subprocess.PIPE, text=True) for mine in "ab"
    ]
    while not all((tmp_path / f"ready-{mine}").exists() for mine in "ab"):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    created = [json.loads(racer.communicate(timeout=60)[0]) for racer in racers]
    store = Store(tmp_path / "store")
    for number, (by_a, by_b) in enumerate(zip(*created, strict=True)):
        assert by_a != by_b
        assert store.read(f"data/{number}") == (b"a" if by_a else b"b") * 100_000
    assert leftovers(store) == []


def test_replace_is_whole_and_the_last_one_wins(tmp_path):
    store = Store(tmp_path)
    store.replace(b"first", "README.md")
    store.replace(b"second", "README.md")
    assert store.read("README.md") == b"second"
    assert leftovers(store) == []


def test_put_says_what_to_do_when_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(LmsplitError, match=r"no hard links.*choose an output on another one"):
        Store(tmp_path).put_bytes(b"x", "data/a")
    assert not (tmp_path / "data" / "a").exists()


def test_put_passes_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="full"):
        Store(tmp_path).put_bytes(b"x", "data/a")
    assert leftovers(Store(tmp_path)) == []


def test_names_are_sorted_files_only(tmp_path):
    store = Store(tmp_path)
    for name in ("b", "a", "sub/c"):
        store.put_bytes(b"", f"data/{name}")
    assert store.names("data") == ["a", "b"]
    assert store.names("nothing") == []


@pytest.mark.parametrize("location", ["s3://bucket/x", "gs://b/x", "az://b/x", "hf://datasets/x"])
def test_local_path_names_schemes_that_come_later(location):
    with pytest.raises(ConfigurationError, match="comes with a later release"):
        local_path(location)


def test_local_path_refuses_other_schemes_and_takes_files():
    with pytest.raises(ConfigurationError, match=r"ftp:// is not supported; expected a local path or file://"):
        local_path("ftp://host/x")
    assert local_path("file:///a/b") == Path("/a/b")
    assert local_path("a/b") == Path("a/b")


def test_file_sha256_reads_beyond_one_chunk(tmp_path):
    (tmp_path / "x").write_bytes(b"a" * 3_000_000)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"a" * 3_000_000).hexdigest()
