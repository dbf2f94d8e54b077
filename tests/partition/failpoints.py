"""Runs a command of lmsplit and fails at one point of all that it writes to a local store.

`python -m tests.partition.failpoints KIND NUMBER -- partition config.yaml --json`, with `executor: {workers: 0}`: all is one
process then, and the points have the same numbers in every run. KIND is `kill` or `stop` (the process, by SIGKILL or SIGSTOP),
`full` or `broken` (the disk); `count` lists the points on standard output and does nothing at any.

A point lies before and after every step of a put: a folder made (that of the spool, or of the file), bytes spooled, a file or a
folder flushed, a link made, a derived file replaced, a spooled file removed. Nothing in the package knows of them.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from threading import Barrier
from typing import Any

import torch  # noqa: F401  # for the forked trials: its import takes longer than a run

from lmsplit.manifests import cli, store
from lmsplit.partition import pipeline  # noqa: F401

ERRORS = {"full": errno.ENOSPC, "broken": errno.EIO}
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
PREFIX = "failpoint "


class Failpoints:
    """The points of this process.

    Args:
        act: called at each with what is done there.
    """

    def __init__(self, act: Callable[[str], None]) -> None:
        self._act = act

    def around(self, owner: Any, name: str, describe: Callable[..., str | None]) -> None:
        """Put points before and after the calls of a function that write; `describe` says None of the others."""
        function = getattr(owner, name)

        @wraps(function)
        def with_points(*given: Any, **named: Any) -> Any:
            if (what := describe(*given)) is None:
                return function(*given, **named)
            self._act(f"before {what}")
            result = function(*given, **named)
            self._act(f"after {what}")
            return result

        setattr(owner, name, with_points)

    def install(self) -> None:
        """Put points into the local store."""
        self.around(store, "flush", lambda path: f"flush {_name(path)}")
        self.around(os, "link", lambda _, target: f"link {_name(target)}")
        self.around(Path, "mkdir", lambda path, *_: f"mkdir {path.name}")
        self.around(Path, "write_bytes", lambda path, _: _of_spool("write", path))
        self.around(Path, "replace", lambda path, target: _of_spool("replace", path, target))
        self.around(Path, "unlink", lambda path: _of_spool("unlink", path))


def _name(path: Path) -> str:
    return "spooled" if path.parent.name == "spool" else f"{path.parent.name}/{path.name}"


def _of_spool(verb: str, path: Path, target: Path | None = None) -> str | None:
    return f"{verb} {_name(target or path)}" if path.parent.name == "spool" else None


def fail(kind: str) -> None:
    """Let happen here what a kind says."""
    if kind in SIGNALS:
        os.kill(os.getpid(), SIGNALS[kind])
    else:
        raise OSError(ERRORS[kind], os.strerror(ERRORS[kind]))


def main(arguments: Sequence[str]) -> None:
    """Run a command."""
    kind, number, _, *command = arguments
    reached: list[str] = []

    def act(what: str) -> None:
        reached.append(what)
        if kind != "count" and len(reached) == int(number):
            fail(kind)

    Failpoints(act).install()
    try:
        cli.main(command)
    finally:
        if kind == "count":
            sys.stdout.writelines(f"{PREFIX}{number} {what}\n" for number, what in enumerate(reached, 1))
            sys.stdout.flush()


def meet(barrier: Barrier, where: str, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function that waits for another process before it links a file whose name begins so: both do it at once."""

    def act(what: str) -> None:
        if what.startswith(f"before link {where}"):
            barrier.wait()

    Failpoints(act).install()
    function(*arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
