"""The HTTP side of a process: its routes, its health, its server."""

import asyncio
import errno
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from taskq.errors import ConfigError
from taskq.web.router import Router

__all__ = ["Health", "Routes", "Site"]

Health = Callable[[], tuple[bool, dict[str, object]]]
server_logger = logging.getLogger("taskq.web.server")
NO_HTTP = (HttpProcessingError, web.RequestPayloadError)
server_logger.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], NO_HTTP)))

KEEPALIVE_S = 75.0
SHUTDOWN_S = 2.0


class Routes(Protocol):
    """A part of the site."""

    def add_routes(self, router: Router) -> None:
        """Add its routes."""
        ...


class Site:
    """Serves the routes of one process."""

    def __init__(self, parts: Sequence[Routes], health: Health, *, body_bytes_max: int) -> None:
        """Prepare the routes.

        Args:
            parts: Each adds its routes; none where this process only answers health checks.
            health: Says whether the process is ready, and what it would tell about that.
            body_bytes_max: Larger bodies are refused with 413.
        """
        self._health = health
        self._body_bytes_max = body_bytes_max
        self._router = Router(body_bytes_max=body_bytes_max)
        self._router.add("GET", "/health/live", self._live)
        self._router.add("GET", "/health/ready", self._ready)
        for part in parts:
            part.add_routes(self._router)
        self._runner: web.ServerRunner | None = None

    async def serve(self, host: str, port: int) -> str:
        """Start serving; return the URL.

        Raises:
            ConfigError: The address can't be used.
        """
        make_request = functools.partial(
            web.BaseRequest, loop=asyncio.get_running_loop(), client_max_size=self._body_bytes_max
        )
        server = web.Server(
            self._router,
            access_log=None,
            logger=server_logger,  # silent about requests that are no HTTP: a scanner must not fill the log
            keepalive_timeout=KEEPALIVE_S,
            request_factory=make_request,
        )
        runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                remedy = "stop it, or choose another with --port (0 picks a free one)"
                raise ConfigError(f"port {port} on {host} is in use by another program: {remedy}") from None
            raise ConfigError(f"can't serve on {host}:{port} ({error.strerror}): change host or port") from None
        self._runner = runner
        address = runner.addresses[0]
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"http://{shown}:{address[1]}"

    async def close(self) -> None:
        """Stop serving; answers under way get `SHUTDOWN_S` seconds."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _live(self, _request: web.BaseRequest, _argument: str) -> web.Response:
        return _health(200, {"status": "live"})

    async def _ready(self, _request: web.BaseRequest, _argument: str) -> web.Response:
        ok, facts = self._health()
        return _health(200 if ok else 503, {"status": "ready" if ok else "unavailable"} | facts)


def _health(status: int, document: dict[str, object]) -> web.Response:
    return web.Response(
        status=status,
        body=orjson.dumps(document),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
