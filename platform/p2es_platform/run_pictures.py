"""Pictures of a training as artifacts of its run."""

import logging

import numpy as np

from p2es.model import P2Es
from p2es.plot import png
from p2es.training_plots import Curve, drawn_samples, learning_curves
from p2es.windows import WindowBatch
from p2es_platform.metric_sender import OUTAGES
from p2es_platform.mlflow_client import first_line
from p2es_platform.tracking import Tracker

log = logging.getLogger(__name__)

CURVES = "curves.png"
_MARK = "Curves of a training."
_DRAWN = ("learning_rate", "grad_norm", "windows", "windows_per_s")


def attach_curves(tracker: Tracker, title: str = "") -> bool:
    """Draw what the run has logged so far and attach it as `curves.png`.

    It reads the whole histories of a dozen metrics (MLflow offers its clients no thinned ones), so once at the end of
    a training, not at each checkpoint. When MLflow does not answer there are no curves and a line says so.

    Returns
    -------
    bool
        Whether there are curves.
    """
    tracker.flush()
    try:
        curves = read_curves(tracker)
    except OUTAGES as error:
        log.warning("there are no learning curves of this run (%s)", first_line(error))
        return False
    if curves:
        tracker.attach(CURVES, png(learning_curves(curves, title), mark=_MARK))
    return bool(curves)


def read_curves(tracker: Tracker) -> dict[str, Curve]:
    """Read the histories that learning curves are drawn of."""
    histories = tracker.histories(lambda name: name.startswith("loss_") or name in _DRAWN)
    return {
        name: Curve(
            np.array([metric.step for metric in history], np.float64),
            np.array([metric.timestamp / 1000 for metric in history], np.float64),
            np.array([metric.value for metric in history], np.float64),
        )
        for name, history in histories.items()
    }


def attach_samples(tracker: Tracker, model: P2Es, batch: WindowBatch, *, step: int, evaluations: int = 10) -> None:
    """Attach what the model draws of some windows so far, as `samples/step-0001200.png`.

    Parameters
    ----------
    tracker : Tracker
    model : P2Es
        With the averaged weights.
    batch : WindowBatch
        From `p2es.training_plots.fixed_windows`; none draws nothing.
    step : int
    evaluations : int
        Network evaluations a sample.
    """
    if len(batch):
        figure = drawn_samples(model, batch, step=step, evaluations=evaluations)
        tracker.attach(f"samples/step-{step:07d}.png", png(figure))
