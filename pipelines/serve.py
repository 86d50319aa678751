"""The stage `serve`: run the endpoint in the current Ray, swap its model, take it down."""

import contextlib
import copy
import io
import logging
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import ServeDeploySchema

from p2es.errors import ConfigError, ModelError, RemoteError
from p2es_platform.settings import Settings
from pipelines.recipes import ServeConfig
from serve.endpoint import digest, is_loopback
from serve.models import ModelChoice
from serve.sampler import Decision

APPLICATION = "p2es"
_START_TIMEOUT_S = 180.0
_POLL_S = 0.25
_LAST_WORDS_S = 1.0
# Serve answers 408 after this; a draw of 20 samples takes seconds.
_REQUEST_TIMEOUT_S = 120.0


@dataclass
class Running:
    """An endpoint that runs.

    Attributes
    ----------
    url : str
        Where it answers.
    token : str or None
        The bearer token that it asks for.
    """

    url: str
    token: str | None = field(repr=False)
    _config: dict[str, Any] = field(repr=False)

    def swap(self, *, folder: str, version: str, sha256: str) -> None:
        """Hand another version to the running replicas; requests under way end with the old one.

        Returns when every replica has taken it.

        Raises
        ------
        ModelError
            When a replica refused it; the version before goes on serving, in all of them.
        RemoteError
            When the replicas do not decide in time.
        """
        config = copy.deepcopy(self._config)
        choice = ModelChoice(folder=folder, version=version, sha256=sha256).model_dump()
        _sampler(config)["user_config"] = choice
        reason = _decide(config)
        if reason is not None:
            # A replica that starts later must not meet the refused version: it has no older one to keep.
            _decide(self._config)
            raise ModelError(f"version {version} was not taken, the one before goes on serving: {reason}")
        self._config = config


def _decide(config: dict[str, Any]) -> str | None:
    """Deploy a configuration, wait until every replica decided, and give the reason of one that refused."""
    _deploy(config)
    wanted = _sampler(config)["user_config"]
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        decisions = _decisions()
        if decisions and all(decision.user_config == wanted for decision in decisions):
            return next((decision.refused for decision in decisions if decision.refused), None)
        time.sleep(_POLL_S)
    raise RemoteError(f"the replicas did not take the model within {_START_TIMEOUT_S:g} s: see `serve status`")


def _decisions() -> list[Decision]:
    sampler = serve.get_deployment_handle("Sampler", APPLICATION)
    try:
        decisions: list[Decision] = sampler.broadcast("decision").results(timeout_s=30)
    except (DeploymentUnavailableError, RayActorError):
        # A replica takes no calls while it is reconfigured: 0.1 s and the time the model takes to load.
        return []
    return decisions


def _sampler(config: dict[str, Any]) -> dict[str, Any]:
    deployments: list[dict[str, Any]] = config["applications"][0]["deployments"]
    return next(deployment for deployment in deployments if deployment["name"] == "Sampler")


def configuration(choice: ModelChoice, options: ServeConfig, *, token_sha256: str | None) -> dict[str, Any]:
    """Give the Serve configuration of the application: the form that `serve deploy` and KubeRay take too.

    The model is the Sampler's `user_config`, not an argument: a changed argument would replace the replicas.
    """
    args = {
        "min_replicas": options.min_replicas,
        "max_replicas": options.max_replicas,
        "gpus_per_replica": options.gpus_per_replica,
        "token_sha256": token_sha256,
    }
    return {
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "serve.app:build",
                "args": args,
                "runtime_env": _own_code(),
                "deployments": [{"name": "Sampler", "user_config": choice.model_dump()}],
            }
        ]
    }


def _own_code() -> dict[str, Any]:
    """Give the code this process got from Ray (`p2es submit` ships it as working_dir), for the replicas to find too."""
    shipped = ray.get_runtime_context().runtime_env.get("working_dir")
    return {"working_dir": shipped} if shipped else {}


def _deploy(config: dict[str, Any]) -> None:
    # The call behind `serve deploy`: a configuration swaps a changed user_config in place, `serve.run`
    # replaces the replicas. Ray offers it publicly over the dashboard alone, which a local Ray need not have.
    from ray.serve.context import _get_global_client

    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))


