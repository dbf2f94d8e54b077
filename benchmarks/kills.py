"""Ways to kill a run, or a part of it, on every executor; what `crash_trials.py` does to `lmsplit partition`.

Each takes the running command, and says what it killed; None where there was nothing to kill. Processes of other runs are left
alone, but for `cancel_jobs`, which empties the user's queue.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path


def kill_all(process: "subprocess.Popen[str]") -> str:
    """Kill a command and all that it started, as a machine does that goes down."""
    started = descendants(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    for pid in started:
        _kill(pid)
    return "killed"


def kill_command(process: "subprocess.Popen[str]") -> str:
    """Kill a command alone."""
    process.kill()
    return "killed"


def kill_worker(process: "subprocess.Popen[str]") -> str | None:
    """Kill one process that does tasks: forked by the server of such, which is a child of the command."""
    servers = {pid for pid in descendants(process.pid) if "forkserver" in _command_line(pid)}
    return _kill_first(pid for pid in servers if _parent(pid) in servers)


def kill_ray_task(process: "subprocess.Popen[str]") -> str | None:
    """Kill the process of one Ray task."""
    return _kill_first(pid for pid in descendants(process.pid) if re.match("ray::(?!IDLE|.*Agent)", _command_line(pid)))


def _kill_first(pids: Iterable[int]) -> str | None:
    return next((f"process {pid}" for pid in pids if _kill(pid)), None)


def kill_job(process: "subprocess.Popen[str]") -> str | None:
    """Kill the process of one Slurm job."""
    ours = str(Path(process.args[2]).parent)  # type: ignore[index]
    lines = ((int(path.name), _command_line(int(path.name))) for path in Path("/proc").glob("[0-9]*"))
    return _kill_first(pid for pid, line in lines if "lmsplit.partition.rank" in line and ours in line)


def cancel_jobs(process: "subprocess.Popen[str]") -> str | None:
    """Take all jobs out of Slurm's queue."""
    del process
    if not subprocess.run(["squeue", "--me", "--noheader"], capture_output=True, check=True).stdout:
        return None
    subprocess.run(["scancel", "--me"], check=True)
    return "cancelled"


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def descendants(ancestor: int) -> list[int]:
    """Return the processes that a process started, and those that these did."""
    parent_of = {int(path.name): _parent(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    found = [ancestor]
    for pid in found:
        found += [child for child, parent in parent_of.items() if parent == pid]
    return found[1:]
