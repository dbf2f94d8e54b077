"""`explain`, `diff`, `report` and `export` as commands: what they print, where, and how they end."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.cli import main
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.verify import verify_manifest

EXPLAIN = {
    *("doc_id", "status", "domain", "label", "distance", "percentile", "second_domain", "second_distance", "margin"),
    *("source_path", "source_row", "text_sha256", "split", "placed_by"),
}


def run(*arguments: object) -> int:
    """Run a command in this process; return its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def answered(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command that succeeds, and return the one JSON object on its standard output."""

    def answer(*arguments: object) -> dict[str, Any]:
        assert run(*arguments, "--json") == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return answer


def first_id(path: Path) -> str:
    return str(Manifest.open(path).scan().select("doc_id").first().collect()[0, 0])


def test_explain_prints_the_keys_that_programs_rely_on(manifest_path: Path, answered: Any) -> None:
    """Of a document, of an id that is not there, and of a text."""
    doc_id = first_id(manifest_path)
    found = answered("explain", manifest_path, doc_id, "--recompute")
    assert found.keys() >= EXPLAIN
    assert (found["doc_id"], found["status"], found["recomputed"]["matches"]) == (doc_id, "published", True)
    unknown = answered("explain", manifest_path, doc_id + "x")
    assert (unknown["status"], unknown["nearest_ids"][0]) == ("unknown", doc_id)
    text = answered("explain", manifest_path, "--text", "Return the eigenvalues of a matrix.")
    assert text["domain"].startswith("d0000")
    assert text.keys() == found.keys() == unknown.keys()


def test_explain_is_for_people_too(manifest_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence first, on standard output."""
    doc_id = first_id(manifest_path)
    assert run("explain", manifest_path, doc_id) == 0
    assert " ".join(capsys.readouterr().out.split()).startswith(f"{doc_id} is in d0000")


def test_explain_ends_with_1_where_placing_again_disagrees(copy_path: Path, forger: Any) -> None:
    """As a check that failed does."""
    forger.value("data/d00000/part-00000", "distance", 0, 1.5)
    doc_id = Manifest.open(copy_path).scan().select("doc_id").first().collect()[0, 0]
    assert run("explain", copy_path, doc_id) == 0
    assert run("explain", copy_path, doc_id, "--recompute") == 1


@pytest.mark.parametrize("arguments", [[], ["an id", "--text", "a text"]])
def test_explain_needs_an_id_or_a_text(manifest_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Neither or both are a mistake."""
    assert run("explain", manifest_path, *arguments) == 2
    assert "needs a document's id, or --text" in capsys.readouterr().err


def test_diff_of_a_manifest_with_itself_is_empty(manifest_path: Path, answered: Any) -> None:
    """Nothing moved, for no cause."""
    found = answered("diff", manifest_path, manifest_path)
    assert (found["moved"], found["added"], found["removed"], found["causes"], found["adjusted_rand"]) == (0, 0, 0, {}, 1.0)
    assert found["unchanged"] == Manifest.open(manifest_path).body.counts.published.records


def test_diff_writes_the_documents_that_differ(
    manifest_path: Path, copy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two manifests without a common document: all of both; and nothing is written over."""
    output = tmp_path / "differ.parquet"
    assert run("diff", manifest_path, copy_path, "--documents", output) == 0
    counts = [Manifest.open(path).body.counts.published.records for path in (manifest_path, copy_path)]
    assert pq.read_metadata(output).num_rows == sum(counts)
    assert f"of {counts[0]:,} documents 0 stay" in " ".join(capsys.readouterr().out.split())
    assert run("diff", manifest_path, copy_path, "--documents", output) == 2
    assert str(output) in capsys.readouterr().err


def test_report_is_one_file(copy_path: Path, manifest_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what changed where it is asked for; nothing goes to standard output."""
    output = tmp_path / "report.html"
    assert run("report", copy_path, "-o", output) == 0
    assert 'id="difference"' not in output.read_text()
    assert run("report", copy_path, "-o", output, "--diff", manifest_path) == 0
    page = output.read_text()
    assert 'id="difference"' in page
    assert Manifest.open(manifest_path).digest[:16] in page
    assert capsys.readouterr().out == ""


def test_report_of_a_missing_model_draws_from_distances(
    copy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The encoder may be missing on an auditor's machine: the map does without, and both page and command say so."""
    from lmsplit.manifests.errors import ConfigurationError

    def missing(*_: object, **__: object) -> None:
        raise ConfigurationError("it needs sentence-transformers")

    monkeypatch.setattr(Manifest, "encoder", missing)
    output = tmp_path / "report.html"
    assert run("report", copy_path, "-o", output) == 0
    assert "it needs sentence-transformers" in capsys.readouterr().err
    assert "recorded distances" in output.read_text()


def test_export_hands_over_in_three_forms(manifest_path: Path, tmp_path: Path) -> None:
    """Without texts, as JSON-LD, and as a manifest that verifies."""
    assert run("export", manifest_path, "--to", "slim", "-o", tmp_path / "slim.parquet") == 0
    assert "text" not in pq.read_schema(tmp_path / "slim.parquet").names
    assert run("export", manifest_path, "--to", "croissant", "-o", tmp_path / "croissant.json") == 0
    assert json.loads((tmp_path / "croissant.json").read_text())["@type"].endswith("Dataset")
    handed = tmp_path / "handed"
    assert run("export", manifest_path, "--to", "manifest", "--domain", "d00001", "--domain", "d00003", "-o", handed) == 0
    assert verify_manifest(handed, deep=True) == []
    assert [domain.domain for domain in Manifest.open(handed).domains] == ["d00001", "d00003"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to", "manifest"], 2, "name them with --domain"),
        (["--to", "croissant", "--domain", "d00000"], 2, "describes the whole manifest"),
        (["--to", "slim", "--domain", "d00099"], 1, "has no domain 'd00099'"),
    ],
)
def test_export_refuses_what_makes_no_sense(
    manifest_path: Path, tmp_path: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the way out, and nothing is written."""
    assert run("export", manifest_path, *arguments, "-o", tmp_path / "out") == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_verify_of_texts_is_deep(manifest_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--texts` alone would check nothing."""
    assert run("verify", manifest_path, "--texts") == 2
    assert "--texts goes with --deep" in capsys.readouterr().err
    assert run("verify", manifest_path, "--deep", "--texts") == 0


def test_explain_takes_a_long_text(manifest_path: Path, answered: Any) -> None:
    """Longer than any file's name may be."""
    assert answered("explain", manifest_path, "--text", "the mean of an array along an axis " * 50)["domain"]


@pytest.mark.parametrize("name", ["commits/00000.json", "README.md", "data/d00000/new.html"])
def test_report_never_writes_over_the_manifest(copy_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor over anything that is no file."""
    before = {path: path.read_bytes() for path in copy_path.rglob("*") if path.is_file()}
    assert run("report", copy_path, "-o", copy_path / name) == 2
    assert "holds only what its commits name" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in copy_path.rglob("*") if path.is_file()} == before


def test_report_refuses_a_link_or_a_device(copy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would replace them."""
    (tmp_path / "link").symlink_to("/dev/null")
    assert run("report", copy_path, "-o", tmp_path / "link") == 2
    assert (tmp_path / "link").is_symlink()
    assert "name a file in an existing directory" in capsys.readouterr().err


def test_audit_of_a_manifest_whose_name_is_a_pattern(golden_path: Path, tmp_path: Path) -> None:
    """A directory may be called a[1]."""
    (tmp_path / "a[1]").symlink_to(golden_path)
    assert run("verify", tmp_path / "a[1]", "--deep") == 0
    assert run("report", tmp_path / "a[1]", "-o", tmp_path / "report.html") == 0
    assert run("diff", tmp_path / "a[1]", golden_path) == 0


def test_rule_with_another_digest_is_never_used(copy_path: Path, forger: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even to place a text: it would be another rule's answer."""
    path = copy_path / Manifest.open(copy_path).body.placement
    path.write_bytes(path.read_bytes() + b" ")
    assert run("explain", copy_path, "--text", "wind in the sails") == 1
    assert "restore it from a copy" in capsys.readouterr().err
