"""`explain`: where a document is, and why: its domain and how clearly, its split, what was set aside, digests, and since when.

```
doc_id ─► lookup ─► published ─► percentile in its domain, split, representatives, history
            │           └─ with an encoder: placed again, does it match?
            └─► not ─► what was set aside, tombstones, ids that look like it
text ─► encoder ─► rule ─► domain, percentile, five nearest domains
```

Cost: one look-up (see `lookup`), the column `distance` of one domain's data files, the rule's files, and every ancestor's commit
(see `history`); no other data are read. Of an unknown id, part of the ids index (see `similar_ids`). Files are *not* digested
(that is `verify --deep`), and a text is *not* searched for.
"""

import hashlib
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lmsplit.manifests.commit import digest
from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.explain_view import render
from lmsplit.manifests.explanation import Digests, Explanation, Recomputed, Representative, Status
from lmsplit.manifests.history import History, history
from lmsplit.manifests.lookup import Lookup
from lmsplit.manifests.place_text import cosine, encoded, place, scores
from lmsplit.manifests.placement import PLACED_BY_CENTROIDS, Encoder, Floats, is_unit
from lmsplit.manifests.reader import Domain, Manifest
from lmsplit.manifests.recheck import confirms
from lmsplit.manifests.similar_ids import similar_ids
from lmsplit.manifests.split_reason import split_reason

__all__ = ["Explanation", "explain", "explain_text", "render"]

EXCERPT_CHARACTERS: Final = 300
_AS_THEY_ARE: Final = (
    "text_sha256", "num_bytes", "num_tokens", "domain", "distance", "second_domain", "second_distance", "margin", "placed_by",
    "confidence", "source", "source_path", "source_row", "group", "split",
)  # fmt: skip


def explain(manifest: Manifest, doc_id: str, *, encoder: Encoder | None = None) -> Explanation:
    """Say where a document is, and why.

    Args:
        manifest: the manifest.
        doc_id: the id; a record without one has `<source_path>:<source_row>`.
        encoder: the manifest's own: place the text again, and compare the domain's representatives with it.

    Raises:
        DamagedError: a file is missing, cannot be read, or the index leads to another document.
        ManifestError: the encoder finds nothing in the text, or a domain is not in the domain table.
    """
    found = manifest.find(doc_id)
    past = history(manifest, found)
    told: dict[str, Any] = _published(manifest, found, encoder) if found.document is not None else {}
    status = _status(found, past)
    return Explanation(
        doc_id=doc_id,
        status=status,
        digests=_digests(manifest),
        path=found.path,
        row=found.row,
        set_aside=found.set_aside,
        taken_down=past.taken_down,
        added_in=past.added_in,
        placed_in=past.placed_in,
        history_ends=past.ends,
        nearest_ids=similar_ids(manifest, doc_id) if status == "unknown" else None,
        **told,
    )


def explain_text(manifest: Manifest, text: str, encoder: Encoder) -> Explanation:
    """Say where a text would be, and why; whether it is there already is not looked for.

    Args:
        manifest: the manifest.
        text: any text.
        encoder: the manifest's own.

    Raises:
        ManifestError: the text is empty, no Unicode text, or the encoder finds nothing in it.
        DamagedError: a file is missing or cannot be read.
    """
    if not text:
        raise ManifestError("the text is empty, so it belongs to no domain: give a text with words in it")
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise ManifestError(f"the text cannot be UTF-8 ({error}): give it without half surrogate pairs") from error
    if (vector_D := encoded(encoder, text)) is None:
        raise ManifestError("the encoder finds nothing in the text, so it belongs to no domain: give a text with words in it")
    placed = place(manifest, vector_D)
    here = [domain for domain in manifest.domains if domain.domain == placed.domain]  # none: a hand-over left it behind
    return Explanation(
        doc_id=None,
        status="unknown",
        digests=_digests(manifest),
        text_sha256=hashlib.sha256(data).hexdigest(),
        excerpt=excerpt(text),
        num_bytes=len(data),
        **placed._asdict(),
        **(_about(manifest, here[0], placed.second_domain) if here else {}),
        percentile=_percentile(manifest, placed.domain, placed.distance) if here else None,
        placed_by=PLACED_BY_CENTROIDS,
        representatives=_nearest_first(manifest, here[0], vector_D, encoder) if here else (),
        scores=scores(manifest, vector_D, placed),
    )


