"""Call an endpoint: `Client(url).translate(ppg, fs_hz=125)`. Needs neither Ray nor torch nor MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import numpy as np
import requests
from numpy.typing import ArrayLike, NDArray
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import ReadTimeoutError
from urllib3.util import Retry

from p2es.errors import InputError, RemoteError
from p2es.leads import LEADS
from serve.codec import ARROW, JSON, NPY, read_arrow, write_npy
from serve.schema import PARTS, MalformedBodyError

_RETRIED = (429, 500, 502, 503, 504)
_INPUT_AT_FAULT = (400, 413, 415, 422)


@dataclass(frozen=True)
class Answer:
    """A SYNTHETIC 12-lead ECG.

    Attributes
    ----------
    ecg_mv : array (12, 1280) or None
        One draw, millivolt at `fs_hz`, order of `leads`; None when it was not asked for.
    median_mv : array (12, 1280) or None
    band_mv : array (2, 12, 1280) or None
        Limits of the 90 % band; None with fewer than 20 samples.
    heart_rate_bpm : float or None
        From the pulse.
    rhythm : str
        `regular`, `irregular` or `unknown`.
    ppg_quality : float
        0 (noise) to 1 (clean).
    model : mapping
        `name`, `version` and `sha256` of the model that drew it.
    """

    ecg_mv: NDArray[np.float32] | None
    median_mv: NDArray[np.float32] | None
    band_mv: NDArray[np.float32] | None
    heart_rate_bpm: float | None
    rhythm: str
    ppg_quality: float
    fs_hz: float
    seed: int
    model: Mapping[str, str]
    request_id: str
    notice: str
    leads: tuple[str, ...] = LEADS
    synthetic: bool = field(default=True, init=False)

    def plot(self, path: str | Path) -> None:
        """Write the ECG on paper grid, marked SYNTHETIC, as PNG; needs `ecg_mv`."""
        from p2es.plot import paper_ecg, save

        if self.ecg_mv is None:
            raise InputError("there is no ecg_mv to draw: ask for it in `response`")
        title = f"Model {self.model['name']} {self.model['version']}, seed {self.seed}"
        save(paper_ecg(self.ecg_mv, band_mv=self.band_mv, title=title), Path(path))


class _Bearer(AuthBase):
    """Sets the token last, so that a ~/.netrc cannot replace it."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _PatientRetry(Retry):
    """Retries everything but a time-out: who waited `timeout_s` once need not wait four times."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: Any = None,
        error: Exception | None = None,
        _pool: Any = None,
        _stacktrace: Any = None,
    ) -> "_PatientRetry":
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


class Client:
    """A connection to one endpoint.

    Parameters
    ----------
    url : str
        Where it listens.
    token : str, optional
        Its bearer token.
    timeout_s : float
        Longest wait for an answer.
    retries : int
        How often a request is sent again after a fault of the network or a status of 429, 500, 502, 503 or
        504, waiting longer each time. Sending again is safe: the seed makes it the same ECG.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        *,
        timeout_s: float = 60,
        retries: int = 3,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError("the endpoint's URL must look like http://host:8000")
        self._url = url.rstrip("/")
        # Without user and password, should the URL hold them: this goes into messages.
        self._shown = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
        self._timeout_s = timeout_s
        retry = _PatientRetry(
            total=retries,
            backoff_factor=0.3,
            status_forcelist=_RETRIED,
            allowed_methods=None,
            raise_on_status=False,
        )
        self._session = requests.Session()
        self._session.auth = _Bearer(token)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def translate(
        self,
        ppg: ArrayLike,
        *,
        fs_hz: float,
        age_years: float | None = None,
        sex: str | None = None,
        height_cm: float | None = None,
        weight_kg: float | None = None,
        known: Mapping[str, ArrayLike] | None = None,
        samples: int = 20,
        evaluations: int = 10,
        seed: int = 0,
        response: Sequence[str] = PARTS,
    ) -> Answer:
        """Draw a SYNTHETIC ECG.

        Parameters
        ----------
        ppg : array (time,) or (channel, time)
            Twelve seconds, the window and one second on either side, or exactly ten; NaN where nothing was
            recorded. Upright (rising in systole): negate a PPG of light received.
        fs_hz : float
            Rate of `ppg`.
        age_years, sex, height_cm, weight_kg : optional
            What is known of the person; `sex` is "F" or "M".
        known : mapping, optional
            Leads recorded with the PPG: name to 1280 millivolt values at 128 Hz.
        samples, evaluations, seed : int
            ECGs drawn, network evaluations a draw, and the seed.
        response : sequence of str
            Which of `ecg_mv`, `median_mv`, `band_mv` to send back.

        Raises
        ------
        InputError
            When the endpoint cannot use the request; the message says why.
        RemoteError
            When it does not answer, or refuses.
        """
        person = {"age_years": age_years, "sex": sex, "height_cm": height_cm, "weight_kg": weight_kg}
        fields: dict[str, Any] = {name: value for name, value in person.items() if value is not None}
        fields |= {"fs_hz": fs_hz, "samples": samples, "evaluations": evaluations, "seed": seed}
        if known is None:
            query = {name: str(value) for name, value in fields.items()} | {"response": ",".join(response)}
            sent: dict[str, Any] = {"data": write_npy(np.asarray(ppg)), "params": query}
            headers = {"Content-Type": NPY}
        else:
            leads = {name: _with_nulls(samples) for name, samples in known.items()}
            sent = {"json": fields | {"ppg": _with_nulls(ppg), "known": leads, "response": list(response)}}
            headers = {"Content-Type": JSON}
        answer = self._call("POST", "/v1/translate", headers=headers | {"Accept": ARROW}, **sent)
        return _answer(answer.content, self._shown)

    def model(self) -> dict[str, Any]:
        """Tell the `name`, `version` and `sha256` of what answers, and why a newer one was `refused`."""
        found: dict[str, Any] = self._call("GET", "/v1/model").json()
        return found

    def healthy(self) -> bool:
        """Whether the endpoint answers and has a model."""
        try:
            return self._session.get(f"{self._url}/healthz", timeout=min(self._timeout_s, 10)).status_code == 200
        except requests.RequestException:
            return False

    def _call(self, method: str, route: str, **options: Any) -> requests.Response:
        try:
            answer = self._session.request(
                method, self._url + route, timeout=(10, self._timeout_s), allow_redirects=False, **options
            )
        except requests.Timeout:
            raise RemoteError(
                f"{self._shown} did not answer within {self._timeout_s:g} s: try again, or wait longer"
            ) from None
        except requests.ConnectionError:
            raise RemoteError(f"nothing answers at {self._shown}: check the URL and that the endpoint runs") from None
        except requests.RequestException as error:
            raise RemoteError(f"{self._shown} cannot be called ({type(error).__name__}): check the URL") from None
        if answer.status_code != 200:
            self._refuse(answer)
        return answer

    def _refuse(self, answer: requests.Response) -> NoReturn:
        status = answer.status_code
        try:
            message = " ".join(str(answer.json()["message"]).split())[:300]
        except (ValueError, KeyError, TypeError):
            raise RemoteError(f"{self._shown} is not a P2Es endpoint (status {status}): check the URL") from None
        if status == 401:
            raise RemoteError(f"{self._shown} refused the token: {message}")
        if status in _INPUT_AT_FAULT:
            raise InputError(message)
        raise RemoteError(f"{self._shown} answered {status}: {message}")


def _with_nulls(values: ArrayLike) -> list[Any]:
    array = np.asarray(values, np.float64)
    return np.where(np.isnan(array), None, array).tolist()  # type: ignore[call-overload]


def _answer(body: bytes, shown: str) -> Answer:
    try:
        signals, rest = read_arrow(body)
        if rest.pop("synthetic") is not True:
            raise ValueError("synthetic")
        fields: dict[str, Any] = {name: rest[name] for name in Answer.__dataclass_fields__ if name in rest}
        return Answer(**fields | {name: signals.get(name) for name in PARTS})
    except (MalformedBodyError, KeyError, TypeError, ValueError):
        raise RemoteError(f"{shown} did not answer as a P2Es endpoint does: check the URL and the versions") from None
