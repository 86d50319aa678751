"""P2Es: the trained Translator. Fit, sample, save, load."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from p2es.bands import Band, calibrate, median_mv
from p2es.batching import NeighbourGraph
from p2es.conditioning import Units
from p2es.demographics import Demographics
from p2es.diffusion import DiffusionConfig
from p2es.errors import InputError, ModelError
from p2es.leads import INDEPENDENT_INDEX
from p2es.network import Denoiser, NetworkConfig
from p2es.objective import Objective
from p2es.sampler import SamplerConfig, draw, draw_generator
from p2es.signals import ppg_quality, prepare_ppg, pulse_rhythm
from p2es.training import Step, TrainConfig, Trainer
from p2es.translator import MIN_BAND_SAMPLES, Translation
from p2es.windows import FS_HZ, PPG_SAMPLES, WindowStore, shift_earlier

FORMAT = "p2es-model"
VERSION = 1
MIN_PPG_QUALITY = 0.2
"""PPG worse than this is refused: what would be drawn is the prior alone, in the costume of a measurement."""
# Draws of one network call: larger gains nothing on a CPU (34.4 ms a draw at 1, 32.7 at 32) and costs memory.
_CHUNK = 64


@dataclass(frozen=True)
class FitRecipe:
    """What `P2Es.fit` needs to know: the network, the diffusion, the training and the groups."""

    network: NetworkConfig = NetworkConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    train: TrainConfig = TrainConfig()
    neighbours: int = 10


@dataclass
class P2Es:
    """The trained model: denoiser, units, band.

    Attributes
    ----------
    denoiser : Denoiser
        With the averaged weights.
    units : Units
    band : Band
    sampler : SamplerConfig
    provenance : mapping
        Recipe, dataset hash, run: whatever tells where the model comes from.
    """

    denoiser: Denoiser
    units: Units
    band: Band = Band()
    sampler: SamplerConfig = SamplerConfig()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    name: str = "p2es"

    @classmethod
    def start(cls, network: NetworkConfig, diffusion: DiffusionConfig, units: Units, seed: int = 0) -> Self:
        """Make an untrained model; the same seed gives the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            denoiser = Denoiser(network, diffusion)
        spectrum = torch.tensor(units.spectrum)
        denoiser.deblur.spectrum.copy_(spectrum.clamp_min(1e-5 * float(spectrum.max())))
        return cls(denoiser, units)

    def objective(self, config: TrainConfig) -> Objective:
        """Give what training minimises."""
        return Objective(
            self.denoiser,
            config.objective,
            torch.tensor(self.units.lead_scale_mv),
            torch.tensor(self.units.spectrum),
        )

    def fit(self, dataset: WindowStore, recipe: FitRecipe) -> Self:
        """Train on this machine, alone, to the end: what a notebook wants. `pipelines.train` trains on many."""
        for _ in self.fit_steps(dataset, recipe):
            pass
        return self

    def fit_steps(self, dataset: WindowStore, recipe: FitRecipe) -> Iterator[Step]:
        """Train as `fit` does, yielding each step."""
        people, first = np.unique(dataset.person, return_index=True)
        graph = NeighbourGraph.exact(
            [str(p) for p in people], dataset.rest.people[first], recipe.neighbours, recipe.network.prototypes
        )
        fresh = self.start(recipe.network, recipe.diffusion, Units.fit(dataset), recipe.train.seed)
        self.denoiser, self.units = fresh.denoiser, fresh.units
        trainer = Trainer(self.objective(recipe.train), self.units, dataset, graph, recipe.train)
        yield from trainer.steps()
        self.denoiser.load_state_dict(trainer.average)

    def sample(
        self,
        ppg: NDArray[np.float32],
        demographics: Sequence[Demographics],
        *,
        fs_hz: float,
        known: NDArray[np.float32] | None = None,
        enrolment: NDArray[np.float32] | None = None,
        samples: int = 20,
        evaluations: int = 10,
        seeds: Sequence[int],
    ) -> list[Translation]:
        """Draw 12-lead ECGs; see `Translator.sample`.

        The PPG is un-aligned, as a device gives it: each draw shifts it by a delay of its own, from the model's
        distribution given age and height, so that the band holds what is not known of the timing.
        """
        if enrolment is not None:
            raise ModelError("this model was trained without enrolment: call it without an earlier ECG")
        if samples < 1 or evaluations < 1:
            raise InputError(f"samples and evaluations must be at least 1, not {samples} and {evaluations}")
        if not len(ppg) == len(demographics) == len(seeds):
            raise InputError(
                f"{len(ppg)} PPG windows, {len(demographics)} people and {len(seeds)} seeds: give one each"
            )
        windows, masks, qualities = self._read_pulses(ppg, fs_hz)
        people = np.array([person.to_array() for person in demographics]).reshape(-1, 4)
        draws = self._draw(windows, masks, people, known, samples, evaluations, seeds)
        return [
            self._translation(ecg, window, mask, quality)
            for ecg, window, mask, quality in zip(draws, windows, masks, qualities, strict=True)
        ]

    def calibrate(self, dataset: WindowStore, *, windows: int, samples: int = 20, evaluations: int = 10) -> Band:
        """Set the band's inflation on windows that were not trained on, and give it."""
        rows = spread_over_people(dataset.person, windows)
        batch = dataset.batch(rows)
        good = np.flatnonzero(batch.ppg_mask.any(axis=1) & batch.lead_mask.any(axis=1))
        batch = batch.take(good)
        seeds = [int(row) for row in rows[good]]
        draws = self._draw(batch.ppg, batch.ppg_mask, batch.people, None, samples, evaluations, seeds)
        self.band = calibrate(
            zip(draws, batch.ecg_mv, batch.lead_mask, strict=True), np.array(self.units.lead_scale_mv)
        )
        return self.band

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.detach().cpu().contiguous() for k, v in self.denoiser.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        config = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "network": asdict(self.denoiser.config),
            "diffusion": asdict(self.denoiser.diffusion.config),
            "sampler": asdict(self.sampler),
            "units": self.units.to_dict(),
            "band": asdict(self.band),
            "provenance": dict(self.provenance),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1))

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Self:
        """Undo `save`; raises ModelError when the folder holds no whole model of this version."""
        try:
            config = json.loads((folder / "config.json").read_text())
            if (config["format"], config["version"]) != (FORMAT, VERSION):
                raise ModelError(
                    f"the model is {config['format']} {config['version']}, this p2es reads {FORMAT} {VERSION}"
                )
            network = NetworkConfig(**(config["network"] | {"channels": tuple(config["network"]["channels"])}))
            model = cls.start(network, DiffusionConfig(**config["diffusion"]), Units.from_dict(config["units"]))
            model.denoiser.load_state_dict(load_file(folder / "model.safetensors"))
            band = config["band"] | {"floor_mv": tuple(config["band"]["floor_mv"])}
            model.band, model.sampler = Band(**band), SamplerConfig(**config["sampler"])
            model.provenance = config["provenance"]
        except FileNotFoundError as error:
            raise ModelError(f"there is no whole model in {folder.name}: fetch it again") from error
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"the model in {folder.name} is corrupt ({type(error).__name__}): fetch it again"
            ) from error
        model.denoiser.to(device).eval()
        return model

    def _read_pulses(
        self, ppg: NDArray[np.float32], fs_hz: float
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[float]]:
        channels = self.denoiser.config.ppg_channels
        windows = np.zeros((len(ppg), channels, PPG_SAMPLES), np.float32)
        masks = np.zeros((len(ppg), PPG_SAMPLES), bool)
        qualities = []
        for row, signal in enumerate(ppg):
            window, masks[row] = prepare_ppg(np.atleast_2d(signal)[:channels], fs_hz)
            windows[row, : len(window)] = window
            qualities.append(ppg_quality(window, masks[row], FS_HZ))
            if qualities[-1] < MIN_PPG_QUALITY:
                raise InputError(
                    f"the PPG is too poor to translate (quality {qualities[-1]:.2f}, {MIN_PPG_QUALITY} is needed): "
                    "choose a stretch with less motion"
                )
        return windows, masks, qualities

    def _draw(
        self,
        ppg: NDArray[np.float32],
        ppg_mask: NDArray[np.bool_],
        people: NDArray[np.float64],
        known: NDArray[np.float32] | None,
        samples: int,
        evaluations: int,
        seeds: Sequence[int],
    ) -> Iterator[NDArray[np.float32]]:
        """Draw (samples, 12, time) of each window in turn, millivolt, a few windows at a time."""
        per_call = max(_CHUNK // samples, 1)
        for start in range(0, len(ppg), per_call):
            part = slice(start, start + per_call)
            given = None if known is None else np.repeat(known[part], samples, axis=0)
            pulses = np.repeat(ppg[part], samples, axis=0)
            masks, who = np.repeat(ppg_mask[part], samples, axis=0), np.repeat(people[part], samples, axis=0)
            keys = [(seed, k) for seed in seeds[part] for k in range(samples)]
            drawn = [
                self._chunk(
                    pulses[i:j],
                    masks[i:j],
                    who[i:j],
                    None if given is None else given[i:j],
                    keys[i:j],
                    evaluations,
                )
                for i, j in ((k, k + _CHUNK) for k in range(0, len(keys), _CHUNK))
            ]
            ecg = np.concatenate(drawn)
            yield from ecg.reshape(-1, samples, *ecg.shape[1:])

    def _chunk(
        self,
        ppg: NDArray[np.float32],
        mask: NDArray[np.bool_],
        people: NDArray[np.float64],
        known: NDArray[np.float32] | None,
        keys: Sequence[tuple[int, int]],
        evaluations: int,
    ) -> NDArray[np.float32]:
        generators = [draw_generator(seed, k) for seed, k in keys]
        normal = np.array([torch.randn((), generator=g, dtype=torch.float64).item() for g in generators])
        aligned, valid = shift_earlier(ppg, mask, self.units.delay.draw_s(people, normal))
        device = next(self.denoiser.parameters()).device
        condition = self.units.condition(aligned, valid, people, known)
        condition = replace(condition, **{name: value.to(device) for name, value in vars(condition).items()})
        *_, x = draw(self.denoiser, condition, generators, evaluations, self.sampler)
        ecg = self.units.to_millivolt(x)
        return ecg if known is None else _with_known(ecg, known)

    def _translation(
        self, ecg: NDArray[np.float32], ppg: NDArray[np.float32], mask: NDArray[np.bool_], quality: float
    ) -> Translation:
        rate, rhythm = pulse_rhythm(ppg, mask, FS_HZ)
        band = self.band.around(ecg) if len(ecg) >= MIN_BAND_SAMPLES else None
        return Translation(ecg, median_mv(ecg), band, quality, rhythm, rate)


def _with_known(ecg: NDArray[np.float32], known: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give recorded independent leads back as they came, to the last bit."""
    for window, leads in enumerate(known[:, INDEPENDENT_INDEX]):
        back = INDEPENDENT_INDEX[np.isfinite(leads).all(axis=-1)]
        ecg[window, back] = known[window, back]
    return ecg


def spread_over_people(person: NDArray[np.str_], windows: int) -> NDArray[np.int64]:
    """Choose up to `windows` rows, evenly over people: everybody's first window, then everybody's second, ..."""
    order = np.argsort(person, kind="stable")
    _, count = np.unique(person[order], return_counts=True)
    turn = np.concatenate([np.arange(n) for n in count]) if len(count) else np.zeros(0, np.int64)
    ranked = order[np.lexsort((person[order], turn))]
    return np.sort(ranked[:windows])
