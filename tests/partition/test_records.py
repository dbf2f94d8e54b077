"""The words that all readers share."""

import pytest

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.partition import records
from lmsplit.partition.records import Limits


def test_reasons_are_all_distinct_and_listed() -> None:
    assert len(set(records.REASONS)) == len(records.REASONS) == 12


@pytest.mark.parametrize("limit", [0, 2**30 + 1])
def test_limits_refuse_a_size_out_of_range(limit: int) -> None:
    with pytest.raises(ConfigurationError, match=f"max_record_bytes is {limit}: choose 1 to 1073741824"):
        Limits(limit)
