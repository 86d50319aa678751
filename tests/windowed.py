"""Simulated ECGs as windows are stored, for tests of the evaluation; drawn ones are made from them by hand."""

from functools import lru_cache

import numpy as np

from p2es.bands import median_mv
from p2es.filters import stored_ecg
from p2es.simulator import simulate
from p2es.translator import Translation
from p2es.windows import ECG_SAMPLES, PPG_SAMPLES, WindowBatch

FS_HZ = 250.0


@lru_cache(maxsize=64)
def _recorded(seed, index):
    one = simulate(seed, index, 13.0, rhythm="sinus", morphologies=(), noise=False, sensor="lab-clip", ecg_fs_hz=FS_HZ)
    return np.stack([signal.read() for signal in one.recording.signals[:12]]).astype(np.float64)


def clean_window(seed, index, late_s=0.0):
    """Ten seconds of a simulated person (12, 1280), mV; with `late_s` all of it comes so much later, exactly."""
    return stored_ecg(_recorded(seed, index), FS_HZ, late_s, 192, ECG_SAMPLES).astype(np.float32)


def batch_of_ecgs(ecgs, masks=None, persons=None, people=None):
    """Windows with these ECGs and nothing else."""
    n = len(ecgs)
    mask = np.ones((n, 12), bool) if masks is None else np.array(masks)
    return WindowBatch(
        ecg_mv=np.where(mask[..., None], np.array(ecgs, np.float32), np.float32(0)),
        lead_mask=mask,
        ppg=np.zeros((n, 1, PPG_SAMPLES), np.float32),
        ppg_mask=np.ones((n, PPG_SAMPLES), bool),
        people=np.full((n, 4), np.nan) if people is None else np.array(people, float),
        delay_s=np.zeros(n, np.float32),
        delay_confidence=np.zeros(n, np.float32),
        person=np.array(persons if persons is not None else [f"p{k}" for k in range(n)]),
        window_id=np.array([f"w{k}" for k in range(n)]),
        recording=np.array([f"r{k}" for k in range(n)]),
    )


def drawn(ecg, band=None):
    """Give a translation from one ECG (12, time) or several (sample, 12, time)."""
    draws = np.asarray(ecg, np.float32)
    draws = draws[None] if draws.ndim == 2 else draws
    return Translation(draws, median_mv(draws), band, 1.0, "regular", 70.0)
