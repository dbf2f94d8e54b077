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

from lmsplit.train.config import Cloze
from lmsplit.train.directory import write_whole
from lmsplit.train.tokenizer import DocumentEncoder

_SPACE: Final = re.compile(r"\s")


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


def write_questions(
    documents: Sequence[tuple[str, str, str]], encoder: DocumentEncoder, settings: Cloze, seed: int, path: Path
) -> list[Question]:
    """Make questions, and write them as JSON lines.

    Args:
        documents: id, text and domain of each.
        encoder: whose tokens the lengths are counted in.
        settings: lengths and number of choices.
        seed: of which other documents, and of the order of the choices.
        path: where to write; the fields of `Question`.
    """
    questions = make_questions(documents, encoder, settings, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(each._asdict(), ensure_ascii=False) + "\n" for each in questions))
    return questions


def make_questions(
    documents: Sequence[tuple[str, str, str]], encoder: DocumentEncoder, settings: Cloze, seed: int
) -> list[Question]:
    """Return a question for each document that is long enough, in domains that have documents enough; see `write_questions`."""
    of_domains: dict[str, list[_Cut]] = {}
    ids = encoder.encode([text for _, text, _ in documents])
    for (doc_id, text, domain), tokens in zip(documents, ids, strict=True):
        cut = _cut(doc_id, text, tokens, encoder, settings)
        if cut is not None:
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


def _cut(doc_id: str, text: str, tokens: Sequence[int], encoder: DocumentEncoder, settings: Cloze) -> _Cut | None:
    """Return a document's beginning and what follows; None where it is too short, or has no space where it would be cut."""
    end_of_context, end = settings.context_tokens, settings.context_tokens + settings.continuation_tokens
    if len(tokens) < end:
        return None
    first = _next_space(text, len(encoder.decode(tokens[:end_of_context])))
    last = _next_space(text, len(encoder.decode(tokens[:end])))
    if first is None or last is None or not text[first:last].strip() or not text[:first].strip():
        return None
    return _Cut(doc_id, text[:first], text[first:last])


def _next_space(text: str, start: int) -> int | None:
    """Return the place of the next white space that follows something else."""
    for found in _SPACE.finditer(text, max(1, start)):
        if not text[found.start() - 1].isspace():
            return found.start()
    return None
