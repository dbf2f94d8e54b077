"""A manifest on an object store answers as its local copy does, and says what is wrong where it cannot be had."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from lmsplit.manifests.cli import main
from lmsplit.manifests.domain_details import domain_details
from lmsplit.manifests.errors import ConfigurationError, DamagedError, ManifestError
from lmsplit.manifests.reader import Manifest, open_placement
from lmsplit.manifests.verify import verify_manifest
from tests.object_store import ObjectStore

pytestmark = pytest.mark.slow

ANSWERS = {
    "show": ("show", "M"),
    "show of a domain": ("show", "M", "--domain", "d00001"),
    "verify": ("verify", "M"),
    "verify of a commit": ("verify", "M@0"),
    "verify --deep": ("verify", "M", "--deep", "--texts"),
    "explain": ("explain", "M", "book-11"),
    "explain --recompute": ("explain", "M", "book-11", "--recompute"),
    "explain an unknown id": ("explain", "M", "book-111"),
    "explain a text": ("explain", "M", "--text", "The baker kneads the dough."),
    "diff with another": ("diff", "M", "OTHER"),
    "diff from another": ("diff", "OTHER", "M@0"),
    "diff with itself": ("diff", "M", "M"),
}


@pytest.fixture(scope="module")
def upload(s3: ObjectStore) -> Callable[[Path], str]:
    """Copy a directory into a new bucket, under its own name; return its URL."""

    def copied(directory: Path) -> str:
        url = f"s3://{s3.bucket()}/{directory.name}"
        s3fs.S3FileSystem().put(str(directory), url, recursive=True)
        return url

    return copied


@pytest.fixture(scope="module")
def url(upload: Callable[[Path], str], golden_path: Path) -> str:
    """The golden manifest's URL. Never change what is there: upload `copy_path`."""
    return upload(golden_path)


@pytest.fixture(scope="module")
def other(upload: Callable[[Path], str], manifest_path: Path) -> str:
    """The URL of the manifest of docstrings."""
    return upload(manifest_path)


def run(*arguments: object) -> int:
    """Run a command in this process; return its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def run_alone(*arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, as credentials that were found once are kept; None takes a variable away."""
    variables = {**os.environ, "AWS_EC2_METADATA_DISABLED": "true", **environment}
    command = [sys.executable, "-W", "error", "-m", "lmsplit.manifests.cli", *arguments]
    known = {name: value for name, value in variables.items() if value is not None}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=known)


@pytest.mark.parametrize("command", ANSWERS.values(), ids=ANSWERS)
def test_answer_is_the_local_one(capsys, url, other, golden_path, manifest_path, command):
    def answer(manifest: object, another: object) -> dict[str, Any]:
        places = {"M": manifest, "OTHER": another, "M@0": f"{manifest}@0"}
        assert run(*(places.get(word, word) for word in command), "--json") == 0
        said = capsys.readouterr().out.replace(f'"{manifest}"', '"M"').replace(f'"{another}"', '"OTHER"')
        found: dict[str, Any] = json.loads(said)
        return found

    assert answer(url, other) == answer(golden_path, manifest_path)


def test_views_name_the_url(capsys, url):
    assert run("show", url) == 0
    assert capsys.readouterr().out.startswith(f"{url}@0")
    assert run("verify", url, "--deep") == 0
    assert capsys.readouterr().out.replace("\n", " ").strip() == f"{url}: ok (every file read)"


def test_report_is_the_local_one(capsys, url, other, golden_path, manifest_path, tmp_path):
    assert run("report", url, "-o", tmp_path / "far.html", "--diff", other) == 0
    assert run("report", golden_path, "-o", tmp_path / "near.html", "--diff", manifest_path) == 0
    far = (tmp_path / "far.html").read_text().replace(other, str(manifest_path)).replace(url, str(golden_path))
    assert far == (tmp_path / "near.html").read_text()


def test_slim_export_is_the_local_one(url, golden_path, tmp_path):
    for place, name in ((url, "far"), (golden_path, "near")):
        assert run("export", place, "--to", "slim", "-o", tmp_path / f"{name}.parquet") == 0
    assert pq.read_table(tmp_path / "far.parquet").num_rows == 32
    assert (tmp_path / "far.parquet").read_bytes() == (tmp_path / "near.parquet").read_bytes()


