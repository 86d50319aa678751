"""What goes over the wire: the request, the answer and the error of `POST /v1/translate`."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from p2es.demographics import CAPPED_AGE_YEARS, Demographics, Sex
from p2es.errors import InputError
from p2es.leads import LEADS, N_LEADS, canonical_lead
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_S, WINDOW_S

NOTICE = "SYNTHETIC: drawn by a model from a pulse wave. Not a recording of a heart. Not for diagnosis."

FULL_S = WINDOW_S + 2 * MARGIN_S
MAX_CHANNELS = 4
MAX_ABSOLUTE_PPG = 1e9
MAX_ABSOLUTE_ECG_MV = 20.0
MAX_SAMPLES = 32
MAX_EVALUATIONS = 100

Part = Literal["ecg_mv", "median_mv", "band_mv"]
PARTS: tuple[Part, ...] = ("ecg_mv", "median_mv", "band_mv")


def _numbers(values: object, name: str, bound: float) -> NDArray[np.float32]:
    """Turn a list of numbers and nulls into float32 with NaN for null."""
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list of numbers, null where nothing was recorded")
    # bool is a kind of int in Python, and True is not a pulse.
    if any(value is not None and (isinstance(value, bool) or not isinstance(value, int | float)) for value in values):
        raise ValueError(f"{name} must hold only numbers, null where nothing was recorded")
    if any(value is not None and not abs(value) <= bound for value in values):
        raise ValueError(f"{name} must be finite and within +-{bound:g}; null where nothing was recorded")
    return np.array([math.nan if value is None else value for value in values], dtype=np.float32)


def check_ppg(ppg: NDArray[np.floating]) -> NDArray[np.float32]:
    """Check a PPG array and give it the shape (channel, time).

    Raises
    ------
    ValueError
        For a wrong shape, more than `MAX_CHANNELS` channels or a value that is infinite or beyond the bound.
    """
    channels = np.atleast_2d(ppg)
    if channels.ndim != 2 or not 1 <= len(channels) <= MAX_CHANNELS or channels.shape[1] == 0:
        raise ValueError(f"ppg must be one list of samples, or up to {MAX_CHANNELS} channels of equal length")
    # NaN passes on purpose: it marks what was not recorded.
    if bool((np.abs(channels) > MAX_ABSOLUTE_PPG).any()):
        raise ValueError(f"ppg must be finite and within +-{MAX_ABSOLUTE_PPG:g}")
    return channels.astype(np.float32)


def _parse_ppg(value: object) -> NDArray[np.float32]:
    if isinstance(value, np.ndarray):
        return check_ppg(value)
    if isinstance(value, list) and value and all(isinstance(row, list) for row in value):
        if len(value) > MAX_CHANNELS or len({len(row) for row in value}) != 1:
            raise ValueError(f"ppg must be one list of samples, or up to {MAX_CHANNELS} channels of equal length")
        return check_ppg(np.stack([_numbers(row, "ppg", MAX_ABSOLUTE_PPG) for row in value]))
    return check_ppg(_numbers(value, "ppg", MAX_ABSOLUTE_PPG))


def _parse_known(value: object) -> NDArray[np.float32] | None:
    """Turn {lead: samples} into (12, 1280) with NaN for leads to generate."""
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise ValueError("known must map lead names to millivolts, for example {'I': [...]}")
    known = np.full((N_LEADS, ECG_SAMPLES), np.nan, np.float32)
    seen = set()
    for name, samples in value.items():
        lead = canonical_lead(str(name))
        if lead is None or lead in seen:
            raise ValueError(f"known holds a lead that is not one of {', '.join(LEADS)}, or one twice")
        row = _numbers(samples, f"known lead {lead}", MAX_ABSOLUTE_ECG_MV)
        if row.size != ECG_SAMPLES:
            raise ValueError(f"known lead {lead} must have {ECG_SAMPLES} samples: {WINDOW_S:g} s at {FS_HZ:g} Hz")
        known[LEADS.index(lead)] = row
        seen.add(lead)
    return known


def _parse_age(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"age_years must be a number: write {CAPPED_AGE_YEARS:g} for anyone above 89")
    return value


_SAMPLES_SCHEMA = {"type": "array", "items": {"type": ["number", "null"]}, "minItems": 1}
_Ppg = Annotated[
    Any,
    PlainValidator(_parse_ppg),
    WithJsonSchema({"anyOf": [_SAMPLES_SCHEMA, {"type": "array", "items": _SAMPLES_SCHEMA, "maxItems": MAX_CHANNELS}]}),
]
_Known = Annotated[
    Any,
    PlainValidator(_parse_known),
    WithJsonSchema(
        {
            "type": ["object", "null"],
            "propertyNames": {"enum": list(LEADS)},
            "additionalProperties": _SAMPLES_SCHEMA,
        }
    ),
]


class TranslateRequest(BaseModel):
    """One window of PPG and what is known of the person."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    ppg: _Ppg = Field(
        description=f"{FULL_S:g} s of PPG: the {WINDOW_S:g} s to translate and {MARGIN_S:g} s on either side "
        f"(or exactly {WINDOW_S:g} s, which costs the first and last beat some certainty). One list, or a "
        "list of channels. Any unit, upright (rising in systole). null where nothing was recorded."
    )
    fs_hz: float = Field(ge=25, le=1000, description="Samples a second of the PPG.")
    age_years: Annotated[float | None, BeforeValidator(_parse_age)] = Field(default=None, ge=0, le=120)
    sex: Literal["F", "M"] | None = None
    height_cm: float | None = Field(default=None, ge=50, le=250)
    weight_kg: float | None = Field(default=None, ge=20, le=350)
    known: _Known = Field(
        default=None,
        description=f"Leads recorded with the PPG: name to {ECG_SAMPLES} mV values at {FS_HZ:g} Hz.",
    )
    samples: int = Field(20, ge=1, le=MAX_SAMPLES, description="ECGs drawn; the band needs at least 20.")
    evaluations: int = Field(10, ge=1, le=MAX_EVALUATIONS, description="Network evaluations a draw.")
    seed: int = Field(0, ge=0, lt=2**63, description="The same request with the same seed gives the same ECG.")
    response: list[Part] = Field(list(PARTS), min_length=1, description="Which signals to answer with.")

    @model_validator(mode="after")
    def _check_length(self) -> "TranslateRequest":
        seconds = self.ppg.shape[1] / self.fs_hz
        # One sample of slack: devices count 12 s differently when the rate is not a whole number.
        if not any(abs(self.ppg.shape[1] - s * self.fs_hz) <= 1.0 for s in (FULL_S, WINDOW_S)):
            raise ValueError(
                f"ppg lasts {seconds:.2f} s at the fs_hz given: send {FULL_S:g} s, the {WINDOW_S:g} s window "
                f"and {MARGIN_S:g} s on either side, or exactly {WINDOW_S:g} s"
            )
        return self

    def window(self) -> NDArray[np.float32]:
        """Give the PPG as exactly twelve seconds, (channel, round(12 fs_hz)); margins not sent are NaN."""
        expected = round(FULL_S * self.fs_hz)
        got = self.ppg.shape[1]
        window = np.full((len(self.ppg), expected), np.nan, np.float32)
        start = 0 if abs(got - FULL_S * self.fs_hz) <= 1.0 else round(MARGIN_S * self.fs_hz)
        stop = min(start + got, expected)
        window[:, start:stop] = self.ppg[:, : stop - start]
        return window

    def demographics(self) -> Demographics:
        """Give the person; ages above 89 become one group, as they are in the training data."""
        age = self.age_years
        return Demographics(
            age_years=None if age is None else (CAPPED_AGE_YEARS if age > 89 else age),
            sex=None if self.sex is None else Sex(self.sex),
            height_cm=self.height_cm,
            weight_kg=self.weight_kg,
        )


