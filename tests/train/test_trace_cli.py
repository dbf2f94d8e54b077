"""`lmsplit trace` over small outputs written by hand and the golden manifest."""

import json
import shutil
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from lmsplit.manifests.errors import ConfigurationError, ManifestError
from lmsplit.manifests.reader import Manifest
from lmsplit.train.trace_cli import trace
from tests.train.outputs import write_pack, write_run

GOLDEN = Path(__file__).parent.parent / "golden" / "v1"
BOOK, NOTE, HELDOUT = "book-00", "notes.jsonl:4", "notes.jsonl:2"


def lmsplit_trace(*arguments: str | Path) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(trace)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    """A finished seed over three rows, the last of which is never drawn and holds a held-out document."""
    write_pack(tmp_path, "first", [[(BOOK, 5), ("[red]x[/red]", 1)], [(NOTE, 4)], [(HELDOUT, 2)]])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"manifest": str(GOLDEN), "output": str(tmp_path)}))
    return write_run(tmp_path, "seed", [("d00000", "first")], [(0, 0), (0, 1), (0, 1)], 1, checkpoints=(2,))


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A finished seed that has seen documents of split train only, by a row filter."""
    write_pack(tmp_path, "first", [[(BOOK, 5)], [(NOTE, 4)]])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"manifest": str(GOLDEN)}))
    return write_run(tmp_path, "seed", [("d00000", "first")], [(0, 0)], 1, where={"source": ["books"]})


def test_step_as_json(seed: Path) -> None:
    result = lmsplit_trace(seed, "--step", "1", "--json")
    rest = {"row": 0, "step": 1, "checkpoint": "checkpoint-2", "run": "seed", "domain": "d00000"}
    assert (result.exit_code, json.loads(result.stdout)) == (
        0,
        {
            "step": 1,
            "spans": [
                {"doc_id": BOOK, "start": 0, "end": 5, "token": 0, **rest},
                {"doc_id": "[red]x[/red]", "start": 5, "end": 6, "token": 0, **rest},
            ],
        },
    )


def test_document_as_json(seed: Path) -> None:
    found = json.loads(lmsplit_trace(seed, "--doc", NOTE, "--json").stdout)
    assert list(found) == ["doc_id", "spans"]
    assert found["doc_id"] == NOTE
    assert [(span["step"], span["checkpoint"]) for span in found["spans"]] == [(2, "checkpoint-2"), (3, "final")]


def test_document_that_was_not_trained_on_has_no_spans_as_json(seed: Path) -> None:
    result = lmsplit_trace(seed, "--doc", HELDOUT, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"doc_id": HELDOUT, "spans": []})


def test_tables_show_ids_as_they_are(seed: Path) -> None:
    step = lmsplit_trace(seed, "--step", "1").stdout
    assert "step 1: 2 pieces, 6 tokens" in step
    assert "[red]x[/red]" in step
    document = lmsplit_trace(seed, "--doc", "[red]x[/red]").stdout
    assert "[red]x[/red]: 1 pieces, 1 tokens" in document


def test_piece_that_is_not_trained_yet_says_so(seed: Path, tmp_path: Path) -> None:
    expert = write_run(tmp_path, "d00000", [("d00000", "first")], [(0, 0)], 1, finished=False)
    assert "not trained yet" in lmsplit_trace(expert, "--step", "1").stdout


@pytest.mark.parametrize(
    ("doc_id", "said"), [(HELDOUT, "the manifest has it in split heldout of d00002"), ("z", "the manifest calls it unknown")]
)
def test_document_that_was_not_trained_on_is_looked_up(seed: Path, doc_id: str, said: str) -> None:
    shown = " ".join(lmsplit_trace(seed, "--doc", doc_id).stdout.split())
    assert f"{doc_id} is in no row that" in shown
    assert said in shown


def test_document_that_was_not_trained_on_is_said_without_a_manifest(seed: Path) -> None:
    (seed.parent / "config.yaml").unlink()
    shown = " ".join(lmsplit_trace(seed, "--doc", "z").stdout.split())
    assert "whether a manifest has it is not known" in shown
    with pytest.raises(ManifestError):
        lmsplit_trace(seed, "--doc", "z", "--manifest", seed.parent / "nowhere")


def test_audit_that_succeeds(clean: Path) -> None:
    result = lmsplit_trace(clean, "--audit", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"], found["violations"]) == (0, True, [])
    assert found["splits"] == {"train": {"documents": 1, "tokens": 5}}
    assert found["columns"] == {"source": {"books": {"documents": 1, "tokens": 5}}}
    assert found["manifest"] == Manifest.open(GOLDEN).digest
    shown = lmsplit_trace(clean, "--audit")
    assert shown.exit_code == 0
    assert "ok: every document trained on may be" in shown.stdout


def test_audit_that_fails(seed: Path) -> None:
    result = lmsplit_trace(seed, "--audit", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"], found["num_violations"]) == (1, False, 1)
    assert found["violations"] == [{"doc_id": "[red]x[/red]", "reason": "not in the manifest", "tokens": 1}]
    shown = lmsplit_trace(seed, "--audit")
    assert shown.exit_code == 1
    assert "[red]x[/red]: not in the manifest (1 tokens)" in shown.stdout
    assert "the audit failed" in shown.stdout


def test_audit_takes_the_manifest_that_is_given(clean: Path, tmp_path: Path) -> None:
    (clean.parent / "config.yaml").write_text("output: x\n")
    with pytest.raises(ConfigurationError, match=r"config\.yaml does not name the manifest .*--manifest"):
        lmsplit_trace(clean, "--audit")
    moved = tmp_path / "moved"
    shutil.copytree(GOLDEN, moved)
    assert lmsplit_trace(clean, "--audit", "--manifest", moved).exit_code == 0


def test_audit_says_where_a_moved_manifest_was(clean: Path) -> None:
    (clean.parent / "config.yaml").write_text("manifest: /nowhere/at/all\n")
    with pytest.raises(ConfigurationError, match=r"names /nowhere/at/all: if it was moved, give it with --manifest"):
        lmsplit_trace(clean, "--audit")


@pytest.mark.parametrize("options", [[], ["--step", "1", "--audit"], ["--step", "1", "--doc", "a"], ["--doc", "a", "--audit"]])
def test_exactly_one_question_is_answered(seed: Path, options: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="exactly one of --step N, --doc DOC_ID and --audit"):
        lmsplit_trace(seed, *options)