def test_hand_over_is_the_local_one(url, golden_path, tmp_path):
    handed = {}
    for place, name in ((url, "far"), (golden_path, "near")):
        assert run("export", place, "--to", "manifest", "--domain", "d00001", "-o", tmp_path / name) == 0
        handed[name] = Manifest.open(tmp_path / name)
    assert handed["far"].digest == handed["near"].digest
    assert verify_manifest(tmp_path / "far", deep=True) == []
    assert not (tmp_path / "far" / "_work").exists()


def test_hand_over_refuses_a_damaged_file(capsys, upload, copy_path, tmp_path):
    name = Manifest.open(copy_path).data_files("d00001")[0].path
    data = bytearray((copy_path / name).read_bytes())
    data[100] ^= 1
    (copy_path / name).write_bytes(data)
    place = upload(copy_path)
    assert run("export", place, "--to", "manifest", "--domain", "d00001", "-o", tmp_path / "handed") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"lmsplit: {place}/{name} should have sha256 ")
    assert error.endswith(f"run lmsplit verify {place} --deep\n")
    assert not (tmp_path / "handed").exists()


def test_croissant_names_every_file_by_its_url(url, golden_path, tmp_path):
    described = {}
    for place, name in ((url, "far"), (golden_path, "near")):
        assert run("export", place, "--to", "croissant", "-o", tmp_path / f"{name}.json") == 0
        described[name] = (tmp_path / f"{name}.json").read_text()
    files = [each["contentUrl"] for each in json.loads(described["far"])["distribution"] if "contentUrl" in each]
    assert files == [f"{url}/{entry.path}" for entry in Manifest.open(golden_path).data_files()]
    prefix = Path(os.path.relpath(golden_path.resolve(), tmp_path.resolve())).as_posix()
    assert described["far"].replace(url, prefix) == described["near"]


def test_documents_are_the_local_ones(url, golden_path):
    far, near = Manifest.open(url), Manifest.open(golden_path)
    for asked in ({}, {"split": "heldout"}, {"domain": "d00002", "columns": ["text", "doc_id"]}):
        batches = [pa.Table.from_batches(manifest.documents(**asked)) for manifest in (far, near)]
        assert batches[0].num_rows > 0
        assert batches[0].equals(batches[1])
    assert far.find("book-11") == near.find("book-11")


def test_scan_gives_the_local_rows(other, manifest_path):
    def asked(place: object) -> pl.DataFrame:
        rows = Manifest.open(place).scan().filter(pl.col("num_bytes") > 1000)
        return rows.group_by("source", "domain").agg(pl.len(), pl.col("num_bytes").sum()).sort("source", "domain").collect()

    assert asked(manifest_path)["len"].sum() > 100
    assert asked(other).equals(asked(manifest_path))


def test_rule_and_encoder_place_as_the_local_ones_do(other, manifest_path, tmp_path):
    far, near = Manifest.open(other), Manifest.open(manifest_path)
    texts = [domain.excerpts[0] for domain in near.domains]
    vectors_ND = far.encoder(exact=True).encode(texts)
    assert vectors_ND.tobytes() == near.encoder(exact=True).encode(texts).tobytes()
    assert far.rule().place(vectors_ND).domain.tolist() == near.rule().place(vectors_ND).domain.tolist()
    far.copy_placement(tmp_path / "placement")
    _, encoder, domains = open_placement(tmp_path / "placement")
    assert domains == near.domains
    assert encoder.encode(texts).tobytes() == vectors_ND.tobytes()


def test_manifest_shows_its_url_and_its_name(url):
    manifest = Manifest.open(url)
    assert repr(manifest) == f"Manifest({url!r}@0, 3 domains)"
    assert "<b>v1@0</b>" in manifest._repr_html_()


def test_verify_finds_what_it_finds_in_a_directory(upload, copy_path):
    manifest = Manifest.open(copy_path)
    first, second, third = (manifest.data_files(domain.domain)[0].path for domain in manifest.domains)
    (copy_path / first).unlink()
    (copy_path / second).write_bytes((copy_path / second).read_bytes()[:-1])
    data = bytearray((copy_path / third).read_bytes())
    data[100] ^= 1
    (copy_path / third).write_bytes(data)
    (copy_path / "README.md").unlink()
    (copy_path / "data" / "d00000" / "stranger").write_bytes(b"x")
    found = verify_manifest(upload(copy_path), deep=True)
    assert [(finding.code, finding.where) for finding in found] == [
        ("file_missing", first),
        ("file_size", second),
        ("file_digest", third),
        ("untracked", "data/d00000/stranger"),
    ]
    assert found == verify_manifest(copy_path, deep=True)


