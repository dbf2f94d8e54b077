"""Errors travel from worker processes: each survives pickling with its text."""

import pickle

import pytest

from lmsplit.manifests import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not errors.DamagedError]


@pytest.mark.parametrize("kind", KINDS)
def test_error_survives_a_process_boundary(kind):
    copied = pickle.loads(pickle.dumps(kind("what is wrong")))
    assert type(copied) is kind
    assert str(copied) == "what is wrong"


def test_damaged_error_survives_a_process_boundary_with_its_path():
    copied = pickle.loads(pickle.dumps(errors.DamagedError("data/x.parquet", "x is damaged")))
    assert (copied.path, str(copied)) == ("data/x.parquet", "x is damaged")
