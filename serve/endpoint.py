"""The Endpoint: HTTP routes, who may call, what may come in, and which status answers what."""

import asyncio
import hashlib
import hmac
import ipaddress
import re
from typing import Any
from uuid import uuid4

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPBearer
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException as StarletteHTTPException

from p2es.errors import ConfigError, InputError
from p2es_platform.settings import Settings
from serve.codec import ARROW, JSON, NPY, read_npy, write_arrow, write_json
from serve.page import content_security_policy, page_html
from serve.sampler import Draw, Drawn, Refused
from serve.schema import (
    NOTICE,
    ErrorResponse,
    MalformedBodyError,
    ModelStatus,
    TranslateRequest,
    TranslateResponse,
    parse_fields,
    parse_json,
)

MAX_BODY_BYTES = 1 << 20
_HEALTH_TIMEOUT_S = 5.0
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")

# Why a window was refused -> the status that answers it.
_REFUSAL_STATUS = {"unusable_input": 422, "model_refused": 422, "no_model": 503, "internal": 500}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The body is not what its content type says.",
        401: "The token is missing or wrong.",
        413: f"The body is larger than {MAX_BODY_BYTES} bytes.",
        415: "The content type is neither JSON nor npy.",
        422: "A field is wrong, or the PPG is too poor to translate.",
        429: "More requests wait than may: retry after the time given.",
        500: "A fault of ours.",
        503: "No model is loaded, or its replica is starting: retry after the time given.",
    }.items()
}
_REQUEST_BODY = {
    "required": True,
    "content": {
        JSON: {"schema": TranslateRequest.model_json_schema()},
        NPY: {"schema": {"type": "string", "format": "binary"}},
    },
}

# For /openapi.json only: `admit` decides.
_BEARER = Depends(HTTPBearer(scheme_name="bearer", auto_error=False))

api = FastAPI(
    title="P2Es",
    summary="A SYNTHETIC 12-lead ECG from a pulse wave.",
    description=f"{NOTICE} With {NPY} the other fields are query parameters; with Accept: {ARROW} the "
    "answer is an Arrow stream.",
    # The pages that FastAPI ships load scripts from elsewhere; /openapi.json stays.
    docs_url=None,
    redoc_url=None,
)


class Problem(Exception):  # noqa: N818 - it is an answer, not a fault
    """An answer other than 200: status, short code, one line."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}


def request_id(request: Request) -> str:
    """Give the id that Serve logs for this request; a fresh one when the caller's is odd."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex


@api.exception_handler(Problem)
async def _answer_problem(request: Request, problem: Problem) -> Response:
    answer = ErrorResponse(error=problem.code, message=problem.message, request_id=request_id(request))
    headers = _HEADERS | problem.headers
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(answer.model_dump_json(), problem.status, headers, JSON)


@api.exception_handler(StarletteHTTPException)
async def _answer_http(request: Request, error: HTTPException) -> Response:
    known = {
        404: ("not_found", "there is no such page: translate with POST /v1/translate"),
        405: ("method_not_allowed", "this page does not answer that method: see /openapi.json"),
    }
    code, message = known.get(error.status_code, ("bad_request", "the request cannot be answered: see /openapi.json"))
    return await _answer_problem(request, Problem(error.status_code, code, message))


@api.exception_handler(Exception)
async def _answer_fault(request: Request, error: Exception) -> Response:
    del error  # Starlette logs it; the caller gets no detail.
    return await _answer_problem(request, Problem(500, "internal", "a fault of ours: quote the request id"))


def is_loopback(host: str | None) -> bool:
    """Whether a host, a name or an address, is this machine and nothing else."""
    if host is None:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def digest(token: str) -> str:
    """Hash a token: configurations carry the hash, since Ray shows them to whoever may see its dashboard."""
    return hashlib.sha256(token.encode()).hexdigest()


def admit(request: Request, token_sha256: str | None) -> None:
    """Let a request through or raise Problem 401.

    Without a token only this machine is answered: whoever binds the endpoint to the network and forgets the
    token gets an endpoint that refuses, not an open one.
    """
    if token_sha256 is None:
        if not is_loopback(request.client.host if request.client else None):
            raise Problem(401, "no_token_set", "the endpoint has no token and answers its own machine only: set one")
        return
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(digest(token.strip()), token_sha256):
        raise Problem(401, "unauthorized", "the token is missing or wrong: send Authorization: Bearer <token>")


