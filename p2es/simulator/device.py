"""What devices add: the delay and the noise of a PPG sensor, the noise of ECG electrodes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from p2es.simulator.rhythm import Rhythm


@dataclass(frozen=True)
class DeviceKind:
    """A make of PPG sensor.

    Attributes
    ----------
    delay_s : float
        What filtering, buffering and the site add to the physiological delay.
    snr_db : float
        Pulse power over sensor noise.
    wander : float
        Slow baseline relative to the pulse.
    """

    delay_s: float
    snr_db: float
    wander: float


# With 0.21 to 0.28 s of physiology these span what real devices show, 0.3 to 0.58 s, and somewhat more.
DEVICES = {
    "clip-a": DeviceKind(0.00, 35.0, 0.05),
    "clip-b": DeviceKind(0.08, 32.0, 0.08),
    "patient-monitor": DeviceKind(0.27, 38.0, 0.03),
    "watch-a": DeviceKind(0.14, 26.0, 0.20),
    "watch-b": DeviceKind(0.32, 24.0, 0.20),
    "ring": DeviceKind(0.20, 28.0, 0.12),
    "earlobe": DeviceKind(0.04, 30.0, 0.10),
    "forehead": DeviceKind(0.24, 27.0, 0.15),
    "band": DeviceKind(0.35, 20.0, 0.30),
}

_ELECTRODES = 9
"""RA, LA, LL, V1..V6."""


@dataclass(frozen=True)
class Device:
    """One sensor, as it sits on one person.

    Attributes
    ----------
    name : str
        Its make, in `DEVICES`.
    delay_s : float
        Of this piece: that of the make, and what its clock and strap add.
    snr_db, wander : float
    motion : bool
        Whether there are bursts of motion.
    """

    name: str
    delay_s: float
    snr_db: float
    wander: float
    motion: bool


def draw_device(rng: np.random.Generator, names: tuple[str, ...], motion_share: float) -> Device:
    """Draw a sensor among the makes `names`."""
    name = names[int(rng.integers(len(names)))]
    kind = DEVICES[name]
    return Device(
        name=name,
        delay_s=float(max(kind.delay_s + 0.010 * rng.standard_normal(), 0.0)),
        snr_db=float(kind.snr_db + 2 * rng.standard_normal()),
        wander=float(kind.wander * np.exp(0.3 * rng.standard_normal())),
        motion=bool(rng.random() < motion_share),
    )


def _band_noise(rng: np.random.Generator, n: int, fs_hz: float, low_hz: float, high_hz: float) -> NDArray[np.float64]:
    """Draw noise (time,) of unit power in a band."""
    lines = np.fft.rfftfreq(n, 1 / fs_hz)
    inside = (lines >= low_hz) & (lines <= high_hz)
    spectrum = np.zeros(lines.size, complex)
    spectrum[inside] = rng.standard_normal((2, int(inside.sum()))).T @ np.array([1, 1j])
    noise = np.fft.irfft(spectrum, n)
    return noise / max(float(noise.std()), 1e-12)


def sense_pulse(
    rng: np.random.Generator, device: Device, wave: NDArray[np.float64], rhythm: Rhythm, fs_hz: float
) -> NDArray[np.float64]:
    """Give what the sensor records of a pulse wave (time,): wander, noise, motion, and a scale of its own."""
    n = wave.size
    pulse_rms = float(wave.std())
    time_s = np.arange(n) / fs_hz
    slow = 0.7 * rhythm.breath(time_s) + _band_noise(rng, n, fs_hz, 0.01, 0.15)
    white = rng.standard_normal(n) * 10 ** (-device.snr_db / 20)
    sensed = wave + pulse_rms * (device.wander * slow + white)
    if device.motion:
        sensed += pulse_rms * _motion(rng, n, fs_hz)
    # A count of an arbitrary converter: nothing may depend on it.
    return float(rng.uniform(0.1, 0.4)) * sensed + float(rng.uniform(0.8, 1.6))


def _motion(rng: np.random.Generator, n: int, fs_hz: float) -> NDArray[np.float64]:
    """Draw one to three bursts of 1-5 s in 0.5-8 Hz, 10 dB below to 5 dB above the pulse."""
    result = np.zeros(n)
    noise = _band_noise(rng, n, fs_hz, 0.5, 8.0)
    for _ in range(int(rng.integers(1, 4))):
        length = min(round(float(rng.uniform(1, 5)) * fs_hz), n)
        start = int(rng.integers(0, n - length + 1))
        strength = 10 ** (float(rng.uniform(-10, 5)) / 20)
        result[start : start + length] += strength * signal.windows.tukey(length, 0.4) * noise[start : start + length]
    return result


def electrode_noise(rng: np.random.Generator, rhythm: Rhythm, n: int, fs_hz: float) -> NDArray[np.float64]:
    """Draw the noise of the 8 independent leads, (8, time), in mV.

    It is drawn at the nine electrodes and subtracted as the leads are (I = LA - RA, II = LL - RA, V =
    electrode minus the mean of RA, LA and LL), so the lead laws hold with noise too. Wander of 0.02-0.05 mV
    with breathing, and 4-12 uV of muscle.
    """
    time_s = np.arange(n) / fs_hz
    breath = rhythm.breath(time_s)
    potential = np.empty((_ELECTRODES, n))
    muscle_mv = float(rng.uniform(0.004, 0.012))
    for electrode in range(_ELECTRODES):
        wander = float(rng.uniform(-0.04, 0.04)) * breath + 0.02 * _band_noise(rng, n, fs_hz, 0.02, 0.4)
        potential[electrode] = wander + muscle_mv * _band_noise(rng, n, fs_hz, 15.0, 100.0)
    right, left, foot = potential[:3]
    return np.concatenate([[left - right, foot - right], potential[3:] - potential[:3].mean(axis=0)])
