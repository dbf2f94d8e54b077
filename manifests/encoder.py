"""Builds the encoder that a manifest pins: text to unit vector. The kinds are in `lexical`, `sentence` and `sentence_pinned`.

Cost: nothing for `lexical`; a sentence encoder imports torch and loads its model (a few seconds).
"""

from typing import Any

import numpy.typing as npt

from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.lexical import LEXICAL, build_lexical
from lmsplit.manifests.placement import Encoder
from lmsplit.manifests.sentence import SENTENCE
from lmsplit.manifests.sentence_pinned import build_sentence


def build(
    description: dict[str, Any],
    arrays: dict[str, npt.NDArray[Any]],
    *,
    exact: bool = False,
    alone: bool = False,
    model: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """Build the encoder that a stored rule pins.

    Args:
        description: the rule's `encoder` entry.
        arrays: its arrays.
        exact: refuse a machine whose vectors would differ in the last bits; for placing. `lexical` never differs by more.
        alone: compute each text by itself, soonest done for one but with other last bits; for routing. `lexical` always does.
        model: directory of the model, where the description knows it by its digests alone.
        trust_remote_code: allow a model that needs it to run its own code.

    Raises:
        ManifestError: the kind is unknown to this version, or the stored form is damaged.
        ConfigurationError: the model, its library, or (if exact) the same arithmetic is not to be had here.
    """
    kind = description.get("kind")
    if kind == LEXICAL:
        return build_lexical(description, arrays)
    if kind == SENTENCE:
        return build_sentence(description, arrays, exact=exact, alone=alone, model=model, trust_remote_code=trust_remote_code)
    raise ManifestError(f"this manifest was placed by encoder {kind!r}: it needs a later lmsplit")
