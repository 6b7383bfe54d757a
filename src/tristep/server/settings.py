"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """How a server listens, what it serves, and what it lets in."""

    model: str = "nano"
    """Name of shipped weights, or a folder of weights."""
    served_name: str = ""
    """What clients call the model; the last part of `model` if not given."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any that is free."""
    api_keys: tuple[str, ...] = ()
    """Each of them opens every door; without one everybody may in, from this machine only."""
    insecure: bool = False
    """Serve other machines without a key."""
    allow_hosts: tuple[str, ...] = ()
    """Names, beside `localhost` and every address, by which clients may call this server."""
    allow_origins: tuple[str, ...] = ()
    """Web pages, such as `https://example.org`, that may call this server."""
    list_voices_openly: bool = False
    """Answer `GET /v1/audio/voices` without a key; Open WebUI asks without one."""
    voices: Path | None = None
    """Folder for cloned voices and the consents to them; without it there is no cloning."""
    mark: bool = True
    """Mark speech as synthetic: inaudibly (`tristep.mark`), and by a tag where the container has room for one."""
    style: Literal["spoken", "written"] = "spoken"
    """How transcripts are written where the request doesn't say."""
    threads: int | None = None
    """Processor threads of the engine; all if not given."""
    num_parallel: int = 8
    """Requests that the engine works on at once; they share the passes of the backbone."""
    max_queue: int = 16
    """Requests that are worked on or wait; the next one is told to come back."""
    max_requests_per_minute: int = 600
    """By each key, or each address where there are no keys."""
    max_file_bytes: int = 25 * MIB
    max_audio_s: float = 2 * 3600.0
    """Longest sound that is transcribed."""
    max_decode_s: float = 60.0
    """Longest time that decoding an upload may take."""
    max_input_characters: int = 4096
    """Longest text that is spoken."""
    max_sessions: int = 4
    """Realtime sessions at once; the next one is told to come back."""
    max_session_s: float = 3600.0
    """Longest realtime session."""
    max_idle_s: float = 600.0
    """Longest time in which a realtime client sends nothing."""
    max_message_bytes: int = 16 * MIB
    """Largest message of a realtime client."""
    max_items: int = 1000
    """Most items in a realtime conversation."""
    telemetry: bool = False
    """Tell OpenTelemetry's collector of every request; the environment says where that is."""
    drain_s: float = 30.0
    """How long requests may go on after the server was told to stop."""

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.api_keys and not self.insecure:
            raise ValueError(
                f"serving on {self.host} lets other machines in and there is no API key: give --api-key or "
                "--api-key-file, serve on 127.0.0.1, or say --insecure"
            )
        if not all(key.isascii() and key.isprintable() and key.strip() == key != "" for key in self.api_keys):
            raise ValueError("an API key is empty or has spaces at its ends or odd characters: give printable ASCII")

        counts = self.max_file_bytes, self.max_audio_s, self.max_queue, self.max_requests_per_minute, self.threads or 1
        if not 0 <= self.port <= 65535 or min(counts) < 1:
            raise ValueError(
                f"port is {self.port} and the limits are {counts}: expected a port and limits of at least 1"
            )

    @property
    def model_id(self) -> str:
        """What clients call the model."""
        return self.served_name or Path(self.model).name


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach a host."""
    return host == "localhost" or (is_address(host) and ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """Say whether a host is an address and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
