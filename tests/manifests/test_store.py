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
from lmsplit.manifests.store import LocalStore, file_sha256, local_path, open_store

RACER = """
import json, sys
from pathlib import Path
from lmsplit.manifests.store import LocalStore
root, mine = Path(sys.argv[1]), sys.argv[2]
store = LocalStore(root / "store")
(root / f"ready-{mine}").touch()
while not (root / "go").exists():
    pass
print(json.dumps([store.put_bytes(mine.encode() * 100_000, f"data/{number}") for number in range(30)]))
"""


def leftovers(store: LocalStore) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file() and "_work" in path.parts]


def test_put_creates_once_and_never_overwrites(tmp_path):
    store = LocalStore(tmp_path / "new")
    assert store.put_bytes(b"first", "data/d00000/a") is True
    assert store.put_bytes(b"second", "data/d00000/a") is False
    assert store.read("data/d00000/a") == b"first"
    assert leftovers(store) == []


def test_put_leaves_nothing_behind_when_the_writer_fails(tmp_path):
    store = LocalStore(tmp_path)

    def write_half() -> None:
        with store.spool() as spooled:
            spooled.write_bytes(b"half a file")
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        write_half()
    assert leftovers(store) == []
    assert store.entries("data") == {}


def test_put_has_one_winner_when_two_processes_race(tmp_path):
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path), mine], stdout=subprocess.PIPE, text=True) for mine in "ab"
    ]
    while not all((tmp_path / f"ready-{mine}").exists() for mine in "ab"):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    created = [json.loads(racer.communicate(timeout=60)[0]) for racer in racers]
    store = LocalStore(tmp_path / "store")
    for number, (by_a, by_b) in enumerate(zip(*created, strict=True)):
        assert by_a != by_b
        assert store.read(f"data/{number}") == (b"a" if by_a else b"b") * 100_000
    assert leftovers(store) == []


def test_put_writes_the_file_and_every_new_folder_through_to_the_disk(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        flushed.append("spooled" if path.parent.name == "spool" else str(path.relative_to(tmp_path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    store = LocalStore(tmp_path / "m")
    store.put_bytes(b"x", "data/d00000/a")
    assert flushed == [".", "m", "m/_work", "m", "m/data", "spooled", "m/data/d00000"]
    flushed.clear()
    store.put_bytes(b"x", "data/d00000/a")  # who created it may have been killed before it flushed
    assert flushed == ["spooled", "m/data/d00000"]


def test_replace_is_whole_and_the_last_one_wins(tmp_path):
    store = LocalStore(tmp_path)
    store.replace(b"first", "README.md")
    store.replace(b"second", "README.md")
    assert store.read("README.md") == b"second"
    assert leftovers(store) == []


def test_put_says_what_to_do_when_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(LmsplitError, match=r"no hard links.*choose an output on another one"):
        LocalStore(tmp_path).put_bytes(b"x", "data/a")
    assert not (tmp_path / "data" / "a").exists()


def test_put_passes_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="full"):
        LocalStore(tmp_path).put_bytes(b"x", "data/a")
    assert leftovers(LocalStore(tmp_path)) == []


def test_entries_are_sorted_files_only_with_their_sizes(tmp_path):
    store = LocalStore(tmp_path)
    for name in ("b", "a", "sub/c"):
        store.put_bytes(name.encode(), f"data/{name}")
    entries = store.entries("data")
    assert [(name, facts.num_bytes) for name, facts in entries.items()] == [("a", 1), ("b", 1)]
    assert entries["a"].modified_s == (tmp_path / "data" / "a").stat().st_mtime
    assert store.folders("data") == ["sub"]
    assert (store.entries("nothing"), store.folders("nothing")) == ({}, [])


def test_walk_finds_every_file_and_follows_no_link(tmp_path):
    store = LocalStore(tmp_path / "store")
    for name in ("data/b/c", "data/a", "other/d"):
        store.put_bytes(b"12", name)
    (tmp_path / "store" / "data" / "link").symlink_to(tmp_path / "store" / "other")
    assert list(store.walk("data")) == ["data/a", "data/b/c", "data/link"]
    assert store.walk("data")["data/b/c"].num_bytes == 2
    assert store.walk("nothing") == {}


def test_facts_and_version_are_of_files_only(tmp_path):
    store = LocalStore(tmp_path)
    store.put_bytes(b"12", "data/a")
    assert store.facts("data/a").num_bytes == 2
    before = store.version("data/a")
    os.utime(tmp_path / "data" / "a", ns=(1, 1))
    assert store.version("data/a") != before
    for name in ("data", "data/b"):
        with pytest.raises(FileNotFoundError):
            store.facts(name)
        with pytest.raises(FileNotFoundError):
            store.version(name)


def test_a_file_reads_alike_by_every_door(tmp_path):
    store = LocalStore(tmp_path)
    store.put_bytes(b"some bytes", "data/a")
    with store.open("data/a") as stream, store.input("data/a") as source:
        found = (stream.read(), source.read(), store.read("data/a"), store.local("data/a").read_bytes())
    assert set(found) == {b"some bytes"}
    for door in (store.open, store.input, store.read, store.local):
        with pytest.raises(FileNotFoundError):
            door("data/b")


def test_remove_takes_a_folder_away_and_counts_its_bytes(tmp_path):
    store = LocalStore(tmp_path)
    for name in ("_work/run/a", "_work/run/b/c", "data/d"):
        store.put_bytes(b"123", name)
    assert store.remove("_work/run") == 6
    assert list(store.walk("")) == ["data/d"]
    assert store.remove("nothing") == 0


def test_open_store_tells_paths_from_urls(tmp_path):
    assert isinstance(open_store(tmp_path), LocalStore)
    store = open_store("file:///a/b")
    assert (store.location, store.where("data/c"), store.is_local) == ("/a/b", "/a/b/data/c", True)


@pytest.mark.parametrize("location", ["s3://bucket/x", "gs://b/x", "az://b/x", "hf://datasets/x"])
def test_local_path_refuses_object_stores(location):
    with pytest.raises(ConfigurationError, match=rf"^{location} is on an object store: expected a local path here"):
        local_path(location)


@pytest.mark.parametrize("open_it", [local_path, open_store])
def test_unknown_schemes_are_refused(open_it):
    expected = r"ftp://host/x: ftp:// is not supported; expected a local path, or file://, s3://, gs://, az://, hf://"
    with pytest.raises(ConfigurationError, match=expected):
        open_it("ftp://host/x")


def test_local_path_takes_paths_and_files():
    assert local_path("file:///a/b") == Path("/a/b")
    assert local_path("a/b") == Path("a/b")


def test_file_sha256_reads_beyond_one_chunk(tmp_path):
    (tmp_path / "x").write_bytes(b"a" * 3_000_000)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"a" * 3_000_000).hexdigest()
