"""The body of a submission: at once where it has arrived, under a budget where it is on its way.

A small body has usually arrived with its head, in a buffer whose size aiohttp bounds.  Any other is
read under the budget that all bodies under way share, from before its first byte until its answer,
and within a time, or idle clients could hold the budget for ever.
"""

import asyncio
import contextlib

from aiohttp import HttpVersion11, hdrs, web

from taskq.budget import Budget
from taskq.errors import InvalidPayload

__all__ = ["arrived_body", "read_body"]

BODY_WAIT_S = 120.0  # 16 MiB at 1.2 Mbit/s
UNTOLD_BYTES = 131_072  # held for a body that doesn't tell its length, until it proves longer
BROKEN = (OSError, web.RequestPayloadError)


def arrived_body(request: web.BaseRequest) -> bytes:
    """Return a body that has arrived whole.

    Raises:
        InvalidPayload: It broke off.
        HTTPRequestEntityTooLarge: It is larger than the request allows.
    """
    try:
        body = request.content.read_nowait()
    except BROKEN:
        raise _broken_off() from None
    if len(body) > request.client_max_size:
        raise web.HTTPRequestEntityTooLarge(request.client_max_size)
    return body


async def read_body(request: web.BaseRequest, budget: Budget, until_stored: contextlib.ExitStack) -> bytes:
    """Read a body of which a part is still on its way; a client that asks first is told to send it.

    Args:
        request: The request.
        budget: Holds the bytes.
        until_stored: Gives them back when it closes.

    Raises:
        InvalidPayload: It broke off.
        HTTPRequestEntityTooLarge: It is larger than the request allows.
        HTTPRequestTimeout: It did not come in time.
        IntakeFull: Too much is under way.
    """
    most = request.client_max_size
    held = min(most, UNTOLD_BYTES) if request.content_length is None else request.content_length
    if held > most:
        raise web.HTTPRequestEntityTooLarge(most)
    until_stored.enter_context(budget.hold(held))
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WAIT_S):
            await _ask_for(request)
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > most:
                    raise web.HTTPRequestEntityTooLarge(most)
                if len(body) > held:
                    until_stored.enter_context(budget.hold(most - held))
                    held = most
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    except BROKEN:
        raise _broken_off() from None
    return bytes(body)


async def _ask_for(request: web.BaseRequest) -> None:
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer, nothing is written yet


def _broken_off() -> InvalidPayload:
    return InvalidPayload("the connection or a chunk of it broke off", malformed=True)
