"""Names the domains: the terms that set each apart, and documents near its centroid that differ from each other.

```
documents of a domain ─► without markup ─► words ─► terms: words and pairs ─► share of documents with each ─► weight
    │                                                         keywords, none repeating another ─► labels, none sharing a term
    └─ nearest 16 ─► shingles ─► representatives
```

A term counts once a document: one glossary must not name a whole domain. Its weight in a domain is

    √a · ln(a / b),   b = (sum of a over all K domains) / (K + 1),

where a is the share of the domain's documents that have it, and b its share in a corpus of all domains, equally large, and one
more that lacks it. What is said equally everywhere weighs next to nothing, in any language. With a instead of its root the
same few words (ingredients, directions) lead each of several domains about one thing (by eye, 48 domains). Measured beside
class-based TF-IDF (BERTopic, arXiv 2203.05794, section 3.3): benchmarks/results/labels.md.

This does *not* know the stop words of other languages than English: one French domain in an English corpus is named by what
French documents share. Chinese is cut into pairs of characters; Thai, Lao, Khmer and Burmese only at spaces. Nothing tells
verbs from nouns, nor a template's words ("medical dictionary") from a subject's.

Cost: of a domain at most 512 documents, of these 4,000 characters are read, whatever N is: 0.5 ms of processor time each, and
4 ms a domain for its representatives (measured: 20,000 documents of 1.6 kB, 1,024 domains; so minutes for a million). Memory:
1,000 terms of 36 bytes a domain, the different ones again, and the words of 4,096 documents at a time; nothing of size K × terms
(measured: 60,000 documents, 256 domains add 180 MB).

Shape legend: N documents, K domains.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from html import unescape
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from lmsplit.partition.shingles import jaccard, shingle

Members = list[npt.NDArray[np.int64]]
"""Positions of every domain's documents, nearest the centroid first."""

NUM_KEYWORDS: Final = 8
NUM_LABEL_WORDS: Final = 3
NUM_REPRESENTATIVES: Final = 3
EXCERPT_CHARACTERS: Final = 240
MAX_DOCUMENTS: Final = 512
"""Read of a domain: a share of 0.3 is then known to ±0.02 (one standard error)."""
MAX_CHARACTERS: Final = 4_000
"""Read of a document. Assumption: what it is about shows in the first two pages."""
NUM_NEAREST: Final = 16
"""Documents among which the representatives are chosen. Assumption: a domain's 16th is still typical of it."""
MAX_SIMILARITY: Final = 0.3
"""Of two representatives. Assumption: far below what counts as a near-duplicate (0.8), above two texts on one subject."""
_MIN_PAIR_FRACTION: Final = 0.5
"""A pair stands for a word that occurs in it in at least half of the domain's documents with the word ("usual form")."""
_MIN_COHESION: Final = 0.3
"""Of a pair, in the corpus. By eye on 24 domains: interest rate 0.34, labor market 0.31; change related 0.14, cup white 0.26."""
_MAX_TERMS: Final = 1_000
"""Kept of a domain, the most frequent. The rest are in less than 2 % of its documents (mean of 12 and of 48 domains)."""
_MAX_CANDIDATES: Final = 100
_GROUP: Final = 4_096
"""Documents cut into words at a time."""
_SMALL: Final = 10
"""A domain of fewer documents may be named by a word of one of them."""

_CONTENT_WORDS: Final = """
amount bill call computer cry describe detail fill fire front interest mill mine system thick thin top bottom
"""
"""Listed by scikit-learn, whose documentation warns of it, but what a domain may be about."""
_MORE_STOP_WORDS: Final = """
ain aren couldn didn doesn don hadn hasn haven isn mightn mustn needn shan shouldn wasn weren wouldn
arent couldnt didnt doesnt dont hadnt havent isnt wasnt werent wont wouldnt ive youre theyre thats theres lets let
did does doing got getting gets gave given gives going goes gone went came come comes coming having being
say says said saying tell told know known knew think thought want wanted wants need needs needed like likes just
make makes making use uses used using look looked looking ask asked seen saw took taken takes taking
really actually maybe quite shall ought little instead unless according certain particular different specific various
following follow follows provided provides provide including include includes included based usually related occur occurs
propose proposed proposes introduce introduces introduced demonstrate demonstrates existing
zero second seven twice thirty seventy eighty ninety thousand million billion
ii iii iv vi vii viii ix xi xii
thou thee thy thine ye hath hast doth didst shalt wilt unto thereof whereof hereof
http https www com org html href src img alt div span nbsp amp quot apos lt gt br hr td tr th ul ol li px rgb rgba utf
xmlns svg png jpg jpeg gif pdf htm php aspx unk
true false null nil void self elif endif args kwargs argc argv foo baz int str bool len const var println printf
"""
"""Pieces of contractions, hollow verbs and adverbs, numbers, old pronouns, what markup leaves, and code that fits any program."""


