"""Process configuration: every field is a flag of `rnn-service serve`, an `RNN_*` variable and a line of `.env`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr, field_validator, model_validator
from pydantic.networks import IPvAnyNetwork
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 2**20

# As browsers send it: neither path nor final slash.
Origin = Annotated[str, Field(pattern=r"^(\*|null|(?i:[a-z][a-z0-9+.-]*)://[^/?#\s]+)$")]
Ttl = Annotated[float, Field(gt=0, le=1e10)]  # seconds; the calendar ends some 8,000 years from now


class Settings(BaseSettings):
    """Read once at start; frozen; the unit is in the name. Lists are comma-separated."""

    model_config = SettingsConfigDict(
        env_prefix="RNN_", env_file=".env", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on; 0 picks a free one.")

    workers: PositiveInt = Field(1, description="Processes that share the port and the cores.")

    models: Path = Field(Path("models"), description="The model repository, or one model's own folder.")
    model_name: str | None = Field(
        None, description="Name of the model where RNN_MODELS is a model's own folder; unset: as the folder is called."
    )
    default_model: str | None = Field(None, description="Model of requests that name none.")
    preload: Annotated[tuple[str, ...], NoDecode] = Field((), description="Models to load before readiness; * for all.")
    model_cache_bytes: PositiveInt = Field(4096 * MIB, description="Loaded weights kept, least recently used go first.")

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, or cuda:N.")
    engine: Literal["auto", "native", "torch"] = Field("auto", description="auto: native on a CPU, torch on a GPU.")
    compute_threads: NonNegativeInt = Field(0, description="Threads that compute; 0: one per available core.")

    max_body_bytes: PositiveInt = Field(64 * MIB, description="Largest request body, decompressed.")
    max_input_values: PositiveInt = Field(16 * MIB, description="Largest B·T·I of one request.")
    max_reply_values: PositiveInt = Field(64 * MIB, description="Most numbers that one reply may hold.")
    max_generate_steps: PositiveInt = Field(
        4096, description="Most steps that one request to /rnn/generate may ask for."
    )
    max_queued_requests: PositiveInt = Field(
        128, description="Forwards under way at once, more get 503; of one client three quarters, more get 429."
    )
    max_underway_bytes: PositiveInt = Field(64 * MIB, description="Bytes of bodies; at the bound reading pauses.")
    max_queued_bytes: PositiveInt = Field(512 * MIB, description="Bytes of arrays that wait for compute; more get 503.")

    header_timeout_seconds: PositiveFloat = Field(10, description="Time for a request's headers to arrive.")
    body_timeout_seconds: PositiveFloat = Field(
        10, description="Grace period before RNN_MIN_BYTES_PER_SECOND is enforced."
    )
    min_bytes_per_second: PositiveInt = Field(1024, description="Slowest body, and slowest reader of a reply.")
    stream_idle_seconds: PositiveFloat = Field(300, description="Longest silence between lines or frames of a stream.")
    max_frame_bytes: PositiveInt = Field(MIB, description="Largest message of a WebSocket.")
    heartbeat_seconds: PositiveFloat = Field(20, description="Time between pings of a WebSocket, and to answer one.")
    allowed_origins: Annotated[tuple[Origin, ...], NoDecode] = Field(
        (), description="Other origins whose pages may call, as https://example.org; * for all."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Names in Host, beside addresses and localhost; * for all. Unset: none on loopback, else all.",
    )
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        (), description="Addresses and networks of proxies whose X-Forwarded-For names the client."
    )
    keep_alive_seconds: PositiveInt = Field(60, description="Idle time before a kept-alive connection is closed.")
    drain_seconds: float = Field(
        0, ge=0, le=3600, description="Time from SIGTERM, when readiness fails, until no more requests are taken."
    )
    shutdown_seconds: PositiveInt = Field(20, description="Time after that to finish what is running.")

    session_store: str = Field(
        "memory://",
        pattern=r"^(memory://|sqlite:///.+|valkeys?://.+|rediss?://.+)$",
        description="Where sessions are kept: memory://, sqlite:///path, or valkey://host:port/0.",
        repr=False,  # it may hold a password
    )
    sqlite_synchronous: Literal["normal", "full"] = Field(
        "normal", description="normal survives kill -9; full also survives a power cut."
    )
    session_ttl_seconds: Ttl = Field(3600, description="Life of a session since its last step.")
    max_session_ttl_seconds: Ttl = Field(604_800, description="The longest life that a client may ask for.")
    max_sessions: PositiveInt = Field(1_000_000, description="Most live sessions.")
    max_session_bytes: PositiveInt = Field(1024 * MIB, description="Bytes of their states and kept replies.")
    session_eviction: Literal["refuse", "lru"] = Field(
        "refuse", description="At a limit: refuse new ones, or end the least recently used."
    )
    session_queue: PositiveInt = Field(64, description="Requests of one session that may wait; more get 429.")
    session_replay_bytes: PositiveInt = Field(16 * 1024, description="Bytes of a stream's replies, kept for retries.")
    ended_sessions: PositiveInt = Field(100_000, description="Ended sessions that are remembered, for a day at most.")

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field((), description="Bearer tokens; none: open to all.")
    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field((), description="Bearer tokens for admin calls.")

    request_log: bool = Field(True, description="One log line for each request.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, else json."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line logged.")

    @model_validator(mode="after")
    def _workers_share_sessions(self) -> Self:
        if self.workers > 1 and self.session_store == "memory://":
            raise ValueError(
                "sessions are kept in each worker's own memory (RNN_SESSION_STORE is memory://), so a request could "
                "reach a worker that does not have its session: set RNN_SESSION_STORE to sqlite:///path or "
                "valkey://host, or run one worker"
            )
        return self

    @field_validator(
        "preload", "allowed_origins", "allowed_hosts", "trusted_proxies", "api_keys", "admin_keys", mode="before"
    )
    @classmethod
    def _split_on_commas(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
