"""Windows a second of `P2Es.sample` against the bare network calls it makes. `python benchmarks/bench_sampler.py`."""

import numpy as np
import torch
from common import interleaved, table

from p2es.conditioning import Units
from p2es.demographics import Demographics
from p2es.diffusion import DiffusionConfig
from p2es.model import P2Es
from p2es.network import NetworkConfig
from p2es.segmenting import segment
from p2es.simulator import simulate_person
from p2es.windows import WindowStore, collate

EVALUATIONS, SAMPLES = 10, 20


def main() -> None:
    """Print the table, on one thread, with the demo's network (untrained: the arithmetic is the same)."""
    torch.set_num_threads(1)
    windows = segment(simulate_person(0, 0, 42.0), step_s=10.0, ids=lambda *parts: "-".join(parts)).windows
    store = WindowStore.from_batches([collate(windows)])
    model = P2Es.start(NetworkConfig(), DiffusionConfig(), Units.fit(store))
    model.denoiser.eval()
    batch = store.batch(np.flatnonzero(store.rest.ppg_mask.any(axis=1))[:1])
    ppg = np.where(batch.ppg_mask[:, None], batch.ppg, np.nan).astype(np.float32)
    condition = model.units.condition(batch.ppg, batch.ppg_mask, batch.people).repeat(SAMPLES)
    z, t = torch.randn(SAMPLES, 8, 1280), torch.full((SAMPLES,), 0.5)

    def sample() -> int:
        people = [Demographics.from_array(row) for row in batch.people]
        model.sample(ppg, people, fs_hz=128.0, samples=SAMPLES, evaluations=EVALUATIONS, seeds=[0])
        return 1

    @torch.inference_mode()
    def network() -> int:
        guide = model.denoiser.guide(condition)
        for _ in range(EVALUATIONS):
            model.denoiser(z, t, condition, guide)
        return 1

    rates = interleaved({"network calls alone (bare)": network, "P2Es.sample": sample})
    table(f"{SAMPLES} draws of {EVALUATIONS} evaluations a window", "windows/s", rates, "network calls alone (bare)")


if __name__ == "__main__":
    main()
