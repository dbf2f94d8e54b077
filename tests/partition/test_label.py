"""Labels: weights by hand, words that say nothing, pairs, distinctness, scripts, and representatives that differ."""

from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsplit.partition.label import (
    EXCERPT_CHARACTERS,
    MAX_CHARACTERS,
    MAX_DOCUMENTS,
    NUM_KEYWORDS,
    NUM_LABEL_WORDS,
    NUM_NEAREST,
    NUM_REPRESENTATIVES,
    Label,
    excerpt,
    label_domains,
)

ANIMALS = ["heron", "otter", "badger", "falcon", "salmon", "beaver", "marten", "weasel", "eagle", "lizard", "donkey"]


def labels(texts: list[str], domains: list[int], num_domains: int, distances: list[float] | None = None) -> list[Label]:
    distance_N = np.array(distances or [0.0] * len(texts), np.float32)
    return label_domains(texts, np.array(domains, np.int64), distance_N, num_domains)


def keywords(text: str) -> set[str]:
    """Keywords of a domain of two copies of one text."""
    return set(labels([text] * 2, [0, 0], 1)[0].keywords)


def test_keywords_are_ordered_by_weight() -> None:
    # Shares: cat (3/3, 0), fox (2/3, 0), owl (2/3, 2/2), dog (1/3, 1/2), hen (0, 1/2); b is their sum / 3.
    cat, fox, owl, dog = log(3), sqrt(2 / 3) * log(3), sqrt(2 / 3) * log(6 / 5), sqrt(1 / 3) * log(6 / 5)
    assert cat > fox > owl > dog
    hen, owl, dog = sqrt(1 / 2) * log(3), log(9 / 5), sqrt(1 / 2) * log(9 / 5)
    assert hen > owl > dog
    texts = ["cat. fox. owl", "fox. cat. cat. owl", "dog. cat", "owl. hen", "dog. owl"]
    first, second = labels(texts, [0, 0, 0, 1, 1], 2)
    assert first.keywords == ["cat", "fox", "owl", "dog"]
    assert second.keywords == ["hen", "owl", "dog"]
    # The second domain takes owl and dog, which weigh more there; the first has but those left for its third term.
    assert [first.label, second.label] == ["cat, fox, owl", "hen, owl, dog"]


