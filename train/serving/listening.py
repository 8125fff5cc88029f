"""uvicorn, as this server needs it: silent clients are let go, and a shutdown is told before it begins."""

import asyncio
import socket
import struct
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from .options import ServeOptions
from .service import Service

_IDLE = 5  # seconds that a connection is kept for another request
_CONNECTIONS = 8  # times as many as requests that may wait


def configuration(app: FastAPI, options: ServeOptions) -> uvicorn.Config:
    """Of a server of one process; log lines are warnings alone."""

    class Protocol(H11Protocol):
        """Sends at once, and lets go of clients that uvicorn itself would wait for without end.

        Such a client sends no whole head of a request, or reads nothing of its answer, in the time of a whole request.
        """

        _silent: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # asyncio does so only where a socket names its protocol, which those of socket.create_server do not; the
            # second part of an answer would wait for the client's acknowledgement of the first, 40 ms
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._wait_for_request()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._wait_for_request()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(options.timeout, self._reset)

        def _reset(self) -> None:
            # without this the system would go on to offer what is unread, and hold it in memory
            at_once = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            self.transport.abort()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            self._heard()
            if self._unread is not None:
                self._unread.cancel()
            super().connection_lost(exc)

        def _wait_for_request(self) -> None:
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering:
                self._heard()
            elif self._silent is None:
                self._silent = self.loop.call_later(options.timeout, self.transport.close)

        def _heard(self) -> None:
            if self._silent is not None:
                self._silent.cancel()
                self._silent = None

    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=options.grace,  # type: ignore[arg-type]  # whole seconds by its hint alone
        limit_concurrency=_CONNECTIONS * (options.max_queue + options.max_batch),
    )


class Server(uvicorn.Server):
    """uvicorn's server of a `Service`."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: from now on /ready says no, and nothing new is taken."""
        self._service.closing = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what was taken; no image waits for others that will not come."""
        self._service.batcher.hurry()
        await super().shutdown(sockets)

    def tell(self, address: str, failed: BaseException | None) -> None:
        """Prints the address when the model is loaded, and ends the server where it could not be."""
        if failed is not None:
            self.should_exit = True
        elif not self._service.closing:
            print(f"{self._service.name} is served at {address}; Ctrl-C ends it", flush=True)
