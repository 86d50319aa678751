"""Rank 0's words while it trains: figures to MLflow, the driver and Ray's metrics, and pictures of what is drawn."""

import logging
import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from p2es.conditioning import Units
from p2es.errors import P2EsError
from p2es.model import P2Es
from p2es.training import Step, Trainer
from p2es.training_plots import fixed_windows
from p2es.windows import WindowBatch
from p2es_platform.dataset import Dataset
from p2es_platform.run_pictures import attach_samples
from p2es_platform.system_metrics import system_metrics
from p2es_platform.tracking import Tracker
from pipelines.train_progress import Gauges, Progress
from pipelines.train_worker import Job, start_model

log = logging.getLogger(__name__)

# Share of the schedule between two pictures of what is drawn.
_PICTURE_EVERY = 0.2


class Reporter:
    """Rank 0's words: to MLflow, to the driver, to Ray's metrics; and its pictures.

    Attributes
    ----------
    tracker : Tracker
    """

    def __init__(self, job: Job, world: int) -> None:
        self._job, self._world = job, world
        self.tracker = Tracker.join(job.tracking_uri, job.run_id, spool=Path(job.folder) / "spool")
        self._gauges = Gauges(job.name)
        self._last: tuple[float, int, float] | None = None
        self._shown = 0.0
        self._held = ExitStack()
        self._held.enter_context(system_metrics(self.tracker))

    def tell(self, step: Step, losses: dict[str, float]) -> None:
        """Log a step's figures everywhere."""
        progress = self._progress(step, losses["total"])
        metrics = {f"loss_{name}": value for name, value in losses.items()}
        metrics |= {
            "learning_rate": step.learning_rate,
            "grad_norm": step.grad_norm,
            "windows": step.windows,
            "waited_for_data_s": step.waited_s,
            "workers": self._world,
        }
        # The first word after a start has nothing to count from.
        metrics |= {"windows_per_s": progress.windows_per_s} if progress.windows_per_s else {}
        self.tracker.log(step.step, metrics)
        self._gauges.set(progress)
        if self._job.board is not None:
            self._job.board.update.remote(progress)

    def show(self, trainer: Trainer, at_the_end: bool = False) -> None:
        """Draw unseen people with the weights so far, a few times a training: the other ranks wait a second for it."""
        if trainer.progress() < self._shown + _PICTURE_EVERY and not (at_the_end and self._shown < 1.0):
            return
        self._shown = trainer.progress()
        try:
            model, windows = self._pictured
            model.denoiser.load_state_dict(trainer.average)
            attach_samples(self.tracker, model, windows, step=trainer.step)
        except P2EsError as error:
            log.warning("there is no picture of step %d (%s)", trainer.step, error)

    @cached_property
    def _pictured(self) -> tuple[P2Es, WindowBatch]:
        job, units = self._job, Units.from_dict(self._job.units)
        model = start_model(job.recipe, units, job.parent)
        dataset = Dataset.open(job.dataset_url, job.dataset_version)
        # Of a large split a part is enough to find a few good windows in.
        store = dataset.store("validation", channels=job.recipe.network.ppg_channels, limit=100)
        return model, fixed_windows(store)

    def _progress(self, step: Step, loss: float) -> Progress:
        now, last = time.monotonic(), self._last
        self._last = now, step.windows, step.progress
        if last is None or now <= last[0]:
            return Progress(step.progress, step.windows, 0.0, loss, world=self._world)
        rate, pace = (step.windows - last[1]) / (now - last[0]), (step.progress - last[2]) / (now - last[0])
        left_s = (1.0 - step.progress) / pace if pace > 0 else float("nan")
        return Progress(step.progress, step.windows, rate, loss, left_s, self._world)

    def close(self) -> None:
        """Send what waits."""
        self._held.close()
        self.tracker.close()
