"""The sections of the data-set card, each as lines of Markdown: what a manifest is, how it was made, and what it is not.

All of it comes from the commit, the plan and the rule's description; what the data files say is in `composition`. Every word that
stems from the corpus is escaped.
"""

import json
from typing import Any, Final

from lmsplit.manifests.commit import Gate
from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.markdown import code, escaped, table
from lmsplit.manifests.reader import Domain, Manifest
from lmsplit.manifests.schema import SPLITS

_MAX_NAMED: Final = 10
"""Domains that a sentence names, and findings that are listed."""

_MEANING: Final = {
    "train": "to train on",
    "heldout": "to evaluate on",
    "excluded": "near-duplicates of held-out documents: for neither",
}


def domain_lines(manifest: Manifest) -> list[str]:
    """Return the table of the domains."""
    tokens = [] if manifest.body.counts.tokens is None else [" tokens"]
    nested = any(len(domain.path) > 1 for domain in manifest.domains)
    head = ["domain", *(["path"] if nested else []), "label", " documents", " bytes", *tokens, "keywords"]
    return [*table(head, (_domain(domain, nested=nested, counted=bool(tokens)) for domain in manifest.domains)), ""]


def _domain(domain: Domain, *, nested: bool, counted: bool) -> list[str]:
    return [
        domain.domain,
        *([".".join(map(str, domain.path))] if nested else []),
        escaped(domain.label),
        f"{domain.documents:,}",
        f"{domain.num_bytes:,}",
        *(["" if domain.num_tokens is None else f"{domain.num_tokens:,}"] if counted else []),
        ", ".join(map(escaped, domain.keywords)),
    ]


def split_lines(manifest: Manifest) -> list[str]:
    """Return the section on splits."""
    body = manifest.body
    total = max(body.counts.published.records, 1)
    rows = (
        [split, f"{body.splits.get(split, 0):,}", f"{body.splits.get(split, 0) / total:.2%}", _MEANING[split]] for split in SPLITS
    )
    lines = ["## Splits", "", *table(["split", " documents", " share", "what for"], rows), ""]
    if body.heldout_fraction is not None:
        lines += [
            f"Held out by group, so that no group is on both sides; of the groups {100 * body.heldout_fraction:.4g}% were to be.",
            "",
        ]
    first = manifest.domains[0].domain if manifest.domains else "d00000"
    return [*lines, f"`load_dataset(path, '{first}', split='train')` reads one split of one domain.", ""]


def encoder_lines(manifest: Manifest) -> list[str]:
    """Return the section on what placed the documents."""
    about = manifest.body.encoder
    digest = f"weights {code(about['weights_sha256'])}" if "weights_sha256" in about else "its arrays are in the manifest"
    return [
        "## Encoder",
        "",
        f"{escaped(manifest.encoder_name)}: {digest}. Placement rule {code(about.get('placement_sha256'))}.",
        f"It reads {_reach(manifest)}.",
        "",
    ]


def _reach(manifest: Manifest) -> str:
    """Return how much of a text the encoder reads."""
    path = manifest.body.placement
    try:
        encoder: dict[str, Any] = json.loads(manifest.store.read(path))["encoder"]
        characters = f"first {encoder['max_characters']:,} characters"
        if "max_tokens" not in encoder or str(encoder.get("pooling", "")).startswith("StaticEmbedding"):
            return f"a text's {characters}"
        return f"a text's first {encoder['max_tokens']:,} tokens, within its {characters}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{manifest.store.where(path)} is damaged ({error}): run lmsplit verify {manifest.store.location}"
        raise DamagedError(path, message) from error


def gate_lines(manifest: Manifest) -> list[str]:
    """Return the section on what the quality gate measured and found."""
    lines, gate = ["## Quality gate", ""], manifest.body.gate
    if gate is None:
        elsewhere = "It judged all domains of the manifest that this one was made from: see there."
        return [*lines, "Not run." if manifest.body.exported_from is None else elsewhere, ""]
    lines += [*_measures(gate), ""]
    for finding in gate.findings[:_MAX_NAMED]:
        parts = (finding.code, finding.where, finding.found, finding.expected, finding.remedy)
        code, where, found, expected, remedy = map(escaped, parts)
        lines.append(f"- {code}, {where}: found {found}, expected {expected}. To do: {remedy}.")
    if (more := len(gate.findings) - _MAX_NAMED) > 0:
        lines.append(f"- and {more:,} more findings, in the commit.")
    return [*lines, "" if gate.findings else "No findings.", *([] if gate.findings else [""])]


