"""How exact the marks of each beat are, beside the median beat: `python benchmarks/bench_delineation.py`.

On simulated people, whose marks are known from formulas, without and with white noise on each lead; and, where
P2ES_RECORDINGS says where real recordings are, on LUDB against its cardiologists' marks, beside what CSE allows.
Failures are counted in the same table: what is not failed is the sensitivity. `--constants` prints LUDB's figures as
`p2es/evaluation/delineator_check.py` keeps them.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from p2es.beats import r_peaks
from p2es.beatwise import delineate_beats
from p2es.delineation import measure_ecg
from p2es.evaluation.beat_marks import CSE_SD_MS, INTERVALS, MARKS, errors_of, summarise_beats
from p2es.evaluation.delineator_check import true_beats
from p2es.evaluation.marked_beats import beats_of_lead, global_marks
from p2es.filters import stored_ecg
from p2es.leads import INDEPENDENT, lift
from p2es.simulator import simulate
from p2es.windows import ECG_SAMPLES, FS_HZ, WINDOW_S

MADE_HZ = 500.0
NOISE_UV = (0, 20, 50)
WAYS = ("500 Hz, unfiltered", "128 Hz, 0.5-40 Hz")


def simulated(people: int, rhythm: str, seed: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Give, by way and noise, the beats' summary, and the median beat's errors (person, 3) in ms."""
    errors: dict[str, list[Any]] = {}
    medians: dict[str, list[list[float]]] = {}
    rng = np.random.default_rng(seed)
    for index in range(people):
        one = simulate(
            seed, index, WINDOW_S, rhythm=rhythm, morphologies=(), noise=False, sensor="lab-clip", ecg_fs_hz=MADE_HZ
        )
        clean = np.stack([signal.read() for signal in one.recording.signals[:12]]).astype(np.float64)
        for noise_uv in NOISE_UV:
            noisy = clean + lift(1e-3 * noise_uv * rng.standard_normal((len(INDEPENDENT), clean.shape[1])))
            for way, ecg, fs_hz in zip(
                WAYS, (noisy, stored_ecg(noisy, MADE_HZ, 0.0, 0, ECG_SAMPLES)), (MADE_HZ, FS_HZ), strict=True
            ):
                name = f"{way}, {noise_uv} uV"
                beats = delineate_beats(ecg, fs_hz)
                errors.setdefault(name, []).append(errors_of(beats, true_beats(one), duration_s=WINDOW_S))
                found = measure_ecg(ecg, fs_hz)
                row = [getattr(found, interval) - getattr(one.truth, interval) for interval in INTERVALS]
                medians.setdefault(name, []).append(row)
    return {name: summarise_beats(of) for name, of in errors.items()}, {k: np.array(v) for k, v in medians.items()}


def ludb(folder: Path) -> dict[str, Any]:
    """Give the summary over LUDB's records, with the P waves found where no lead has a mark."""
    import wfdb

    errors, false_p, without_p = [], 0, 0
    for header in sorted(folder.glob("*.hea"), key=lambda path: int(path.stem)):
        name = str(header.with_suffix(""))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            steps = wfdb.rdrecord(name, physical=False).d_signal.T.astype(np.float64)
            marks = [wfdb.rdann(name, lead.lower()) for lead in INDEPENDENT]
        # The header's gains normalise each lead on its own; the steps are microvolt and obey the lead laws.
        ecg_mv = (steps - np.median(steps, axis=1, keepdims=True)) / 1000.0
        true_s = global_marks([beats_of_lead(lead.sample.tolist(), lead.symbol, 500.0) for lead in marks])
        found = delineate_beats(ecg_mv, 500.0)
        errors.append(errors_of(found, true_s))
        # The marks of the first and the last beat of a record are often left out.
        for r_s in true_s["r"][1:-1][true_s["p_leads"][1:-1] == 0]:
            near = np.abs(found.r_s - r_s) < 0.15
            without_p += 1
            false_p += int(np.isfinite(found.p_on_s[near]).any())
    return summarise_beats(errors) | {"records": len(errors), "beats_without_p": without_p, "false_p": false_p}


