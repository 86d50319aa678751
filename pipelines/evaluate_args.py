"""What `p2es evaluate` may be asked; without the heavy imports of the stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class EvaluateChoice:
    """Which system, on which dataset."""

    version: str | None = None
    """Evaluate a registered version: its number or an alias."""
    system: Literal["template", "regression", "mean_waveform", "retrieval", "oracle"] | None = None
    """Evaluate a yardstick in the model's place."""
    predictions: Path | None = None
    """Evaluate what another system drew: .npz with request (or window_id), ecg_mv (n, lead, time) or (n, sample, lead,
    time), leads, fs_hz; or .parquet with request (or window_id), a column a lead, fs_hz. Ten seconds, mV, 0.5-40 Hz."""
    requests: Path | None = None
    """Write the PPG and demographics that another system is to answer (Parquet) and stop: test windows and controls,
    mixed. Answered by `request`, the report has its controls; by `window_id` alone it has none, and shows less."""
    dataset: str | None = None
    """Name or address of a dataset, instead of the recipe's own."""
    out: Path | None = None
    """Folder for a copy of report.html and report.json."""
