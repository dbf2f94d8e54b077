"""Whether placing a text again confirms what a manifest records of it: the one decision behind `verify --deep` and `explain`.

It does *not* place anything. Cost: none.
"""

from collections.abc import Mapping
from typing import Any


def confirms(recorded: Mapping[str, Any], domain: str, distance: float, tolerance: float) -> bool:
    """Return whether a new placement confirms the recorded one.

    Another domain is refuted unless the two were within twice the tolerance of a tie; the same domain, by a distance that
    differs by more than the tolerance.

    Args:
        recorded: the document's `domain`, `distance` and `margin`; a distance of None, as a student leaves it, is not compared.
        domain: where the text is placed now.
        distance: its distance to that domain's centroid.
        tolerance: the encoder's, see `placement.Encoder`.

    >>> confirms({"domain": "d00001", "distance": 0.5, "margin": 0.3}, "d00001", 0.50005, tolerance=1e-4)
    True
    """
    if domain != recorded["domain"]:
        return recorded["margin"] is not None and recorded["margin"] <= 2 * tolerance
    return recorded["distance"] is None or abs(distance - recorded["distance"]) <= tolerance
