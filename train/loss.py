"""The result of measuring a model on texts: counts, and the loss in two units.

Pure arithmetic; `text_losses` measures.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class HeldOutLoss:
    """A model's loss on a number of texts."""

    num_documents: int
    num_tokens: int
    """Tokens predicted."""
    num_bytes: int
    """UTF-8 bytes of the texts."""
    nats: float
    """Sum of -ln p over the tokens."""

    @property
    def nats_per_token(self) -> float | None:
        """The mean over tokens; None where there are none."""
        return self.nats / self.num_tokens if self.num_tokens else None

    @property
    def bits_per_byte(self) -> float | None:
        """The mean over bytes; None where there are none.

        >>> HeldOutLoss(1, 4, 8, 8 * math.log(2)).bits_per_byte
        1.0
        """
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else None
