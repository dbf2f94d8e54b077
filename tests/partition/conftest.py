"""A small corpus in every format, and its manifest; each made once."""

from pathlib import Path

import pytest

from lmsplit.partition import units
from lmsplit.partition.pipeline import partition
from tests.partition.corpora import configuration, topical, write

KEEP = ["stars", {"name": "lang", "type": "string"}]


@pytest.fixture(scope="session")
def mixed_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 documents in five files of four formats, one of them empty. Read it; copy it before you change it."""
    directory = tmp_path_factory.mktemp("mixed")
    documents = topical(120)
    for index, name in enumerate(("a.jsonl", "deep/b.jsonl.gz", "c.jsonl.zst", "d.parquet")):
        write(directory / name, documents[30 * index : 30 * index + 30])
    (directory / "empty.jsonl").touch()
    return directory


@pytest.fixture(scope="session")
def mixed_manifest(mixed_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixed corpus in three domains, from several work units. Read it; copy it before you change it."""
    output = tmp_path_factory.mktemp("mixed-published") / "manifest"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "MIN_UNIT_BYTES", 1500)
        partition(configuration(mixed_corpus, output, input={"paths": str(mixed_corpus), "group": "group", "keep": KEEP}))
    return output
