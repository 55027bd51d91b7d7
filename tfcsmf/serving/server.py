"""The embedded server: models, HTTP and gRPC, from start to graceful stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import FrameType, TracebackType

import grpc
import uvicorn
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from tfcsmf.errors import ConfigError
from tfcsmf.serving.batching import BatchingOptions
from tfcsmf.serving.grpc_services import ModelService, PredictionService
from tfcsmf.serving.http_app import Limits, build_app
from tfcsmf.serving.http_server import BACKLOG, GracefulHttpServer
from tfcsmf.serving.metrics import Metrics
from tfcsmf.serving.models import Models
from tfcsmf.serving.rest import RestApi
from tfcsmf.serving.versions import ModelOptions

_LOGGER = logging.getLogger("tfcsmf.serving")


@dataclass(frozen=True)
class ServerOptions:
    """How a server runs.

    Attributes:
      host: address to listen at.
      rest_port: of HTTP; 0: any free one.
      grpc_port: of gRPC; 0: any free one; None: no gRPC.
      poll_seconds: how often folders are looked at for new versions.
      workers: threads that run models, for each protocol.
      limits: sizes and times.
      batching: joins requests; None: every request runs alone.
      drain_seconds: how long a server that goes down still accepts requests, while
        it reports not to be ready and closes connections after their answers.
      stop_seconds: longest time to wait for the requests that are left then.
    """

    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int | None = 8500
    poll_seconds: float = 1.0
    workers: int = max(8, 2 * (os.cpu_count() or 1))
    limits: Limits = field(default_factory=Limits)
    batching: BatchingOptions | None = None
    drain_seconds: float = 1.0
    stop_seconds: float = 30.0


class Server:
    """Serves models over TensorFlow Serving's REST and gRPC APIs.

    It may be used as a context manager. Both ports answer from `start` on;
    models are there once `ready` says so.

    Args:
      models: what to serve.
      options: how.

    Attributes:
      rest_port: the port of HTTP, once started.
      grpc_port: the port of gRPC, once started; 0 without gRPC.

    Raises:
      ConfigError: if two models have one name, or a port is taken (by `start`).
    """

    def __init__(
        self, models: Sequence[ModelOptions], options: ServerOptions | None = None
    ) -> None:
        self._options = options or ServerOptions()
        self._metrics = Metrics()
        self._models = Models(
            models,
            poll_seconds=self._options.poll_seconds,
            timeout=self._options.limits.timeout,
            max_rows=self._options.limits.max_rows,
            batching=self._options.batching,
            metrics=self._metrics,
        )
        self._draining = threading.Event()
        self._executor = ThreadPoolExecutor(
            self._options.workers, thread_name_prefix="rest"
        )
        self._grpc: grpc.Server | None = None
        self.rest_port = 0
        self.grpc_port = 0

    @property
    def ready(self) -> bool:
        """Whether every model has a loaded and warm version."""
        return self._models.ready and not self._draining.is_set()

    def start(self) -> None:
        """Opens both ports and begins to load models; returns at once.

        Raises:
          ConfigError: if a port is taken.
        """
        listener = self._listen()
        try:
            self._start_grpc()
        except BaseException:
            listener.close()
            raise
        app = build_app(
            RestApi(self._models),
            self._executor,
            self._options.limits,
            self._metrics,
            lambda: self._models.ready,
            self._draining.is_set,
        )
        self._http = GracefulHttpServer(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                backlog=BACKLOG,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=int(self._options.stop_seconds) or None,
            ),
            listener,
            settle=self._options.drain_seconds / 2,
        )
        # Signals are for the thread that called `run`, not for uvicorn.
        self._http_thread = threading.Thread(
            target=self._http.run_here, name="http", daemon=True
        )
        self._http_thread.start()
        self._models.start()
        _LOGGER.info(
            "listening at %s: REST %d, gRPC %s",
            self._options.host,
            self.rest_port,
            self.grpc_port or "off",
        )

    def _listen(self) -> socket.socket:
        host, port = self._options.host, self._options.rest_port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            # From here on connections wait, until the event loop runs.
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise _port_taken("--rest-port", host, port, error) from error
        self.rest_port = listener.getsockname()[1]
        return listener

    def _start_grpc(self) -> None:
        options = self._options
        if options.grpc_port is None:
            return
        size = options.limits.max_body_bytes
        server = grpc.server(
            ThreadPoolExecutor(options.workers, thread_name_prefix="grpc"),
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=options.limits.max_in_flight,
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(self._models, self._metrics), server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(self._models, self._metrics), server
        )
        host = f"[{options.host}]" if ":" in options.host else options.host
        try:
            self.grpc_port = server.add_insecure_port(f"{host}:{options.grpc_port}")
        except RuntimeError as error:
            raise _port_taken(
                "--grpc-port", options.host, options.grpc_port, error
            ) from error
        server.start()
        self._grpc = server

    def wait_until_ready(self, timeout: float = 60.0) -> bool:
        """Waits for every model; False if that took too long."""
        end = time.monotonic() + timeout
        while not self.ready:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def stop(self) -> None:
        """Goes down without dropping an accepted request."""
        self._draining.set()
        # Load balancers and clients notice before the ports are closed.
        time.sleep(self._options.drain_seconds)
        stopped = self._grpc.stop(self._options.stop_seconds) if self._grpc else None
        self._http.should_exit = True
        self._http_thread.join()
        if stopped:
            stopped.wait()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._models.stop()
        _LOGGER.info("stopped")

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then stops gracefully.

        Only the main thread can call it.
        """
        stop = threading.Event()

        def handle(number: int, frame: FrameType | None) -> None:
            _LOGGER.info("%s: going down", signal.Signals(number).name)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)
        self.start()
        while not stop.wait(1.0) and self._http_thread.is_alive():
            pass
        self.stop()

    def __enter__(self) -> Server:
        """Starts."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops."""
        self.stop()


def _port_taken(option: str, host: str, port: int, error: Exception) -> ConfigError:
    return ConfigError(
        f"{option} should be a free port of {host}. Received: {port} ({error}). Stop "
        "the program that has it, or choose another."
    )
