"""`lmsplit partition` with an S3 server over HTTP: the same bytes as on a disk, kills, and no credential anywhere."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.object_store import ObjectStore
from tests.cluster.conftest import Expected
from tests.cluster.runs import LMSPLIT, LOCAL, Done, configured, lmsplit, partition
from tests.object_store import ObjectStore as Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def files(s3: Server) -> Iterator[s3fs.S3FileSystem]:
    """A client of the server that caches no listing."""
    client = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    yield client
    s3fs.S3FileSystem.close_session(client.loop, client.s3)


@pytest.fixture
def remote(s3: Server, files: s3fs.S3FileSystem, expected: Expected) -> str:
    """A bucket of its own, with the corpus in `in/`."""
    bucket = s3.bucket()
    for path in sorted(expected.corpus.iterdir()):
        files.put_file(str(path), f"{bucket}/in/{path.name}")
    return f"s3://{bucket}"


def published(files: s3fs.S3FileSystem, location: str) -> dict[str, bytes]:
    """Every published file of a manifest but the commit and the work files, by its relative path."""
    root = location.removeprefix("s3://")
    names = (name.removeprefix(f"{root}/") for name in files.find(root))
    return {name: files.cat_file(f"{root}/{name}") for name in names if not name.startswith(("_work/", "commits/"))}


def is_there(files: s3fs.S3FileSystem, pattern: str) -> bool:
    """Whether an object matches; a folder that appears during the search is not there yet."""
    try:
        return bool(files.glob(pattern))
    except FileNotFoundError:
        return False


def on_disk(manifest: Path) -> dict[str, bytes]:
    """The same of a manifest on this disk."""
    names = (path.relative_to(manifest).as_posix() for path in sorted(manifest.rglob("*")) if path.is_file())
    return {name: (manifest / name).read_bytes() for name in names if not name.startswith(("_work/", "commits/"))}


def test_manifest_on_s3_is_the_one_on_disk(
    s3: Server,
    expected: Expected,
    executor: dict[str, str],
    remote: str,
    files: s3fs.S3FileSystem,
    tmp_path: Path,
) -> None:
    done = partition(tmp_path, f"{remote}/in/*", f"{remote}/manifest", executor | {"workers": 2})
    assert done.code == 0, done.err
    assert done.json["commit"] == expected.commit
    assert published(files, f"{remote}/manifest") == on_disk(expected.manifest)
    hold_no_credential(s3, files, remote, tmp_path, done)
    if executor["kind"] == "slurm":
        assert list(tmp_path.glob("lmsplit-logs/*/scan/*.out"))  # Slurm writes to disks only
    assert lmsplit("verify", f"{remote}/manifest", "--deep", "--json").json["ok"] is True
    assert all(row["tasks_done"] == row["tasks"] for row in lmsplit("status", f"{remote}/manifest", "--json").json["stages"])
    assert lmsplit("gc", f"{remote}/manifest").code == 0
    assert not [name for name in files.find(f"{remote}/manifest") if "/_work/" in name]


@pytest.mark.parametrize(("here", "there"), [(True, False), (False, True)], ids=["in on disk", "out on disk"])
def test_input_and_output_may_lie_in_different_places(
    expected: Expected, here: bool, there: bool, remote: str, files: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    corpus = str(expected.corpus) if here else f"{remote}/in"
    output = str(tmp_path / "manifest") if there else f"{remote}/manifest"
    done = partition(tmp_path, corpus, output, LOCAL | {"workers": 2})
    assert done.code == 0, done.err
    assert done.json["commit"] == expected.commit
    assert (on_disk(tmp_path / "manifest") if there else published(files, output)) == on_disk(expected.manifest)


def test_killed_run_ends_with_the_same_bytes_and_leaves_no_upload(
    expected: Expected, remote: str, files: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    config = configured(tmp_path / "c.yaml", f"{remote}/in", f"{remote}/manifest", LOCAL | {"workers": 2})
    for stage in ("scan", "place", "gather"):
        process = subprocess.Popen(
            [LMSPLIT, "partition", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and not is_there(files, f"{remote}/manifest/_work/*/{stage}/?????.json"):
            time.sleep(0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    bucket = remote.removeprefix("s3://")
    files.call_s3("create_multipart_upload", Bucket=bucket, Key="manifest/data/d00000/cut-off.parquet")
    files.call_s3("create_multipart_upload", Bucket=bucket, Key="elsewhere/not-ours.parquet")
    done = lmsplit("partition", config, "--json")
    assert done.code == 0, done.err
    assert done.json["commit"] == expected.commit
    assert published(files, f"{remote}/manifest") == on_disk(expected.manifest)
    assert lmsplit("gc", f"{remote}/manifest").code == 0
    left = files.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads", [])
    assert [upload["Key"] for upload in left] == ["elsewhere/not-ours.parquet"]


def hold_no_credential(s3: Server, files: s3fs.S3FileSystem, bucket: str, directory: Path, *said: Done) -> None:
    """Check every object, every file and every output."""
    written = {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    written |= {name: files.cat_file(name) for name in files.find(bucket) if "/in/" not in name}
    written |= {f"output {number}": (done.out + done.err).encode() for number, done in enumerate(said)}
    assert len(written) > 15
    assert any("/_work/" in name for name in written)
    for name, data in written.items():
        assert s3.secret.encode() not in data, name
        assert s3.key.encode() not in data, name


def test_failing_run_writes_no_credential_anywhere(
    s3: Server,
    executor: dict[str, str],
    remote: str,
    files: s3fs.S3FileSystem,
    tmp_path: Path,
) -> None:
    failing = partition(tmp_path, f"{remote}/in", f"{remote}/manifest", executor | {"workers": 2}, max_bad_fraction=0)
    assert failing.code == 3, failing.err
    shown = lmsplit("status", f"{remote}/manifest")
    assert "failed: stage settle" in shown.out
    hold_no_credential(s3, files, remote, tmp_path, failing, shown)


def test_store_that_ignores_create_only_puts_is_refused_at_the_start(
    expected: Expected, s3: Server, remote: str, tmp_path: Path
) -> None:
    careless = "\n".join(
        [
            "import sys, s3fs",
            "put, pipe = s3fs.S3FileSystem._put_file, s3fs.S3FileSystem._pipe_file",
            "async def careless(self, path, data, mode='overwrite', **given): return await pipe(self, path, data, **given)",
            "s3fs.S3FileSystem._pipe_file = careless",
            "from lmsplit.manifests.cli import main",
            "main()",
        ]
    )
    config = configured(tmp_path / "c.yaml", expected.corpus, f"{remote}/manifest", LOCAL | {"workers": 2})
    done = subprocess.run([sys.executable, "-c", careless, "partition", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "this store ignores create-only puts (If-None-Match), so two writers could overwrite each other" in done.stderr


def test_bucket_that_is_not_there_is_a_clear_error(expected: Expected, s3: Server, tmp_path: Path) -> None:
    output = partition(tmp_path, expected.corpus, "s3://no-such-bucket/manifest", LOCAL | {"workers": 1})
    assert output.code == 2, output.err
    assert "s3://no-such-bucket/manifest cannot be written to" in output.err
    corpus = partition(tmp_path, "s3://no-such-bucket/in", tmp_path / "out", LOCAL | {"workers": 1})
    assert corpus.code == 3, corpus.err
    assert re.search(r"input 's3://no-such-bucket/in' (cannot be listed|matches no file)", corpus.err), corpus.err
    assert "Traceback" not in output.err + corpus.err


def test_input_that_changes_on_s3_after_the_plan_is_refused(
    expected: Expected, remote: str, files: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    config = configured(tmp_path / "c.yaml", f"{remote}/in", f"{remote}/manifest", LOCAL | {"workers": 1})
    process = subprocess.Popen([LMSPLIT, "partition", str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not is_there(files, f"{remote}/manifest/_work/*/plan.json"):
        time.sleep(0.02)
    name = f"{remote}/in/1.jsonl"
    files.pipe_file(name, files.cat_file(name)[:-1] + b" ")
    _, err = process.communicate()
    assert process.returncode == 3, err
    assert "1.jsonl changed after it was planned: run the same command again to plan it anew" in err


def test_pickled_store_is_its_url(s3: Server, remote: str) -> None:
    kind, arguments = ObjectStore(f"{remote}/manifest").__reduce__()
    assert (kind, arguments) == (ObjectStore, (f"{remote}/manifest",))
    with pytest.raises(ConfigurationError, match="a URL must not hold credentials or options"):
        ObjectStore(f"s3://{s3.key}:{s3.secret}@bucket/manifest")
