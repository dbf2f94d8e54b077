"""Runs one command that trains a model: as a process here, as a Slurm job, or as a Ray task. Each waits for its end.

The command is the same everywhere, and all it needs is on disk: on a cluster, the output and the manifest are on a file system
that every node has. Its own executor is local, whatever the configuration says.
"""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.executor import Executor, memory_mib
from lmsplit.manifests.ray_cluster import connect_ray

MISSING: Final = 127


def run_here(command: Sequence[str], log: Path, environment: dict[str, str]) -> int:
    """Run a command on this machine; an interrupt of ours ends it too.

    Returns:
        Its exit code.
    """
    with log.open("w", encoding="utf-8") as stream:
        options: Any = {"stdout": stream, "stderr": stream, "stdin": subprocess.DEVNULL, "env": environment}
        with subprocess.Popen(command, **options) as process:
            try:
                return process.wait()
            except BaseException:
                process.terminate()
                raise


def run_on_slurm(command: Sequence[str], log: Path, executor: Executor, name: str) -> int:
    """Run a command as a Slurm job and wait for it; an interrupt of ours cancels it.

    Args:
        command: what to run.
        log: where the job writes what it says.
        executor: what the job gets.
        name: the job's.

    Returns:
        Its exit code; not 0 where Slurm ended it.

    Raises:
        ConfigurationError: Slurm refuses the job, or is not installed here.
    """
    sizes = {
        "partition": executor.partition,
        "time": executor.time,
        "cpus-per-task": executor.cpus_per_task,
        "mem-per-cpu": f"{memory_mib(executor.mem_per_cpu)}M",
        "gpus": executor.gpus or None,
        "job-name": f"lmsplit-{name}",
        "output": log,
        **executor.sbatch,
    }
    options = [f"--{key}={value}" if value != "" else f"--{key}" for key, value in sizes.items() if value is not None]
    script = "\n".join([*([executor.setup] if executor.setup else []), f"exec {shlex.join(command)}"])
    log.unlink(missing_ok=True)
    try:
        process = subprocess.Popen(
            ["sbatch", "--wait", "--parsable", "--export=ALL", *options, f"--wrap={script}"],  # noqa: S607
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | executor.env,
        )
    except FileNotFoundError as error:
        raise ConfigurationError("executor.kind is slurm, and here is no sbatch: run this on a login node") from error
    assert process.stdout is not None, "it is a pipe"
    job = process.stdout.readline().strip().partition(";")[0]
    try:
        _, said = process.communicate()
    except BaseException:
        subprocess.run(["scancel", job], check=False)  # noqa: S607
        raise
    if not job:
        raise ConfigurationError(f"Slurm refused the job of {name}: {' '.join(said.split())}: mend executor in the configuration")
    return process.returncode


def run_on_ray(command: Sequence[str], log: Path, executor: Executor) -> int:
    """Run a command as a Ray task and wait for it.

    Args:
        command: what to run.
        log: where the task writes what it says, on a file system that every node has.
        executor: what the task gets.

    Returns:
        Its exit code.

    Raises:
        ConfigurationError: Ray is not installed, or there is no cluster at the address.
    """
    ray = connect_ray(executor)
    task = ray.remote(_logged).options(
        num_cpus=executor.cpus,
        num_gpus=executor.gpus,
        memory=memory_mib(executor.memory) * executor.cpus * 2**20,
        max_retries=0,  # what was cut off goes on from its checkpoint by the same command; a second try is the user's to ask for
    )
    try:
        return int(ray.get(task.remote(list(command), str(log))))
    except ray.exceptions.RayError as error:
        log.open("a").write(f"lmsplit: the Ray task was lost ({type(error).__name__}): run the same command again\n")
        return MISSING


def _logged(command: list[str], log: str) -> int:
    with Path(log).open("w", encoding="utf-8") as stream:
        return subprocess.run(command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, check=False).returncode