def test_keywords_put_what_sets_a_domain_apart_before_what_all_share() -> None:
    texts = [f"report. {animal}" if n % 3 else "report" for animal in ("heron", "otter", "badger") for n in range(12)]
    found = labels(texts, [n // 12 for n in range(36)], 3)
    assert [label.keywords for label in found] == [["heron", "report"], ["otter", "report"], ["badger", "report"]]


def test_term_counts_once_a_document() -> None:
    (only,) = labels(["glossary. " * 50 + "river", "river"], [0, 0], 1)
    assert only.keywords == ["river", "glossary"]


@pytest.mark.parametrize(
    "text",
    [
        "Don't we've they'll you're I'm isn’t He'd don didn dont",
        "Thou shalt; unto thee, thy. Hath.",
        "seventeen2 1999 a1b snake_case first, seven, twenty thousand",
        "<div class='foo' style=\"color: red\"> </div><br/><unk><!-- hidden words -->",
        "<style>body {margin: auto}</style><script>window.open(menu)</script>",
        "&nbsp;&amp;nbsp; &lt;table border=1&gt; &amp;lt;table border=1&amp;gt; nbsp amp",
        "https://example.com/path/to?query=word www.example.org/page someone@example.com href",
        r"\begin{theorem} \mathcal{O} \longrightarrow \ref{lemma-one} \cite[page]{author} \noindent \alpha",
        "return True; self, None, null",
        "ox it us",
    ],
)
def test_keywords_leave_out_what_says_nothing(text: str) -> None:
    allowed = {"return"}  # a verb like any other
    assert keywords(f"{text} . estuary") - allowed == {"estuary"}


def test_keywords_keep_words_of_code_and_mathematics() -> None:
    assert keywords("function. class. struct. lemma. interest. EU") == {"function", "class", "struct", "lemma", "interest", "eu"}


def test_less_than_sign_is_no_tag() -> None:
    assert keywords("if i<n; then heron > otter") == {"heron", "otter"}


def test_plurals_are_counted_and_shown_once() -> None:
    (only,) = labels(["rivers", "rivers", "river", "berries", "berry", "churches", "church", "glass", "glass"], [0] * 9, 1)
    assert only.keywords == ["rivers", "berries", "church", "glass"]


def test_word_said_twice_is_no_pair() -> None:
    assert keywords("heron heron") == {"heron"}


def test_forms_of_one_word_are_one_keyword() -> None:
    (only,) = labels(["bank. banking. banked", "bank. banking", "bank"], [0] * 3, 1)
    assert only.keywords == ["bank"]


def test_pair_stands_instead_of_its_words_where_it_is_their_usual_form() -> None:
    texts = ["machine learning works. heron", "machine learning", "Machine-learning. heron", "heron. machine"]
    (only,) = labels(texts, [0] * 4, 1)
    assert only.keywords == ["machine learning", "heron", "works"]


def test_words_stand_alone_where_their_pair_is_rare() -> None:
    texts = [*["wild heron"] * 3, *["heron. wild"] * 5]
    (only,) = labels(texts, [0] * 8, 1)
    assert set(only.keywords) == {"wild", "heron"}


@pytest.mark.parametrize("between", [" of ", ". ", ", ", " 3 ", "\n\n", " <b>"])
def test_pairs_do_not_cross_stop_words_punctuation_numbers_or_tags(between: str) -> None:
    assert keywords(f"harbour{between}estuary") == {"harbour", "estuary"}
    assert keywords("harbour estuary") == keywords("harbour\nestuary") == {"harbour estuary"}


def test_pairs_are_found_across_hyphens_and_possessives() -> None:
    assert keywords("salt-marsh. farmer's market") == {"salt marsh", "farmer market"}


def test_pair_whose_words_mostly_occur_apart_is_left_out() -> None:
    template = ["grey heron"] * 3
    elsewhere = ["grey"] * 3, ["heron"] * 3
    texts = [*template, *(text for _ in range(10) for texts in elsewhere for text in texts)]
    found = labels(texts, [n // 3 for n in range(len(texts))], 21)
    assert set(found[0].keywords) == {"grey", "heron"}
    assert labels(template, [0] * 3, 1)[0].keywords == ["grey heron"]


def test_two_domains_do_not_share_a_label_term_where_each_has_others() -> None:
    common = "lemma. proof. theorem. "
    own = ["sheaf. stalk. topos", "prime. modulus. residue", "graph. vertex. clique"]
    texts = [common + words for words in own for _ in range(3)]
    found = labels(texts, [n // 3 for n in range(9)], 3)
    terms = [term for label in found for term in label.label.split(", ")]
    assert len(terms) == len(set(terms)) == 3 * NUM_LABEL_WORDS
    assert all(set(label.label.split(", ")) <= set(label.keywords) for label in found)


def test_contested_term_leads_where_it_weighs_most() -> None:
    texts = ["heron. otter", "heron", "heron", "heron. badger", "badger", "stone"]
    first, second = labels(texts, [0, 0, 0, 1, 1, 1], 2)
    assert first.label.startswith("heron")
    assert second.label.startswith("badger")


def test_labels_of_two_domains_are_never_the_same() -> None:
    found = labels(["river. water"] * 3, [0, 1, 2], 3)
    assert [label.label for label in found] == ["river, water", "water, river", "river, water (2)"]


def test_domain_without_documents_or_words_is_named_by_its_number() -> None:
    found = labels(["river. water", "1 2 3"], [0, 1], 4)
    assert [label.label for label in found] == ["river, water", "domain 1", "domain 2", "domain 3"]
    assert found[1].representatives == [1]
    assert found[2] == Label("domain 2", [], [])
    assert [label.label for label in labels(["1", "", "<b>"], [0, 1, 1], 2)] == ["domain 0", "domain 1"]
    assert [label.label for label in labels([], [], 2)] == ["domain 0", "domain 1"]


def test_term_of_one_document_does_not_name_a_domain_of_ten() -> None:
    texts = ["heron. " + word for word in ANIMALS[1:11]]
    assert labels(texts, [0] * 10, 1)[0].keywords == ["heron"]
    assert len(labels(texts[:9], [0] * 9, 1)[0].keywords) == NUM_KEYWORDS


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["молоко и хлеб", "молоко. соль"], "молоко"),
        (["हिन्दी में. नदी", "हिन्दी"], "हिन्दी"),
        (["机器学习，机器", "机器。天气"], "机器"),
        (["データです。データから", "データを見る"], "データ"),
        (["기계, 학습", "기계"], "기계"),
        (["ไทย น้ำ", "ไทย"], "ไทย"),
        (["γλώσσα, λέξη", "γλώσσα"], "γλώσσα"),
        (["l’océan, d'argent", "L'océan"], "océan"),
    ],
)
def test_keywords_are_words_of_any_script(texts: list[str], expected: str) -> None:
    (only,) = labels(texts, [0] * len(texts), 1)
    assert only.keywords[0] == expected


def test_every_part_of_a_large_domain_is_read_and_long_documents_only_in_part() -> None:
    texts = ["heron"] * MAX_DOCUMENTS + ["otter"] * MAX_DOCUMENTS + ["heron. " + "x " * MAX_CHARACTERS + "badger"] * MAX_DOCUMENTS
    (only,) = labels(texts, [0] * len(texts), 1, list(range(len(texts))))
    assert only.keywords == ["heron", "otter"]


def test_two_thousand_domains_are_named_differently() -> None:
    names = [f"subject{chr(97 + n // 676)}{chr(97 + n // 26 % 26)}{chr(97 + n % 26)}" for n in range(2000)]
    found = labels([f"common. {name}" for name in names for _ in range(2)], [n // 2 for n in range(4000)], 2000)
    assert [label.keywords for label in found] == [[name, "common"] for name in names]
    assert [label.label.split(", ")[0] for label in found] == names


@given(st.lists(st.tuples(st.text(), st.integers(0, 4), st.floats(0, 2, width=32)), max_size=12))
@settings(max_examples=50, deadline=None)
def test_any_texts_have_different_labels_and_representatives_of_their_own(documents: list[tuple[str, int, float]]) -> None:
    texts, domains, distances = (list(column) for column in zip(*documents, strict=True)) if documents else ([], [], [])
    found = labels(texts, domains, 5, distances)
    assert len({label.label for label in found}) == 5
    assert found == labels(texts, domains, 5, distances)
    for domain, label in enumerate(found):
        assert all(domains[position] == domain for position in label.representatives)
        assert bool(label.representatives) == (domain in domains)
        assert [distances[n] for n in label.representatives] == sorted(distances[n] for n in label.representatives)
        assert len(label.representatives) <= NUM_REPRESENTATIVES
        assert len(set(label.keywords)) == len(label.keywords) <= NUM_KEYWORDS


def test_labels_do_not_depend_on_the_order_of_the_sample() -> None:
    words = ANIMALS[:8]
    texts = [f"{words[n % 8]} {words[n * 3 % 8]}. {words[n // 8]}" for n in range(64)]
    domains, distances = [n % 5 for n in range(64)], [n / 64 for n in range(64)]
    order = np.random.default_rng(0).permutation(64)
    shuffled = labels([texts[n] for n in order], [domains[n] for n in order], 5, [distances[n] for n in order])
    assert [label[:2] for label in shuffled] == [label[:2] for label in labels(texts, domains, 5, distances)]


STORY = (
    "The heron stood in the shallow water and waited for a fish that came near its long legs before noon, "
    "while the boats went by under a low grey sky, and children on the bank threw bread to the ducks and laughed at them "
    "until the bell of the old church called them home to eat."
)


@pytest.mark.parametrize(
    ("second", "is_taken"),
    [
        ("Quite another text about a wide river and what it does to the towns along its banks in a wet spring.", True),
        (STORY.upper().replace(",", ""), False),
        (STORY.replace("noon", "dusk").replace("eat", "sleep"), False),
        ("short text", True),
    ],
)
def test_representatives_are_no_near_duplicates(second: str, is_taken: bool) -> None:
    assert labels([second, STORY], [0, 0], 1, [0.2, 0.1])[0].representatives == ([1, 0] if is_taken else [1])


def test_representatives_neither_begin_alike_nor_go_on_alike() -> None:
    first, second, rest = (" ".join(f"{name}{n}" for n in range(400)) for name in "abc")
    assert labels([f"{STORY} {first}", f"{STORY} {second}"], [0, 0], 1)[0].representatives == [0]
    assert labels([f"{first[:300]} {rest}", f"{second[:300]} {rest}"], [0, 0], 1)[0].representatives == [0]
    assert labels([f"{first} {rest[:300]}", f"{second} {rest[:300]}"], [0, 0], 1)[0].representatives == [0, 1]


def test_representatives_are_the_nearest_three_that_differ() -> None:
    texts = ["far river", "near boat", "Near boat.", "middle fish", "last shore", "other domain"]
    found = labels(texts, [0, 0, 0, 0, 0, 1], 2, [0.9, 0.1, 0.2, 0.5, 0.95, 0.0])
    assert found[0].representatives == [1, 3, 0]
    assert found[1].representatives == [5]


def test_representatives_are_near_the_centroid_even_if_fewer() -> None:
    texts = ["near boat"] * NUM_NEAREST + ["far river"]
    assert labels(texts, [0] * len(texts), 1, list(range(len(texts))))[0].representatives == [0]
    assert labels(texts[1:], [0] * NUM_NEAREST, 1, list(range(NUM_NEAREST)))[0].representatives == [0, NUM_NEAREST - 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\n\t b", "a b"), ("x" * 240, "x" * 240), ("x" * 241, "x" * 239 + "…"), ("", "")],
)
def test_excerpt_is_one_line_of_limited_length(text: str, expected: str) -> None:
    assert excerpt(text) == expected
    assert len(expected) <= EXCERPT_CHARACTERS
