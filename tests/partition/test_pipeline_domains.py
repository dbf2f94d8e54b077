"""Domains worth training on, from the corpus to the commit: levels, a bound, the gate, and a number suggested."""

import json
from pathlib import Path

import pytest

from lmsplit.manifests.cli import main
from lmsplit.manifests.commit import versions
from lmsplit.manifests.errors import LmsplitError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.show import summary
from lmsplit.manifests.store import LocalStore
from lmsplit.manifests.verify import verify_manifest
from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition
from tests.partition.corpora import configuration, rows, topical, tree, write


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three topics, the first of them most of the text and all from one site."""
    documents = topical(400, words=20)
    for number, document in enumerate(documents):
        document["source"] = "waterways" if number % 3 == 0 else f"site {number % 4}"
        if number % 3 == 0:
            document["text"] = f"{document['text']} {document['text']}"
    write(tmp_path / "in" / "a.parquet", documents[:250])
    write(tmp_path / "in" / "b.jsonl", documents[250:])
    return tmp_path / "in"


def sizes(output: Path) -> list[int]:
    return [domain.num_bytes for domain in Manifest.open(output).domains]


def test_bounded_tree_is_the_same_for_one_worker_and_two(corpus: Path, tmp_path: Path) -> None:
    keys = {"domains": [2, 2], "max_imbalance": 1.3, "keep_embeddings": True}
    bodies = []
    for workers in (1, 2):
        output = tmp_path / f"out{workers}"
        bodies.append(partition(configuration(corpus, output, executor={"workers": workers}, **keys)).body_sha256)
        assert verify_manifest(str(output), deep=True) == []
    assert bodies[0] == bodies[1]
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2")
    manifest = Manifest.open(tmp_path / "out1")
    assert [domain.path for domain in manifest.domains] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert manifest.body.gate is not None
    assert manifest.body.gate.balance is not None
    assert manifest.body.gate.balance.imbalance_before > 1.3
    reached = max(sizes(tmp_path / "out1")) * 4 / sum(sizes(tmp_path / "out1"))
    assert reached == pytest.approx(manifest.body.gate.imbalance)
    assert reached <= 1.05 * 1.3


def test_rows_of_a_tree_are_placed_by_its_rule(corpus: Path, tmp_path: Path) -> None:
    partition(configuration(corpus, tmp_path / "out", domains=[2, 2]))
    manifest = Manifest.open(tmp_path / "out")
    published = rows(tmp_path / "out")
    placed = manifest.rule().place(manifest.encoder().encode([row["text"] for row in published]))
    assert [f"d{domain:05d}" for domain in placed.domain] == [row["domain"] for row in published]
    assert placed.margin.tolist() == [row["margin"] for row in published]
    assert [f"d{domain:05d}" for domain in placed.second_domain] == [row["second_domain"] for row in published]


def test_gate_that_fails_publishes_nothing_and_a_warning_then_publishes_what_is_there(corpus: Path, tmp_path: Path) -> None:
    wanted = configuration(corpus, tmp_path / "out", gate="fail")
    message = "the quality gate has 1 findings:\n  single_source: .* has 100% from waterways.*with gate: warn the same command"
    with pytest.raises(LmsplitError, match=f"(?s){message}") as caught:
        partition(wanted)
    assert caught.value.exit_code == 1
    assert not versions(LocalStore(tmp_path / "out"))
    placed = sorted((tmp_path / "out" / "_work").rglob("place/*.json"))
    before = [path.stat().st_mtime_ns for path in placed]
    commit = partition(Partition.model_validate(wanted.model_dump(mode="json") | {"gate": "warn"}))
    assert [path.stat().st_mtime_ns for path in placed] == before
    assert commit.body.gate is not None
    assert [finding.code for finding in commit.body.gate.findings] == ["single_source"]
    shown = summary(Manifest.open(tmp_path / "out"))["gate"]
    assert shown["findings"][0]["remedy"].startswith("look whether it is a topic")


def test_suggestion_publishes_nothing_and_stands_in_no_ones_way(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = tmp_path / "partition.yaml", tmp_path / "out"
    file.write_text(json.dumps({"input": {"paths": str(corpus)}, "output": str(output), "encoder": "lexical"}))

    def lmsplit(*arguments: str) -> dict:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--json"])
        assert ended.value.code == 0
        return json.loads(capsys.readouterr().out)

    found = lmsplit("partition", str(file), "--suggest")
    assert [row["k"] for row in found["candidates"]] == [2]  # of about 360 documents, a third must have 50 a domain
    assert (found["recommended"], found["candidates"][0]["recommended"]) == (2, True)
    assert Path(found["picture"]).read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert not versions(LocalStore(output))
    assert {row["stage"]: row["tasks_done"] for row in lmsplit("status", str(output))["stages"]}["suggest"] == 1
    commit = lmsplit("partition", str(file), "--set", "domains=3")
    assert lmsplit("status", str(output))["run_id"] == commit["run_id"]
    lmsplit("gc", str(output))
    assert not list((output / "_work").glob("*/plan.json"))