def excerpt(text: str) -> str:
    """Return the beginning of a text on one line, at most 300 characters."""
    line = " ".join(text[: 4 * EXCERPT_CHARACTERS].split())
    cut = len(line) > EXCERPT_CHARACTERS
    return line[: EXCERPT_CHARACTERS - 1] + "…" if cut else line


def _status(found: Lookup, past: History) -> Status:
    return "taken_down" if past.taken_down is not None and found.status != "published" else found.status


def _published(manifest: Manifest, found: Lookup, encoder: Encoder | None) -> dict[str, Any]:
    """Return what is told of a published document only, by field."""
    document = found.document or {}
    domain = manifest.domain(document["domain"])
    reason, excluded_for = split_reason(manifest, document)
    told = {name: document[name] for name in _AS_THEY_ARE} | _about(manifest, domain, document["second_domain"])
    told |= {
        "excerpt": excerpt(document["text"]),
        "percentile": _percentile(manifest, domain.domain, document["distance"]),
        "split_reason": reason,
        "excluded_for": excluded_for,
        "kept": {name: document[name] for name in manifest.body.columns},
        "representatives": _representatives(domain),
    }
    if encoder is not None:
        if (vector_D := encoded(encoder, document["text"])) is None:
            said = f"the encoder finds nothing in the text of {found.doc_id!r}, which was placed all the same"
            raise ManifestError(f"{said}: run lmsplit verify --deep")
        told["recomputed"] = _recomputed(manifest, document, vector_D, encoder)
        told["representatives"] = _nearest_first(manifest, domain, vector_D, encoder)
    return told


def _about(manifest: Manifest, domain: Domain, second: str | None) -> dict[str, Any]:
    second_label = None if second is None else manifest.label(second)
    return {"label": domain.label, "keywords": domain.keywords, "second_label": second_label}


def _percentile(manifest: Manifest, domain: str, distance: float | None) -> float | None:
    """Return the share of the domain's documents that are nearer, in percent, ties half; None: nothing to compare."""
    if distance is None:
        return None
    smaller = equal = compared = 0
    for batch in manifest.documents(domain, columns=["distance"]):
        distances_N = batch.column("distance").drop_null().to_numpy()
        smaller += int(np.count_nonzero(distances_N < np.float32(distance)))
        equal += int(np.count_nonzero(distances_N == np.float32(distance)))
        compared += len(distances_N)
    return 100 * (smaller + equal / 2) / compared if compared else None


def _representatives(domain: Domain) -> tuple[Representative, ...]:
    return tuple(map(Representative, domain.representatives, domain.excerpts))


def _nearest_first(manifest: Manifest, domain: Domain, vector_D: Floats, encoder: Encoder) -> tuple[Representative, ...]:
    """Return the representatives by their cosine to a vector; those whose text is not to be had, or empty to it, come last."""
    representatives = _representatives(domain)
    looked_up = {each.doc_id: manifest.find(each.doc_id, columns=["text"]).document for each in representatives}
    texts = {doc_id: document["text"] for doc_id, document in looked_up.items() if document is not None}
    vectors_ND = encoder.encode(list(texts.values())) if texts else np.zeros((0, len(vector_D)), np.float32)
    usable_N = is_unit(vectors_ND)
    similarity = {doc_id: cosine(vector_D, vectors_ND[n]) for n, doc_id in enumerate(texts) if usable_N[n]}
    compared = [replace(each, similarity=similarity.get(each.doc_id)) for each in representatives]
    return tuple(sorted(compared, key=lambda each: -2.0 if each.similarity is None else each.similarity, reverse=True))


def _recomputed(manifest: Manifest, document: dict[str, Any], vector_D: Floats, encoder: Encoder) -> Recomputed:
    placed = place(manifest, vector_D)
    recorded = document["distance"]
    return Recomputed(
        domain=placed.domain,
        distance=placed.distance,
        second_domain=placed.second_domain,
        margin=placed.margin,
        matches=confirms(document, placed.domain, placed.distance, encoder.tolerance),
        tolerance=encoder.tolerance,
        difference=None if recorded is None else abs(placed.distance - recorded),
    )


def _digests(manifest: Manifest) -> Digests:
    sha256_of = {entry.path: entry.sha256 for entry in manifest.body.files}
    return Digests(
        encoder=digest(manifest.stored_rule.encoder),
        rule=sha256_of[manifest.body.placement],
        configuration=digest(manifest.body.configuration),
        plan=sha256_of[manifest.body.plan],
        commit=manifest.digest,
    )
