"""Routes as data on aiohttp's low-level server.

A dozen flat addresses need no resolver: an address is looked up whole, then without its last part,
which is the argument of routes such as `/task/{id}`.  Measured beside aiohttp's `Application` with
one middleware, this takes 5 µs of some 50 µs off a submission.

An error of the caller or of the database becomes its problem document; anything else is a defect of
ours: logged with its traceback, answered with a 500 that gives nothing away.
"""

import logging
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from aiohttp import web

from taskq.errors import TaskqError
from taskq.web.problem import problem, problem_of

__all__ = ["Handler", "Router"]

logger = logging.getLogger("taskq.web")

Handler = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]]
"""Answers a request; the text is what stood for `{id}` in the address, or empty."""


class Router:
    """Finds the handler of a request and answers its errors."""

    def __init__(self, *, body_bytes_max: int) -> None:
        """Begin without routes.

        Args:
            body_bytes_max: Larger bodies are refused with 413.
        """
        self._body_bytes_max = body_bytes_max
        self._routes: dict[str, dict[str, Handler]] = {}

    def add(self, method: str, address: str, handler: Handler) -> None:
        """Answer `method` on `address`, of which one part may be `{id}`: the last one, or the last but one."""
        methods = self._routes.setdefault(address.replace("{id}", "\0"), {})
        methods[method] = handler
        if method == "GET":
            methods["HEAD"] = handler

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request."""
        methods = self._routes.get(request.raw_path)  # as sent: the common addresses hold nothing to decode
        argument = ""
        if methods is None:
            methods, argument = self._find(request.rel_url.raw_path)
        if not methods:
            return problem(
                404, "no_such_route", f"{request.path} is no address of taskq: see the README for the routes"
            )
        handler = methods.get(request.method)
        if handler is None:
            return self._not_allowed(request, sorted(methods))
        try:
            return await handler(request, argument)
        except TaskqError as error:
            return problem_of(error, request.method)
        except web.HTTPRequestEntityTooLarge:
            allowed = f"the {self._body_bytes_max} bytes allowed: shorten it or raise body_bytes_max"
            return problem(413, "body_too_large", f"the body is larger than {allowed}")
        except web.HTTPRequestTimeout:
            return problem(408, "body_too_slow", "the body did not arrive in time: send it again, faster")
        except web.HTTPException:
            raise
        except Exception:
            logger.exception("request failed", extra={"method": request.method, "path": request.path})
            return problem(500, "internal_error", "this is a defect of taskq; its log holds the details")

    def _find(self, raw_path: str) -> tuple[dict[str, Handler], str]:
        """Return the methods of an address, none if there is no such, and what stands for `{id}` in it.

        The parts are decoded one by one: what stands for `{id}` may hold a `/` of its own.
        """
        *before, holder, last = ["", *map(unquote, raw_path.split("/"))]
        if (whole := "/".join([*before, holder, last])[1:]) in self._routes:
            return self._routes[whole], ""
        if last and (place := "/".join([*before, holder, "\0"])[1:]) in self._routes:
            return self._routes[place], last
        if last and holder and (place := "/".join([*before, "\0", last])[1:]) in self._routes:
            return self._routes[place], holder
        return {}, ""

    def _not_allowed(self, request: web.BaseRequest, methods: list[str]) -> web.Response:
        allowed = ", ".join(methods)
        response = problem(
            405, "method_not_allowed", f"{request.method} does not go with {request.path}: use {allowed}"
        )
        response.headers["Allow"] = allowed
        return response
