"""The loss on people nobody has trained on: what a training is compared by before anything is drawn."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from p2es.conditioning import Units
from p2es.model import spread_over_people
from p2es.objective import Objective
from p2es.windows import WindowStore

# Windows of one call of the network.
_CHUNK = 32


@torch.no_grad()
def validation_loss(
    objective: Objective,
    average: Mapping[str, Tensor],
    units: Units,
    store: WindowStore,
    *,
    windows: int = 256,
    seed: int = 0,
) -> float:
    """Give the mean weighted error of the denoised leads (`wave` + `slope`) of the averaged weights.

    Windows, times and noise are the same at every call, so that two trainings differ by their weights alone. Nothing is
    hidden or given: it is the task the model has when it is used. The terms of the groups are left out, for their
    weights may be what is searched.

    Parameters
    ----------
    objective : Objective
        Its weights are put back afterwards.
    average : mapping
        State of the denoiser to measure.
    units : Units
    store : WindowStore
        Validation windows; up to `windows` are taken, evenly over people.
    seed : int
    """
    rows = spread_over_people(store.person, windows)
    # Times evenly over [0, 1], and not in the order of the people.
    times = np.random.default_rng(seed).permutation((np.arange(len(rows)) + 0.5) / len(rows))
    generator = torch.Generator().manual_seed(seed)
    device = next(objective.parameters()).device
    kept = {name: value.clone() for name, value in objective.denoiser.state_dict().items()}
    objective.denoiser.load_state_dict(dict(average))
    total = 0.0
    try:
        for start in range(0, len(rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            tensors = units.training_tensors(store.batch(rows[part]))
            noise = torch.randn(tensors["x"].shape, generator=generator)
            batch = {name: value.to(device) for name, value in tensors.items()}
            t = torch.tensor(times[part], dtype=torch.float32, device=device)
            value, slope = objective.unhidden_errors(batch, t, noise.to(device))
            total += float(value + objective.config.slope_weight * slope) * len(rows[part])
    finally:
        objective.denoiser.load_state_dict(kept)
    return total / len(rows)
