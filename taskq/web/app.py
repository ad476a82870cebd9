"""The aiohttp application: routes, one middleware that turns errors into problem documents, health.

An error of the caller or of the database becomes its problem document; anything else is a defect of
ours: logged with its traceback, answered with a 500 that gives nothing away.
"""

import errno
import logging
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web

from taskq.errors import ConfigError, TaskqError
from taskq.web.api import Api
from taskq.web.problem import problem, problem_of

__all__ = ["Health", "make_app", "serve"]

logger = logging.getLogger("taskq.web")

Health = Callable[[], tuple[bool, dict[str, object]]]
KEEPALIVE_S = 75.0
SHUTDOWN_S = 2.0
CLOSE_AFTER_S = 1.0


def make_app(api: Api | None, health: Health, *, body_bytes_max: int) -> web.Application:
    """Build the application.

    Args:
        api: Task routes; None where this process only answers health checks.
        health: Says whether the process is ready, and what it would tell about that.
        body_bytes_max: Larger bodies are refused with 413.
    """
    app = web.Application(client_max_size=body_bytes_max, middlewares=[_problems])

    async def live(_request: web.Request) -> web.Response:
        return _health(200, {"status": "live"})

    async def ready(_request: web.Request) -> web.Response:
        ok, facts = health()
        return _health(200 if ok else 503, {"status": "ready" if ok else "unavailable"} | facts)

    app.add_routes([web.get("/health/live", live), web.get("/health/ready", ready)])
    if api is not None:
        app.add_routes(api.routes())
    return app


@web.middleware
async def _problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except TaskqError as error:
        return problem_of(error)
    except web.HTTPRequestEntityTooLarge as error:
        detail = (
            f"the body is larger than the {request.client_max_size} bytes allowed: shorten it or raise body_bytes_max"
        )
        return problem(error.status, "body_too_large", detail)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        response = problem(
            405, "method_not_allowed", f"{request.method} does not go with {request.path}: use {allowed}"
        )
        response.headers["Allow"] = allowed
        return response
    except web.HTTPNotFound:
        return problem(404, "no_such_route", f"{request.path} is no address of taskq: see the README for the routes")
    except web.HTTPException:
        raise
    except Exception:
        logger.exception("request failed", extra={"method": request.method, "path": request.path})
        return problem(500, "internal_error", "this is a defect of taskq; its log holds the details")


def _health(status: int, document: dict[str, object]) -> web.Response:
    return web.Response(
        status=status,
        body=orjson.dumps(document),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


async def serve(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, str]:
    """Start serving; return the runner and the URL.

    Raises:
        ConfigError: The address can't be used.
    """
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=KEEPALIVE_S, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is in use by another program: stop it, or choose another with --port (0 picks a free one)"
            ) from None
        raise ConfigError(f"can't serve on {host}:{port} ({error.strerror}): change host or port") from None
    address = runner.addresses[0]
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    return runner, f"http://{shown}:{address[1]}"
