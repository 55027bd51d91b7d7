"""uvicorn, made to lose no connection when it stops."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
from typing import Any

import uvicorn

BACKLOG = 2048


# Of Linux; Python has no names for them.
_SO_ATTACH_FILTER = 26
_BPF_RETURN = 0x06


def take_up_nobody(listener: socket.socket) -> None:
    """Lets a listening socket drop what comes, so that nobody connects any more.

    Between taking up the last connection and closing a port the system may accept one
    more, which closing would reset. A client whose first packet is dropped sends it
    again, to a port that is closed by then: it is refused. Connections that were
    accepted before are not touched. Without effect where there are no such filters.
    """
    if sys.platform != "linux":
        return
    # One instruction: return 0, the length of the packet that is kept.
    program = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
    described = struct.pack("HP", 1, ctypes.addressof(program))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
    except OSError:
        pass  # a kernel that does not allow it


class GracefulHttpServer(uvicorn.Server):
    """Answers every connection the system had accepted when it stops.

    uvicorn closes its port, which resets connections that wait to be taken up, and
    then connections whose request it has not read yet. Here those that wait are
    taken up first, and all get a moment to be read.

    Args:
      config: of uvicorn.
      listener: a listening socket; the server owns it.
      settle: seconds a client that has just connected gets to send its request.
    """

    def __init__(
        self, config: uvicorn.Config, listener: socket.socket, settle: float
    ) -> None:
        super().__init__(config)
        self._settle = settle
        self._listener = listener
        # The port stays open when uvicorn closes the other one.
        self._spare = listener.dup()

    def run_here(self) -> None:
        """Serves until `should_exit` is set."""
        self.run([self._listener])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes up what waits, closes the port, then lets uvicorn finish."""
        take_up_nobody(self._spare)
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in self._waiting():
            await loop.connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(self._settle)
        await super().shutdown(sockets)

    def _waiting(self) -> list[socket.socket]:
        found = []
        self._spare.setblocking(False)
        try:
            while True:
                connection, _ = self._spare.accept()
                connection.setblocking(False)
                found.append(connection)
        except OSError:
            pass  # nobody waits
        finally:
            self._spare.close()
        return found

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        return kind(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
