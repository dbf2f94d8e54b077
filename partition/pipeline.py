"""From a corpus to a published manifest: the map of the whole.

```
configuration
  │ make_plan            planning   survey the input, digest it, cut work units, name the run
  ▼
  scan      units        scan       validate, set aside, count, propose the sample, list ids
  │  └─ scan-1, …                   again with a wider sample, where the first came out short
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
  ids       id ranges    ids        id → domain, part, row
  ▼
  publish                publish    conservation law, quality gate, commit
```

Every arrow is a set of receipts in the run's folder, so the same command goes on where it was cut off.
"""

import errno
import logging
import os
from dataclasses import replace
from typing import Final

from lmsplit.manifests.card import write_card
from lmsplit.manifests.commit import Commit, read_commit, versions
from lmsplit.manifests.errors import ConflictError, LmsplitError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.store import Store, local_path
from lmsplit.partition.config import Partition
from lmsplit.partition.encode import Encode
from lmsplit.partition.engine import run_stage, visible_gpus
from lmsplit.partition.fit import Fit
from lmsplit.partition.gather import Gather
from lmsplit.partition.heldout import Bands, Heldout
from lmsplit.partition.ids import Index, Settle
from lmsplit.partition.place import Place
from lmsplit.partition.planning import Plan, Planned, make_plan
from lmsplit.partition.publish import check_bad_fraction, publish
from lmsplit.partition.run import Run
from lmsplit.partition.sample import Sample, pinned_encoder, sample_is_short
from lmsplit.partition.scan import Scan
from lmsplit.partition.suggest import Assessment, Recommendation, Suggest, suggestion

SUGGESTS: Final = {"suggest": True}
"""Marks the plan of a run that publishes nothing."""
MAX_WIDENINGS: Final = 16
"""4^16 times the first threshold: the whole corpus, whatever the estimate was."""

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
        LmsplitError: the output has no room, or a worker was killed; the same call goes on where it ended.
    """
    plan = plan or make_plan(configuration)
    output = str(local_path(configuration.output).absolute())
    published = existing_commit(Store(local_path(output)), plan.run_id, plan.content.get("refit"))
    if published:
        _log.info("run %s is published already", plan.run_id)
        write_card(Manifest.open(output))  # a kill right after the commit leaves none
        return published
    run = Run(output, plan.run_id)
    try:
        run.start(plan.content, plan.here)
        run.write_configuration(configuration.model_dump(mode="json"))
        return resume(run)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise LmsplitError(
            f"{output}: {os.strerror(error.errno)}. Nothing is lost: make room there and run the same command again"
        ) from error


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
        f"{store.root} holds the manifest of run {newest.body.run_id}, this configuration and input are run {run_id}: "
        "choose another output, or remove that manifest"
    )


def resume(run: Run) -> Commit:
    """Do all that is left of a planned run, and publish it."""
    workers = Planned(run).configuration.executor.workers
    scan, gpus = _encoded_sample(run, workers)
    run_stage(Fit(run, scan), workers)
    run_stage(Heldout(run), workers)
    run_stage(Bands(run), workers)
    run_stage(Place(run, scan), workers, gpus)
    check_bad_fraction(run, [scan, "place"])
    gather = Gather(run)
    run_stage(gather, workers)
    run_stage(Index(run, gather.num_tasks), workers)
    return publish(run, scan)


def suggest(configuration: Partition, plan: Plan) -> tuple[list[Assessment], Recommendation]:
    """Say what other numbers of domains would be like, and recommend one; nothing is published.

    Args:
        configuration: the validated configuration; its `domains` plays no part.
        plan: its plan.

    Raises:
        InputError: the input is bad past its limit, or the sample is too small.
    """
    plan = replace(plan, content=plan.content | SUGGESTS)
    run = Run(str(local_path(configuration.output).absolute()), plan.run_id)
    run.start(plan.content, plan.here)
    workers = configuration.executor.workers
    _encoded_sample(run, workers)
    run_stage(Suggest(run), workers)
    return suggestion(run)


def _encoded_sample(run: Run, workers: int) -> tuple[str, tuple[str, ...]]:
    """Do the stages that end with an encoded sample; return the name of the scan that counts, and the GPUs to encode on."""
    scan = _scan(run, workers)
    run_stage(Settle(run, scan), workers)
    run_stage(Sample(run, scan), workers)
    pinned = pinned_encoder(run)
    gpus = visible_gpus() if pinned and pinned[0].get("device") == "cuda" else ()
    run_stage(Encode(run), workers, gpus)
    return scan, gpus


def publish_again(run: Run) -> Commit:
    """Publish a run whose stages are all done; `lmsplit publish` calls this."""
    return publish(run, _finished_scan(run))


def _scan(run: Run, workers: int) -> str:
    """Scan, and again with a wider sample while it is short; return the name of the scan that counts."""
    for widening in range(MAX_WIDENINGS):
        stage = Scan(run, widening)
        run_stage(stage, workers)
        check_bad_fraction(run, [stage.name])
        if not sample_is_short(run, stage.name):
            return stage.name
    raise LmsplitError(f"the sample is still short after {MAX_WIDENINGS} scans: please report this")


def _finished_scan(run: Run) -> str:
    names = [Scan(run, widening).name for widening in range(MAX_WIDENINGS)]
    return next(name for name in names if not sample_is_short(run, name))
