"""Settings of object storage: the ``storage`` section of a run and its defaults from the environment.

Credentials are not settings. They come from where every S3 client looks for them: environment, profile, role of the machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from avvp_dist.config import Section, merge, parse_overrides, validate
from avvp_dist.text.credentials import CREDENTIALS_HINT, holds_credentials

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_SECRET_KEY = re.compile(r"(?i)key|secret|token|password|credential|username")


class StorageConfig(Section):
    """Connection to object storage; credentials come from the environment, never from a config."""

    endpoint: str | None = Field(None, pattern=r"^https?://[^/\s]+/?$")
    """Address of an S3 server, e.g. http://127.0.0.1:9000; null for AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, else AWS."""
    region: str | None = None
    """Region of the buckets; null for AWS_REGION, AWS_DEFAULT_REGION, else the region of the profile."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """path: http://server/bucket/..., for most S3 servers; virtual: http://bucket.server/...; auto: botocore decides."""
    retries: int = Field(8, ge=0)
    """How often a failed request or an interrupted read is repeated; 8 retries bridge about half a minute."""
    connect_timeout: PositiveFloat = 10.0
    """Seconds to wait for a connection."""
    read_timeout: PositiveFloat = 60.0
    """Seconds without data after which a connection counts as dead."""

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, content: Any) -> Any:
        """Check the raw content before the fields are validated, so that no message repeats a secret."""
        given = content if isinstance(content, Mapping) else {}
        secret = [key for key in given if key not in cls.model_fields and _SECRET_KEY.search(str(key))]
        if secret:
            raise ValueError(f"{', '.join(secret)}: credentials do not belong in a config; {CREDENTIALS_HINT}")
        endpoint = given.get("endpoint")
        if isinstance(endpoint, str) and (holds_credentials(endpoint) or "@" in endpoint):
            raise ValueError(f"endpoint contains credentials, which do not belong in a config; {CREDENTIALS_HINT}")
        return content

    def resolved(self) -> StorageConfig:
        """The config with endpoint and region filled in from this process's environment, for workers that have another."""
        ignored = os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
        endpoint = self.endpoint or (None if ignored else _first(_ENDPOINTS))
        return self.model_copy(update={"endpoint": endpoint, "region": self.region or _first(_REGIONS)})

    def filesystem_options(self) -> dict[str, Any]:
        """Arguments of `s3fs.S3FileSystem`."""
        known = self.resolved()
        return {
            "endpoint_url": known.endpoint,
            "client_kwargs": {"region_name": known.region} if known.region else {},
            "config_kwargs": {
                "retries": {"mode": "adaptive", "total_max_attempts": known.retries + 1},
                "s3": {"addressing_style": known.addressing},
                "connect_timeout": known.connect_timeout,
                "read_timeout": known.read_timeout,
            },
            "use_listings_cache": False,  # other processes write at the same time
        }

    def mlflow_environment(self) -> dict[str, str]:
        """Environment variables that make MLflow use the same connection for artifacts on S3, except those already set."""
        known = self.resolved()
        wanted = {
            "MLFLOW_S3_ENDPOINT_URL": known.endpoint,
            "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE": known.addressing.replace("auto", ""),  # which is MLflow's default
            "AWS_DEFAULT_REGION": known.region,
        }
        return {name: value for name, value in wanted.items() if value and name not in os.environ}


def _first(names: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


class _StorageOnly(Section):
    storage: StorageConfig = StorageConfig()


def storage_settings(overrides: Sequence[str]) -> StorageConfig:
    """Validate the storage section of ``overrides`` alone; it is needed to fetch a recipe from an object store.

    Raises:
        ConfigError: all problems of these keys; other keys are ignored.
    """
    content = merge({}, [(path, value) for path, value in parse_overrides(overrides) if path[0] == "storage"], {})
    return validate(_StorageOnly, content, "storage").storage
