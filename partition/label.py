"""Names the domains: keywords by class-based TF-IDF over the sample, and the documents nearest each centroid.

Class-based TF-IDF (BERTopic, arXiv 2203.05794, section 3.3): a term's weight in a domain is its frequency there times
ln(1 + A / f), where A is the mean number of terms of a domain and f the term's frequency over all. The sample stands for the
corpus: keywords describe what domains share, which 10,000 documents show.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

NUM_KEYWORDS: Final = 8
NUM_LABEL_WORDS: Final = 3
NUM_REPRESENTATIVES: Final = 3
EXCERPT_CHARACTERS: Final = 240
_MAX_CHARACTERS: Final = 10_000
_MAX_TERMS: Final = 100_000
_WORD: Final = r"(?u)\b[^\W\d_]{3,}\b"


class Label(NamedTuple):
    """What a person sees of a domain."""

    label: str
    keywords: list[str]
    representatives: list[int]
    """positions in the sample, nearest the centroid first."""


def label_domains(
    texts: Sequence[str], domain_N: npt.NDArray[np.int64], distance_N: npt.NDArray[np.float32], num_domains: int
) -> list[Label]:
    """Name every domain.

    Args:
        texts: the sample's N texts.
        domain_N: the domain each was placed on.
        distance_N: its distance to that domain's centroid.
        num_domains: K; a domain without a sample document is named by its number.

    Returns:
        K labels; no two are the same.
    """
    keywords = _keywords(texts, domain_N, num_domains)
    labels: list[Label] = []
    seen: set[str] = set()
    for domain in range(num_domains):
        members = np.flatnonzero(domain_N == domain)
        nearest = members[np.argsort(distance_N[members], kind="stable")]
        name = ", ".join(keywords[domain][:NUM_LABEL_WORDS]) or f"domain {domain}"
        if name in seen:
            name = f"{name} ({domain})"
        seen.add(name)
        labels.append(Label(name, keywords[domain], _different(texts, nearest.tolist())))
    return labels


def excerpt(text: str) -> str:
    """Return the beginning of a text on one line, at most 240 characters."""
    line = " ".join(text[: 4 * EXCERPT_CHARACTERS].split())
    return line if len(line) <= EXCERPT_CHARACTERS else line[: EXCERPT_CHARACTERS - 1] + "…"


def _different(texts: Sequence[str], nearest: list[int]) -> list[int]:
    """Take the nearest documents whose beginnings differ: three copies of one text represent nothing more than one."""
    chosen: dict[str, int] = {}
    for position in nearest:
        chosen.setdefault(excerpt(texts[position]), position)
        if len(chosen) == NUM_REPRESENTATIVES:
            break
    return list(chosen.values())


def _keywords(texts: Sequence[str], domain_N: npt.NDArray[np.int64], num_domains: int) -> list[list[str]]:
    vectorizer = CountVectorizer(
        stop_words=list(ENGLISH_STOP_WORDS), token_pattern=_WORD, ngram_range=(1, 1), max_features=_MAX_TERMS, min_df=1
    )
    try:
        counts_NT = vectorizer.fit_transform([text[:_MAX_CHARACTERS] for text in texts])
    except ValueError:  # an empty vocabulary: no text has a word of three letters
        return [[] for _ in range(num_domains)]
    # A term counts once a document: one glossary must not name a whole domain.
    counts_NT = (counts_NT > 0).astype(np.float64)
    members_KN = sparse.csr_matrix((np.ones(len(texts)), (domain_N, np.arange(len(texts)))), shape=(num_domains, len(texts)))
    counts_KT = np.asarray((members_KN @ counts_NT).todense())
    sizes_K = counts_KT.sum(axis=1, keepdims=True)
    weights_KT = counts_KT / np.maximum(sizes_K, 1) * np.log1p(sizes_K.mean() / counts_KT.sum(axis=0))
    terms = vectorizer.get_feature_names_out()
    return [_distinct_terms(terms, row) for row in weights_KT]


def _distinct_terms(terms: npt.NDArray[np.object_], weights_T: npt.NDArray[np.float64]) -> list[str]:
    """Take the heaviest terms, one of each singular and plural."""
    chosen: dict[str, str] = {}
    for index in np.argsort(-weights_T, kind="stable")[: 4 * NUM_KEYWORDS]:
        if weights_T[index] > 0:
            term = str(terms[index])
            chosen.setdefault(term.removesuffix("s"), term)
    return list(chosen.values())[:NUM_KEYWORDS]