class ModelInfo(BaseModel):
    """The one resolved version that made an answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str
    sha256: str


class ModelStatus(ModelInfo):
    """What serves now, and what was refused last."""

    refused: str | None = Field(
        default=None, description="Why the last version handed over was not taken; null if it was."
    )


_Lead = list[float]


class TranslateResponse(BaseModel):
    """One SYNTHETIC 12-lead ECG with its band."""

    model_config = ConfigDict(extra="forbid")

    synthetic: Literal[True] = True
    notice: str = NOTICE
    leads: tuple[str, ...] = LEADS
    fs_hz: float = FS_HZ
    ecg_mv: list[_Lead] | None = Field(default=None, description="One draw, 12 x 1280 mV; null if not asked for.")
    median_mv: list[_Lead] | None = Field(
        default=None, description="Pointwise median of the draws, smoother than a real ECG."
    )
    band_mv: list[list[_Lead]] | None = Field(
        default=None,
        description="Lower and upper limit of the 90 % band, 2 x 12 x 1280; null with fewer than 20 samples.",
    )
    heart_rate_bpm: float | None = Field(description="From the pulse; null when no pulse was found.")
    rhythm: str = Field(description="What the pulse tells of the rhythm: regular, irregular or unknown.")
    ppg_quality: float = Field(description="0 (noise) to 1 (clean).")
    samples: int
    evaluations: int
    seed: int
    model: ModelInfo
    request_id: str


class ErrorResponse(BaseModel):
    """What went wrong, in one line; the input is never repeated."""

    model_config = ConfigDict(extra="forbid")

    error: str = Field(description="A short code, the same for the same mistake.")
    message: str
    request_id: str


def _place(location: Sequence[int | str]) -> str:
    """Name the field of a pydantic error; names that the user made up are left out."""
    fields = set(TranslateRequest.model_fields)
    return next((str(part) for part in location if part in fields), "the request")


def explain(error: ValidationError) -> str:
    """Say in one line what is wrong with a request, without repeating any of it."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "extra_forbidden":
        return f"the request has an unknown field: the fields are {', '.join(TranslateRequest.model_fields)}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "missing":
        return f"{_place(first['loc'])} is missing"
    reason = first["msg"].splitlines()[0]
    return f"{_place(first['loc'])}: {reason[:1].lower()}{reason[1:]}"


