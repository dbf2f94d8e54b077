"""Domain labels as shipped beside the class-based TF-IDF that they replaced, on labelled corpora.

10,000 documents are encoded, clustered, and their domains named by both; `true labels` are the corpora's own labels as domains.
What needs texts that no label was made from is measured on 10,000 others, placed by the same rule.

- `noise`: share of keywords with a stop word (scikit-learn's list and those below) or a word that the sample has mostly in tags,
  addresses or LaTeX commands.
- `shared`: share of label terms that name more than one domain. `same lead`: share of domains that share their leading term.
- `diversity`: different keywords over all keywords (Dieng 2020). `pairs`: share of keywords of two words.
- `NPMI`: coherence, the mean over pairs of a domain's keywords of their normalised pointwise mutual information (Bouma 2009)
  in documents, −1 to 1. It rewards what labels avoid: a template's words, and markup that always stands together.
- `found by label`, `by keywords`: share of documents of which the domain with most of its label's terms, or keywords, in them is
  their own; ties count in part. Stop words and markup help here too.
- `labels`: each with the most frequent true label of its domain.

Takes about 3 minutes on 2 cores where `benchmarks/vectors.py` has encoded the corpora.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sparse
from measure import write_results
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer
from vectors import encoded

from lmsplit.manifests.placement import is_unit
from lmsplit.partition.cluster import kmeans
from lmsplit.partition.label import NUM_KEYWORDS, NUM_LABEL_WORDS, label_domains

_UNLISTED = "did does doing having said say says like just use used using shall let unto thou thee thy hath don didn doesn"
_STOP_WORDS = ENGLISH_STOP_WORDS | set(_UNLISTED.split())
_MARKUP = re.compile(r"<[^<>]{0,200}>|\\(?:begin|end|ref)\{[^{}]*\}|\\[A-Za-z]+|https?://\S+")
_WORD = re.compile(r"[^\W\d_]+")
_SEED = 0


def class_tf_idf(texts: Sequence[str], domain_N: npt.NDArray[np.int64], num_domains: int) -> list[list[str]]:
    """Return keywords by class-based TF-IDF (BERTopic, arXiv 2203.05794) of words that are no stop words: the old method."""
    vectorizer = CountVectorizer(
        stop_words=list(ENGLISH_STOP_WORDS), token_pattern=r"(?u)\b[^\W\d_]{3,}\b", max_features=100_000, binary=True
    )
    counts_NT = vectorizer.fit_transform([text[:10_000] for text in texts]).astype(np.float64)
    members_KN = sparse.csr_matrix((np.ones(len(texts)), (domain_N, np.arange(len(texts)))), shape=(num_domains, len(texts)))
    counts_KT = (members_KN @ counts_NT).toarray()
    sizes_K = counts_KT.sum(axis=1, keepdims=True)
    weights_KT = counts_KT / np.maximum(sizes_K, 1) * np.log1p(sizes_K.mean() / counts_KT.sum(axis=0))
    terms, keywords = vectorizer.get_feature_names_out(), []
    for weights_T in weights_KT:
        heaviest = [str(term) for term in terms[np.argsort(-weights_T, kind="stable")[: 4 * NUM_KEYWORDS]]]
        singular = {term.removesuffix("s"): term for term in reversed(heaviest)}
        keywords.append([term for term in heaviest if singular[term.removesuffix("s")] == term][:NUM_KEYWORDS])
    return keywords


def noise(texts: Sequence[str], keywords_K: list[list[str]]) -> float:
    """Return the share of keywords with a stop word, or a word that is mostly markup."""
    everywhere, in_markup = Counter[str](), Counter[str]()
    for text in texts:
        everywhere.update(_WORD.findall(text.lower()))
        in_markup.update(_WORD.findall(" ".join(_MARKUP.findall(text)).lower()))
    bad = _STOP_WORDS | {word for word, times in in_markup.items() if times > everywhere[word] / 2}
    return float(np.mean([bool(bad & set(term.split())) for keywords in keywords_K for term in keywords]))


def repeated(values: list[str]) -> float:
    """Return the share of values that stand there more than once."""
    times = Counter(values)
    return float(np.mean([times[value] > 1 for value in values]))


def occurrences(texts: Sequence[str], terms_K: list[list[str]]) -> tuple[Any, list[list[int]]]:
    """Return which text has which term, as a sparse matrix, and the columns of every domain's terms."""
    vocabulary = {term: column for column, term in enumerate(sorted({term for terms in terms_K for term in terms}))}
    vectorizer = CountVectorizer(vocabulary=vocabulary, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", binary=True)
    return vectorizer.transform(texts), [[vocabulary[term] for term in terms] for terms in terms_K]


def coherence(texts: Sequence[str], keywords_K: list[list[str]]) -> float:
    """Return the mean NPMI of keywords: over pairs, then over domains."""
    found_NT, columns_K = occurrences(texts, keywords_K)
    together_TT = (found_NT.T @ found_NT).toarray() / len(texts)

    def npmi(first: int, second: int) -> float:
        both = together_TT[first, second]
        return float(np.log(both / (together_TT[first, first] * together_TT[second, second])) / -np.log(both)) if both else -1.0

    return float(np.mean([np.mean([npmi(*pair) for pair in combinations(columns, 2)]) for columns in columns_K]))


def found(texts: Sequence[str], domain_N: npt.NDArray[np.int64], terms_K: list[list[str]]) -> float:
    """Return the share of documents of which the domain with most of its terms in them is their own."""
    found_NT, columns_K = occurrences(texts, terms_K)
    scores_NK = np.stack([np.asarray(found_NT[:, columns].sum(axis=1)).ravel() for columns in columns_K], axis=1)
    best_NK = scores_NK == scores_NK.max(axis=1, keepdims=True)
    return float(np.mean(best_NK[np.arange(len(texts)), domain_N] / best_NK.sum(axis=1)))


def measure(facts: dict[str, Any], sample: pl.DataFrame, others: pl.DataFrame) -> list[dict[str, Any]]:
    """Measure both methods on one clustering; both tables have text, label and domain, the sample also distance."""
    texts, domain_N = sample["text"].to_list(), sample["domain"].to_numpy()
    num_domains = int(domain_N.max()) + 1
    unseen, unseen_N = others["text"].to_list(), others["domain"].to_numpy()
    old_K = class_tf_idf(texts, domain_N, num_domains)
    shipped = label_domains(texts, domain_N, sample["distance"].to_numpy(), num_domains)
    methods = {
        "class TF-IDF": (old_K, [keywords[:NUM_LABEL_WORDS] for keywords in old_K]),
        "shipped": ([label.keywords for label in shipped], [label.label.split(", ") for label in shipped]),
    }
    mostly = [sample.filter(pl.col("domain") == domain)["label"].mode().min() for domain in range(num_domains)]
    rows = []
    for method, (keywords_K, label_K) in methods.items():
        figures = {
            "noise": noise(texts, keywords_K),
            "shared": repeated([term for label in label_K for term in label]),
            "same lead": repeated([label[0] for label in label_K]),
            "diversity": len({term for keywords in keywords_K for term in keywords}) / sum(map(len, keywords_K)),
            "pairs": float(np.mean([" " in term for keywords in keywords_K for term in keywords])),
            "NPMI": coherence(unseen, keywords_K),
            "found by label": found(unseen, unseen_N, label_K),
            "by keywords": found(unseen, unseen_N, keywords_K),
        }
        named = "; ".join(f"{', '.join(label)} ({true})" for label, true in zip(label_K, mostly, strict=True))
        rows.append({**facts, "method": method, **figures, "labels": named})
        sys.stderr.write(f"{rows[-1]}\n")
    return rows


def clustered(encoder: str, documents: int, domains: int) -> list[dict[str, Any]]:
    """Measure on one encoder's clusters."""
    corpus, vectors_ND = encoded(encoder)
    usable = np.flatnonzero(is_unit(vectors_ND))[: 2 * documents]
    sample_ND = np.ascontiguousarray(vectors_ND[usable[:documents]])
    placed = kmeans(sample_ND, domains, _SEED).rule().place(vectors_ND[usable])
    table = corpus[usable].with_columns(domain=pl.Series(placed.domain), distance=pl.Series(placed.distance))
    return measure({"domains by": encoder, "k": domains}, table.head(documents), table.tail(-documents))


def by_true_label(documents: int) -> list[dict[str, Any]]:
    """Measure on the corpora's own labels, without distances."""
    table = encoded("lexical").documents.head(2 * documents)
    table = table.with_columns(domain=pl.col("label").rank("dense").cast(pl.Int64) - 1, distance=pl.lit(0, pl.Float32))
    facts = {"domains by": "true labels", "k": table["label"].n_unique()}
    return measure(facts, table.head(documents), table.tail(-documents))


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=10_000, help="for the labels; as many others to measure on")
    parser.add_argument("--domains", type=int, nargs="+", default=[12, 24, 48])
    arguments = parser.parse_args()
    rows = by_true_label(arguments.documents)
    for encoder in ("lexical", "minilm"):
        for domains in arguments.domains:
            rows += clustered(encoder, arguments.documents, domains)
    write_results("labels", "Domain labels", __doc__ or "", rows)


if __name__ == "__main__":
    main()
