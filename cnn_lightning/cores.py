"""The cores that other programs leave free; imported first, because it measures from here on.

OpenMP splits each operation over its threads, and they wait for one another. A thread whose core another program uses
keeps all of them waiting: on 2 cores with one busy program, 2 threads take many times as long as 1 (docs/speed.md).
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

WINDOW = (0.5, 60.0)  # seconds: what is measured for a shorter or a longer time says little about now


class Sample(NamedTuple):
    """The state of the counters of a system."""

    time: float  # seconds, of a clock that starts anywhere
    busy: float  # seconds that the cores of this process have been busy, all together
    own: float  # seconds that this process and its children have used
    pid: int


def take_sample(stat: Path = Path("/proc/stat")) -> Sample | None:
    """Read the counters; None on systems without them."""
    if not stat.exists() or not hasattr(os, "sched_getaffinity"):
        return None
    busy = busy_seconds(stat.read_text(), os.sched_getaffinity(0), os.sysconf("SC_CLK_TCK"))
    return Sample(time.monotonic(), busy, sum(os.times()[:4]), os.getpid())


def busy_seconds(stat: str, cores: set[int], ticks: int) -> float:
    """Add up how long some cores have been busy.

    Args:
        stat: Content of ``/proc/stat``.
        cores: Their numbers.
        ticks: Units of the file in a second.

    Returns:
        Seconds, with those that a hypervisor gave to others.
    """
    total = 0
    for line in stat.splitlines():
        name, *columns = line.split() or [""]
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, columns[:8])
            total += user + nice + system + irq + softirq + steal
    return total / ticks


def taken_cores(first: Sample, second: Sample) -> float:
    """Return how many cores other programs kept busy between two samples, on average."""
    return max(0.0, second.busy - first.busy - (second.own - first.own)) / (second.time - first.time)


def own_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_cores() -> tuple[int, int]:
    """Measure how many cores other programs leave free, from the import of this module until now.

    Where that was too short or too long ago, this takes half a second.

    Returns:
        The free cores, rounded, and all cores of this process. Where nothing can be measured, all are free.
    """
    first, second = _FIRST, take_sample()
    if first is None or second is None:
        return own_cores(), own_cores()
    if first.pid != second.pid or not WINDOW[0] <= second.time - first.time <= WINDOW[1]:
        time.sleep(WINDOW[0])
        first, second = second, take_sample() or second
    cores = own_cores()
    return max(0, round(cores - taken_cores(first, second))), cores


# A waiting thread of libgomp, the OpenMP of PyTorch on Linux, spins 300,000 times before it sleeps. With 10,000,
# training is hardly slower alone, and much faster next to a program that starts later. Read when PyTorch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
_FIRST = take_sample()
