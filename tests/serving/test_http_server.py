"""How a port is closed without resetting anybody."""

import socket
import sys
import threading
import time

import pytest

from tfcsmf.serving.http_server import take_up_nobody


@pytest.mark.skipif(sys.platform != "linux", reason="socket filters are of Linux")
def test_who_comes_while_a_port_closes_is_refused_and_not_reset():
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    waiting = socket.create_connection(address, 5)
    take_up_nobody(listener)
    outcome = []

    def come_late():
        try:
            with socket.create_connection(address, 10) as late:
                outcome.append(late.recv(1))
        except OSError as error:
            outcome.append(type(error))

    visitor = threading.Thread(target=come_late)
    visitor.start()
    time.sleep(0.2)
    # Who was there before is served in both directions.
    connection, _ = listener.accept()
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()
    with connection, waiting:
        waiting.sendall(b"question")
        assert connection.recv(8) == b"question"
        connection.sendall(b"answer")
        assert waiting.recv(6) == b"answer"
    visitor.join(10)
    assert outcome == [ConnectionRefusedError]
