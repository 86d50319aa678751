"""Writing recordings as WFDB records that look like real ones: units, comments, R peaks, and the truth beside them."""

import os
import tempfile
import warnings
from collections.abc import Iterable
from fractions import Fraction
from math import gcd
from pathlib import Path

import numpy as np

from p2es.demographics import Demographics
from p2es.errors import InputError
from p2es.recording import Recording, Signal, SignalKind
from p2es.simulator.rhythm import SYMBOLS, BeatKind
from p2es.simulator.truth import Truth

_ECG_COUNTS_A_MV = 1000.0
# 16 bits, the lowest value of which means "not recorded".
_FULL_SCALE = 32767
# Two rates that share next to nothing would make a frame of seconds, which readers do not take.
_MOST_A_FRAME = 1000
MARK = "SYNTHETIC: made by p2es simulate"
# WFDB's names of rhythms, as MIT-BIH annotates them; a rhythm change with a name in its aux field.
_RHYTHM_MARKS = {
    "sinus": "(N",
    "sinus_arrhythmia": "(N",
    "sinus_tachycardia": "(ST",
    "sinus_bradycardia": "(SBR",
    "atrial_fibrillation": "(AFIB",
    "premature_atrial": "(N",
    "premature_ventricular": "(N",
    "av_block_1": "(BI",
    "av_block_2_wenckebach": "(BII",
    "av_block_2_mobitz": "(BII",
    "av_block_3": "(BIII",
}
Mark = tuple[float, str, str]
"""Seconds, symbol, aux."""


