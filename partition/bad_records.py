"""Were too many records set aside? Asked once the scan is done, and again once all documents are placed."""

from collections.abc import Sequence

from lmsplit.manifests.commit import Amount
from lmsplit.manifests.errors import InputError
from lmsplit.partition.planning import Planned
from lmsplit.partition.run import Run
from lmsplit.partition.scan import add_amounts, parse_amounts, total


def check_bad_fraction(run: Run, stages: Sequence[str]) -> None:
    """Stop when the scan and later stages set aside too many records as bad.

    Args:
        run: the run.
        stages: finished stages over the work units, the scan first.

    Raises:
        InputError: their share is above `max_bad_fraction`; the message says which reasons, and where to look at them.
    """
    planned = Planned(run)
    limit = planned.configuration.max_bad_fraction
    read = total(run, stages[0], planned.num_units, "read")
    reasons: dict[str, Amount] = {}
    for stage in stages:
        for receipt in run.receipts(stage, planned.num_units):
            reasons = add_amounts(reasons, parse_amounts(receipt["quarantined"]))
    bad = sum(amount.records for amount in reasons.values())
    if bad > limit * read.records:
        table = ", ".join(f"{reason} {amount.records}" for reason, amount in sorted(reasons.items()))
        raise InputError(
            f"{bad} of {read.records} records are bad ({table}), more than max_bad_fraction: {limit}. Nothing was published. "
            f"Look at {run.where('*')}/*-rejected-*.parquet, mend the input, or raise max_bad_fraction"
        )
