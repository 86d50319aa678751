"""Simulated seconds a second of one core: ours beside NeuroKit's. `python benchmarks/bench_simulator.py`.

NeuroKit wants pandas below 3, so it gets an environment of its own in build/, made on the first run.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common import table

from p2es.simulator import simulate

ENVIRONMENT = Path(__file__).parents[1] / "build" / "neurokit-environment"
PINS = ("neurokit2==0.2.13", "numpy==2.2.6", "pandas==2.3.3", "scipy==1.15.3", "scikit-learn==1.6.1",
        "matplotlib==3.10.3", "setuptools==80.9.0")  # fmt: skip
ECG_FS_HZ, PPG_FS_HZ = 500, 125
NEUROKIT = "NeuroKit multileads + PPG (bare)"
# What NeuroKit runs in its own environment: one warm call, then one that is timed. It imports in seconds, which do
# not count.
THEIRS = f"""
import json, sys, time, warnings
warnings.simplefilter("ignore")
import neurokit2 as nk
def both(seconds, seed):
    nk.ecg_simulate(duration=seconds, sampling_rate={ECG_FS_HZ}, method="multileads", random_state=seed)
    nk.ppg_simulate(duration=seconds, sampling_rate={PPG_FS_HZ}, random_state=seed)
both(5, 0)
took = {{}}
for seconds in json.loads(sys.argv[1]):
    started = time.perf_counter()
    both(seconds, 1)
    took[seconds] = time.perf_counter() - started
print(json.dumps(took))
"""


def environment() -> Path | None:
    """Give the Python of NeuroKit's environment, made when missing; None when it cannot be had, which is said."""
    python = ENVIRONMENT / "bin" / "python"
    ready = ENVIRONMENT / ".ready"
    if ready.exists() and ready.read_text() == "\n".join(PINS):
        return python
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
            print(f"NeuroKit cannot be installed ({reason}): ours alone follows")
            return None
    ready.write_text("\n".join(PINS))
    return python


def theirs(python: Path, seconds: list[int]) -> dict[int, float]:
    """Give the seconds that NeuroKit takes for so many seconds of signal, on one thread."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    alone.pop("PYTHONPATH", None)
    command = [str(python), "-c", THEIRS, json.dumps(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=alone)
    return {int(length): took for length, took in json.loads(done.stdout).items()}


def ours(population: str, seconds: int, *, noise: bool, calls: int = 6) -> float:
    """Give the seconds of one call of `simulate`, the mean over some people."""
    simulate(0, 0, 12.0)
    started = time.perf_counter()
    for index in range(calls):
        simulate(1, index, float(seconds), population, noise=noise, ecg_fs_hz=ECG_FS_HZ)
    return (time.perf_counter() - started) / calls


WAYS: dict[str, Callable[[int], float]] = {
    "simulate, clean: 12 leads, PPG, truth": lambda seconds: ours("healthy", seconds, noise=False),
    "simulate, healthy: with noise": lambda seconds: ours("healthy", seconds, noise=True),
    "simulate, stress: all noise, all rhythms": lambda seconds: ours("stress", seconds, noise=True),
}


def main() -> None:
    """Print a table for each length: multiples of real time, and their ratio to NeuroKit's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, nargs="+", default=[12, 60])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    python = environment()
    rates: dict[int, dict[str, float]] = {seconds: {} for seconds in args.seconds}

    def better(seconds: int, way: str, took_s: float) -> None:
        rates[seconds][way] = max(rates[seconds].get(way, 0.0), seconds / took_s)

    # In turn, and the best round of each: the machine is shared.
    for _ in range(args.rounds):
        for seconds, took_s in (theirs(python, args.seconds) if python else {}).items():
            better(seconds, NEUROKIT, took_s)
        for seconds in args.seconds:
            for way, run in WAYS.items():
                better(seconds, way, run(seconds))
    for seconds, found in rates.items():
        title = f"{seconds} s of 12 leads at {ECG_FS_HZ} Hz and a PPG, one core"
        table(title, "x real time", found, NEUROKIT if python else next(iter(WAYS)))


if __name__ == "__main__":
    main()
