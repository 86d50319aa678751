"""A small simulated dataset, and systems to evaluate on it: honest, deaf, cheating."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from p2es.baselines.common import BaselineConfig, read_pulse, translation
from p2es.baselines.oracle import SimulatorOracle
from p2es.demographics import Demographics
from p2es.leads import INDEPENDENT_INDEX, lift
from p2es.segmenting import segment
from p2es.simulator import simulate_person
from p2es_platform.dataset import commit, write_part
from pipelines.trials import given_ppg


def simulated_dataset(url, people, seconds=24.0, spoilt=()):
    """Write a dataset of the given persons by split; those who are spoilt have a PPG without a pulse."""
    windows = [
        replace(window, ppg=np.zeros_like(window.ppg)) if index in spoilt else window
        for split, numbers in people.items()
        for index in numbers
        for window in segment(
            simulate_person(0, index, seconds), step_s=10.0, ids=lambda *parts: "-".join(parts), split=split
        ).windows
    ]
    commit(url, [write_part(url, "k", "simulated", {"all": "0"}, windows, [])], {})
    return url


@dataclass
class Fake:
    """The oracle, spoilt: what it is given is changed first."""

    oracle: Any = field(default_factory=SimulatorOracle)
    name: str = "fake"

    def fit(self, dataset, recipe=None):
        self.oracle = SimulatorOracle().fit(dataset, BaselineConfig())
        self.train = dataset
        return self

    def sample(self, ppg, demographics, **options):
        return self.oracle.sample(ppg, demographics, **options)


class DeafToPulse(Fake):
    """Draws as if everybody had one and the same pulse."""

    def sample(self, ppg, demographics, **options):
        one = given_ppg(self.train.batch(np.array([0])))
        return self.oracle.sample(np.repeat(one, len(ppg), axis=0), demographics, **options)


class DeafToPeople(Fake):
    """Draws as if it knew nothing of the person."""

    def sample(self, ppg, demographics, **options):
        return self.oracle.sample(ppg, [Demographics()] * len(ppg), **options)


class DeafToBoth(DeafToPulse):
    """Knows neither."""

    def sample(self, ppg, demographics, **options):
        return super().sample(ppg, [Demographics()] * len(ppg), **options)


class Copier(Fake):
    """Gives ECGs of the training set back, whole, of a person of the same sex and near in age."""

    def sample(self, ppg, demographics, *, fs_hz, samples, seeds, **_):
        people = self.train.rest.people
        result = []
        for pulse, person, seed in zip(ppg, demographics, seeds, strict=True):
            wanted = person.to_array()
            far = np.abs(people[:, 0] - wanted[0]) + 100 * (people[:, 1] != wanted[1])
            near = np.argsort(np.where(np.isfinite(far), far, 1e9), kind="stable")[:20]
            chosen = np.random.default_rng(seed).permutation(near)[np.arange(samples) % near.size]
            result.append(translation(self.train.batch(chosen).ecg_mv, read_pulse(pulse, fs_hz)))
        return result


class Leaky(Fake):
    """Has seen the answers: gives the recorded ECG of whoever's PPG it is shown, with a little noise."""

    def __init__(self, test):
        super().__init__()
        self.known = {given_ppg(test.take([k])).tobytes(): test.ecg_mv[k] for k in range(len(test))}

    def sample(self, ppg, demographics, *, fs_hz, samples, seeds, **options):
        result = []
        for pulse, person, seed in zip(ppg, demographics, seeds, strict=True):
            ecg = self.known.get(np.ascontiguousarray(pulse[None]).tobytes())
            if ecg is None:
                result += self.oracle.sample(
                    pulse[None], [person], fs_hz=fs_hz, samples=samples, seeds=[seed], **options
                )
                continue
            noise = 0.01 * np.random.default_rng(seed).normal(size=(samples, 8, ecg.shape[-1]))
            drawn = lift(ecg[INDEPENDENT_INDEX] + noise).astype(np.float32)
            result.append(translation(drawn, read_pulse(pulse, fs_hz)))
        return result
