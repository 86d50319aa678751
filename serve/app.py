"""The Serve application: what `serve run serve.app:build`, `serve.yaml` and `p2es serve` build."""

from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig

from serve.endpoint import Endpoint
from serve.models import ModelChoice
from serve.sampler import Sampler


class BuildArgs(BaseModel):
    """What can be set when the application is built; an unknown name is an error.

    The model can be given here or, better, as the `user_config` of the Sampler: a changed `user_config` swaps
    the model in the running replicas, changed arguments replace the replicas.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    folder: str | None = None
    model_uri: str | None = None
    version: str = "unregistered"
    sha256: str | None = None
    min_replicas: int = Field(1, ge=0, le=1000)
    max_replicas: int = Field(1, ge=1, le=1000)
    gpus_per_replica: float = Field(0.0, ge=0)
    cpus_per_replica: float = Field(1.0, gt=0)
    max_queued: int = Field(64, ge=1)
    """Requests that may wait for a replica; more are answered 429."""
    timeout_s: float = Field(60.0, gt=0)
    token_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    require_token: bool = False

    def user_config(self) -> dict[str, Any] | None:
        """Give the model choice, None when it is left to the deployment's own `user_config`."""
        if self.folder is None and self.model_uri is None:
            return None
        choice = ModelChoice(folder=self.folder, model_uri=self.model_uri, version=self.version, sha256=self.sha256)
        return choice.model_dump()


def deployment(decorated: Any) -> Deployment:
    """Give what `serve.deployment` makes of a class: type checkers see the class itself."""
    return cast(Deployment, decorated)


def build(args: BuildArgs) -> Application:
    """Build the application: `Endpoint` in front of `Sampler`."""
    sampler = deployment(Sampler).options(
        autoscaling_config=AutoscalingConfig(
            min_replicas=args.min_replicas,
            max_replicas=max(args.min_replicas, args.max_replicas),
            # A batch of 8 keeps a replica busy; more waiting than that asks for another one.
            target_ongoing_requests=8,
        ),
        max_queued_requests=args.max_queued,
        user_config=args.user_config(),
        ray_actor_options={"num_cpus": args.cpus_per_replica, "num_gpus": args.gpus_per_replica},
    )
    endpoint = deployment(Endpoint).options(ray_actor_options={"num_cpus": 0.5})
    return endpoint.bind(sampler.bind(), args.token_sha256, args.require_token, args.timeout_s)
