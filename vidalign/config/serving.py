"""What an endpoint takes from its clients: how much (limits), from where (media), and from whom (access)."""

from __future__ import annotations

from typing import Any

import pydantic

from vidalign.config.section import PathText, Section


class LimitsConfig(Section):
    """How much one request, and all together, may ask of an endpoint. What is beyond is refused, or waits."""

    max_sequences: int = pydantic.Field(128, ge=1)
    """Replies (`n` times the prompts) of one replica that its engine works on at once."""
    max_waiting: int = pydantic.Field(64, ge=0)
    """Replies of one replica that wait for a place; a request beyond is refused with 429. Half of `max_sequences` keeps all replies
    within twice the time of one.
    """
    max_wait_s: float = pydantic.Field(60.0, gt=0)
    """How long a request waits for a place before it is refused with 503."""
    max_sequences_per_request: int = pydantic.Field(64, ge=1)
    """The largest number of replies of one request."""
    max_tokens: int | None = pydantic.Field(None, ge=1)
    """Tokens of the longest reply; more is lowered to it and said in a header; null means as many as the context has."""
    form_s: float = pydantic.Field(2.0, gt=0)
    """Processor time to compile the form of a reply (a JSON schema, regex or grammar); a request whose form takes more is refused."""
    max_body_mb: float = pydantic.Field(256.0, gt=0, le=2000)
    """Size of the largest body, in MiB; below 2 GiB, which is the most that one process sends another."""
    max_bodies_mb: float = pydantic.Field(1024.0, gt=0)
    """Size of all bodies that are held at once, in MiB."""
    body_idle_s: float = pydantic.Field(30.0, gt=0)
    """The longest pause within a body."""
    header_s: float = pydantic.Field(10.0, gt=0)
    """How long a client may take to send its headers, where HAProxy listens."""
    max_connections: int = pydantic.Field(2048, ge=1)
    """Most connections, where HAProxy listens."""

    @pydantic.model_validator(mode="after")
    def _one_request_fits(self) -> LimitsConfig:
        if self.max_sequences_per_request > self.max_sequences:
            raise ValueError(
                f"max_sequences_per_request={self.max_sequences_per_request} is above max_sequences={self.max_sequences}, so such a "
                "request could never be answered; lower the one or raise the other"
            )
        if self.max_body_mb > self.max_bodies_mb:
            raise ValueError(
                f"max_body_mb={self.max_body_mb:g} is above max_bodies_mb={self.max_bodies_mb:g}, which all requests share; lower "
                "the one or raise the other"
            )
        return self


class AutoscalingConfig(Section):
    """How fast replicas come and go between `min_replicas` and `max_replicas` (Ray Serve's `autoscaling_config`)."""

    target_ongoing_requests: float = pydantic.Field(32.0, gt=0)
    """Requests in flight at a replica above which another one is started."""
    upscale_delay_s: float = pydantic.Field(30.0, ge=0)
    """How long there must be too many requests before a replica is added."""
    downscale_delay_s: float = pydantic.Field(600.0, gt=10)
    """How long there must be too few before one is taken away; above the 10 s after which replicas report."""
    downscale_to_zero_delay_s: float | None = pydantic.Field(None, gt=10)
    """The same for the last one, where `min_replicas` is 0; null means `downscale_delay_s`."""
    look_back_period_s: float = pydantic.Field(30.0, gt=10)
    """The time over which requests in flight are averaged; replicas report every 10 s."""
    cold_start_s: float = pydantic.Field(120.0, gt=0)
    """How long a request waits for a replica where there is none (`min_replicas` 0), before it is refused with 503."""


class MediaConfig(Section):
    """Where an endpoint reads videos and images from, beside data: urls and `serve.media_root`."""

    domains: tuple[str, ...] = ()
    """Hosts that are fetched from over http(s); no redirect leaves them."""
    private_addresses: bool = False
    """Whether such a host may be in the own network of the endpoint."""
    max_mb: float = pydantic.Field(256.0, gt=0)
    """Size of the largest file that is fetched, in MiB."""
    fetch_s: float = pydantic.Field(30.0, gt=0)
    """How long a fetch may take in all."""
    cache_dir: PathText | None = None
    """Where decoded frames are kept; null means in the temporary folder."""
    cache_gib: float = pydantic.Field(4.0, gt=0)
    """Size of that cache, in GiB; what was not used for the longest time is given up."""
    frames_fps: float | None = pydantic.Field(None, gt=0, allow_inf_nan=False)
    """Takes a run of images, or frames without a rate, as one video of so many frames a second; null does not."""

    @pydantic.field_validator("domains")
    @classmethod
    def _are_hosts(cls, domains: tuple[str, ...]) -> tuple[str, ...]:
        for domain in domains:
            if not domain or any(mark in domain for mark in "/:*@ "):
                raise ValueError(
                    f"domains are names of hosts, as in films.example.org, got {domain!r}; leave out scheme, port and path"
                )
        return tuple(domain.lower() for domain in domains)


class AccessConfig(Section):
    """Who may ask an endpoint. Without `keys_file`, everybody who reaches its port."""

    keys_file: PathText | None = None
    """File of the hashes of bearer keys, which `vidalign keys add NAME` writes; null asks for no key."""
    open_paths: tuple[str, ...] = ("/health", "/ready")
    """Paths that need no key."""
    requests_per_minute: int | None = pydantic.Field(None, ge=1)
    """Most requests of a key within a minute, or of an address without keys, unless its line says otherwise."""
    max_running: int | None = pydantic.Field(None, ge=1)
    """Most requests of a key, or an address, that run at once, unless its line says otherwise."""
    cors_origins: tuple[str, ...] = ()
    """Web pages whose scripts may ask, as in https://app.example.org."""

    @pydantic.field_validator("open_paths")
    @classmethod
    def _are_known(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        known = ("/health", "/ready", "/metrics", "/openapi.json", "/v1/models")
        for path in paths:
            if path not in known:
                raise ValueError(f"open_paths may hold {', '.join(known)}, got {path!r}; leave it out")
        return paths

    @pydantic.field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not (origin.startswith(("http://", "https://")) and origin.count("/") == 2):
                raise ValueError(f"cors_origins are scheme and host, as in https://app.example.org, got {origin!r}")
        return origins


def refuse_idle_scaling(serve: Any) -> Any:
    """The section `serve`. Raises `ValueError` where an option of its `autoscaling` could make no difference."""
    scaling, limits, low, high = serve.autoscaling, serve.limits, serve.min_replicas, serve.max_replicas
    plain = AutoscalingConfig.model_validate({})
    changed = [name for name in AutoscalingConfig.model_fields if getattr(scaling, name) != getattr(plain, name)]
    to_zero = [name for name in changed if name in ("downscale_to_zero_delay_s", "cold_start_s")]
    if changed and low >= high:
        raise ValueError(
            f"autoscaling.{changed[0]} makes no difference with min_replicas={low} and max_replicas={high}; raise max_replicas, or "
            "leave it out"
        )
    if to_zero and low > 0:
        raise ValueError(
            f"autoscaling.{to_zero[0]} is for min_replicas=0, got {low}; set min_replicas to 0, or leave it out"
        )
    if high > max(1, low) and scaling.target_ongoing_requests > limits.max_sequences:
        raise ValueError(
            f"autoscaling.target_ongoing_requests={scaling.target_ongoing_requests:g} is above limits.max_sequences="
            f"{limits.max_sequences}, which a replica never exceeds, so none would ever be added; lower the one or raise the other"
        )
    return serve
