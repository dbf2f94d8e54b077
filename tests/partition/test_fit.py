"""The fit: how much is held out."""

from pathlib import Path

import numpy as np
import pytest

from lmsplit.manifests.commit import read_commit
from lmsplit.manifests.store import LocalStore
from lmsplit.partition.config import Partition
from lmsplit.partition.fit import heldout_fraction
from lmsplit.partition.pipeline import partition
from tests.partition.corpora import configuration, topical, write


def asked(fraction: float, **keys: object) -> Partition:
    return Partition.model_validate({"input": "a", "output": "b", "domains": 2, "heldout_fraction": fraction} | keys)


@pytest.mark.parametrize(
    ("fraction", "num_documents", "shares", "expected"),
    [
        (0.01, 10**6, (50, 50), 0.01),  # 1 % of half a million is plenty
        (0.01, 10_000, (50, 50), 0.04),  # 200 of 5,000
        (0.01, 10_000, (80, 20), 0.1),  # 200 of the smaller 2,000
        (0.01, 100, (50, 50), 0.1),  # a tenth at most
        (0.01, 10_000, (100, 0), 0.1),  # an empty domain asks for all it can get
        (0.05, 10_000, (50, 50), 0.05),
        (0, 100, (50, 50), 0),
    ],
)
def test_heldout_fraction_expects_200_documents_of_the_smallest_domain(
    fraction: float, num_documents: int, shares: tuple[int, int], expected: float
) -> None:
    assert heldout_fraction(asked(fraction), num_documents, np.repeat([0, 1], shares), 2) == pytest.approx(expected)


def test_heldout_fraction_is_bounded_by_what_the_index_takes() -> None:
    billion, shares = 10**9, np.repeat([0, 1], (50, 50))
    assert heldout_fraction(asked(0.01), billion, shares, 2) == pytest.approx(0.002)  # 2,000,000 of them
    assert heldout_fraction(asked(0.01, near_duplicate_threshold=None), billion, shares, 2) == 0.01


def test_nothing_is_held_out_when_so_configured(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(60))
    commit = partition(configuration(tmp_path / "in", tmp_path / "out", heldout_fraction=0))
    assert commit.body.splits == {"train": 60, "heldout": 0, "excluded": 0}
    assert (commit.body.heldout_fraction, read_commit(LocalStore(tmp_path / "out"))[1].body.heldout_fraction) == (0, 0)
