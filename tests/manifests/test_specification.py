"""manifests/README.md is the authority: its tables are those of the code, and its examples run."""

import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from lmsplit.manifests import commit, layout, schema
from lmsplit.manifests.placement import PlacementRule
from lmsplit.manifests.rule_files import rule_arrays
from lmsplit.manifests.sentence import SentenceDescription

SPECIFICATION = (Path(commit.__file__).parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", SPECIFICATION, re.MULTILINE | re.DOTALL)


def tables() -> list[list[list[str]]]:
    """Return the rows of every table, without markup."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", SPECIFICATION, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in block.splitlines()]
        body = [[cell.replace("`", "").replace("\\", "") for cell in row] for row in rows[2:]]
        found.append(body)
    return found


def type_name(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


FIELDS = (
    schema.DOCUMENT_FIELDS,
    schema.DOMAIN_FIELDS,
    schema.ID_FIELDS,
    schema.QUARANTINE_FIELDS,
    schema.EXCLUSION_FIELDS,
    schema.EMBEDDING_FIELDS,
)


@pytest.mark.parametrize("fields", FIELDS)
def test_table_of_columns_is_the_schema(fields):
    expected = [[name, type_name(kind), "yes" if nullable else "no", meaning] for name, kind, nullable, meaning in fields]
    assert expected in tables()


@pytest.mark.parametrize(
    "model",
    [
        commit.Balance,
        commit.GateFinding,
        commit.Commit,
        commit.Body,
        commit.FileEntry,
        commit.Counts,
        commit.Gate,
        SentenceDescription,
    ],
)
def test_table_of_keys_is_the_model(model):
    expected = [[key, field.description] for key, field in model.model_fields.items()]
    assert expected in tables()


def test_table_of_arrays_is_what_is_stored():
    arrays = rule_arrays(PlacementRule(np.eye(2, dtype=np.float32), np.zeros(2)))
    rows = next(table for table in tables() if table[0][0] == "centroids_MD")
    assert [row[0] for row in rows] == ["centroids_MD", "prices_M", "parent_M", "leaf_M", "encoder.*"]
    assert {row[0]: row[1] for row in rows if row[0] in arrays} == {name: str(array.dtype) for name, array in arrays.items()}


def test_folders_are_those_of_the_layout():
    drawn = set(re.findall(r"^  (\w+)/", SPECIFICATION.partition("## The commit")[0], re.MULTILINE))
    assert drawn == {*layout.FOLDERS, layout.WORK}


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_runs(example, copy_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names: dict = {}
    exec(compile(example, "manifests/README.md", "exec"), names)
    if "documents" in names:
        assert len(names["documents"]) == 32
    if "splits" in names:
        assert len(names["train"]) == 9
        assert {split: len(rows) for split, rows in names["splits"].items()} == {"train": 8, "heldout": 2}


def test_examples_are_all_there():
    text = "\n".join(EXAMPLES)
    for reader in ("pyarrow", "pandas", "polars", "duckdb", "load_dataset", "Manifest.open", "hashlib"):
        assert reader in text


@pytest.mark.parametrize(
    "breaking", [lambda body: body["counts"]["read"].update(records=36), lambda body: body["counts"]["published"].update(bytes=1)]
)
def test_example_of_verifying_finds_a_broken_law(breaking, forger, copy_path, monkeypatch):
    forger.body(breaking)
    monkeypatch.chdir(copy_path.parent)
    example = next(example for example in EXAMPLES if "hashlib" in example)
    with pytest.raises(AssertionError):
        exec(compile(example, "manifests/README.md", "exec"), {})


def test_example_of_verifying_finds_a_flipped_bit_in_every_file(copy_path, monkeypatch):
    monkeypatch.chdir(copy_path.parent)
    program = compile(next(example for example in EXAMPLES if "hashlib" in example), "manifests/README.md", "exec")
    for path in sorted(copy_path.rglob("*.*")):
        if path.is_file() and path.name != layout.CARD:
            sound = path.read_bytes()
            damaged = bytearray(sound)
            damaged[len(sound) // 2] ^= 1
            path.write_bytes(damaged)
            with pytest.raises((AssertionError, ValueError, KeyError)):
                exec(program, {})
            path.write_bytes(sound)
    exec(program, {})
