"""Row filters, from the command line to what was seen: by our audit, and by plain pyarrow with no code of ours."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests.train.runs import Command

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]


def table(manifest: Path) -> dict[str, dict]:
    """Return every document of a manifest by its id, as plain pyarrow has it."""
    files = sorted(manifest.rglob("data/**/*.parquet"))
    columns = ["doc_id", "split", "domain", "license", "source"]
    dataset = ds.dataset([str(file) for file in files], format="parquet", partitioning="hive", partition_base_dir=str(manifest))
    return {row["doc_id"]: row for row in dataset.to_table(columns=columns).to_pylist()}


def domain_without_gpl(manifest: Path) -> str:
    rows = table(manifest).values()
    (name,) = {row["domain"] for row in rows} - {row["domain"] for row in rows if row["license"] == "gpl"}
    return str(name)


def seen(run: Path, output: Path) -> Counter[str]:
    """Return the tokens of every document that a finished run trained on, from its files alone."""
    packs = [pack["digest"] for pack in json.loads((run / "lineage.json").read_text())["packs"]]
    order = pq.read_table(run / "order.parquet").to_pylist()
    times = Counter((row["pack"], row["row"]) for row in order)
    tokens: Counter[str] = Counter()
    for number, pack in enumerate(packs):
        for span in pq.read_table(output / "packed" / pack / "spans.parquet").to_pylist():
            if count := times[number, span["row"]]:
                tokens[span["doc_id"]] += count * (span["end"] - span["start"])
    return tokens


def audit(lmsplit: Command, run: Path) -> dict:
    result = lmsplit("trace", str(run), "--audit", "--json")
    assert result.code == 0, result.err + result.out
    return json.loads(result.out)


def test_nothing_excluded_was_seen(path: Path, licensed_manifest: Path, lmsplit: Command) -> None:
    where = ("--set", "where={license: [mit, cc0], source: [site 1, site 2, site 4]}")
    result = lmsplit("train", str(path), "--all", *where)
    assert result.code == 0, result.err
    output, documents = path.parent / "out", table(licensed_manifest)
    allowed = {
        doc_id: row
        for doc_id, row in documents.items()
        if row["split"] == "train" and row["license"] in {"mit", "cc0"} and row["source"] in {"site 1", "site 2", "site 4"}
    }
    assert 0 < len(allowed) < sum(row["split"] == "train" for row in documents.values())
    for run in (output / "seed", *sorted((output / "experts").iterdir())):
        record = json.loads((run / "run.json").read_text())
        trained = seen(run, output)
        assert set(trained) <= set(allowed), run
        assert sum(trained.values()) == record["pretraining_tokens" if run.name == "seed" else "specialization_tokens"]
        for domain, taken in record["domains"].items():
            own = [doc_id for doc_id, row in documents.items() if row["domain"] == domain and row["split"] == "train"]
            assert taken["num_documents"] == len(set(own) & set(allowed)) > 0
            assert taken["num_filtered"] == len(own) - taken["num_documents"]
            assert taken["trained_tokens"] == sum(count for doc_id, count in trained.items() if doc_id in own)
    found = audit(lmsplit, output / "seed")
    tokens = seen(output / "seed", output)
    by_license = {
        name: {
            "documents": sum(documents[doc_id]["license"] == name for doc_id in tokens),
            "tokens": sum(count for doc_id, count in tokens.items() if documents[doc_id]["license"] == name),
        }
        for name in ("cc0", "mit")
    }
    assert (found["ok"], found["columns"]["license"]) == (True, by_license)
    assert set(found["columns"]["source"]) == {"site 1", "site 2", "site 4"}
    assert all(audit(lmsplit, run)["ok"] for run in (output / "experts").iterdir())


def test_filter_changes_what_is_seen(path: Path, licensed_manifest: Path, lmsplit: Command) -> None:
    """Without one, every license is seen; so the test above can fail."""
    assert lmsplit("train", str(path), "--seed-model", "--set", "seed_model.tokens=20000").code == 0
    documents = table(licensed_manifest)
    trained = seen(path.parent / "out" / "seed", path.parent / "out")
    assert set(trained) == {doc_id for doc_id, row in documents.items() if row["split"] == "train"}
    assert {documents[doc_id]["license"] for doc_id in trained} == {"mit", "cc0", "gpl"}


def test_filter_of_a_phase_is_its_own(path: Path, licensed_manifest: Path, lmsplit: Command) -> None:
    domain, documents = domain_without_gpl(licensed_manifest), table(licensed_manifest)
    filters = ("--set", "where={license: [mit]}", "--set", "expert.where={license: [cc0]}")
    assert lmsplit("train", str(path), "--seed-model", *filters).code == 0
    result = lmsplit("train", str(path), "--domain", domain, *filters)
    assert result.code == 0, result.err
    output = path.parent / "out"
    for run, name in ((output / "seed", "mit"), (output / "experts" / domain, "cc0")):
        assert {documents[doc_id]["license"] for doc_id in seen(run, output)} == {name}
    found = audit(lmsplit, output / "experts" / domain)
    assert (found["ok"], set(found["columns"]["license"])) == (True, {"mit", "cc0"})


def test_filter_that_leaves_a_domain_nothing_fails_that_expert_only(
    path: Path, licensed_manifest: Path, lmsplit: Command
) -> None:
    domain = domain_without_gpl(licensed_manifest)
    result = lmsplit("train", str(path), "--all", "--set", "where={license: [gpl]}")
    assert result.code == 1
    assert f"{domain} failed: {domain} has no training documents that where lets in" in result.out
    assert result.out.count("failed:") == 1
    experts = path.parent / "out" / "experts"
    finished = {run.name for run in experts.iterdir() if (run / "run.json").exists()}
    assert finished == {"d00000", "d00001", "d00002"} - {domain}
    record = json.loads((path.parent / "out" / "seed" / "run.json").read_text())
    assert record["domains"][domain]["num_documents"] == record["domains"][domain]["trained_tokens"] == 0
    assert record["losses"][domain]["num_documents"] > 0


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("{colour: [red]}", "documents cannot be chosen by ['colour']: the columns are"),
        ("{license: [3]}", "license lists 3: expected texts"),
        ("{license: mit}", "where.license"),
        ("{license: []}", "where.license"),
    ],
)
def test_filter_that_cannot_be_is_a_clear_error(path: Path, lmsplit: Command, where: str, message: str) -> None:
    result = lmsplit("train", str(path), "--all", "--set", f"where={where}")
    assert result.code == 2
    assert message in result.err
    assert not (path.parent / "out" / "seed").exists()
