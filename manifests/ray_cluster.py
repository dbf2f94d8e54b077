"""Connects to a Ray cluster, or starts one on this machine; both other sides run their work on it. Ray itself is optional."""

import logging
import socket
import threading
from typing import Any, Final

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.executor import Executor

_REACHED_S: Final = 10.0
_connecting = threading.Lock()


def connect_ray(executor: Executor) -> Any:
    """Connect to the cluster that the configuration names, or start one here; once a process.

    Args:
        executor: of kind ray.

    Returns:
        The module `ray`.

    Raises:
        ConfigurationError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError("executor.kind is ray, which is not installed: pip install 'lmsplit[ray]'") from error
    options: Any = {"address": executor.address} if executor.address else {"num_cpus": executor.workers * executor.cpus}
    with _connecting:
        if not ray.is_initialized():
            try:
                _check_reachable(executor.address)
                ray.init(**options, runtime_env={"env_vars": executor.env}, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, ValueError) as error:
                raise ConfigurationError(f"executor.address {executor.address}: no Ray cluster there ({error})") from error
    return ray


def _check_reachable(address: str | None) -> None:
    """Refuse a host that does not answer: Ray itself tries for more than ten minutes (seen with 2.60)."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), _REACHED_S).close()
