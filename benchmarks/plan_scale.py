"""What `base` and `large` would take on 1, 8 and 64 GPUs, on paper. `python benchmarks/plan_scale.py`.

Floating-point operations and parameters are counted on the real networks; rates of GPU and links are published. How
much of a GPU's peak these small one-dimensional networks use is not measured here (there was no GPU): the table stands
for an assumed share, and for an assumed time to launch each of the operations that were counted, whichever is longer.

Ring all-reduce: 2 (n - 1) / n of the gradients over the slowest link, half of it hidden behind the backward pass.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from p2es.conditioning import Units
from p2es.delay import DelayLaw
from p2es.demographics import DemographicScaler
from p2es.model import P2Es
from p2es.windows import ECG_SAMPLES, PPG_SAMPLES
from pipelines.recipes import Recipe, named

# NVIDIA's data sheet of the H100 SXM: dense bfloat16, NVLink 900 GB/s both ways; InfiniBand NDR 400 Gbit/s a GPU.
PEAK_FLOPS, NVLINK_BYTES_S, NETWORK_BYTES_S = 989e12, 450e9, 50e9
GPUS_A_NODE = 8


@dataclass(frozen=True)
class Counted:
    """What one network costs: floating-point operations of a window and calls of a step, both ways; parameters."""

    flops: float
    calls: int
    parameters: int


class _Calls(TorchDispatchMode):
    """Counts the operations that are called: a kernel each, or a view, which is none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A view launches nothing.
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def counted(recipe: Recipe, windows: int = 4) -> Counted:
    """Count on a real step of a few windows."""
    units = Units(
        (1.0,) * 12, DemographicScaler((0.0,) * 4, tuple(tuple(float(i == j) for j in range(4)) for i in range(4))),
        DelayLaw(0.2, (0.0, 0.0), 0.02), (1.0,) * ECG_SAMPLES,
    )  # fmt: skip
    objective = P2Es.start(recipe.network, recipe.diffusion, units).objective(recipe.train)
    batch = {
        "x": torch.randn(windows, 8, ECG_SAMPLES),
        "ecg": torch.randn(windows, 12, ECG_SAMPLES),
        "lead_mask": torch.ones(windows, 12, dtype=torch.bool),
        "present": torch.ones(windows, 8, dtype=torch.bool),
        "ppg": torch.randn(windows, recipe.network.ppg_channels, PPG_SAMPLES),
        "ppg_mask": torch.ones(windows, PPG_SAMPLES, dtype=torch.bool),
        "people": torch.zeros(windows, 8),
        "positive": torch.zeros(windows, windows, dtype=torch.bool),
        "same": torch.eye(windows, dtype=torch.bool),
        "cluster": torch.zeros(windows, dtype=torch.int64),
    }
    with FlopCounterMode(display=False) as counter, _Calls() as calls:
        terms = objective(batch, torch.full((windows,), 0.5), torch.Generator().manual_seed(0))
        terms["total"].backward()
    return Counted(counter.get_total_flops() / windows, calls.count, sum(p.numel() for p in objective.parameters()))


def step_s(work: Counted, batch: int, gpus: int, share: float, launch_s: float) -> tuple[float, float]:
    """Give the seconds of a step, and of them those of the all-reduce that is not hidden."""
    compute = max(work.flops * batch / gpus / (share * PEAK_FLOPS), work.calls * launch_s)
    link = NVLINK_BYTES_S if gpus <= GPUS_A_NODE else NETWORK_BYTES_S
    ring = 2 * (gpus - 1) / gpus * 4 * work.parameters / link
    return compute + ring / 2, ring / 2


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--share", type=float, default=0.05, help="share of a GPU's peak that is reached; an assumption"
    )
    parser.add_argument("--launch-us", type=float, default=5.0, help="microseconds to launch a kernel; an assumption")
    parser.add_argument("--price", type=float, default=3.0, help="of a GPU hour; an assumption")
    args = parser.parse_args()
    print(f"{'recipe':8s}{'GFLOP/window':>13s}{'calls':>7s}{'parameters':>12s}{'GPUs':>6s}{'steps/s':>9s}{'all-reduce':>11s}"
          f"{'hours':>8s}{'cost':>8s}")  # fmt: skip
    for name in ("demo", "base", "large"):
        recipe = named(name)
        work = counted(recipe)
        for gpus in (1, 8, 64):
            seconds, ring = step_s(work, recipe.train.batch, gpus, args.share, 1e-6 * args.launch_us)
            hours = seconds * recipe.train.windows / recipe.train.batch / 3600
            print(
                f"{name:8s}{work.flops / 1e9:13.2f}{work.calls:7d}{work.parameters:12,d}{gpus:6d}{1 / seconds:9.1f}"
                f"{100 * ring / seconds:10.1f}%{hours:8.2f}{hours * gpus * args.price:8.2f}"
            )


if __name__ == "__main__":
    main()