def _measures(gate: Gate) -> list[str]:
    lines = [
        f"- The largest domain is {gate.imbalance:.2f} times the mean, in {gate.imbalance_by}.",
        f"- The domains explain {gate.coherence:.1%} of the variance of {gate.sample_documents:,} sampled vectors.",
    ]
    if gate.stability is not None:
        lines.append(
            f"- Two halves of the sample agree on the domains to {gate.stability:.2f}, where 1 is fully and 0 is chance."
        )
    if (balance := gate.balance) is not None:
        lines.append(
            f"- The largest domain was bounded at {balance.max_imbalance:.4g} times the mean: before, the sample had "
            f"{balance.imbalance_before:.2f} times, and {balance.coherence_before:.1%} of its variance was explained."
        )
    return lines


def provenance_lines(manifest: Manifest) -> list[str]:
    """Return the section on how the manifest was made."""
    body = manifest.body
    aside = {**body.counts.quarantined, **body.counts.duplicates}
    reasons = ", ".join(f"{amount.records:,} {escaped(reason)}" for reason, amount in sorted(aside.items())) or "none"
    lines = ["## Provenance", "", f"- Commit: {code(manifest.digest)}."]
    if body.parent is not None:
        lines.append(f"- It follows commit {code(body.parent)}.")
    if (origin := body.exported_from) is not None:
        lines.append(f"- A hand-over of {_named(list(origin.domains))} out of commit {code(origin.commit)}.")
    software = ", ".join(f"{escaped(name)} {escaped(version)}" for name, version in sorted(body.software.items()))
    lines += [
        f"- Input files: {_input_files(manifest)}, listed in {code(body.plan)}.",
        f"- Records read: {body.counts.read.records:,}. Set aside: {reasons}.",
        f"- Software: {software}.",
        f"- Reproducible: {escaped(body.tier)}.",
        "",
        "Made by lmsplit. `lmsplit verify` checks every file against the commit; `commits/` says how it was made.",
        "",
    ]
    return lines


def _input_files(manifest: Manifest) -> str:
    path = manifest.body.plan
    try:
        return f"{len(json.loads(manifest.store.read(path))['files']):,}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{manifest.store.where(path)} is damaged ({error}): run lmsplit verify {manifest.store.location}"
        raise DamagedError(path, message) from error


def limit_lines(manifest: Manifest) -> list[str]:
    """Return the section on what not to expect."""
    body = manifest.body
    lines = [
        "## Known limits",
        "",
        f"- A document is placed by {_reach(manifest)}; what follows has no say in its domain.",
        "- Labels are keywords that set a domain apart from the others, found by counting. Nobody has read the domains.",
        "- Licences and sources are what the input says.",
        _near_duplicates(
            body.configuration.get("near_duplicate_threshold"), known="near_duplicate_threshold" in body.configuration
        ),
    ]
    if flagged := sorted(
        {each.where for each in (body.gate.findings if body.gate else ())} & {d.domain for d in manifest.domains}
    ):
        lines.append(f"- {_named(flagged)}: look at them before training on them, see Quality gate.")
    if body.exported_from is not None:
        lines.append(
            "- These are some domains of a larger manifest: their names have gaps, and its rule may place a new text on a domain "
            "that is not here. What an excluded document nearly repeats may not be here either."
        )
    return [*lines, ""]


def _near_duplicates(threshold: float | None, *, known: bool) -> str:
    if known and threshold is None:
        return "- Near-duplicates of held-out documents were not searched for."
    above = "" if threshold is None else f" by at least {threshold:g}"
    return (
        f"- Excluded is what resembles a held-out document{above} (Jaccard similarity of the sets of word 5-grams); a pair "
        "exactly at the threshold is missed once in 2,000. A held-out passage inside a longer document is not found, nor are "
        "near-duplicates among training documents."
    )


def _named(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(map(escaped, names[:_MAX_NAMED])) + (f" and {more:,} more" if more > 0 else "")
