"""How the benchmarks measure: contenders in turn, medians, fresh processes, and the place.

A ratio is taken round by round and its median is told, because the machine's speed
drifts: what is measured side by side drifts together.
"""

import csv
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time


def in_turn(contenders, rounds=7, clock=time.perf_counter, at_least=0.1):
    """Seconds of each contender, a list of one number per round: `A B C A B C ...`

    Args:
        contenders: dict of functions without arguments. Each is called once before.
        rounds: int.
        clock: `time.perf_counter`, or `time.process_time` for the seconds of all cores.
        at_least: float, each is repeated so often that a round takes it so many seconds.
    """
    repeats = {name: _repeats(run, clock, at_least) for name, run in contenders.items()}
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            began = clock()
            for _ in range(repeats[name]):
                run()
            seconds[name].append((clock() - began) / repeats[name])
    return seconds


def _repeats(run, clock, at_least):
    run()
    began, repeats = clock(), 0
    while clock() - began < at_least:
        run()
        repeats += 1
    return max(1, repeats)


def median_ratio(peer, ours):
    """How many times faster ours is than the peer: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(peer, ours, strict=True))


def median(seconds):
    return statistics.median(seconds)


def in_fresh_process(program, *arguments, **environment):
    """What a program prints as its last line, read as JSON. Memory is measured this way:
    the peak of a process is that of all it has ever done."""
    finished = subprocess.run(
        [sys.executable, program, *map(str, arguments)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        raise RuntimeError(f"{program} {arguments} failed:\n{finished.stderr[-2000:]}")
    return json.loads(finished.stdout.strip().splitlines()[-1])


def peak_mebibytes():
    """The most memory that this process has held so far.

    On Linux as the system tells it: `getrusage` begins with what the parent holds.
    """
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            found = dict(line.split(":", 1) for line in file)
        return int(found["VmHWM"].split()[0]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def require_peers(**packages):
    """Whether each peer is installed; for those that are not, a line says what to install.

    Args:
        packages: the name of a package to import, and the one to install: `keras_hub="keras-hub"`.
    """
    found = {name: importlib.util.find_spec(name) is not None for name in packages}
    for name, is_here in found.items():
        if not is_here:
            print(f"Left out: {name} is not installed (pip install {packages[name]}).")
    return found


def place(*packages):
    """Date, device and versions of what is installed, as one line."""
    installed = {each.name.lower() for each in importlib.metadata.distributions()}
    names = [name for name in ("keras", "tensorflow", "numpy", *packages) if name in installed]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return (
        f"{datetime.date.today()}; {_device()}, {os.cpu_count()} cores; "
        f"Python {platform.python_version()}, {versions}"
    )


def _device():
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def table(rows):
    """Dicts with the same keys as a Markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names)] + [[_cell(row[name]) for name in names] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(path, rows):
    """Dicts as a CSV file, with a column for every key."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def read(path):
    """The rows of a CSV file, numbers as numbers."""
    with open(path, newline="") as file:
        return [{name: _number(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def _number(cell):
    try:
        return float(cell) if "." in cell or "e" in cell else int(cell)
    except ValueError:
        return cell
