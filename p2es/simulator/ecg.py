"""From waves and beats to leads: the noise-free ECG."""

import numpy as np
from scipy.signal import lfilter

from p2es.leads import N_INDEPENDENT
from p2es.simulator.heart import Heart
from p2es.simulator.rhythm import Breathing, Rhythm
from p2es.simulator.vector import ATRIAL, DOWER, rotations
from p2es.simulator.waves import Floats, Group, Waves, gaussians

# Beats that are made at a time: bounds the memory of a day's recording.
_CHUNK = 256
# A Gaussian is 2e-5 of its top this far out.
_REACH = 4.6
# Repolarisation follows the rate over several beats, not one: a first-order lag.
_QT_LAG = 0.8


def repolarisation(rhythm: Rhythm) -> Floats:
    """Give the factor (beat,) on QT at each beat: Fridericia's cube root of the interval, as smoothed by the heart."""
    rr_s = rhythm.rr_s
    if rr_s.size == 0:
        return rr_s
    # The mean of the first beats stands in for what was before them.
    start = float(rr_s[:8].mean())
    smooth, _ = lfilter([1 - _QT_LAG], [1, -_QT_LAG], rr_s, zi=[_QT_LAG * start])
    return np.cbrt(np.clip(smooth, 0.25, 2.5))


def heart_ecg(rng: np.random.Generator, heart: Heart, rhythm: Rhythm, duration_s: float, fs_hz: float) -> Floats:
    """Give the noise-free ECG, (8 independent leads, time), in mV.

    Parameters
    ----------
    rng : Generator
        For f waves only.
    heart : Heart
    rhythm : Rhythm
    duration_s, fs_hz : float
    """
    canvas = _Canvas(heart, rhythm.breathing, round(duration_s * fs_hz), fs_hz)
    factor = repolarisation(rhythm)
    for kind in np.unique(rhythm.kind):
        inside = rhythm.kind == kind
        waves = heart.of(kind)
        canvas.add(waves.part(Group.QRS), rhythm.r_s[inside])
        onset_s = heart.qrs[kind].onset_s
        canvas.add(waves.part(Group.T), rhythm.r_s[inside], factor[inside], onset_s)
    for early, waves in ((False, heart.p), (True, heart.p_premature)):
        inside = rhythm.p_premature == early
        # Waves lie at the person's own PR before R; each P is moved to its own.
        usual_s = heart.onset_s + heart.p_later_s - heart.p_span[early].onset_s
        canvas.add(waves, (rhythm.p_s - rhythm.pr_s)[inside] + usual_s)
    if rhythm.fibrillates:
        canvas.leads += f_waves(rng, heart, canvas.leads.shape[1], fs_hz)
    return canvas.leads


class _Canvas:
    """The leads (8, time) while beats are added to them."""

    def __init__(self, heart: Heart, breathing: Breathing, n: int, fs_hz: float) -> None:
        self.leads = np.zeros((N_INDEPENDENT, n))
        self._heart, self._breathing, self._fs_hz = heart, breathing, fs_hz

    def add(self, waves: Waves, at_s: Floats, factor: Floats | None = None, about_s: float = 0.0) -> None:
        """Add waves at times (beat,), stretched about a moment by a factor (beat,)."""
        for start in range(0, at_s.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            self._add(waves, at_s[part], None if factor is None else factor[part], about_s)

    def _add(self, waves: Waves, at_s: Floats, factor: Floats | None, about_s: float) -> None:
        fs_hz, n = self._fs_hz, self.leads.shape[1]
        stretch = np.ones(at_s.size) if factor is None else factor
        centre = about_s + (waves.centre_s - about_s) * stretch[:, None]
        width = waves.width_s * stretch[:, None]
        before = int(np.ceil((_REACH * width - centre).max() * fs_hz))
        after = int(np.ceil((_REACH * width + centre).max() * fs_hz))
        first = np.floor(at_s * fs_hz).astype(np.int64) - before
        near = (first + before + after > 0) & (first < n)
        if not near.any():
            return
        offsets = np.arange(before + after)
        time_s = (first[near, None] + offsets) / fs_hz - at_s[near, None]
        beats = self._amplitudes(waves, at_s[near]) @ gaussians(time_s, centre[near], width[near])
        for begin, beat in zip(first[near], beats, strict=True):
            low, high = max(begin, 0), min(begin + offsets.size, n)
            self.leads[:, low:high] += beat[:, low - begin : high - begin]

    def _amplitudes(self, waves: Waves, at_s: Floats) -> Floats:
        """Give (beat, 8 leads, wave) amplitudes in mV, turned and scaled by breathing."""
        breath = self._breathing.at(at_s)
        turns = rotations(*(degrees * breath for degrees in self._heart.sway_deg))
        leads = DOWER @ turns @ waves.vector_mv + waves.residual_mv
        return leads * self._heart.lead_gain[:, None] * (1 + self._heart.breath_gain * breath)[:, None, None]


def f_waves(rng: np.random.Generator, heart: Heart, n: int, fs_hz: float) -> Floats:
    """Draw the f waves of fibrillating atria, (8, time), in mV.

    Half of it is a sawtooth of three harmonics whose frequency swings by 0.25 Hz five times a minute, at slightly
    different rates along the three axes (as Stridh and Sornmo 2001 model it); the rest is noise in its band.
    """
    time_s = np.arange(n) / fs_hz
    phase0 = rng.uniform(0, 2 * np.pi)
    vector = np.empty((3, n))
    for axis, pace in enumerate((0.95, 1.0, 1.05)):
        rate_hz = pace * heart.f_hz
        phase = 2 * np.pi * rate_hz * time_s + 0.25 / 0.2 * np.sin(2 * np.pi * 0.2 * time_s + phase0)
        swell = 1 + 0.3 * np.sin(2 * np.pi * 0.2 * time_s + axis)
        model = -sum(2 / (i * np.pi) * np.sin(i * phase) for i in (1, 2, 3)) * swell
        noise = _slow_noise(rng, n, fs_hz, heart.f_hz)
        mixed = 0.7 * model / model.std() + 0.5 * noise
        vector[axis] = heart.f_mv[axis] * mixed / mixed.std()
    return (ATRIAL @ vector) * heart.lead_gain[:, None]


def _slow_noise(rng: np.random.Generator, n: int, fs_hz: float, around_hz: float) -> Floats:
    lines = np.fft.rfftfreq(n, 1 / fs_hz)
    shape = np.exp(-0.5 * ((lines - around_hz) / 1.2) ** 2)
    noise = np.fft.irfft(shape * (rng.standard_normal((2, lines.size)).T @ np.array([1, 1j])), n)
    return noise / max(float(noise.std()), 1e-12)
