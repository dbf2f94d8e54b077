"""What runs the work: this machine, a Slurm cluster or a Ray cluster, one configuration key apart. Both other sides use it.

It determines no content: the same work gives the same bytes on any of them. It starts nothing itself.
"""

import os
import re
from collections.abc import Collection
from typing import Any, Final, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from lmsplit.manifests.configuration import Strict

MIB: Final = 2**20
_SECRET: Final = re.compile(r"(SECRET|TOKEN|PASSW|CREDENTIAL|ACCESS_?KEY|API_?KEY|CONNECTION_STRING|SAS)", re.IGNORECASE)
_MEMORY: Final = re.compile(r"([0-9]+)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)
_SHARED: Final = frozenset({"kind", "workers"})
_OF_KIND: Final = {
    "local": _SHARED,
    "slurm": _SHARED
    | {"partition", "time", "cpus_per_task", "mem_per_cpu", "gpus", "max_array_size", "sbatch", "env", "setup", "logs", "stages"},
    "ray": _SHARED | {"address", "cpus", "gpus", "memory", "env"},
}
_ELSEWHERE: Final = frozenset().union(*_OF_KIND.values())


def memory_mib(text: str) -> int:
    """Return a size such as `4GB`, `900M` or `2 GiB` in MiB, in powers of 1,024 as Slurm counts; a bare number is MiB.

    >>> memory_mib("4GB"), memory_mib("900")
    (4096, 900)
    """
    match = _MEMORY.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise ValueError(f"{text!r} is no amount of memory: expected for example 4GB or 900M")
    power = {"K": -1, "": 0, "M": 0, "G": 1, "T": 2}[match[2].upper()]
    return max(1, int(match[1]) * 1024**power if power >= 0 else int(match[1]) // 1024)


class Resources(Strict):
    """What one Slurm job of a stage gets; null: as all stages."""

    workers: int | None = Field(default=None, ge=1, description="jobs at a time")
    partition: str | None = Field(default=None, min_length=1, description="Slurm partition")
    time: str | None = Field(default=None, min_length=1, description="limit of a job, as sbatch takes it")
    cpus_per_task: int | None = Field(default=None, ge=1, description="cores of a job")
    mem_per_cpu: str | None = Field(default=None, description="memory for each core")
    gpus: int | None = Field(default=None, ge=0, description="GPUs of a job")
    sbatch: dict[str, str | int] = Field(default_factory=dict, description="further options of sbatch")


class Executor(Strict):
    """What runs the work."""

    kind: Literal["local", "slurm", "ray"] = Field(default="local", description="local, slurm or ray")
    workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=0,
        description="processes, Slurm jobs or Ray tasks at a time; 0, local only: in this process, for debugging",
    )
    partition: str | None = Field(default=None, min_length=1, description="slurm: partition")
    time: str = Field(default="24:00:00", min_length=1, description="slurm: limit of a job, as sbatch takes it")
    cpus_per_task: int = Field(default=1, ge=1, description="slurm: cores of a job")
    mem_per_cpu: str = Field(default="4GB", description="slurm: memory for each core")
    gpus: int = Field(default=0, ge=0, description="GPUs of a job or a Ray task")
    max_array_size: int = Field(default=1000, ge=1, description="slurm: jobs in one array; more become several arrays")
    sbatch: dict[str, str | int] = Field(default_factory=dict, description="slurm: further options of sbatch, such as account")
    env: dict[str, str] = Field(default_factory=dict, description="environment variables of the jobs; never credentials")
    setup: str | None = Field(default=None, description="slurm: shell commands before each job, such as module load cuda")
    logs: str | None = Field(default=None, description="slurm: shared directory of the jobs' output [beside the receipts]")
    stages: dict[str, Resources] = Field(default_factory=dict, description="slurm: what single stages get instead")
    address: str | None = Field(default=None, min_length=1, description="ray: the cluster's address [one is started here]")
    cpus: int = Field(default=1, ge=1, description="ray: cores of a task")
    memory: str = Field(default="1GB", description="ray: memory of a task for each core")

    @field_validator("mem_per_cpu", "memory")
    @classmethod
    def _is_memory(cls, value: str) -> str:
        memory_mib(value)
        return value

    @field_validator("env")
    @classmethod
    def _no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        if secret := sorted(name for name in value if _SECRET.search(name)):
            raise ValueError(
                f"{', '.join(secret)} would be written into files: put credentials into the environment or a profile of the "
                "account that submits; jobs inherit it"
            )
        return value

    @model_validator(mode="after")
    def _belongs_to_kind(self) -> Self:
        for name in sorted(self.model_fields_set & _ELSEWHERE - _OF_KIND[self.kind]):
            kinds = " or ".join(kind for kind, names in _OF_KIND.items() if name in names)
            raise ValueError(f"{name} belongs to kind {kinds}, this is {self.kind}: leave it out")
        if self.kind == "slurm" and self.partition is None:
            raise ValueError("kind slurm needs a partition, for example partition: cpu")
        if self.kind != "local" and self.workers < 1:
            raise ValueError(f"workers is 0, expected at least 1 with kind {self.kind}")
        return self

    def check_stages(self, known: Collection[str]) -> None:
        """Refuse resources for stages that there are not.

        Raises:
            ValueError: there are some.
        """
        if unknown := sorted(self.stages.keys() - set(known)):
            raise ValueError(f"stages: {', '.join(unknown)} is no stage: expected {', '.join(known)}")

    def resources(self, stage: str) -> "Executor":
        """Return what a stage gets."""
        wished = self.stages.get(stage)
        if wished is None:
            return self
        given = {name: value for name in wished.model_fields_set - {"sbatch"} if (value := getattr(wished, name)) is not None}
        return self.model_copy(update=given | {"sbatch": self.sbatch | wished.sbatch})

    def num_threads(self, stage: str) -> int:
        """Return the cores that one process of a stage has: those of its job or Ray task; here, what the workers share out."""
        if self.kind == "slurm":
            return self.resources(stage).cpus_per_task
        if self.kind == "ray":
            return self.cpus
        return max(1, min(self.workers, len(os.sched_getaffinity(0))))

    @model_serializer(mode="wrap")
    def _own_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what belongs to another kind."""
        return {name: value for name, value in handler(self).items() if name not in _ELSEWHERE - _OF_KIND[self.kind]}