def test_verify_misses_the_card(upload, copy_path):
    (copy_path / "README.md").unlink()
    found = verify_manifest(upload(copy_path))
    assert [(finding.code, finding.where) for finding in found] == [("card", "README.md")]


def test_a_missing_file_is_named_by_its_url(upload, copy_path):
    name = Manifest.open(copy_path).data_files("d00001")[0].path
    (copy_path / name).unlink()
    place = upload(copy_path)
    manifest = Manifest.open(place)
    with pytest.raises(DamagedError, match=f"^{place}/{name} cannot be read .*: run lmsplit verify --deep$"):
        list(manifest.documents())
    with pytest.raises(DamagedError, match=f"^{place}/{name} cannot be read "):
        manifest.find("book-11")
    with pytest.raises(DamagedError, match=rf"^d00001 cannot be read \(.*{name}"):
        domain_details(manifest, "d00001")


def test_a_scan_left_early_or_failed_ends_the_process_well(upload, copy_path):
    name = Manifest.open(copy_path).data_files()[-1].path
    (copy_path / name).unlink()
    place = upload(copy_path)
    program = f"from lmsplit.manifests.reader import Manifest; print(Manifest.open({place!r}).scan().head(3).collect().height)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
    done = run_alone("show", place, "--domain", "d00002")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("lmsplit: d00002 cannot be read (")


def test_a_bucket_or_manifest_that_is_not_there_is_named(s3):
    bucket = s3.bucket()
    for place in ("s3://no-such-bucket/manifest", f"s3://{bucket}/manifest", f"s3://{bucket}"):
        expected = rf"^{place} is not a manifest: it has no commits/00000.json \(does the bucket exist, and was the run published"
        with pytest.raises(ManifestError, match=expected):
            Manifest.open(place)


def test_a_commit_that_is_not_there_is_named(url):
    with pytest.raises(ManifestError, match=f"^{url}@3 does not exist: its commits are 0 to 0"):
        Manifest.open(f"{url}@3")


def test_a_scheme_that_nobody_knows_is_refused():
    with pytest.raises(
        ConfigurationError, match=r"^ftp://host/m: ftp:// is not supported; expected a local path, or file://, s3://"
    ):
        Manifest.open("ftp://host/m")


def test_credentials_in_the_url_are_refused_and_not_repeated(s3):
    done = run_alone("show", f"s3://{s3.key}:{s3.secret}@bucket/manifest")
    assert (done.returncode, done.stdout) == (2, "")
    assert "a URL must not hold credentials or options: put them into the environment or a profile" in done.stderr
    assert s3.key not in done.stderr
    assert s3.secret not in done.stderr


def test_missing_credentials_are_an_error_with_a_remedy(url, tmp_path):
    done = run_alone("show", url, AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"lmsplit: {url} cannot be read (")
    assert done.stderr.endswith(
        "Unable to locate credentials): check its name and your access, and the credentials in your environment or profile\n"
    )


def test_a_store_that_does_not_answer_is_an_error_with_a_remedy(url, s3):
    done = run_alone("verify", url, AWS_ENDPOINT_URL="http://127.0.0.1:1", AWS_MAX_ATTEMPTS="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"lmsplit: {url} cannot be read (")
    assert done.stderr.endswith("check its name and your access, and the credentials in your environment or profile\n")
    assert s3.secret not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("export", "M", "--to", "slim", "-o", "OUT"),
        ("export", "M", "--to", "manifest", "--domain", "d00001", "-o", "OUT"),
        ("report", "M", "-o", "OUT"),
        ("diff", "M", "M", "--documents", "OUT"),
    ],
    ids=("slim", "manifest", "report", "diff"),
)
def test_outputs_are_local(capsys, url, command):
    output = url.replace("v1", "output")
    assert run(*({"M": url, "OUT": output}.get(word, word) for word in command)) == 2
    assert capsys.readouterr().err == f"lmsplit: {output} is on an object store: expected a local path here\n"
