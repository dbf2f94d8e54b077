from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.reader import Manifest
from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition
from lmsplit.train.audit import audit
from lmsplit.train.config import Where
from lmsplit.train.selection import canonical, selected
from tests.train.outputs import write_pack, write_run

ROWS = [
    {"id": "a", "text": "one document about rivers", "license": "mit", "stars": 1, "score": 0.1, "fork": True},
    {"id": "b", "text": "another document about lakes", "license": "cc0", "stars": 2, "score": 1.0, "fork": False},
    {"id": "c", "text": "a third document about seas", "license": None, "stars": None, "score": None, "fork": None},
    {"id": "d", "text": "the last document, about rain", "license": "mit", "stars": 2, "score": 2.0, "fork": True},
]
TYPES = {"license": "string", "stars": "int64", "score": "float32", "fork": "bool", "day": "date32"}


@pytest.fixture(scope="module")
def kept_manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    directory = tmp_path_factory.mktemp("kept")
    kinds = {"id": pa.string(), "text": pa.string(), **{name: pa.type_for_alias(kind) for name, kind in TYPES.items()}}
    (directory / "corpus").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS, pa.schema(kinds)), directory / "corpus" / "rows.parquet")
    partition(
        Partition.model_validate(
            {
                "input": {"paths": str(directory / "corpus"), "keep": [{"name": n, "type": t} for n, t in TYPES.items()]},
                "output": str(directory / "manifest"),
                "domains": 1,
                "encoder": "lexical",
                "executor": {"workers": 0},
            }
        )
    )
    return Manifest.open(directory / "manifest")


def ids(manifest: Manifest, where: dict[str, list[object]]) -> str:
    found = [*selected(manifest, "d00000", "train", where), *selected(manifest, "d00000", "heldout", where)]
    texts = {row["id"]: row["text"] for row in ROWS}
    assert all(texts[doc_id] == text for doc_id, text in found)
    return "".join(sorted(doc_id for doc_id, _ in found))


FILTERS: list[tuple[Where, str]] = [
    ({}, "abcd"),
    ({"license": ["mit"]}, "ad"),
    ({"license": ["mit", "cc0", "gpl"]}, "abd"),
    ({"stars": [2]}, "bd"),
    ({"score": [0.1, 2]}, "ad"),
    ({"score": [1, 2]}, "bd"),
    ({"fork": [False]}, "b"),
    ({"license": ["mit"], "stars": [2, 3]}, "d"),
    ({"doc_id": ["c", "d"]}, "cd"),
]


@pytest.mark.parametrize(("where", "expected"), [*FILTERS, ({"license": []}, "")])
def test_selection_takes_documents_with_every_value_asked_for(
    kept_manifest: Manifest, where: dict[str, list[object]], expected: str
) -> None:
    assert ids(kept_manifest, where) == expected


@pytest.mark.parametrize(("where", "expected"), FILTERS)
def test_audit_agrees_with_the_selection(kept_manifest: Manifest, tmp_path: Path, where: Where, expected: str) -> None:
    """Two libraries apply the same filter: a run on documents a to d has seen those that were not selected."""
    write_pack(tmp_path, "all", [[(row["id"], 3)] for row in ROWS])
    run = write_run(tmp_path, "seed", [("d00000", "all")], [(0, row) for row in range(4)], 1, where=where or None)
    seen = "".join(violation.doc_id for violation in audit(run, kept_manifest).violations)
    heldout = "".join(doc_id for doc_id, _ in selected(kept_manifest, "d00000", "heldout", {}))
    assert seen == "".join(sorted({*"abcd"} - {*expected} | {*heldout}))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            {"licence": ["mit"]},
            r"cannot be chosen by \['licence'\]: the columns are doc_id, .*, fork, license, score, stars",
        ),
        ({"text": ["a"]}, r"cannot be chosen by \['text'\]"),
        ({"day": ["2026-01-01"]}, r"cannot be chosen by \['day'\]"),
        ({"license": "mit"}, "license is 'mit': expected a list of texts"),
        ({"license": [1]}, "license lists 1: expected texts"),
        ({"license": [None]}, "license lists None: expected texts"),
        ({"stars": [1.5]}, "stars lists 1.5: expected integers"),
        ({"stars": [True]}, "stars lists True: expected integers"),
        ({"stars": [2**70]}, "stars lists a value that no int64 can be"),
        ({"score": [True]}, "score lists True: expected numbers"),
        ({"fork": [1]}, "fork lists 1: expected true or false"),
    ],
)
def test_selection_refuses_what_no_document_can_have(
    kept_manifest: Manifest, where: dict[str, list[object]], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        selected(kept_manifest, "d00000", "train", where)


def test_canonical_form_tells_values_of_other_types_apart() -> None:
    forms = [canonical({"a": [value]}) for value in (1, True, "1", "true", 1.5)]
    assert len({str(form) for form in forms}) == 5
    assert canonical({"a": [2, 1], "b": []}) == canonical({"b": [], "a": [1, 2, 1]})
