"""Simulated people for tests of other parts: one PPG channel at the rate of the ECG, free of its sensor's oddities."""

import dataclasses

from p2es.recording import SignalKind
from p2es.simulator import simulate_person

FS_HZ = 250.0


def monitored(seed, index, duration_s, **options):
    """Simulate a person whose finger clip of 500 Hz is taken at every second sample."""
    recording = simulate_person(seed, index, duration_s, sensor="lab-clip", **options)
    signals = [
        dataclasses.replace(s, samples=s.read()[::2].copy(), fs_hz=FS_HZ) if s.kind is SignalKind.PPG else s
        for s in recording.signals
    ]
    return dataclasses.replace(recording, signals=tuple(signals))
