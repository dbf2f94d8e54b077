"""Multiple-choice questions made of held-out documents: which continuation is the document's own?

The context is a document's first tokens, the choices are what follows there and what follows at the same place in other held-out
documents of the same domain, so that knowing the domain does not answer the question. Texts are cut before a space. The same
documents and seed give the same questions. This asks no model: see `harness`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from lmsplit.train.campaign import Campaign
from lmsplit.train.config import Cloze
from lmsplit.train.directory import write_whole
from lmsplit.train.tokenizer import DocumentEncoder

_SPACE: Final = re.compile(r"\s")
_LONGER: Final = 2
"""How much longer than asked for a context or a choice may be, to end before a space."""


class Question(NamedTuple):
    """A context and its possible continuations."""

    doc_id: str
    domain: str
    context: str
    choices: tuple[str, ...]
    """Each begins with the white space that parts it from the context."""
    answer: int
    """Number of the document's own continuation."""


class _Cut(NamedTuple):
    doc_id: str
    context: str
    continuation: str


def write_questions(documents: Sequence[tuple[str, str, str]], campaign: Campaign, settings: Cloze, path: Path) -> list[Question]:
    """Make questions, and write them as JSON lines.

    Args:
        documents: id, text and domain of each.
        campaign: whose tokenizer and seed; a question and a choice fit into what its models see at once.
        settings: lengths and number of choices.
        path: where to write; the fields of `Question`.
    """
    seed, max_length = campaign.configuration.seed, campaign.packing.max_length
    questions = make_questions(documents, campaign.encoder, settings, max_length, seed)
    write_whole(path, "".join(json.dumps(each._asdict(), ensure_ascii=False) + "\n" for each in questions))
    return questions


def make_questions(
    documents: Sequence[tuple[str, str, str]], encoder: DocumentEncoder, settings: Cloze, max_length: int, seed: int
) -> list[Question]:
    """Return a question for each document that is long enough, in domains that have documents enough.

    Args:
        documents: id, text and domain of each.
        encoder: whose tokens the lengths are counted in.
        settings: lengths and number of choices.
        max_length: tokens that a model sees at once.
        seed: of which other documents, and of the order of the choices.
    """
    of_domains: dict[str, list[_Cut]] = {}
    texts = [text for _, text, _ in documents]
    contexts = encoder.beginnings(texts, settings.context_tokens)
    both = encoder.beginnings(texts, settings.context_tokens + settings.continuation_tokens)
    for (doc_id, text, domain), context, beginning in zip(documents, contexts, both, strict=True):
        cut = _cut(doc_id, text, len(context), len(beginning))
        if cut is not None and _fits(cut, encoder, settings, max_length):
            of_domains.setdefault(domain, []).append(cut)
    questions = []
    generator = np.random.default_rng(seed)
    for domain, cuts in sorted(of_domains.items()):
        for number, cut in enumerate(cuts):
            others = [each for other, each in enumerate(cuts) if other != number and each.continuation != cut.continuation]
            if len(others) < settings.choices - 1:
                continue
            chosen = [others[place].continuation for place in generator.permutation(len(others))[: settings.choices - 1]]
            answer = int(generator.integers(settings.choices))
            choices = (*chosen[:answer], cut.continuation, *chosen[answer:])
            questions.append(Question(cut.doc_id, domain, cut.context, choices, answer))
    return questions


def _cut(doc_id: str, text: str, first: int, last: int) -> _Cut | None:
    """Return a document's beginning and what follows, cut before the next space; None where it is too short."""
    start, end = _next_space(text, first), _next_space(text, last)
    if start is None or end is None or not text[start:end].strip() or not text[:start].strip():
        return None
    return _Cut(doc_id, text[:start], text[start:end])


def _fits(cut: _Cut, encoder: DocumentEncoder, settings: Cloze, max_length: int) -> bool:
    """Whether a cut is about as long as it should be: the next space may be far away."""
    context, continuation = map(len, encoder.encode([cut.context, cut.continuation]))
    return (
        context <= _LONGER * settings.context_tokens
        and continuation <= _LONGER * settings.continuation_tokens
        and 1 + context + _LONGER * settings.continuation_tokens <= max_length
    )


def _next_space(text: str, start: int) -> int | None:
    """Return the place of the next white space that follows something else."""
    for found in _SPACE.finditer(text, max(1, start)):
        if not text[found.start() - 1].isspace():
            return found.start()
    return None
