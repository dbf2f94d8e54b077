"""Opens the sentence encoder that a manifest pins: the same weights by digest, the same vectors by a probe.

The probe's vectors are stored with the rule; a machine that computes others is refused where bits count, and allowed the stated
tolerance in an audit. Cost: the model's loading, and one encoding of the probe. This does *not* encode: see `sentence`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.errors import ConfigurationError, ManifestError
from lmsplit.manifests.model_files import MINILM, MINILM_REPOSITORY, MINILM_REVISION, ModelFiles, find_model
from lmsplit.manifests.sentence import (
    PROBE,
    Precision,
    SentenceDescription,
    SentenceEncoder,
    check_installed,
    load_model,
)


def build_sentence(
    description: dict[str, Any],
    arrays: dict[str, npt.NDArray[Any]],
    *,
    exact: bool = False,
    alone: bool = False,
    model: str | None = None,
    trust_remote_code: bool = False,
) -> SentenceEncoder:
    """Build a sentence encoder from its stored form.

    Args:
        description: a `SentenceDescription` as JSON.
        arrays: `probe_PD`.
        exact: for placing: vectors must equal the pinned ones to the last bit, or it is refused. Otherwise, for an audit, another
            device or precision stands in where the pinned one is missing, and `tolerance` says how far distances may differ.
        alone: for routing: each text by itself, soonest done for one; distances may differ by the described tolerance.
        model: directory of a model that the description knows by its digests alone.
        trust_remote_code: allow a model that needs it to run its own code.

    Raises:
        ManifestError: the description is damaged, or the model found is another one than pinned.
        ConfigurationError: the model, its library, or (if exact) the device or the same arithmetic is not to be had here.
    """
    about = _parsed(description)
    if about.trust_remote_code and not trust_remote_code:
        raise ConfigurationError(f"encoder {about.model} runs code of its own repository: allow it (--trust-remote-code)")
    check_installed()
    files = _find_pinned(about, model)
    device, precision = _here(about, exact)
    loaded = load_model(files.directory, device, precision, about.trust_remote_code)
    if (device, precision) != (about.device, about.precision):  # other bits in any case, so not a GPU's batch on a CPU
        about = about.model_copy(update={"batch_tokens": min(about.batch_tokens, 16 * about.max_tokens)})
    encoder = SentenceEncoder(about, loaded)
    _compare(encoder, arrays, about, exact)
    return SentenceEncoder(about, loaded, alone=True) if alone else encoder


def _parsed(description: dict[str, Any]) -> SentenceDescription:
    try:
        return SentenceDescription.model_validate(description)
    except ValueError as error:
        raise ManifestError(f"this manifest's sentence encoder needs a later lmsplit, or is damaged: {error}") from error


def _find_pinned(about: SentenceDescription, model: str | None) -> ModelFiles:
    if model is None and about.model is None:
        raise ConfigurationError(
            f"this manifest's encoder was a model in a directory, with weights of sha256 {about.weights_sha256}: "
            "name such a directory (--model)"
        )
    pinned = MINILM if (about.model, about.revision) == (MINILM_REPOSITORY, MINILM_REVISION) else str(about.model)
    files = find_model(model or pinned, None if model else about.revision)
    for what, expected, found in (
        ("weights", about.weights_sha256, files.weights_sha256),
        ("tokenizer", about.tokenizer_sha256, files.tokenizer_sha256),
    ):
        if expected != found:
            wrong = f"{files.directory}: its {what} should have sha256 {expected}, as this manifest says, found {found}"
            raise ManifestError(wrong)
    return files


def _here(about: SentenceDescription, exact: bool) -> tuple[str, Precision]:
    import torch

    if about.device == "cpu" or torch.cuda.is_available():
        usable = about.device == "cuda" or about.precision == "float32" or has_fast_bfloat16()
        return about.device, about.precision if exact or usable else "float32"
    if exact:
        raise ConfigurationError("the encoder is pinned to device cuda, and this machine has none: run where there is a GPU")
    return "cpu", "float32"


def has_fast_bfloat16() -> bool:
    """Return whether this CPU computes with bfloat16 natively; without, it is slower than float32."""
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(value) for name, value in capabilities.items() if name.endswith("bf16"))


def _compare(encoder: SentenceEncoder, arrays: dict[str, npt.NDArray[Any]], about: SentenceDescription, exact: bool) -> None:
    expected = arrays.get("probe_PD")
    if expected is None or expected.shape != (len(PROBE), about.dimensions) or expected.dtype != np.float32:
        raise ManifestError("the placement rule lacks the probe of its sentence encoder, or it is misshapen")
    found = encoder.probe()
    if np.array_equal(found, expected):
        return
    difference = float(np.abs(1 - np.einsum("pd,pd->p", found, expected)).max())
    if exact:
        raise ConfigurationError(
            f"this machine computes other vectors than those pinned (1 - cosine up to {difference:.1e}): the data files would "
            "differ. Go on where the run began (same processor type and versions), or begin a new run in another output"
        )
    if not difference <= about.tolerance:
        raise ManifestError(f"the encoder's probe differs from the pinned one by {difference:.1e}, more than {about.tolerance}")
    encoder.tolerance = about.tolerance
