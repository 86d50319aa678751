"""From windows in millivolt to what the network sees, and back: fixed, invertible units kept with the model."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2es.delay import DelayLaw
from p2es.demographics import DemographicScaler
from p2es.leads import INDEPENDENT_INDEX, LeadRole, lift
from p2es.network import Condition
from p2es.windows import WindowBatch, WindowStore, shift_earlier


@dataclass(frozen=True)
class Units:
    """What fixes the model's units: one scale a lead, the standardisation of people, the delay.

    Attributes
    ----------
    lead_scale_mv : tuple of float
        Root mean square of each of the 12 leads over the training windows; the same for every window and person.
    scaler : DemographicScaler
    delay : DelayLaw
    spectrum : tuple of float
        Mean power of a training window at each DCT frequency, lead units.
    """

    lead_scale_mv: tuple[float, ...]
    scaler: DemographicScaler
    delay: DelayLaw
    spectrum: tuple[float, ...]

    @classmethod
    def fit(cls, store: WindowStore, sample: int = 2000, seed: int = 0) -> "Units":
        """Measure the units on up to `sample` training windows."""
        rows = np.sort(np.random.default_rng(seed).permutation(len(store))[:sample])
        total, count, power, seen = np.zeros(12), np.zeros(12), 0.0, 0
        batches = [store.batch(part) for part in np.array_split(rows, max(len(rows) // 256, 1))]
        for batch in batches:
            total += np.square(batch.ecg_mv, dtype=np.float64).sum(axis=(0, 2))
            count += batch.lead_mask.sum(axis=0) * batch.ecg_mv.shape[-1]
        rms = np.sqrt(total / np.maximum(count, 1))
        # A lead that no training window has takes the middle of the others: its draws are the prior's alone.
        rms[count == 0] = np.median(rms[count > 0]) if (count > 0).any() else 0.25
        from scipy.fft import dct

        for batch in batches:
            spectra = np.square(dct(batch.ecg_mv / rms[:, None].astype(np.float32), norm="ortho"))
            power = power + spectra[batch.lead_mask].sum(axis=0, dtype=np.float64)
            seen += int(batch.lead_mask.sum())
        _, first = np.unique(store.rest.recording, return_index=True)
        law = DelayLaw.fit(store.rest.people[first], store.rest.delay_s[first], store.rest.delay_confidence[first])
        _, first = np.unique(store.person, return_index=True)
        scaler = DemographicScaler.fit(store.rest.people[first])
        spectrum = np.asarray(power) / max(seen, 1)
        return cls(tuple(map(float, rms)), scaler, law, tuple(float(f"{s:.4g}") for s in spectrum))

    def people_features(self, people: NDArray[np.float64]) -> NDArray[np.float32]:
        """Standardise demographics (n, 4): 0 where unknown, then 1 where unknown, (n, 8)."""
        spread = np.sqrt(np.diag(np.array(self.scaler.covariance)))
        standard = (people - np.array(self.scaler.mean)) / spread
        return np.concatenate([np.nan_to_num(standard), np.isnan(people)], axis=1).astype(np.float32)

    @property
    def independent_scale_mv(self) -> NDArray[np.float32]:
        """Scales of the 8 independent leads, (8, 1)."""
        return np.array(self.lead_scale_mv, np.float32)[INDEPENDENT_INDEX, None]

    def to_millivolt(self, x: Tensor) -> NDArray[np.float32]:
        """Turn drawn leads (..., 8, time) into 12 in millivolt, lifted in float64 so that the laws hold to rounding."""
        independent = x.detach().cpu().numpy().astype(np.float64) * self.independent_scale_mv
        return lift(independent).astype(np.float32)

    def training_tensors(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Give what the objective needs of a batch, with the PPG aligned by the recording's delay."""
        delay = self.delay.best_s(batch.people, batch.delay_s, batch.delay_confidence)
        ppg, mask = shift_earlier(batch.ppg, batch.ppg_mask, delay)
        present = batch.lead_mask[:, INDEPENDENT_INDEX]
        leads = batch.ecg_mv[:, INDEPENDENT_INDEX] / self.independent_scale_mv
        return {
            "x": torch.from_numpy(np.where(present[..., None], leads, np.float32(0))),
            "ecg": torch.from_numpy(batch.ecg_mv / np.array(self.lead_scale_mv, np.float32)[:, None]),
            "lead_mask": torch.from_numpy(batch.lead_mask),
            "present": torch.from_numpy(present),
            "ppg": torch.from_numpy(ppg),
            "ppg_mask": torch.from_numpy(mask),
            "people": torch.from_numpy(self.people_features(batch.people)),
        }

    def condition(
        self,
        ppg: NDArray[np.float32],
        ppg_mask: NDArray[np.bool_],
        people: NDArray[np.float64],
        known_mv: NDArray[np.float32] | None = None,
    ) -> Condition:
        """Build the condition of windows to be drawn.

        Parameters
        ----------
        ppg : array (batch, channel, 1536)
            Aligned.
        ppg_mask : array (batch, 1536)
        people : array (batch, 4)
        known_mv : array (batch, 12, 1280), optional
            Leads that were recorded; NaN for leads to draw.
        """
        n = len(ppg)
        given = np.zeros((n, len(INDEPENDENT_INDEX), ppg.shape[-1] - 2 * 128), np.float32)
        roles = np.full((n, len(INDEPENDENT_INDEX)), int(LeadRole.TARGET))
        if known_mv is not None:
            leads = known_mv[:, INDEPENDENT_INDEX] / self.independent_scale_mv
            known = np.isfinite(leads).all(axis=-1)
            given = np.where(known[..., None], leads, np.float32(0)).astype(np.float32)
            roles = np.where(known, int(LeadRole.GIVEN), roles)
        return Condition(
            ppg=torch.from_numpy(ppg),
            ppg_mask=torch.from_numpy(ppg_mask),
            people=torch.from_numpy(self.people_features(people)),
            roles=torch.from_numpy(roles),
            given=torch.from_numpy(given),
        )

    def to_dict(self) -> dict[str, object]:
        """Give the units as plain JSON values."""
        return {
            "lead_scale_mv": list(self.lead_scale_mv),
            "demographic_mean": list(self.scaler.mean),
            "demographic_covariance": [list(row) for row in self.scaler.covariance],
            "delay": vars(self.delay) | {"slopes_s": list(self.delay.slopes_s)},
            "spectrum": list(self.spectrum),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Units":
        """Undo `to_dict`."""
        v: dict = dict(values)
        delay = DelayLaw(v["delay"]["intercept_s"], tuple(v["delay"]["slopes_s"]), v["delay"]["spread_s"])
        scaler = DemographicScaler(
            tuple(v["demographic_mean"]), tuple(tuple(row) for row in v["demographic_covariance"])
        )
        return cls(tuple(v["lead_scale_mv"]), scaler, delay, tuple(v["spectrum"]))