def write_wfdb(recording: Recording, folder: Path, truth: Truth | None = None) -> Path:
    """Write a recording as one WFDB record, 16 bit, with its annotations.

    The header is the last file to appear, and each file appears whole: a reader that sees a header sees a
    record. Annotators: `atr` has the beats; with a truth `waves` has onset, peak and end of P, QRS and T as LUDB
    writes them, and `pulse` the feet of the pulses.

    Parameters
    ----------
    recording : Recording
        All signals start at 0, are equally long, and their rates share a frame (a whole part of each).
    folder : Path
        Made when missing.
    truth : Truth, optional

    Returns
    -------
    Path
        The header.

    Raises
    ------
    InputError
        When the signals do not fit in one WFDB record.
    """
    import wfdb

    frame_hz, per_frame = _frames(recording)
    gains, baselines = zip(*(_conversion(signal) for signal in recording.signals), strict=True)
    counts = [
        _counts(signal, gain, baseline)
        for signal, gain, baseline in zip(recording.signals, gains, baselines, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    staged = tempfile.TemporaryDirectory(prefix=f".{recording.record}-", dir=folder)
    with staged as staging, warnings.catch_warnings():
        # wfdb 4.3 calls pandas in a way that pandas 3 deprecates; it is not the caller's to mend.
        warnings.filterwarnings("ignore", message="The inplace keyword", category=DeprecationWarning)
        wfdb.wrsamp(
            recording.record,
            fs=frame_hz,
            units=[signal.unit for signal in recording.signals],
            sig_name=[signal.name for signal in recording.signals],
            e_d_signal=counts,
            samps_per_frame=per_frame,
            fmt=["16"] * len(counts),
            adc_gain=list(gains),
            baseline=list(baselines),
            comments=_comments(recording),
            write_dir=staging,
        )
        # Annotations keep a clock of their own, or a frame of half a second would be all they could tell.
        clock_hz = max(signal.fs_hz for signal in recording.signals)
        for extension, marks in _annotations(recording, truth).items():
            _write_marks(recording.record, extension, marks, clock_hz, staging)
        return _publish(Path(staging), folder, recording.record)


def _annotations(recording: Recording, truth: Truth | None) -> dict[str, list[Mark]]:
    """Give the annotations of each annotator that has any, in order of time."""
    if truth is None:
        peaks = recording.r_peaks_s if recording.r_peaks_s is not None else np.empty(0)
        found = {"atr": [(float(at), "N", "") for at in peaks]}
    else:
        beats = truth.beats
        kinds = zip(beats.r_s, beats.kind, strict=True)
        found = {
            "atr": [
                (0.0, "+", _RHYTHM_MARKS[truth.rhythm]),
                *((at, SYMBOLS[BeatKind(kind)], "") for at, kind in kinds),
            ],
            "waves": _wave_marks(truth),
            "pulse": [(float(at), "N", "") for at in beats.pulse_foot_s if np.isfinite(at)],
        }
    length_s = recording.duration_s
    inside = {name: sorted(mark for mark in marks if 0 <= mark[0] < length_s) for name, marks in found.items()}
    return {name: marks for name, marks in inside.items() if marks}


def _wave_marks(truth: Truth) -> list[Mark]:
    """Give `(`, a symbol at the peak, and `)` for each wave."""
    beats = truth.beats
    p_on, p_off = (
        np.concatenate([a, b]) for a, b in zip((beats.p_on_s, beats.p_off_s), truth.p_alone_s.T, strict=True)
    )
    waves = (
        # A P wave's peak is taken as its middle.
        ("p", p_on, (p_on + p_off) / 2, p_off),
        ("N", beats.qrs_on_s, beats.r_s, beats.qrs_off_s),
        ("t", beats.t_on_s, beats.t_peak_s, beats.t_off_s),
    )
    marks: list[Mark] = []
    for symbol, *times in waves:
        for on, peak, off in zip(*times, strict=True):
            if np.isfinite(on):
                marks += [(float(on), "(", ""), (float(peak), symbol, ""), (float(off), ")", "")]
    return marks


def _write_marks(record: str, extension: str, marks: Iterable[Mark], clock_hz: float, folder: str) -> None:
    import wfdb

    times, symbols, aux = zip(*marks, strict=True)
    wfdb.wrann(
        record,
        extension,
        np.round(np.array(times) * clock_hz).astype(np.int64),
        symbol=list(symbols),
        aux_note=list(aux),
        fs=clock_hz,
        write_dir=folder,
    )


def _frames(recording: Recording) -> tuple[float, list[int]]:
    """Give the frame rate and each signal's samples a frame: the largest rate that divides all."""
    signals = recording.signals
    if not signals:
        raise InputError(f"{recording.record} has no signals: there is nothing to write")
    rates = [Fraction(signal.fs_hz).limit_denominator(1000) for signal in signals]
    common = Fraction(gcd(*(rate.numerator for rate in rates)), max(rate.denominator for rate in rates))
    frame_hz = float(common)
    per_frame = [round(signal.fs_hz / frame_hz) for signal in signals]
    for signal, count in zip(signals, per_frame, strict=True):
        if count > _MOST_A_FRAME or abs(signal.fs_hz - count * frame_hz) > 1e-6 * signal.fs_hz:
            raise InputError(f"{signal.name} at {signal.fs_hz:g} Hz shares no frame with the others: resample it")
    lengths = {signal.samples.size / count for signal, count in zip(signals, per_frame, strict=True)}
    if len(lengths) > 1 or any(signal.start_s != 0 for signal in signals):
        raise InputError(f"the signals of {recording.record} differ in start or length: cut them to a common span")
    return frame_hz, per_frame


def _conversion(signal: Signal) -> tuple[float, int]:
    """Give gain (counts a unit) and baseline (count of 0)."""
    samples = signal.read()
    good = samples[np.isfinite(samples)]
    if signal.kind is SignalKind.ECG and (good.size == 0 or np.abs(good).max() * _ECG_COUNTS_A_MV <= _FULL_SCALE):
        return _ECG_COUNTS_A_MV, 0
    low, high = (float(good.min()), float(good.max())) if good.size else (0.0, 0.0)
    # Two thirds of the range, and a gain of three digits: headers print few.
    gain = float(f"{1.3 * _FULL_SCALE / max(high - low, 1e-6):.3g}")
    return gain, -round(gain * (low + high) / 2)


def _counts(signal: Signal, gain: float, baseline: int) -> np.ndarray:
    samples = signal.read()
    missing = ~np.isfinite(samples)
    counts = np.round(np.where(missing, 0.0, samples) * gain) + baseline
    return np.where(missing, -_FULL_SCALE - 1, counts).astype(np.int64)


def _comments(recording: Recording) -> list[str]:
    return [
        *_demographic_comments(recording.demographics),
        f"person: {recording.person}",
        *([f"device: {recording.provenance['device']}"] if "device" in recording.provenance else []),
        *([MARK] if recording.simulated else []),
    ]


def _demographic_comments(demographics: Demographics) -> list[str]:
    fields = {
        "age": demographics.age_years,
        "sex": demographics.sex,
        "height": demographics.height_cm,
        "weight": demographics.weight_kg,
    }
    return [
        f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in fields.items()
        if value is not None
    ]


def _publish(staging: Path, folder: Path, record: str) -> Path:
    """Move the files of a record into place, the header last."""
    header = staging / f"{record}.hea"
    for path in [*sorted(path for path in staging.iterdir() if path != header), header]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(folder / path.name)
    return folder / header.name
