"""From a manifest to experts: a seed model on the mixture, then one continued copy of it for each domain.

Importing this package costs nothing: its public names import torch and TRL when they are first used.

```python
# TRL's SFTConfig and SFTTrainer, with this project's defaults
from lmsplit.train import DomainConfig, DomainTrainer
```
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmsplit.train.router import Router
    from lmsplit.train.trainer import DomainConfig, DomainTrainer

_HOMES = {
    "DomainConfig": "lmsplit.train.trainer",
    "DomainTrainer": "lmsplit.train.trainer",
    "Router": "lmsplit.train.router",
}

__all__ = ["DomainConfig", "DomainTrainer", "Router"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