@cache
def stop_words() -> frozenset[str]:
    """Return the words that no label has: scikit-learn's, less the words of content among them, and ours."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # here: scikit-learn's import takes 1 s

    words: frozenset[str] = (ENGLISH_STOP_WORDS - set(_CONTENT_WORDS.split())) | set(_MORE_STOP_WORDS.split())
    return words


_NOT_PROSE: Final = (
    r"(?is)<(?:script|style)\b.*?</(?:script|style)>",
    r"(?s)<!--.*?-->",
    r"</?[\p{L}!?][\w:.-]*(?:\s[^<>]{0,1000})?/?>",
    r"(?i)\b(?:https?|ftp|file)://\S+|\bwww\.\S+|\b[\w.+-]+@[\w-]+\.\w[\w.]*",
    r"\\(?:begin|end|ref|eqref|cite\w*|label|includegraphics|usepackage|documentclass|input)\*?\s*(?:\[[^\]]*\])?\{[^{}]*\}",
    r"\\[A-Za-z@]+\*?",
    r"(?i)\b\p{L}+n['’]t\b",
    r"\n\s*\n",
)
"""Elements, comments and tags; addresses; LaTeX commands, some with their arguments; negations; the end of a paragraph."""
_ELISION: Final = r"(?i)['’](?:s|re|ve|ll|d|m)\b|\b(?:l|d|j|n|c|m|t|s|qu)['’]"
_HYPHEN: Final = r"(\p{L})[-‐‑](\p{L})"
_PIECE: Final = r"\p{Han}|\p{Hiragana}+|[\w--[\p{Han}\p{Hiragana}]]+|\S"
_WORD: Final = r"^(?:[\p{L}\p{M}\x{200c}\x{200d}--\p{Hiragana}]{3,}|[\p{Hangul}\p{Katakana}ー]{2}|\p{Lu}{2})$"
"""Three letters; two in syllabic scripts, or capitals (EU). Hiragana is mostly endings and particles."""
_ENDING: Final = re.compile(r"(?<=...)(?:ing|ed|er|e|y|ic|ical|al|ial|ion|ation|ly|ment)?s?$")


class Label(NamedTuple):
    """What a person sees of a domain."""

    label: str
    keywords: list[str]
    representatives: list[int]
    """positions in the sample, nearest the centroid first."""


class _Term(NamedTuple):
    """A word or a pair of words in one domain."""

    key: str
    """lower case, singular."""
    shown: str
    """as the domain's documents have it most often, in lower case."""
    num_documents: int
    weight: float


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
        K labels; no two are the same. A label is made of three of the domain's eight keywords.
    """
    order_N = np.lexsort((distance_N, domain_N))
    members_K = np.split(order_N, np.searchsorted(domain_N[order_N], np.arange(1, num_domains)))
    keywords_K = [_without_repeats(terms) for terms in _weighed(texts, members_K)]
    return [
        Label(name, [term.shown for term in keywords], _different(texts, members[:NUM_NEAREST].tolist()))
        for name, keywords, members in zip(_names(keywords_K), keywords_K, members_K, strict=True)
    ]


def excerpt(text: str) -> str:
    """Return the beginning of a text on one line, at most 240 characters."""
    line = " ".join(text[: 4 * EXCERPT_CHARACTERS].split())
    return line if len(line) <= EXCERPT_CHARACTERS else line[: EXCERPT_CHARACTERS - 1] + "…"


def _different(texts: Sequence[str], nearest: list[int]) -> list[int]:
    """Take the nearest documents that resemble none taken before, neither as far as read nor in their excerpts."""
    read = shingle([texts[position][:MAX_CHARACTERS] for position in nearest])
    beginning = shingle([excerpt(texts[position]) for position in nearest])
    chosen: list[int] = []
    for n in range(len(nearest)):
        alike = (jaccard(sets.of(n), sets.of(other)) > MAX_SIMILARITY for other in chosen for sets in (beginning, read))
        if not any(alike):
            chosen.append(n)
        if len(chosen) == NUM_REPRESENTATIVES:
            break
    return [nearest[n] for n in chosen]


def _weighed(texts: Sequence[str], members_K: Members) -> list[list[_Term]]:
    """Return the heaviest terms of every domain, heaviest first."""
    counted = list(_counted(texts, members_K))
    shares = pl.concat([group.select("key", "share") for group in counted])
    background = _cohesive(shares.group_by("key").agg(background=pl.col("share").sum() / (len(members_K) + 1)))
    terms_K: list[list[_Term]] = [[] for _ in members_K]
    for group in counted:
        for domain, *term in _heaviest(group, background).iter_rows():
            terms_K[domain].append(_Term(*term))
    return terms_K


def _heaviest(counted: pl.DataFrame, background: pl.DataFrame) -> pl.DataFrame:
    weight = pl.col("share").sqrt() * (pl.col("share") / pl.col("background")).log()
    return (
        counted.join(background, on="key")
        .with_columns(weight=weight.round(9))  # sums come in any order: their last bits must not decide between equals
        .sort("domain", "weight", "key", descending=[False, True, False])
        .group_by("domain", maintain_order=True)
        .head(_MAX_CANDIDATES)
        .select("domain", *_Term._fields)
    )


def _cohesive(background: pl.DataFrame) -> pl.DataFrame:
    """Leave out pairs whose words mostly occur apart: b of the pair over the geometric mean of its words' (Ochiai 1957)."""
    words = pl.col("key").str.split_exact(" ", 1).struct
    alone = background.rename({"key": "word", "background": "alone"})
    first = background.select("key", "background", word=words.field("field_0")).join(alone, on="word")
    second = background.select("key", word=words.field("field_1")).join(alone, on="word", how="left")
    both = first.join(second, on="key", suffix="_second")
    cohesion = pl.col("background") / (pl.col("alone") * pl.col("alone_second")).sqrt()
    return both.filter(pl.col("word_second").is_null() | (cohesion >= _MIN_COHESION)).select("key", "background")


