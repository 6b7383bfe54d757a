"""What carries the app: uvicorn, where it would drop an upgrade without an answer, and cut who is being answered."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from tristep.server.errors import envelope
from tristep.server.service import Service

UNREADABLE = json.dumps(envelope(400, "a header of the upgrade is no ASCII: write it in plain letters")).encode()
LOOK_S = 0.05
"""How often a server that is being stopped looks whether somebody is still answered."""


class SocketProtocol(WebSocketsSansIOProtocol):
    """One socket. Up to websockets 15 the library says nothing when it refuses a subprotocol that is no ASCII."""

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        try:
            super().data_received(data)
        except UnicodeEncodeError:
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(UNREADABLE)}"
            self.transport.write(head.encode() + b"\r\nconnection: close\r\n\r\n" + UNREADABLE)
            self.transport.close()


class Server(uvicorn.Server):
    """Stops when nobody is being answered any more, or after a while; until then it takes nothing new."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers in sessions come to their end, and then requests, within the time for both."""
        self.service.drain()
        end = time.monotonic() + self.service.settings.drain_s
        while self.service.sessions.num_taken and not self.force_exit and time.monotonic() < end:
            await asyncio.sleep(LOOK_S)
        self.config.timeout_graceful_shutdown = max(1, round(end - time.monotonic()))
        await super().shutdown(sockets)