def row(name: str, figure: Mapping[str, Any], allowed: float | None = None) -> str:
    """Lay out one line of a table."""
    if figure["sd_ms"] is None:
        return f"{name:34s} nothing found"
    limit = "" if allowed is None else f"{allowed:8.1f}"
    return (
        f"{name:34s} {figure['bias_ms']:7.1f} {figure['sd_ms']:6.1f} {figure['low_ms']:6.1f} {figure['high_ms']:6.1f}"
        f" {figure['robust_sd_ms']:7.1f} {figure['within_sd_ms']:7.1f} {figure['marked']:7d} {figure['cut']:5d}"
        f" {100 * (figure['failures'] or 0.0):7.2f}{limit}"
    )


HEAD = (
    f"{'':34s} {'bias':>7s} {'SD':>6s} {'95 %':>6s} {'of SD':>6s} {'robust':>7s} {'within':>7s} {'waves':>7s}"
    f" {'cut':>5s} {'failed%':>7s}"
)


def cost(people: int, seed: int, rounds: int) -> None:
    """Print what a window of 10 s costs: the R peaks, the median beat, every beat."""
    windows = []
    for index in range(people):
        one = simulate(seed, index, WINDOW_S, rhythm="sinus", morphologies=(), noise=True, ecg_fs_hz=MADE_HZ)
        made = np.stack([signal.read() for signal in one.recording.signals[:12]]).astype(np.float64)
        windows.append(stored_ecg(made, MADE_HZ, 0.0, 0, ECG_SAMPLES))
    ways: dict[str, Callable[[np.ndarray], object]] = {
        "R peaks alone": lambda ecg: r_peaks(ecg, FS_HZ),
        "median beat, R peaks and amplitudes with it": lambda ecg: measure_ecg(ecg, FS_HZ),
        "every beat, R peaks and median with it": lambda ecg: delineate_beats(ecg, FS_HZ),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            for ecg in windows:
                started = time.perf_counter()
                way(ecg)
                took[name].append(time.perf_counter() - started)
    print(f"\nA window of {WINDOW_S:g} s of 12 leads at {FS_HZ:g} Hz, one core: median of {rounds * people}")
    bare = median(took["median beat, R peaks and amplitudes with it"])
    for name, values in took.items():
        print(f"{name:50s} {1e3 * median(values):7.1f} ms {median(values) / bare:6.2f} of the median beat's")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--rhythm", default="sinus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--constants", action="store_true", help="LUDB's figures alone, as JSON")
    args = parser.parse_args()
    recordings = os.environ.get("P2ES_RECORDINGS")
    folder = Path(recordings or "") / "ludb" / "data"
    measured = ludb(folder) if recordings and folder.is_dir() else None
    if args.constants:
        print(json.dumps(measured))
        return
    each, medians = simulated(args.people, args.rhythm, args.seed)
    print(f"{args.people} simulated people, {args.rhythm}, 10 s: found less true, ms")
    for name, summary in each.items():
        print(f"\n{name}: {summary['beats']} beats, {summary['false_beats']} false\n{HEAD}")
        for figure in INTERVALS:
            print(row(f"{figure[:-3].upper()}, every beat", summary[figure]))
        for figure, column in zip(INTERVALS, medians[name].T, strict=True):
            kept = column[np.isfinite(column)]
            spread = f"{kept.mean():7.1f} {kept.std(ddof=1):6.1f}" if kept.size > 1 else f"{'-':>7s} {'-':>6s}"
            failed = 100 * (1 - kept.size / column.size)
            print(
                f"{figure[:-3].upper() + ', median beat':34s} {spread}{'':30s} {column.size:7d} {'':5s} {failed:7.2f}"
            )
    if measured is None:
        print("\nLUDB is not there: set P2ES_RECORDINGS to the folder that has ludb/data")
    else:
        of = "{records} records, {beats} beats, {false_beats} false; P found in {false_p} of {beats_without_p} without"
        print(f"\nLUDB, found less marked, ms: {of.format(**measured)}")
        print(f"{HEAD} {'CSE SD':>7s}")
        for figure in (*MARKS, *INTERVALS):
            print(row(figure, measured[figure], CSE_SD_MS.get(figure)))
    cost(6, args.seed, args.rounds)


if __name__ == "__main__":
    main()
