"""Sizes of Llama-type models that are pretrained from scratch, with the training defaults that go with them.

A preset's name is its number of parameters at its own vocabulary size, embeddings included (within 15 %,
tested). Shapes: head size 32 for the smallest and 64 above, feed-forward about 8/3 of the width (arXiv
2302.13971, section 2.2). Embeddings are tied where they would be a large share of the model, that is
everywhere below 1b.

This does *not* build weights (see `models`) and imports nothing heavy.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np


@dataclass(frozen=True)
class Preset:
    """One size: the model's shape, and how to train it unless the configuration says otherwise."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocabulary_size: int
    """Of a tokenizer trained for this size."""
    tied_embeddings: bool
    max_length: int
    """Tokens in a packed row, and the longest context seen in training."""
    batch_size: int
    """Rows in a step."""
    seed_learning_rate: float
    """Peak, AdamW. Measured for 1m; assumption above: falls with the width, as in the Llama and OLMo recipes.
    """
    expert_learning_rate: float
    """Peak of the continued phase."""

    @property
    def num_parameters(self) -> int:
        """Number of parameters at its own vocabulary size."""
        width = self.hidden_size
        layer = 4 * width**2 + 3 * width * self.intermediate_size + 2 * width
        ends = self.vocabulary_size * width * (1 if self.tied_embeddings else 2)
        return ends + self.num_layers * layer + width

    def model_config(self, vocabulary_size: int) -> dict[str, Any]:
        """Return the keyword arguments of a `LlamaConfig` of this size.

        Args:
            vocabulary_size: number of tokens, the special ones included.

        >>> PRESETS["1m"].model_config(4096)["hidden_size"]
        128
        """
        return {
            "model_type": "llama",
            "vocab_size": vocabulary_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_heads,
            "max_position_embeddings": max(2048, self.max_length),
            "tie_word_embeddings": self.tied_embeddings,
        }

    def keys(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the keys of a training configuration for a model that is no preset but is trained as this one.

        Args:
            config: of the model, as transformers takes it.
        """
        return {
            "model": {"config": config},
            "seed_model": {"learning_rate": self.seed_learning_rate},
            "expert": {"learning_rate": self.expert_learning_rate},
            "sft": {"max_length": self.max_length, "per_device_train_batch_size": self.batch_size},
        }


PRESETS: Final[dict[str, Preset]] = {
    "1m": Preset(128, 320, 3, 4, 4096, True, 256, 8, 3e-3, 3e-3),
    "5m": Preset(256, 640, 4, 4, 8192, True, 512, 16, 2e-3, 1e-3),
    "30m": Preset(512, 1408, 7, 8, 16384, True, 1024, 32, 1e-3, 5e-4),
    "125m": Preset(768, 2048, 14, 12, 32768, True, 2048, 64, 6e-4, 3e-4),
    "350m": Preset(1024, 2816, 24, 16, 32768, True, 2048, 128, 4e-4, 2e-4),
    "1b": Preset(2048, 5632, 17, 32, 32768, False, 2048, 256, 3e-4, 1.5e-4),
}


def preset_near(num_parameters: float, vocabulary_size: int) -> Preset:
    """Return a preset for the shape that is nearest to a size.

    Width and depth grow together as the presets' do, embeddings are tied; learning rates lie between those of the presets' widths
    on either side, the rest is the nearest preset's. The vocabulary alone may be too large for a small size.

    Args:
        num_parameters: the size that is wanted, embeddings included.
        vocabulary_size: number of tokens, the special ones included.

    >>> preset_near(1.05e6, 4096).hidden_size
    128
    """
    candidates = []
    nearest = min(PRESETS.values(), key=lambda each: abs(np.log(each.num_parameters / num_parameters)))
    widths, *rates = zip(
        *((each.hidden_size, each.seed_learning_rate, each.expert_learning_rate) for each in PRESETS.values()), strict=True
    )
    for width in (*range(32, 256, 32), *range(256, 8193, 64)):
        heads = width // (32 if width < 256 else 64)
        middle = max(32, round(width * 8 / 3 / 32) * 32)
        usual = np.interp(width, *_DEPTHS)
        seed_rate, expert_rate = (float(np.interp(np.log(width), np.log(widths), rate)) for rate in rates)
        for layers in range(max(1, round(usual / 1.5)), round(usual * 1.5) + 1):
            sizes = (width, middle, layers, heads, vocabulary_size, True, nearest.max_length, nearest.batch_size)
            shape = Preset(*sizes, seed_rate, expert_rate)
            distance = abs(np.log(shape.num_parameters / num_parameters)) + _DEPTH_WEIGHT * abs(np.log(layers / usual))
            candidates.append((distance, shape))
    return min(candidates, key=lambda each: each[0])[1]


_DEPTH_WEIGHT: Final = 0.02
"""How much of a difference in size an unusual depth is worth (assumption)."""
_DEPTHS: Final = ([32, 128, 256, 512, 768, 1024, 2048, 4096], [2, 3, 4, 7, 14, 24, 24, 32])
"""Widths and their usual numbers of layers: the presets', and published models' above (arXiv 2307.09288)."""


GIVEN: Final = Preset(0, 0, 0, 0, 16384, True, 1024, 8, 1e-4, 5e-5)
"""Training defaults of a model that is given as a configuration, a path or a hub id (assumption: careful
ones).
"""