def _counted(texts: Sequence[str], members_K: Members) -> Iterator[pl.DataFrame]:
    """Count the documents with each term in every domain, some domains at a time."""
    read_K = [members[_spread(len(members))] for members in members_K]
    step = max(1, _GROUP // max(1, *map(len, read_K)))
    for start in range(0, len(read_K), step):
        group = read_K[start : start + step]
        sizes = [len(members) for members in group]
        documents = pl.DataFrame(
            {"domain": np.repeat(np.arange(start, start + len(group)), sizes), "size": np.repeat(sizes, sizes)}
        ).with_row_index("document")
        terms = _terms([texts[position][:MAX_CHARACTERS] for position in np.concatenate(group).tolist()])
        yield _most_frequent(terms.join(documents, on="document"))


def _spread(num_documents: int) -> npt.NDArray[np.int64]:
    """Return which of a domain's documents are read: the nearest alone would be copies of one template too often."""
    return np.linspace(0, num_documents - 1, min(num_documents, MAX_DOCUMENTS)).astype(np.int64)


def _most_frequent(terms: pl.DataFrame) -> pl.DataFrame:
    """Return the domains' terms in at least two documents; in domains of fewer than ten a word of one document counts too."""
    num_documents, size = pl.col("document").n_unique(), pl.col("size").first()
    repeated = (pl.col("num_documents") > 1) | ((pl.col("size") < _SMALL) & ~pl.col("key").str.contains(" "))
    return (
        terms.group_by("domain", "key")
        .agg(num_documents=num_documents, size=size, share=num_documents / size, shown=pl.col("shown").mode().min())
        .filter(repeated)
        .sort("num_documents", "key", descending=[True, False])
        .group_by("domain", maintain_order=True)
        .head(_MAX_TERMS)
        .select("domain", "key", "shown", "num_documents", "share")
    )


def _terms(texts: list[str]) -> pl.DataFrame:
    """Return the terms of texts: a row for each spelling of each in each document, with its `document`, `key` and `shown`.

    Pairs are words side by side, no stop word, number or punctuation between them. Of Chinese characters only pairs are terms.
    """
    tokens = _tokens(texts)
    beside = (pl.col("document") == pl.col("document").shift(-1)) & (pl.col("key") != pl.col("key").shift(-1))
    found = [tokens.filter("word")]
    for kind, between in (("word", " "), ("character", "")):
        pair = [pl.concat_str(name, pl.col(name).shift(-1), separator=between).alias(name) for name in ("key", "shown")]
        keep = beside & pl.col(kind) & pl.col(kind).shift(-1)
        found.append(tokens.select("document", *pair, "word", "character", keep=keep).filter("keep").drop("keep"))
    return pl.concat(found).select("document", "key", "shown").unique()


def _tokens(texts: list[str]) -> pl.DataFrame:
    """Return the tokens of texts in their order, and which of them are words, or Chinese characters."""
    prose = pl.Series([unescape(unescape(text)) for text in texts], dtype=pl.String)  # twice: &amp;nbsp;
    for pattern in _NOT_PROSE:
        prose = prose.str.replace_all(pattern, " . ")
    spelled = prose.str.replace_all(_ELISION, " ").str.replace_all(_HYPHEN, "$1 $2").str.extract_all(_PIECE)
    tokens = pl.DataFrame({"spelled": spelled}).with_row_index("document").explode("spelled").drop_nulls()
    tokens = tokens.with_columns(shown=pl.col("spelled").str.to_lowercase()).with_columns(key=_singular(pl.col("shown")))
    stop = pl.col("shown").is_in(stop_words()) | pl.col("key").is_in(stop_words())
    character = pl.col("spelled").str.contains(r"^\p{Han}$")
    return tokens.select("document", "key", "shown", word=pl.col("spelled").str.contains(_WORD) & ~stop, character=character)


def _singular(word: pl.Expr) -> pl.Expr:
    """Fold English plurals (Harman 1991, "How effective is suffixing?", its S stemmer; and -es after a hissing sound)."""
    word = word.str.replace(r"([^aei])ies$", "${1}y").str.replace(r"(ss|x|ch|sh|zz)es$", "${1}")
    return word.str.replace(r"([^sui])s$", "${1}")


def _without_repeats(terms: list[_Term]) -> list[_Term]:
    """Take the heaviest terms of which none repeats a word of another: a pair instead of a word where it is its usual form."""
    by_key = {term.key: term for term in terms}

    def value(term: _Term) -> float:
        """Return the weight of a term, or of a word that it usually stands for."""
        words = [by_key[word] for word in term.key.split() if word in by_key]
        usual = [word for word in words if term.num_documents >= _MIN_PAIR_FRACTION * word.num_documents]
        return max(other.weight for other in [term, *usual])

    chosen: list[_Term] = []
    used: set[str] = set()
    for term in sorted(terms, key=lambda term: (-value(term), -len(term.key.split()))):
        stems = {_ENDING.sub("", word, count=1) for word in term.key.split()}
        if not stems & used:
            chosen.append(term)
            used |= stems
        if len(chosen) == NUM_KEYWORDS:
            break
    return chosen


def _names(keywords_K: list[list[_Term]]) -> list[str]:
    """Name domains by keywords that no other is named by: each goes to the domain where it weighs most, in rounds.

    First every domain gets one, then every domain a second. A domain whose keywords are all taken shares its heaviest.
    """
    heaviest = sorted((-term.weight, domain, term) for domain, keywords in enumerate(keywords_K) for term in keywords)
    named_K: list[list[_Term]] = [[] for _ in keywords_K]
    taken: set[str] = set()
    for num_words in range(NUM_LABEL_WORDS):
        for _, domain, term in heaviest:
            if len(named_K[domain]) == num_words and term.key not in taken:
                named_K[domain].append(term)
                taken.add(term.key)
        for named, keywords in zip(named_K, keywords_K, strict=True):
            if len(named) == num_words:
                named += [term for term in keywords if term not in named][:1]
    return _numbered([", ".join(term.shown for term in named) for named in named_K])


def _numbered(names: list[str]) -> list[str]:
    """Add its number to a name that an earlier domain has."""
    seen: set[str] = set()
    for domain, name in enumerate(names):
        unique = name or f"domain {domain}"
        names[domain] = unique if unique not in seen else f"{unique} ({domain})"
        seen.add(unique)
    return names
