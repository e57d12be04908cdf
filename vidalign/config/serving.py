"""What an endpoint takes from its clients: how much (limits), from where (media), and from whom (access)."""

from __future__ import annotations

import pydantic

from vidalign.config.section import Section


class LimitsConfig(Section):
    """How much one request, and all together, may ask of an endpoint. What is beyond is refused, or waits.

    `max_sequences` and `max_waiting` count the replies that are asked for (`n` times the prompts) of one replica of one model.
    """

    max_sequences: int = pydantic.Field(128, ge=1)
    max_waiting: int = pydantic.Field(128, ge=0)
    max_wait_s: float = pydantic.Field(60.0, gt=0)
    max_sequences_per_request: int = pydantic.Field(64, ge=1)
    max_tokens: int | None = pydantic.Field(None, ge=1)
    max_body_mb: float = pydantic.Field(256.0, gt=0)
    max_bodies_mb: float = pydantic.Field(1024.0, gt=0)
    body_idle_s: float = pydantic.Field(30.0, gt=0)
    header_s: float = pydantic.Field(10.0, gt=0)
    max_connections: int = pydantic.Field(2048, ge=1)

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


class MediaConfig(Section):
    """Where an endpoint reads videos and images from, beside data: urls and `serve.media_root`.

    `domains` are the hosts that are fetched from over http(s); `private_addresses` allows those of the endpoint's own network.
    `frames_fps` takes a run of images, or frames without a rate, as one video of so many frames a second.
    """

    domains: tuple[str, ...] = ()
    private_addresses: bool = False
    max_mb: float = pydantic.Field(256.0, gt=0)
    fetch_s: float = pydantic.Field(30.0, gt=0)
    cache_dir: str | None = None
    cache_gib: float = pydantic.Field(4.0, gt=0)
    frames_fps: float | None = pydantic.Field(None, gt=0)

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
    """Who may ask an endpoint. Without `keys_file`, everybody who reaches its port.

    `keys_file` is written by `vidalign keys add NAME`; `open_paths` need no key. Both limits hold for each key, unless its line says
    otherwise. `cors_origins` are the web pages whose scripts may ask.
    """

    keys_file: str | None = None
    open_paths: tuple[str, ...] = ("/health", "/ready")
    requests_per_minute: int | None = pydantic.Field(None, ge=1)
    max_running: int | None = pydantic.Field(None, ge=1)
    cors_origins: tuple[str, ...] = ()

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
