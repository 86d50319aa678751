"""Load a model folder for serving: the right class, the right bytes, and a first draw that shows it works."""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from p2es.demographics import Demographics
from p2es.errors import ModelError
from p2es.leads import LEADS, N_LEADS, law_residuals
from p2es.translator import Translation, Translator
from p2es.windows import ECG_SAMPLES, MARGIN_S, WINDOW_S
from serve.schema import ModelInfo

# A name in config.json chooses from this list and nothing else: a model folder must not name code to run.
_TRANSLATORS = {"p2es": ("p2es.model", "P2Es")}
_LAW_TOLERANCE_MV = 1e-3


class ModelChoice(BaseModel):
    """Which model to serve: the `user_config` of the Sampler."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str | None = None
    """A model folder that every replica can read."""
    model_uri: str | None = None
    """A version in the MLflow registry, `models:/p2es/7`; an alias would let replicas diverge."""
    version: str = "unregistered"
    sha256: str | None = None
    """What the folder must hash to; always given when it comes from the registry."""

    @model_validator(mode="after")
    def _one_source(self) -> "ModelChoice":
        if (self.folder is None) == (self.model_uri is None):
            raise ValueError("give either folder or model_uri")
        if self.model_uri is not None and "@" in self.model_uri:
            raise ValueError("model_uri must name a version, such as models:/p2es/7, not an alias")
        return self


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to draw, and what it is."""

    translator: Translator
    info: ModelInfo


def load_translator(folder: Path) -> Translator:
    """Load the Translator that wrote `folder`.

    Raises
    ------
    ModelError
        When the folder holds no model, or one of a kind that this version does not know.
    """
    try:
        name = json.loads((folder / "config.json").read_text())["name"]
    except OSError:
        raise ModelError(f"there is no model in {folder.name}: config.json is missing") from None
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"the model in {folder.name} is corrupt: config.json does not name it") from None
    if not isinstance(name, str) or name not in _TRANSLATORS:
        raise ModelError(f"the model in {folder.name} is of a kind this p2es cannot serve: update p2es")
    module, kind = _TRANSLATORS[name]
    translator = getattr(import_module(module), kind)
    return cast(Translator, translator.load(folder, _device()))


def _device() -> str:
    """Give the GPU that Ray lent to this replica, if it did: without `num_gpus` Ray hides them all."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(choice: ModelChoice) -> LoadedModel:
    """Fetch, verify, load and try a model.

    Raises
    ------
    ModelError
        When it is missing, its bytes are not the promised ones, or its first draw is not an ECG.
    """
    # Inside, since it brings MLflow along, which the schema's and the client's users need not have.
    from p2es_platform.registry import folder_sha256

    folder, version, promised = _locate(choice)
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder.name} on this machine: check the path")
    found = folder_sha256(folder)
    if promised is not None and found != promised:
        raise ModelError(f"the model {version} hashes to {found[:12]}, not to the promised {promised[:12]}: refused")
    translator = load_translator(folder)
    warm_up(translator)
    return LoadedModel(translator, ModelInfo(name=translator.name, version=version, sha256=found))


def _locate(choice: ModelChoice) -> tuple[Path, str, str | None]:
    if choice.folder is not None:
        return Path(choice.folder), choice.version, choice.sha256
    from p2es_platform.registry import resolve

    assert choice.model_uri is not None
    resolved = resolve(choice.model_uri)
    if choice.sha256 is not None and choice.sha256 != resolved.sha256:
        raise ModelError(f"version {resolved.version} is not the model that was promised by its sha256: refused")
    return Path(resolved.folder), str(resolved.version), resolved.sha256


def example_ppg(fs_hz: float = 125.0, *, heart_rate_bpm: float = 72.0, seed: int = 0) -> NDArray[np.float32]:
    """Give twelve seconds of a plain pulse wave, (1, time): for warm-up, the page's example and trying out.

    A pulse is two Gaussians on the phase of the beat, the systolic and the dicrotic wave; rates vary by 2 %
    from beat to beat, and there is noise of 1 %. `p2es.simulator` makes realistic ones.
    """
    rng = np.random.default_rng(seed)
    duration_s = WINDOW_S + 2 * MARGIN_S
    beats_s = np.cumsum(60 / heart_rate_bpm * (1 + 0.02 * rng.standard_normal(int(duration_s * 4)))) - 1
    phase = np.interp(np.arange(round(duration_s * fs_hz)) / fs_hz, beats_s, np.arange(beats_s.size)) % 1
    systolic = np.exp(-0.5 * ((phase - 0.25) / 0.09) ** 2)
    dicrotic = 0.35 * np.exp(-0.5 * ((phase - 0.58) / 0.1) ** 2)
    noise = 0.01 * rng.standard_normal(phase.size)
    return (systolic + dicrotic + noise).astype(np.float32)[None]


def warm_up(translator: Translator) -> None:
    """Draw once, so that the first user does not wait, and check that what comes is an ECG.

    Raises
    ------
    ModelError
        When the draw fails, is not finite, has a wrong shape or breaks the lead laws.
    """
    try:
        drawn = translator.sample(
            example_ppg()[None], [Demographics()], fs_hz=125.0, samples=1, evaluations=1, seeds=[0]
        )
    except Exception as error:
        raise ModelError(f"the model's first draw failed ({type(error).__name__}): it cannot be served") from error
    check_drawn(drawn[0])


def check_drawn(drawn: Translation) -> None:
    """Raise ModelError unless a draw is finite, of the right shape and follows the lead laws."""
    if drawn.ecg_mv.shape[1:] != (N_LEADS, ECG_SAMPLES):
        raise ModelError(f"the model drew {drawn.ecg_mv.shape[1:]} instead of {(len(LEADS), ECG_SAMPLES)}")
    if not (np.isfinite(drawn.ecg_mv).all() and np.isfinite(drawn.median_mv).all()):
        raise ModelError("the model drew values that are not finite")
    if np.abs(law_residuals(drawn.ecg_mv)).max() > _LAW_TOLERANCE_MV:
        raise ModelError("the model drew leads that break the lead laws")
