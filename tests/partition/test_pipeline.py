"""The pipeline as a whole: the same bytes however it is run, nothing lost, nothing torn, nothing done twice."""

import errno
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.cli import main
from lmsplit.manifests.commit import read_commit
from lmsplit.manifests.errors import ConflictError, LmsplitError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.store import LocalStore
from lmsplit.manifests.verify import verify_manifest
from lmsplit.partition import units
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import Planned
from lmsplit.partition.publish import publish
from lmsplit.partition.run import Run
from lmsplit.partition.sample import select_sample
from tests.partition import outside
from tests.partition.conftest import KEEP
from tests.partition.corpora import configuration, folder, rows, topical, tree, write


def stamps(root: Path) -> dict[str, tuple[int, int]]:
    """What changes when a file is written again."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def the_run(output: Path) -> Run:
    return Run(str(output), read_commit(LocalStore(output))[1].body.run_id)


def test_manifest_passes_an_outside_check(mixed_manifest: Path, mixed_corpus: Path) -> None:
    done = subprocess.run(
        [sys.executable, outside.__file__, str(mixed_manifest), str(mixed_corpus)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_outside_check_notices_a_lost_document(mixed_manifest: Path, mixed_corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(mixed_corpus, tmp_path / "corpus")
    with (tmp_path / "corpus" / "a.jsonl").open("a") as stream:
        stream.write('{"text": "one more"}\n')
    with pytest.raises(AssertionError):
        outside.check(mixed_manifest, tmp_path / "corpus")


def test_verify_deep_is_clean(mixed_manifest: Path) -> None:
    assert verify_manifest(mixed_manifest, deep=True) == []


def test_every_document_is_published_unchanged_with_its_kept_columns_in_their_types(mixed_manifest: Path) -> None:
    names = ("text", "source", "group", "lang", "stars")
    published = {row["doc_id"]: {name: row[name] for name in names} for row in rows(mixed_manifest)}
    assert published == {row["id"]: {name: row[name] for name in names} for row in topical(120)}
    assert Manifest.open(mixed_manifest).body.columns == {"lang": "string", "stars": "int64"}
    for path in mixed_manifest.glob("data/*/*.parquet"):
        assert list(pq.read_schema(path))[-2:] == [pa.field("lang", pa.string()), pa.field("stars", pa.int64())]


@pytest.mark.parametrize("workers", [1, 2])
def test_moved_corpus_gives_the_same_bytes_with_any_number_of_workers(
    mixed_corpus: Path, mixed_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 1500)
    shutil.copytree(mixed_corpus, tmp_path / "moved")
    keys = {"paths": str(tmp_path / "moved"), "group": "group", "keep": KEEP}
    again = configuration(tmp_path / "moved", tmp_path / "manifest", input=keys, executor={"workers": workers})
    commit = partition(again)
    assert Planned(the_run(tmp_path / "manifest")).num_units > 2
    assert tree(tmp_path / "manifest") == tree(mixed_manifest)
    body = Manifest.open(mixed_manifest).body
    assert (commit.body.run_id, commit.body) == (body.run_id, body)
    assert commit.body_sha256 == Manifest.open(mixed_manifest).digest


def test_manifest_says_nothing_of_the_machine_that_made_it(mixed_corpus: Path, mixed_manifest: Path) -> None:
    published = tree(mixed_manifest) | {"commit": (mixed_manifest / "commits" / "00000.json").read_bytes()}
    for name, data in published.items():
        assert str(mixed_corpus.parent).encode() not in data, name


def test_work_units_do_not_change_where_a_document_lands(mixed_corpus: Path, mixed_manifest: Path, tmp_path: Path) -> None:
    keys = {"paths": str(mixed_corpus), "group": "group", "keep": KEEP}
    partition(configuration(mixed_corpus, tmp_path / "manifest", input=keys))
    assert Planned(the_run(tmp_path / "manifest")).num_units == 1
    assert rows(tmp_path / "manifest") == rows(mixed_manifest)


def test_heldout_groups_are_whole_and_took_no_part_in_the_fit(mixed_manifest: Path) -> None:
    heldout = {row["doc_id"]: row["group"] for row in rows(mixed_manifest) if row["split"] == "heldout"}
    train = {row["doc_id"]: row["group"] for row in rows(mixed_manifest) if row["split"] == "train"}
    assert heldout
    assert not set(heldout.values()) & set(train.values())
    sample = set(select_sample(the_run(mixed_manifest))["doc_id"])
    assert sample
    assert not sample & set(heldout)
    assert sample <= set(train)


def test_topics_land_on_domains_of_their_own(mixed_manifest: Path) -> None:
    domains: list[set[str]] = [
        {row["domain"] for row in rows(mixed_manifest) if int(row["doc_id"][4:]) % 3 == t} for t in range(3)
    ]
    assert sorted(map(len, domains)) == [1, 1, 1]
    assert len(set.union(*domains)) == 3


def test_same_command_again_after_publish_does_nothing(mixed_corpus: Path, mixed_manifest: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(60))
    asked = configuration(tmp_path / "in", tmp_path / "manifest")
    first = partition(asked)
    before = stamps(tmp_path / "manifest")
    assert partition(asked) == first
    assert publish(the_run(tmp_path / "manifest")) == first
    after = stamps(tmp_path / "manifest")
    changed = {Path(path).name for path in before if before[path] != after.get(path)}
    assert changed == {"README.md"}  # publish writes the card anew, in the same words
    assert before.keys() == after.keys()


def test_same_command_goes_on_from_the_receipts(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(60))
    asked = configuration(tmp_path / "in", tmp_path / "manifest")
    first = partition(asked)
    whole = tree(tmp_path / "manifest")
    (tmp_path / "manifest" / "commits" / "00000.json").unlink()
    run = the_run_without_commit(tmp_path / "manifest")
    for path in folder(run, "gather").glob("*.json"):
        path.unlink()
    before = stamps(folder(run, "place")) | stamps(folder(run, "fit")) | stamps(folder(run, "scan"))
    assert partition(asked).body_sha256 == first.body_sha256
    assert stamps(folder(run, "place")) | stamps(folder(run, "fit")) | stamps(folder(run, "scan")) == before
    assert tree(tmp_path / "manifest") == whole


def the_run_without_commit(output: Path) -> Run:
    (plan,) = output.glob("_work/*/plan.json")
    return Run(str(output), plan.parent.name)


def test_other_configuration_on_a_published_output_is_a_conflict(mixed_corpus: Path, mixed_manifest: Path) -> None:
    before = stamps(mixed_manifest)
    with pytest.raises(ConflictError, match=r"holds the manifest of run \w{16}, this configuration and input are run \w{16}"):
        partition(configuration(mixed_corpus, mixed_manifest, seed=7))
    assert stamps(mixed_manifest) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_output_without_room_is_named_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(10))

    def no_room(*_: object) -> None:
        raise OSError(number, "some library's own words")

    monkeypatch.setattr(LocalStore, "put_bytes", no_room)
    message = f"{tmp_path}/manifest: {os.strerror(number)}. Nothing is lost: make room there and run the same command again"
    with pytest.raises(LmsplitError, match=re.escape(message)):
        partition(configuration(tmp_path / "in", tmp_path / "manifest"))


def test_other_error_of_the_file_system_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(10))

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/some/where")

    monkeypatch.setattr(LocalStore, "put_bytes", refused)
    with pytest.raises(
        LmsplitError, match=r"Permission denied: '/some/where'\. Nothing is lost: mend that and run the same command"
    ):
        partition(configuration(tmp_path / "in", tmp_path / "manifest"))


def test_two_processes_at_once_make_one_manifest(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(300))
    (tmp_path / "c.yaml").write_text(
        f"input: {tmp_path / 'in'}\noutput: {tmp_path / 'manifest'}\ndomains: 3\nencoder: lexical\nexecutor: {{workers: 1}}\n"
    )
    context = multiprocessing.get_context("forkserver")
    arguments = ["partition", str(tmp_path / "c.yaml"), "--json"]
    both = [context.Process(target=main, args=(arguments,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert verify_manifest(tmp_path / "manifest", deep=True) == []
    assert list((tmp_path / "manifest" / "_work" / "spool").iterdir()) == []
