"""From a corpus to a published manifest: the map of the whole.

```
configuration
  │ make_plan            planning   survey the input, digest it, cut work units, name the run
  ▼
  scan      units        scan       validate, set aside, count, propose the sample, list ids
  │
  rescan    units        scan       propose more, where the first scan proposed too few
  ▼
  settle    id ranges    ids        which documents repeat an id
  ▼
  sample    one          sample     which documents are clustered, and what encodes them
  ▼
  encode    chunks       encode     their vectors; nothing for an encoder that fit makes
  │  └─ suggest, one for each k     what other numbers of domains would be like; ends there
  ▼
  fit       one          fit        centroids, prices, labels, held-out threshold
  ▼
  heldout   units        heldout    shingles of the held-out documents
  ▼
  bands     one          heldout    their MinHash index
  ▼
  place     units        place      text → vector → domain, split, one piece a unit
  ▼
  gather    bundles      gather     pieces → data/<domain>/part-…, neighbouring files together
  ▼
  ids       id ranges    index      id → domain, part, row
  ▼
  publish                publish    conservation law, quality gate, commit
```

Every arrow is a set of receipts in the run's folder, so the same command goes on where it was cut off. How many tasks a stage has
follows from the receipts before it, so the chain itself is the same for every run, and can be handed to a cluster as a whole.
"""

import errno
import logging
import os
from dataclasses import replace
from typing import Final

from lmsplit.manifests.card import write_card
from lmsplit.manifests.commit import Commit, read_commit, versions
from lmsplit.manifests.errors import ConfigurationError, ConflictError, LmsplitError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.store import Store, absolute, open_store
from lmsplit.partition.config import Partition
from lmsplit.partition.encode import Encode
from lmsplit.partition.engine import run_stage, visible_gpus
from lmsplit.partition.fit import Fit
from lmsplit.partition.gather import Gather
from lmsplit.partition.heldout import Bands, Heldout
from lmsplit.partition.ids import Settle
from lmsplit.partition.index import Index
from lmsplit.partition.place import Place
from lmsplit.partition.planning import Plan, Planned, make_plan
from lmsplit.partition.publish import publish
from lmsplit.partition.run import Run
from lmsplit.partition.sample import Sample, pinned_encoder
from lmsplit.partition.scan import Scan, warn_of_notes
from lmsplit.partition.slurm import SlurmRun
from lmsplit.partition.suggest import Assessment, Recommendation, Suggest, suggestion
from lmsplit.partition.supervise import Stage

SUGGESTS: Final = {"suggest": True}
"""Marks the plan of a run that publishes nothing."""
ON_GPUS: Final = frozenset({"encode", "place"})
"""Stages that encode, on GPUs where the pinned encoder is on one."""

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = logging.getLogger(__name__)


def partition(configuration: Partition, plan: Plan | None = None) -> Commit:
    """Partition a corpus and publish the manifest.

    Args:
        configuration: the validated configuration.
        plan: the plan, if it was made already.

    Returns:
        The commit; the existing one when the same run was published before.

    Raises:
        InputError: the input is bad past its limit.
        ConflictError: the output holds the manifest of another run.
        LmsplitError: the output has no room or cannot be reached, or a task killed its process again and again; the same call
            goes on where it ended.
    """
    plan = plan or make_plan(configuration)
    output = absolute(configuration.output)
    try:
        published = existing_commit(open_store(output), plan.run_id, plan.content.get("refit"))
        if published:
            _log.info("run %s is published already", plan.run_id)
            write_card(Manifest.open(output))  # a kill right after the commit leaves none
            return published
        return resume(_started(configuration, plan))
    except OSError as error:
        no_room = error.errno in _NO_ROOM
        why = os.strerror(error.errno or 0) if no_room else f"{error}"
        remedy = "make room there" if no_room else "mend that"
        raise LmsplitError(f"{output}: {why}. Nothing is lost: {remedy} and run the same command again") from error


def submit(configuration: Partition, plan: Plan) -> dict[str, list[str]]:
    """Submit a run to Slurm and return; its last job publishes.

    Args:
        configuration: the validated configuration.
        plan: its plan.

    Returns:
        The ids of the jobs by stage; those that are in the queue already, where the run was submitted before.

    Raises:
        ConfigurationError: the executor is another one, or Slurm refuses a job.
        ConflictError: the output holds the manifest of another run, or this one is published.
    """
    if configuration.executor.kind != "slurm":
        raise ConfigurationError(f"--detach is for executor.kind slurm, this is {configuration.executor.kind}: leave it out")
    if existing_commit(open_store(absolute(configuration.output)), plan.run_id, plan.content.get("refit")):
        raise ConflictError(f"run {plan.run_id} is published in {configuration.output} already: there is nothing to submit")
    run = _started(configuration, plan)
    return SlurmRun(run, configuration.executor).submit(stages(run), publish=True)


def _started(configuration: Partition, plan: Plan) -> Run:
    run = Run(absolute(configuration.output), plan.run_id)
    run.start(plan.content, plan.here)
    run.write_configuration(configuration.model_dump(mode="json"))
    return run


def existing_commit(store: Store, run_id: str, refits: str | None = None) -> Commit | None:
    """Return the run's commit if it is published.

    Args:
        store: the output.
        run_id: the run.
        refits: digest of the commit that the run refits, if it does.

    Raises:
        ConflictError: the store holds the manifest of another run.
    """
    commits = [read_commit(store, version)[1] for version in versions(store)]
    if not commits:
        return None
    if commit := next((commit for commit in commits if commit.body.run_id == run_id), None):
        return commit
    newest = commits[-1]
    if refits is not None and refits == newest.body_sha256:
        return None
    raise ConflictError(
        f"{store.location} holds the manifest of run {newest.body.run_id}, this configuration and input are run {run_id}: "
        "choose another output, or remove that manifest"
    )


def stages(run: Run) -> list[Stage]:
    """Return the stages of a run in their order; those of one that suggests end there."""
    first: list[Stage] = [Scan(run), Scan(run, "rescan"), Settle(run), Sample(run), Encode(run)]
    if run.plan.get("suggest"):
        return [*first, Suggest(run)]
    return [*first, Fit(run), Heldout(run), Bands(run), Place(run), Gather(run), Index(run)]


def find_stage(run: Run, name: str) -> Stage:
    """Return a run's stage by its name."""
    return next(stage for stage in stages(run) if stage.name == name)


def resume(run: Run) -> Commit:
    """Do all that is left of a planned run, and publish it."""
    _do_stages(run)
    warn_of_notes(run)
    return publish(run)


def _do_stages(run: Run) -> None:
    executor = Planned(run).configuration.executor
    if executor.kind == "slurm":
        SlurmRun(run, executor).do(stages(run))
        return
    for stage in stages(run):
        on_gpus = executor.kind == "local" and stage.name in ON_GPUS and _is_on_gpu(run)
        run_stage(stage, executor, visible_gpus() if on_gpus else ())


def _is_on_gpu(run: Run) -> bool:
    pinned = pinned_encoder(run)
    return pinned is not None and pinned[0].get("device") == "cuda"


def suggest(configuration: Partition, plan: Plan) -> tuple[list[Assessment], Recommendation]:
    """Say what other numbers of domains would be like, and recommend one; nothing is published.

    Args:
        configuration: the validated configuration; its `domains` plays no part.
        plan: its plan.

    Raises:
        InputError: the input is bad past its limit, or the sample is too small.
    """
    run = _started(configuration, replace(plan, content=plan.content | SUGGESTS))
    _do_stages(run)
    return suggestion(run)
