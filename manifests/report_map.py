"""The report's map: a sample of the documents in the plane, near ones near each other.

Where the manifest's encoder can be had, the sample's texts are encoded; else each document stands where its two recorded
distances put it, between its domain and the runner-up. The caption says which. The sample is uniform over the documents of some
row groups, drawn at random until so many bytes would be read; of a small manifest these are all.
"""

from typing import Any, Final

import numpy as np

from lmsplit.manifests.layout import domain_index
from lmsplit.manifests.placement import Encoder, Floats, is_unit, normalised
from lmsplit.manifests.projection import project
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.sample import sample_rows

_READ_BYTES: Final = 1 << 30
"""Uncompressed text that is read for the sample, at most but for one row group."""
_COLUMNS: Final = ["doc_id", "text", "domain", "distance", "second_domain", "second_distance", "margin", "source"]
_EXCERPT: Final = 160


def draw_map(manifest: Manifest, num_documents: int, encoder: Encoder | None) -> dict[str, Any]:
    """Return the map: `documents` with their places, and a `caption`.

    Args:
        manifest: the manifest.
        num_documents: how many to show.
        encoder: the manifest's own; None where it cannot be had.

    Raises:
        DamagedError: a file is missing or cannot be read.
    """
    rows, groups_read, num_groups = sample_rows(manifest, num_documents, _COLUMNS, _READ_BYTES)
    if len(rows) < 2 or len(manifest.domains) < 2:
        return {"documents": [], "caption": "There is nothing to lay out: fewer than two domains or documents."}
    vectors_ND = _recorded(manifest, rows) if encoder is None else _encoded(rows, encoder)
    known_N = is_unit(vectors_ND)
    rows = [row for row, known in zip(rows, known_N, strict=True) if known]
    places_N2 = project(vectors_ND[known_N])
    labels = {domain.domain: domain.label for domain in manifest.domains}
    how = "their vectors laid out by t-SNE, near ones near each other"
    if encoder is None:
        how = (
            "laid out by t-SNE from their recorded distances to their domain and to the runner-up, as the encoder "
            f"({manifest.encoder_name}) could not be had here"
        )
    extent = "" if groups_read == num_groups else f" of {groups_read:,} of {num_groups:,} row groups"
    caption = f"{len(rows):,} documents, drawn at random{extent}, {how}. Distances between far groups mean nothing."
    documents = [_point(row, place, labels) for row, place in zip(rows, places_N2.tolist(), strict=True)]
    return {"documents": documents, "caption": caption}


def _point(row: dict[str, Any], place: list[float], labels: dict[str, str]) -> dict[str, Any]:
    return {
        "x": round(place[0], 3),
        "y": round(place[1], 3),
        "id": row["doc_id"][:120],
        "domain": row["domain"],
        "label": labels[row["domain"]],
        "second": row["second_domain"],
        "second_label": labels.get(row["second_domain"]),
        "margin": None if row["margin"] is None else round(row["margin"], 4),
        "source": (row["source"] or "")[:80],
        "text": " ".join(row["text"][: 2 * _EXCERPT].split())[:_EXCERPT],
    }


def _encoded(rows: list[dict[str, Any]], encoder: Encoder) -> Floats:
    return encoder.encode([row["text"] for row in rows])


def _recorded(manifest: Manifest, rows: list[dict[str, Any]]) -> Floats:
    """Return (N, D) unit vectors between the two centroids that the rows name, each as near as it is recorded."""
    rule = manifest.rule()
    units_KD = normalised(rule.centroids_KD)
    vectors_ND = np.zeros((len(rows), units_KD.shape[1]), np.float32)
    for number, row in enumerate(rows):
        for domain, distance in ((row["domain"], row["distance"]), (row["second_domain"], row["second_distance"])):
            if domain is not None:
                vectors_ND[number] += (1.0 if distance is None else max(1.0 - distance, 0.0)) * units_KD[domain_index(domain)]
    return normalised(vectors_ND)
