"""Writing recordings as WFDB records that look like real ones: units, comments, R peaks."""

import os
import tempfile
import warnings
from pathlib import Path

import numpy as np

from p2es.demographics import Demographics
from p2es.errors import InputError
from p2es.recording import Recording, Signal, SignalKind

_ECG_COUNTS_A_MV = 1000.0
# 16 bits, the lowest value of which means "not recorded".
_FULL_SCALE = 32767
MARK = "SYNTHETIC: made by p2es simulate"


def write_wfdb(recording: Recording, folder: Path) -> Path:
    """Write a recording as one WFDB record, 16 bit, with its R peaks as `.atr`.

    The header is the last file to appear, and each file appears whole: a reader that sees a header sees a
    record.

    Parameters
    ----------
    recording : Recording
        All signals start at 0, are equally long, and their rates are whole multiples of the lowest.
    folder : Path
        Made when missing.

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
        if recording.r_peaks_s is not None and recording.r_peaks_s.size:
            # Annotation times count frames, as the first line of the header does.
            at = np.round(recording.r_peaks_s * frame_hz).astype(np.int64)
            wfdb.wrann(recording.record, "atr", at, symbol=["N"] * at.size, fs=frame_hz, write_dir=staging)
        return _publish(Path(staging), folder, recording.record)


def _frames(recording: Recording) -> tuple[float, list[int]]:
    """Give the frame rate and each signal's samples a frame."""
    signals = recording.signals
    if not signals:
        raise InputError(f"{recording.record} has no signals: there is nothing to write")
    frame_hz = min(signal.fs_hz for signal in signals)
    per_frame = [round(signal.fs_hz / frame_hz) for signal in signals]
    for signal, count in zip(signals, per_frame, strict=True):
        if abs(signal.fs_hz - count * frame_hz) > 1e-6 * signal.fs_hz:
            raise InputError(f"{signal.name} at {signal.fs_hz:g} Hz is no multiple of {frame_hz:g} Hz: resample it")
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
