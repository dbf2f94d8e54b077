"""Fixtures that several folders share: a small real corpus (docstrings of installed packages) and its published manifest."""

from pathlib import Path

import hypothesis
import pytest

from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition
from quickstart import write_corpus
from tests.models import make_models
from tests.object_store import s3 as s3  # a fixture

hypothesis.settings.register_profile("untimed", deadline=None)  # machines are shared and noisy: no test is timed
hypothesis.settings.load_profile("untimed")

PACKAGES = ("networkx", "numpy", "pandas", "sklearn")
DOCUMENTS_PER_PACKAGE = 250
NUM_DOMAINS = 4


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with four JSONL files of 250 docstrings each, with id, text, source and group."""
    directory = tmp_path_factory.mktemp("corpus")
    write_corpus(directory, PACKAGES, DOCUMENTS_PER_PACKAGE)
    return directory


@pytest.fixture(scope="session")
def manifest_path(corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published manifest of the corpus in four domains. Read it; copy it before you change it."""
    output = tmp_path_factory.mktemp("published") / "manifest"
    partition(
        Partition.model_validate(
            {
                "input": {"paths": str(corpus_path), "group": "group"},
                "output": str(output),
                "domains": NUM_DOMAINS,
                "encoder": "lexical",  # quick; sentence encoders have tests of their own
                "executor": {"workers": 0},
            }
        )
    )
    return output


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny sentence-transformers model of each kind, with random weights. Read them; copy one before you change it."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_model(models: dict[str, Path]) -> Path:
    """The tiny BERT. Read it; copy it before you change it."""
    return models["bert"]