async def read_body(request: Request) -> bytes:
    """Read the body, never more than `MAX_BODY_BYTES` of it; raises Problem 413."""
    too_large = Problem(413, "too_large", f"the body is larger than {MAX_BODY_BYTES} bytes: send one window a request")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > 9 or int(declared) > MAX_BODY_BYTES):
        raise too_large
    parts, total = [], 0
    async for part in request.stream():
        total += len(part)
        if total > MAX_BODY_BYTES:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def parse(content_type: str, body: bytes, query: dict[str, str]) -> TranslateRequest:
    """Read a request in either form; raises Problem 400, 415 or 422."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (JSON, NPY):
        raise Problem(415, "unsupported_media_type", f"the content type must be {JSON} or {NPY}")
    try:
        return parse_json(body) if kind == JSON else parse_fields(read_npy(body), query)
    except MalformedBodyError as error:
        raise Problem(400, "malformed_body", str(error)) from None
    except InputError as error:
        raise Problem(422, "invalid_input", str(error)) from None


def to_draw(asked: TranslateRequest) -> Draw:
    """Give the window to draw."""
    return Draw(
        ppg=asked.window(),
        fs_hz=asked.fs_hz,
        person=asked.demographics(),
        known=asked.known,
        samples=asked.samples,
        evaluations=asked.evaluations,
        seed=asked.seed,
    )


def encode(asked: TranslateRequest, drawn: Drawn, accept: str, the_id: str) -> Response:
    """Write the answer in the form asked for."""
    head = TranslateResponse(
        heart_rate_bpm=drawn.heart_rate_bpm,
        rhythm=drawn.rhythm,
        ppg_quality=drawn.ppg_quality,
        samples=asked.samples,
        evaluations=asked.evaluations,
        seed=asked.seed,
        model=drawn.model,
        request_id=the_id,
    )
    signals: dict[str, NDArray[np.float32]] = {
        name: getattr(drawn, name) for name in asked.response if getattr(drawn, name) is not None
    }
    headers = _HEADERS | {"X-Synthetic": "true"}
    if ARROW in accept.lower():
        return Response(write_arrow(head, signals), headers=headers, media_type=ARROW)
    return Response(write_json(head, signals), headers=headers, media_type=JSON)


# Above the class: decorating pickles its routes by value, with the names that are there by then.
async def _awaited(response: Any) -> Any:
    """Make a coroutine of Serve's response, which `asyncio.wait_for` asks for."""
    return await response


@serve.deployment(max_ongoing_requests=64, max_queued_requests=128, graceful_shutdown_timeout_s=30)
@serve.ingress(api)
class Endpoint:
    """Checks requests, hands them to the Sampler, writes answers.

    Parameters
    ----------
    sampler : DeploymentHandle
    token_sha256 : str or None
        Hash of the bearer token; None takes `P2ES_ENDPOINT_TOKEN` of the replica's environment, if set.
    require_token : bool
        Refuse to start without a token: for deployments that listen to a network.
    timeout_s : float
        How long a request may wait for its draw.
    """

    def __init__(
        self, sampler: DeploymentHandle, token_sha256: str | None, require_token: bool, timeout_s: float
    ) -> None:
        self._sampler = sampler
        self._timeout_s = timeout_s
        token = Settings.model_validate({}).endpoint_token
        self._token_sha256 = token_sha256 or (digest(token.get_secret_value()) if token else None)
        if require_token and self._token_sha256 is None:
            raise ConfigError("set P2ES_ENDPOINT_TOKEN: this deployment listens to a network")

    @api.post(
        "/v1/translate",
        response_model=None,
        responses={200: {"model": TranslateResponse, "content": {ARROW: {}}}, **_ERRORS},
        openapi_extra={"requestBody": _REQUEST_BODY},
        dependencies=[_BEARER],
    )
    async def translate(self, request: Request) -> Response:
        """Draw a SYNTHETIC 12-lead ECG for one window of PPG."""
        admit(request, self._token_sha256)
        body = await read_body(request)
        query = dict(request.query_params)
        asked = await asyncio.to_thread(parse, request.headers.get("content-type", ""), body, query)
        drawn = await self._draw(to_draw(asked))
        return await asyncio.to_thread(encode, asked, drawn, request.headers.get("accept", ""), request_id(request))

    @api.get("/v1/model", responses={k: _ERRORS[k] for k in (401, 503)}, dependencies=[_BEARER])
    async def model(self, request: Request) -> ModelStatus:
        """Tell which version answers, and why the last one handed over was refused, if it was."""
        admit(request, self._token_sha256)
        status = await self._status()
        if status is None:
            raise Problem(503, "no_model", "the endpoint has no model yet: promote one", retry_after_s=5)
        return status

    @api.get("/healthz", responses={503: _ERRORS[503]})
    async def healthy(self) -> dict[str, str]:
        """Say ok when a model is loaded."""
        if await self._status() is None:
            raise Problem(503, "no_model", "the endpoint has no model yet: promote one", retry_after_s=5)
        return {"status": "ok"}

    @api.get("/", include_in_schema=False)
    async def page(self) -> Response:
        """Give the page that tries the endpoint out."""
        headers = _HEADERS | {"Content-Security-Policy": content_security_policy()}
        return Response(page_html(), headers=headers, media_type="text/html; charset=utf-8")

    async def _status(self) -> ModelStatus | None:
        try:
            return await asyncio.wait_for(_awaited(self._sampler.status.remote()), _HEALTH_TIMEOUT_S)
        except (
            TimeoutError,
            RayActorError,
            BackPressureError,
            DeploymentUnavailableError,
            ReplicaUnavailableError,
        ):
            raise Problem(503, "unavailable", "the model does not answer: retry", retry_after_s=2) from None

    async def _draw(self, draw: Draw) -> Drawn:
        for last in (False, True):
            try:
                result = await asyncio.wait_for(_awaited(self._sampler.draw.remote(draw)), self._timeout_s)
                break
            except BackPressureError:
                raise Problem(429, "busy", "more requests wait than may: retry", retry_after_s=1) from None
            except TimeoutError:
                raise Problem(
                    503, "too_slow", "the draw took too long: ask for fewer samples", retry_after_s=5
                ) from None
            except (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError):
                # Drawing again is safe: the seed makes it the same ECG. Serve does not retry by itself.
                if last:
                    raise Problem(503, "unavailable", "the model is starting: retry", retry_after_s=2) from None
        if isinstance(result, Refused):
            status = _REFUSAL_STATUS[result.code]
            raise Problem(status, result.code, result.message, retry_after_s=5 if status == 503 else None)
        return result
