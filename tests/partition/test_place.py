"""Placing: what a row says agrees with the published rule."""

from pathlib import Path

import numpy as np
import pytest

from lmsplit.manifests.reader import Manifest
from tests.partition.corpora import rows


def test_rows_agree_with_the_published_rule(mixed_manifest: Path) -> None:
    manifest = Manifest.open(mixed_manifest)
    published = rows(mixed_manifest)
    embeddings_ND = manifest.encoder().encode([row["text"] for row in published]).astype(np.float64)
    centroids_KD = manifest.rule().centroids_KD.astype(np.float64)
    costs_NK = 1 - embeddings_ND @ centroids_KD.T + [domain.price for domain in manifest.domains]
    distances_NK = 1 - embeddings_ND @ (centroids_KD / np.linalg.norm(centroids_KD, axis=1, keepdims=True)).T
    ranked_NK = np.argsort(costs_NK, axis=1, kind="stable")
    for row, costs, distances, ranked in zip(published, costs_NK, distances_NK, ranked_NK, strict=True):
        assert (row["domain"], row["second_domain"]) == (f"d{ranked[0]:05d}", f"d{ranked[1]:05d}")
        assert row["distance"] == pytest.approx(distances[ranked[0]], abs=1e-6)
        assert row["second_distance"] == pytest.approx(distances[ranked[1]], abs=1e-6)
        assert row["margin"] == pytest.approx(costs[ranked[1]] - costs[ranked[0]], abs=1e-6)
        assert (row["placed_by"], row["confidence"]) == ("centroids", None)
