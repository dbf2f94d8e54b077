"""Sizes of Llama-type models that are pretrained from scratch, with the training defaults that go with them.

A preset's name is its number of parameters at its own vocabulary size, embeddings included (within 15 %,
tested). Shapes: head size 32 for the smallest and 64 above, feed-forward about 8/3 of the width (arXiv
2302.13971, section 2.2). Embeddings are tied where they would be a large share of the model, that is
everywhere below 1b.

This does *not* build weights (see `models`) and imports nothing heavy.
"""

from dataclasses import dataclass
from typing import Any, Final


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


PRESETS: Final[dict[str, Preset]] = {
    "1m": Preset(128, 320, 3, 4, 4096, True, 256, 8, 3e-3, 3e-3),
    "5m": Preset(256, 640, 4, 4, 8192, True, 512, 16, 2e-3, 1e-3),
    "30m": Preset(512, 1408, 7, 8, 16384, True, 1024, 32, 1e-3, 5e-4),
    "125m": Preset(768, 2048, 14, 12, 32768, True, 2048, 64, 6e-4, 3e-4),
    "350m": Preset(1024, 2816, 24, 16, 32768, True, 2048, 128, 4e-4, 2e-4),
    "1b": Preset(2048, 5632, 17, 32, 32768, False, 2048, 256, 3e-4, 1.5e-4),
}

GIVEN: Final = Preset(0, 0, 0, 0, 16384, True, 1024, 8, 1e-4, 5e-5)
"""Training defaults of a model that is given as a configuration, a path or a hub id (assumption: careful
ones).
"""
