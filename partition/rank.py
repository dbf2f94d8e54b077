"""What a Slurm job does: one rank's share of one stage. `python -m lmsplit.partition.rank OUTPUT RUN STAGE RANKS`.

All it needs is read from the run's folder; which rank it is, Slurm says. It exits with the code of its error, which the watching
command raises as its own.
"""

import sys
from collections.abc import Sequence

from lmsplit.manifests.errors import LmsplitError
from lmsplit.partition.engine import EachTask
from lmsplit.partition.pipeline import find_stage
from lmsplit.partition.planning import Planned
from lmsplit.partition.publish import publish
from lmsplit.partition.run import Run
from lmsplit.partition.slurm import PUBLISH, RankJobs


def main(arguments: Sequence[str]) -> int:
    """Do a rank's share; return the exit code."""
    output, run_id, name, ranks = arguments
    run = Run(output, run_id)
    try:
        if name == PUBLISH:
            publish(run)
            return 0
        executor = Planned(run).configuration.executor
        step = EachTask(find_stage(run, name), executor.num_threads(name))
        RankJobs(run, name, executor, int(ranks), [step]).run()
    except LmsplitError as error:
        sys.stderr.write(f"lmsplit: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
