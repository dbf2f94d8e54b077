"""Measures the energy of a run with codecarbon, offline: nothing is sent, nothing is written.

codecarbon is optional (the extra `energy`) and is not imported unless it is asked for. It reads the counters of CPU and GPU
where the machine lets it, and estimates from their rated power where it does not: its figure is as good as that.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lmsplit.manifests.errors import ConfigurationError


@dataclass
class Energy:
    """What a run used; known when it has ended."""

    kwh: float | None = None
    """Kilowatt hours of CPU, memory and GPUs; None where it was not measured."""


@contextmanager
def measured_energy(wanted: bool) -> Iterator[Energy]:
    """Measure the block's energy.

    Args:
        wanted: False measures nothing.

    Raises:
        ConfigurationError: codecarbon is not installed.
    """
    energy = Energy()
    if not wanted:
        yield energy
        return
    if importlib.util.find_spec("codecarbon") is None:
        raise ConfigurationError("energy: codecarbon is not installed: pip install 'lmsplit[energy]', or set energy: false")
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    with warnings.catch_warnings():  # it says that save_to_file is old; where warnings are errors it would not measure
        warnings.simplefilter("ignore", DeprecationWarning)
        # It must have a country, which energy does not depend on.
        tracker = OfflineEmissionsTracker(country_iso_code="USA", save_to_file=False, save_to_api=False, log_level="error")
    tracker.start()
    try:
        yield energy
    finally:
        tracker.stop()
        # codecarbon swallows its own errors and then has no result: that is no reason to lose a run.
        measured = getattr(tracker, "final_emissions_data", None)
        energy.kwh = None if measured is None else float(measured.energy_consumed)
