"""Whether a new placement confirms the recorded one: worked by hand, at the bounds too."""

import pytest

from lmsplit.manifests.recheck import confirms

TOLERANCE = 2**-10


@pytest.mark.parametrize(
    ("domain", "distance", "margin", "expected"),
    [
        ("d00001", 0.5, 0.3, True),
        ("d00001", 0.5 + TOLERANCE, 0.3, True),
        ("d00001", 0.5 - TOLERANCE, 0.3, True),
        ("d00001", 0.5 + 1.01 * TOLERANCE, 0.3, False),
        ("d00001", 0.5 + 1.01 * TOLERANCE, 0.0, False),  # a near-tie excuses another domain, not another distance
        ("d00001", 0.5, None, True),
        ("d00002", 0.5, 2 * TOLERANCE, True),
        ("d00002", 0.9, 0.0, True),
        ("d00002", 0.5, 2.01 * TOLERANCE, False),
        ("d00002", 0.5, None, False),
    ],
)
def test_confirms_allows_the_tolerance_and_another_domain_near_a_tie(domain, distance, margin, expected):
    recorded = {"domain": "d00001", "distance": 0.5, "margin": margin}
    assert confirms(recorded, domain, distance, TOLERANCE) is expected


def test_confirms_compares_no_distance_where_a_student_left_none():
    recorded = {"domain": "d00001", "distance": None, "margin": None}
    assert confirms(recorded, "d00001", 0.7, TOLERANCE)
    assert not confirms(recorded, "d00002", 0.7, TOLERANCE)
