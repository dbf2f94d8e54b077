"""The commit: canonical bytes, digests, what is refused, and who wins a race."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsplit.manifests.commit import Amount, Counts, canonical, digest, parse_commit, read_commit, versions, write_commit
from lmsplit.manifests.errors import ConflictError, DamagedError, ManifestError
from lmsplit.manifests.store import LocalStore

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
    max_leaves=10,
)


@pytest.fixture
def commit_bytes(golden_path):
    return (golden_path / "commits" / "00000.json").read_bytes()


def reseal(commit: dict) -> bytes:
    """Return a commit file whose digests hold for a changed content."""
    rest = {key: value for key, value in commit.items() if key != "sha256"} | {"body_sha256": digest(commit["body"])}
    return canonical(rest | {"sha256": digest(rest)}) + b"\n"


@given(JSON)
def test_canonical_reads_back_and_is_a_fixed_point(value):
    data = canonical(value)
    assert json.loads(data) == value
    assert canonical(json.loads(data)) == data


def test_canonical_is_the_specified_text():
    value = {"é": [1, 0.5, 1e-05, None, True], "a": {"z": '"\\\n\x01/', "b": 2**70}}
    assert canonical(value).decode() == '{"a":{"b":1180591620717411303424,"z":"\\"\\\\\\n\\u0001/"},"é":[1,0.5,1e-05,null,true]}'


def test_canonical_refuses_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"a": float("nan")})


def test_commit_digests_are_what_the_specification_says(commit_bytes):
    commit = parse_commit(commit_bytes, "commit")
    raw = json.loads(commit_bytes)
    body = json.dumps(raw["body"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert commit.body_sha256 == hashlib.sha256(body.encode()).hexdigest()
    said = raw.pop("sha256")
    rest = json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert said == hashlib.sha256(rest.encode()).hexdigest()


def flips(data: bytes, bits: range):
    for position in range(len(data)):
        for bit in bits:
            changed = bytearray(data)
            changed[position] ^= 1 << (position + bit) % 8
            yield bytes(changed)


def test_commit_refuses_a_flip_in_any_byte(commit_bytes):
    for changed in flips(commit_bytes, range(1)):
        with pytest.raises(DamagedError, match="is damaged"):
            parse_commit(changed, "commits/00000.json")


@pytest.mark.slow
def test_commit_refuses_a_flip_of_any_bit(commit_bytes):
    for changed in flips(commit_bytes, range(8)):
        with pytest.raises(DamagedError, match="is damaged"):
            parse_commit(changed, "commits/00000.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\n",
        lambda data: data[: len(data) // 2],
        lambda data: b" " + data,
        lambda data: data.replace(b'{"actor"', b'{"actor":"x","actor"', 1),
        lambda data: json.dumps(json.loads(data), indent=1).encode(),
        lambda data: b"[1]\n",
        lambda data: b"null\n",
        lambda data: b"[" * 100_000,
        lambda data: b'{"a":NaN}\n',
        lambda data: b'"\\ud800"\n',
        lambda data: b"\xff\xfe{}",
    ],
)
def test_commit_refuses_other_bytes(commit_bytes, damage):
    with pytest.raises(DamagedError, match=r"x\.json is damaged"):
        parse_commit(damage(commit_bytes), "x.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body.update(surprise=1), "surprise"),
        (lambda body: body.pop("tier"), "tier"),
        (lambda body: body.update(format="other"), "lmsplit-manifest"),
        (lambda body: body["files"].reverse(), "sorted by path"),
        (lambda body: body["files"].append(body["files"][-1]), "each once"),
        (lambda body: body["files"][0].update(path="../secret"), "pattern"),
        (lambda body: body["files"][0].update(path="/etc/passwd"), "pattern"),
        (lambda body: body["files"][0].update(path="data/../../secret"), "pattern"),
        (lambda body: body["files"][0].update(path="data/d00000/part-00000-0000000000000000.parquet"), "named by its digest"),
        (lambda body: body["files"][0].update(sha256="0" * 63), "pattern"),
        (lambda body: body["files"][0].update(bytes="12"), "valid integer"),
        (lambda body: body["files"][0].update(rows=-1), "greater than or equal to 0"),
        (lambda body: body.update(plan="plans/elsewhere.json"), "must hold plans/elsewhere.json"),
        (lambda body: body["counts"]["read"].update(records=-1), "greater than or equal to 0"),
    ],
)
def test_commit_refuses_a_body_that_breaks_the_format(commit_bytes, change, message):
    commit = json.loads(commit_bytes)
    change(commit["body"])
    with pytest.raises(DamagedError, match=message):
        parse_commit(reseal(commit), "commit")


def test_commit_refuses_an_unknown_version_without_calling_it_damaged(commit_bytes):
    commit = json.loads(commit_bytes)
    commit["body"]["version"] = 2
    with pytest.raises(ManifestError, match="has format version 2, this lmsplit reads 1: upgrade lmsplit") as caught:
        parse_commit(reseal(commit), "commit")
    assert not isinstance(caught.value, DamagedError)


def test_read_commit_names_what_is_there_when_a_version_is_missing(copy_path):
    with pytest.raises(ManifestError, match="@3 does not exist: its commits are 0 to 0"):
        read_commit(LocalStore(copy_path), 3)


def test_read_commit_refuses_a_directory_without_commits(tmp_path):
    with pytest.raises(ManifestError, match="is not a manifest"):
        read_commit(LocalStore(tmp_path))


def test_versions_ignores_other_files(copy_path):
    for name in ("00001.json.tmp", "000000.json", "1.json", "readme.txt", "٠٠٠٠١.json"):
        (copy_path / "commits" / name).write_text("{}")
    assert versions(LocalStore(copy_path)) == [0]


def test_write_commit_gives_back_the_earlier_one_when_the_body_is_the_same(copy_path):
    store = LocalStore(copy_path)
    _, standing = read_commit(store)
    assert write_commit(store, standing.body, 0) == standing


def test_write_commit_conflicts_when_the_body_differs(copy_path):
    store = LocalStore(copy_path)
    before = store.read("commits/00000.json")
    body = read_commit(store)[1].body.model_copy(update={"run_id": "another"})
    with pytest.raises(ConflictError, match=r"already holds commit 0 of run 000.*choose another output"):
        write_commit(store, body, 0)
    assert store.read("commits/00000.json") == before


def test_write_commit_has_one_winner_when_writers_race(golden_path, tmp_path):
    _, commit = read_commit(LocalStore(golden_path))

    def publish(root: Path, run: str) -> str:
        try:
            return write_commit(LocalStore(root), commit.body.model_copy(update={"run_id": run}), 0).body.run_id
        except ConflictError:
            return "conflict"

    with ThreadPoolExecutor(8) as threads:
        for trial in range(10):
            runs = ["a", "b"] * 4
            found = list(threads.map(publish, [tmp_path / str(trial)] * 8, runs))
            winner = read_commit(LocalStore(tmp_path / str(trial)))[1].body.run_id
            assert found == [run if run == winner else "conflict" for run in runs]


def test_body_is_the_same_for_the_same_work_but_the_file_is_not(copy_path, tmp_path):
    _, commit = read_commit(LocalStore(copy_path))
    again = write_commit(LocalStore(tmp_path / "other"), commit.body, 0)
    assert again.body_sha256 == commit.body_sha256
    assert again.sha256 != commit.sha256


def test_second_commit_becomes_the_newest(copy_path):
    store = LocalStore(copy_path)
    _, first = read_commit(store)
    write_commit(store, first.body.model_copy(update={"parent": first.body_sha256}), 1)
    assert read_commit(store)[0] == 1
    assert read_commit(store, 0)[1] == first


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=3, max_size=6), st.integers(0, 2), st.integers(0, 2))
def test_imbalance_is_none_exactly_when_the_law_holds(pairs, more_records, more_bytes):
    published, *aside = [Amount(records=records, bytes=num_bytes) for records, num_bytes in pairs]
    total = sum(aside, published)
    counts = Counts(
        read=Amount(records=total.records + more_records, bytes=total.bytes + more_bytes),
        published=published,
        quarantined={str(n): amount for n, amount in enumerate(aside[:1])},
        duplicates={str(n): amount for n, amount in enumerate(aside[1:])},
        text_bytes=0,
        tokens=None,
    )
    assert counts.imbalance() == (total if more_records or more_bytes else None)
