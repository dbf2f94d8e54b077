"""Labels: class-based TF-IDF by hand, and representatives that differ."""

import numpy as np
import pytest

from lmsplit.partition.label import EXCERPT_CHARACTERS, Label, excerpt, label_domains


def labels(texts: list[str], domains: list[int], num_domains: int, distances: list[float] | None = None) -> list[Label]:
    distance_N = np.array(distances or [0.0] * len(texts), np.float32)
    return label_domains(texts, np.array(domains, np.int64), distance_N, num_domains)


def test_keywords_are_ordered_by_class_based_tf_idf() -> None:
    # Documents with the term: cat (3, 0), dog (2, 2), fox (1, 0), hen (0, 1); 6 and 3 terms, so A = 4.5.
    # First: cat 3/6 ln(1+4.5/3) = 0.458, fox 1/6 ln(1+4.5) = 0.284, dog 2/6 ln(1+4.5/4) = 0.251.
    # Second: hen 1/3 ln(1+4.5) = 0.568, dog 2/3 ln(1+4.5/4) = 0.503.
    first, second = labels(["dog cat", "dog cat cat", "cat fox", "dog hen", "dog"], [0, 0, 0, 1, 1], 2)
    assert first.keywords == ["cat", "fox", "dog"]
    assert first.label == "cat, fox, dog"
    assert second.keywords == ["hen", "dog"]


def test_keywords_leave_out_stop_words_numbers_short_words_and_second_plurals() -> None:
    (only,) = labels(["the rivers of 1999 a1b ox river rivers"], [0], 1)
    assert only.keywords == ["river"]


def test_keywords_are_words_of_any_script() -> None:
    (only,) = labels(["молоко хлеб", "молоко соль"], [0, 0], 1)
    assert only.keywords[0] == "молоко"


def test_domain_without_documents_or_words_is_named_by_its_number() -> None:
    found = labels(["river water", "1 2 3"], [0, 1], 3)
    assert [label.label for label in found] == ["river, water", "domain 1", "domain 2"]
    assert found[2].representatives == []
    assert [label.label for label in labels(["1", "2"], [0, 1], 2)] == ["domain 0", "domain 1"]


def test_labels_of_two_domains_are_never_the_same() -> None:
    found = labels(["river water"] * 2, [0, 1], 2)
    assert [label.label for label in found] == ["river, water", "river, water (1)"]


def test_representatives_are_the_nearest_that_begin_differently() -> None:
    texts = ["far river", "near boat", "near boat", "middle fish", "last shore", "other domain"]
    found = labels(texts, [0, 0, 0, 0, 0, 1], 2, [0.9, 0.1, 0.1, 0.5, 0.95, 0.0])
    assert found[0].representatives == [1, 3, 0]
    assert found[1].representatives == [5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\n\t b", "a b"), ("x" * 240, "x" * 240), ("x" * 241, "x" * 239 + "…"), ("", "")],
)
def test_excerpt_is_one_line_of_limited_length(text: str, expected: str) -> None:
    assert excerpt(text) == expected
    assert len(expected) <= EXCERPT_CHARACTERS