def _wait_until_running() -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        application = serve.status().applications.get(APPLICATION)
        state = "" if application is None else str(application.status.value)
        if state == "RUNNING":
            return
        if application is not None and state in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise RemoteError(f"the endpoint did not start: {_last_line(application.message)}")
        time.sleep(_POLL_S)
    raise RemoteError(
        f"the endpoint did not start within {_START_TIMEOUT_S:g} s: `serve status` tells what it waits for"
    )


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "Serve gave no reason, its log has it"


def _check(settings: Settings, host: str, choice: ModelChoice, options: ServeConfig) -> None:
    """Refuse early what Serve would only fail on after minutes."""
    from p2es_platform.registry import folder_sha256

    if not is_loopback(host) and settings.endpoint_token is None:
        raise ConfigError(f"set P2ES_ENDPOINT_TOKEN before listening on {host}: without it anyone could call")
    if options.gpus_per_replica > ray.cluster_resources().get("GPU", 0):
        raise ConfigError("the recipe asks for a GPU a replica and this Ray has none: set serve.gpus_per_replica to 0")
    folder = Path(choice.folder or "")
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder.name}: train or promote a model first")
    if choice.sha256 is not None and folder_sha256(folder) != choice.sha256:
        raise ModelError(f"the model in {folder.name} is not the one promoted (its sha256 differs): fetch it again")


def free_port(host: str) -> int:
    """Give a port that nothing listens on just now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As servers do: a port that only waits for old connections to die is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise ConfigError(f"port {port} of {host} is taken: set P2ES_ENDPOINT to another one") from None


@contextmanager
def start(
    settings: Settings,
    *,
    folder: str,
    version: str,
    sha256: str | None,
    port: int | None = None,
    options: ServeConfig | None = None,
) -> Iterator[Running]:
    """Run the endpoint in the current Ray until the block ends.

    Parameters
    ----------
    settings : Settings
        `endpoint` gives host and port, `endpoint_token` the token.
    folder, version, sha256 : str
        The model: its folder, the name answers give it, and what the folder must hash to.
    port : int, optional
        Instead of the one in `settings`; 0 takes a free one.
    options : ServeConfig, optional
        Replicas and GPUs.

    Raises
    ------
    ConfigError
        For a port that is taken, GPUs that are not there, or a network address without a token.
    ModelError
        When the model is missing or not the promised one.
    RemoteError
        When Serve does not come up.
    """
    where = urlsplit(settings.endpoint)
    host = where.hostname or "127.0.0.1"
    port = where.port or 8000 if port is None else port
    options = options or ServeConfig()
    choice = ModelChoice(folder=str(Path(folder).resolve()), version=version, sha256=sha256)
    _check(settings, host, choice, options)
    port = port or free_port(host)
    _check_port(host, port)
    token = settings.endpoint_token.get_secret_value() if settings.endpoint_token else None
    config = configuration(choice, options, token_sha256=digest(token) if token else None)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port, "request_timeout_s": _REQUEST_TIMEOUT_S},
    )
    try:
        _deploy(config)
        _wait_until_running()
        yield Running(f"http://{f'[{host}]' if ':' in host else host}:{port}", token, config)
    finally:
        _shut_down()


def _shut_down() -> None:
    """End Serve, and keep off the terminal the one line that Ray 2.60 prints each time it does.

    The controller kills itself before it answers, and the raylet tells of a task that will be retried.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        serve.shutdown()
        time.sleep(_LAST_WORDS_S)
    for line in said.getvalue().splitlines():
        if "graceful_shutdown" not in line:
            print(line, file=sys.stderr)


def run(
    settings: Settings, *, folder: str, version: str, sha256: str | None, options: ServeConfig | None = None
) -> Iterator[str]:
    """Serve until interrupted: yields the URL once it answers, then blocks when asked for more."""
    with start(settings, folder=folder, version=version, sha256=sha256, options=options) as running:
        yield running.url
        try:
            Event().wait()
        except KeyboardInterrupt:
            return
