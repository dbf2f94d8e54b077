"""What a report says of a comparison: the numbers of `Diff`, as rows of tables."""

from typing import Any, Final

from lmsplit.manifests.difference import MEANINGS, Diff
from lmsplit.manifests.reader import Domain

_MAX_ELSEWHERE: Final = 3


def diff_facts(difference: Diff, max_domains: int) -> dict[str, Any]:
    """Return what the page shows of a comparison.

    Args:
        difference: what `diff` found.
        max_domains: domains of A that are shown at most.
    """
    flows: dict[str, dict[str, int]] = {}
    for flow in difference.churn:
        flows.setdefault(flow.a, {})[flow.b] = flow.amount.documents
    theirs = {domain.domain: domain for domain in difference.b.domains}
    rows = [_row(domain, theirs.get(difference.alignment[domain.domain] or ""), flows) for domain in difference.a.domains]
    changes = {**difference.configuration, **{f"software {key}": pair for key, pair in difference.software.items()}}
    return {
        "meanings": MEANINGS,
        "rows": rows[:max_domains],
        "changes": [(key, str(before), str(after)) for key, (before, after) in sorted(changes.items())],
        **{
            name: getattr(difference, name)
            for name in ("same", "a", "b", "amounts", "adjusted_rand", "heldout_to_train", "causes", "examples")
        },
    }


def _row(domain: Domain, aligned: Domain | None, flows: dict[str, dict[str, int]]) -> dict[str, Any]:
    to = dict(flows.get(domain.domain, {}))
    stayed = 0 if aligned is None else to.pop(aligned.domain, 0)
    elsewhere = sorted(to.items(), key=lambda flow: (-flow[1], flow[0]))[:_MAX_ELSEWHERE]
    return {
        "a": domain.domain,
        "label_a": domain.label,
        "documents_a": domain.documents,
        "b": aligned and aligned.domain,
        "label_b": aligned and aligned.label,
        "documents_b": aligned and aligned.documents,
        "stayed": stayed / max(domain.documents, 1),
        "elsewhere": elsewhere,
    }
