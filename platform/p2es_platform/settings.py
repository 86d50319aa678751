"""Where the platform runs: environment variables, read once."""

import hashlib
import hmac
import os
import secrets
from functools import cached_property
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from p2es.errors import ConfigError


class Settings(BaseSettings):
    """Where things run and lie. Each field is one environment variable; without any, all is on this machine."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    ray_address: str | None = Field(None, validation_alias="RAY_ADDRESS")
    """A cluster: `http://head:8265` for jobs, `auto` or `host:6379` inside one. None starts a local Ray."""
    mlflow_tracking_uri: str | None = Field(None, validation_alias="MLFLOW_TRACKING_URI")
    """An MLflow server or a `sqlite:///` file. None is a sqlite file in the storage."""
    storage: str = Field("storage", validation_alias="P2ES_STORAGE")
    """A folder, or a bucket address that fsspec understands (`s3://bucket/prefix`)."""
    secret: SecretStr | None = Field(None, validation_alias="P2ES_SECRET")
    """Key that turns archive ids into stored ids. None draws one and keeps it in the storage, mode 0600."""
    endpoint: str = Field("http://127.0.0.1:8000", validation_alias="P2ES_ENDPOINT")
    """Where `p2es serve` listens and clients call."""
    endpoint_token: SecretStr | None = Field(None, validation_alias="P2ES_ENDPOINT_TOKEN")
    """Bearer token of the endpoint. None leaves it open, which is refused on any address but loopback."""

    @cached_property
    def root(self) -> str:
        """The storage as an absolute path, or its address when it is not on this machine."""
        return self.storage if "://" in self.storage else str(Path(self.storage).expanduser().resolve())

    @property
    def is_local(self) -> bool:
        """Whether the storage is a folder of this machine."""
        return "://" not in self.storage

    def path(self, *parts: str) -> str:
        """Join parts to the storage root."""
        return "/".join([self.root.rstrip("/"), *parts])

    def folder(self, *parts: str) -> Path:
        """Join parts to the storage root, for what cannot lie in a bucket yet: checkpoints, models, translations."""
        if not self.is_local:
            raise ConfigError(
                "models and translations need P2ES_STORAGE on a file system all nodes share: a bucket holds datasets"
            )
        return Path(self.path(*parts))

    @property
    def tracking_uri(self) -> str:
        """The MLflow address to use."""
        if self.mlflow_tracking_uri:
            return self.mlflow_tracking_uri
        if not self.is_local:
            raise ConfigError("set MLFLOW_TRACKING_URI: a bucket as P2ES_STORAGE cannot hold MLflow's sqlite file")
        return f"sqlite:///{self.path('mlflow.db')}"

    def environment(self) -> dict[str, str]:
        """Give the variables that make another process of the same cluster use the same places."""
        found = {"P2ES_STORAGE": self.root}
        # Ingest needs no tracking: with a bucket and without a server only what does is refused.
        if self.is_local or self.mlflow_tracking_uri:
            found["MLFLOW_TRACKING_URI"] = self.tracking_uri
        if self.secret is not None:
            found["P2ES_SECRET"] = self.secret.get_secret_value()
        return found

    def hashed_id(self, *parts: str) -> str:
        """Hash an archive's id with the secret (HMAC-SHA-256, 128 bits of it): the only id that is stored."""
        text = "\x1f".join(parts)
        return hmac.new(self._secret_key, text.encode(), hashlib.sha256).hexdigest()[:32]

    @cached_property
    def _secret_key(self) -> bytes:
        if self.secret is not None:
            return self.secret.get_secret_value().encode()
        if not self.is_local:
            raise ConfigError("set P2ES_SECRET: the key that hashes ids must not lie in a shared bucket")
        path = Path(self.root) / "secret"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return path.read_bytes()
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        return path.read_bytes()
