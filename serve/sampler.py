"""The Sampler: replicas that hold one model version and draw in batches."""

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from ray import serve
from ray.serve.metrics import Counter

from p2es.demographics import Demographics
from p2es.errors import InputError, ModelError, P2EsError
from p2es.translator import Translation
from serve.models import LoadedModel, ModelChoice, check_drawn, load_model
from serve.schema import ModelInfo, ModelStatus

_log = logging.getLogger("ray.serve")

MAX_BATCH = 8
BATCH_WAIT_S = 0.01


@dataclass(frozen=True)
class Draw:
    """One window to draw.

    Attributes
    ----------
    ppg : array (channel, time)
        Twelve seconds at `fs_hz`, NaN where nothing was recorded.
    known : array (12, 1280) or None
    """

    ppg: NDArray[np.float32]
    fs_hz: float
    person: Demographics
    known: NDArray[np.float32] | None
    samples: int
    evaluations: int
    seed: int

    @property
    def group(self) -> tuple[object, ...]:
        """What must be equal for two windows to be drawn in one call."""
        return self.ppg.shape, self.fs_hz, self.known is None, self.samples, self.evaluations


@dataclass(frozen=True)
class Drawn:
    """What is sent back: one draw, not all of them, since 20 draws are 1.2 MB."""

    ecg_mv: NDArray[np.float32]
    median_mv: NDArray[np.float32]
    band_mv: NDArray[np.float32] | None
    heart_rate_bpm: float | None
    rhythm: str
    ppg_quality: float
    model: ModelInfo


@dataclass(frozen=True)
class Refused:
    """Why a window was not drawn.

    It is returned, not raised: an exception would reach every request of the batch, and Ray would put a
    traceback in its text.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Decision:
    """What a replica made of the last `user_config` it got; `refused` says why it did not take it."""

    user_config: dict[str, Any] | None
    refused: str | None


def draw_batch(model: LoadedModel, draws: Sequence[Draw]) -> list[Drawn | Refused]:
    """Draw windows, those alike in one call; each result is what the window alone would give."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for row, draw in enumerate(draws):
        groups[draw.group].append(row)
    results: dict[int, Drawn | Refused] = {}
    for rows in groups.values():
        results |= dict(zip(rows, _draw_group(model, [draws[row] for row in rows]), strict=True))
    return [results[row] for row in range(len(draws))]


def _draw_group(model: LoadedModel, draws: Sequence[Draw]) -> list[Drawn | Refused]:
    try:
        drawn = _call(model, draws)
        for translation in drawn:
            check_drawn(translation)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not reach the batch's other requests
        if len(draws) > 1:
            # One poor window fails the call: draw each alone, so that only the poor one is refused.
            return [result for draw in draws for result in _draw_group(model, [draw])]
        return [_refusal(error)]
    return [_slim(translation, model.info) for translation in drawn]


def _refusal(error: Exception) -> Refused:
    if isinstance(error, InputError):
        return Refused("unusable_input", str(error))
    if isinstance(error, ModelError):
        return Refused("model_refused", str(error))
    _log.error("a draw failed", exc_info=error)
    return Refused("internal", "the draw failed by a fault of ours: quote the request id")


def _call(model: LoadedModel, draws: Sequence[Draw]) -> list[Translation]:
    first = draws[0]
    known = None if first.known is None else np.stack([draw.known for draw in draws if draw.known is not None])
    return model.translator.sample(
        np.stack([draw.ppg for draw in draws]),
        [draw.person for draw in draws],
        fs_hz=first.fs_hz,
        known=known,
        samples=first.samples,
        evaluations=first.evaluations,
        seeds=[draw.seed for draw in draws],
    )


def _slim(translation: Translation, info: ModelInfo) -> Drawn:
    rate = translation.heart_rate_bpm
    return Drawn(
        ecg_mv=translation.ecg_mv[0],
        median_mv=translation.median_mv,
        band_mv=translation.band_mv,
        heart_rate_bpm=float(rate) if math.isfinite(rate) else None,
        rhythm=translation.rhythm,
        ppg_quality=float(translation.ppg_quality),
        model=info,
    )


@serve.deployment(
    max_ongoing_requests=2 * MAX_BATCH,
    max_queued_requests=64,
    health_check_period_s=10,
    health_check_timeout_s=30,
    graceful_shutdown_timeout_s=30,
)
class Sampler:
    """Holds one model version; a new `user_config` swaps it without dropping a request."""

    def __init__(self) -> None:
        self._model: LoadedModel | None = None
        self._serving: dict[str, Any] | None = None
        self._last: Decision = Decision(None, None)
        self._refused: str | None = None
        self._drawn = Counter("p2es_windows", description="Windows drawn or refused.", tag_keys=("version", "result"))

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load, verify, warm and swap; whatever fails, the model that serves goes on serving.

        Raises
        ------
        ModelError
            Only when there is no model to go on with: the replica then does not start.
        """
        if user_config == self._serving:
            # Told to go back to what it never left; why the other was refused is still worth telling.
            self._last = Decision(user_config, None)
            return
        try:
            choice = ModelChoice.model_validate(user_config)
            # In a thread: the requests under way go on with the old model while the new one loads.
            model = await asyncio.to_thread(load_model, choice)
        except (P2EsError, ValidationError) as error:
            self._refused = _one_line(error)
            self._last = Decision(user_config, self._refused)
            _log.error("model refused: %s", self._refused)
            if self._model is None:
                raise ModelError(self._refused) from None
            return
        self._model, self._serving, self._refused = model, user_config, None
        self._last = Decision(user_config, None)
        _log.info("serving model %s, sha256 %s", model.info.version, model.info.sha256)

    def status(self) -> ModelStatus | None:
        """Tell what serves and what was refused last; None before the first model."""
        if self._model is None:
            return None
        return ModelStatus(**self._model.info.model_dump(), refused=self._refused)

    def decision(self) -> Decision:
        """Tell which configuration this replica considered last, and what came of it."""
        return self._last

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def draw(self, draws: list[Draw]) -> list[Drawn | Refused]:
        """Draw a batch, off the event loop so that health checks are answered meanwhile."""
        model = self._model
        if model is None:
            return [Refused("no_model", "the endpoint has no model yet: promote one")] * len(draws)
        results = await asyncio.to_thread(draw_batch, model, draws)
        for result in results:
            outcome = result.code if isinstance(result, Refused) else "drawn"
            self._drawn.inc(1, {"version": model.info.version, "result": outcome})
        return results


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"the Sampler's user_config is wrong: {first['msg']}"
    return str(error).splitlines()[0]
