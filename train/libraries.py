"""Imports what needs torch only when a command is sure to need it, and keeps the libraries quiet meanwhile."""

import contextlib
import importlib
import io
import logging
from collections.abc import Iterator
from types import ModuleType

from lmsplit.manifests.errors import ConfigurationError


def engine(name: str) -> ModuleType:
    """Import a module of this package that needs the extra `train`.

    Args:
        name: of the module, without the package's.

    Raises:
        ConfigurationError: a library that it needs is not installed.
    """
    try:
        return importlib.import_module(f"lmsplit.train.{name}")
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"this needs {error.name}, which is not installed: pip install 'lmsplit[train]'") from error


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep what a block writes on standard error from it: bars of libraries that cannot be told. Errors are raised as ever."""
    if logging.getLogger().isEnabledFor(logging.INFO):
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def quiet_libraries() -> None:
    """Keep the libraries' bars and remarks away from the progress, unless details were asked for."""
    if logging.getLogger().isEnabledFor(logging.INFO):
        return
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    for name in ("trl", "accelerate", "huggingface_hub", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