class MalformedBodyError(InputError):
    """A body that is not what its content type says it is."""


def parse_json(body: bytes) -> TranslateRequest:
    """Read a JSON body.

    Raises
    ------
    MalformedBodyError
        When it is not JSON.
    InputError
        With one line that says what is wrong.
    """
    try:
        return TranslateRequest.model_validate_json(body)
    except ValidationError as error:
        if error.errors(include_input=False)[0]["type"] == "json_invalid":
            raise MalformedBodyError("the body is not valid JSON: check the content type and the encoding") from None
        raise InputError(explain(error)) from None


def parse_fields(ppg: NDArray[np.floating], fields: Mapping[str, str]) -> TranslateRequest:
    """Join a PPG array with fields that came as text (query parameters); `response` is comma-separated.

    Raises
    ------
    InputError
        With one line that says what is wrong.
    """
    values: dict[str, object] = {"ppg": ppg, **fields}
    if "response" in fields:
        values["response"] = fields["response"].split(",")
    try:
        # Text has no types: strictness stays with JSON, which has them.
        return TranslateRequest.model_validate(_typed(values), strict=True)
    except ValidationError as error:
        raise InputError(explain(error)) from None


def _typed(values: Mapping[str, object]) -> dict[str, object]:
    """Turn the text of number fields into numbers where it is one; what is not is left to the validation."""
    kinds = {"samples": int, "evaluations": int, "seed": int}
    kinds |= dict.fromkeys(("fs_hz", "age_years", "height_cm", "weight_kg"), float)  # type: ignore[arg-type]
    typed = dict(values)
    for name in kinds.keys() & values.keys():
        try:
            typed[name] = kinds[name](str(values[name]))
        except ValueError:
            typed[name] = values[name]
    return typed
