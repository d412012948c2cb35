"""Bodies of requests: read within limits, and taken apart where they are forms."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from email.message import Message
from email.parser import HeaderParser

from fastapi import Request
from starlette.requests import ClientDisconnect

from reloc_core.serving.limits import Limits
from reloc_core.serving.sessions import RequestError

FORM = "multipart/form-data"
_MOST_HEADERS = 2000  # bytes, of a part


async def read_body(request: Request, limits: Limits, types: Mapping[str, str]) -> bytes:
    """The request's body, of limited size and within limited time.

    Args:
        request: of a client.
        limits: `megabytes` and `body_seconds` count.
        types: content types that are taken, and what they are in words.

    Raises:
        RequestError: of another type, too large, too slow, or empty.
    """
    stream = request.stream()
    kind = content_type(request).partition(";")[0].strip().lower()
    if kind not in types:
        await _discard(stream)
        raise RequestError(
            415,
            f"Content-Type {kind[:60]} is not taken: send {', or '.join(dict.fromkeys(types.values()))}.",
        )
    limit = int(limits.megabytes * 1e6)
    too_large = RequestError(413, f"The body is larger than {limits.megabytes:g} MB.")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        await _discard(stream)
        raise too_large
    data = bytearray()

    async def read() -> None:
        async for chunk in stream:
            data.extend(chunk)
            if len(data) > limit:
                return

    try:
        await asyncio.wait_for(read(), limits.body_seconds)
    except asyncio.TimeoutError as error:
        raise RequestError(
            408, f"The body did not arrive within {limits.body_seconds:g} s."
        ) from error
    except ClientDisconnect as error:
        raise RequestError(400, "The client went away.") from error
    if len(data) > limit:
        await _discard(stream)
        raise too_large
    if not data:
        raise RequestError(
            422, f"The body is empty: send {', or '.join(dict.fromkeys(types.values()))}."
        )
    return bytes(data)


def content_type(request: Request) -> str:
    """What the client says of its body."""
    return request.headers.get("content-type", "application/octet-stream")


async def _discard(stream: AsyncIterator[bytes]) -> None:
    """Reads on without keeping anything, up to 16 MB and for 2 s, before a body is refused.

    A connection closed over unread bytes is reset, and most clients would then report a broken
    pipe instead of the answer that says what was wrong.
    """

    async def read() -> None:
        remaining = 16_000_000
        async for chunk in stream:
            remaining -= len(chunk)
            if remaining < 0:
                return

    with contextlib.suppress(asyncio.TimeoutError, ClientDisconnect):
        await asyncio.wait_for(read(), 2.0)


def form_parts(kind: str, data: bytes, known: Sequence[str]) -> dict[str, bytes]:
    """The parts of a form by their names; RFC 7578. Takes time and memory that grow with the body alone.

    Args:
        kind: the content type, with the boundary.
        data: the body.
        known: names that may be, each once.

    Raises:
        RequestError: no such form.
    """
    about = Message()
    about["Content-Type"] = kind
    boundary = about.get_boundary("").encode("latin-1", "replace")
    if not 0 < len(boundary) <= 70:
        raise RequestError(422, f"{FORM} needs boundary=..., of 70 characters at most.")
    pieces = (b"\r\n" + data).split(b"\r\n--" + boundary, len(known) + 2)[1:]
    if len(pieces) > len(known) + 1:
        raise RequestError(422, f"The form has more parts than {', '.join(known)}.")
    if not pieces or not pieces[-1].startswith(b"--"):
        raise RequestError(422, "The form ends early: its last boundary is missing.")
    parts: dict[str, bytes] = {}
    for piece in pieces[:-1]:
        head, blank, content = piece.partition(b"\r\n\r\n")
        if not blank or len(head) > _MOST_HEADERS:
            raise RequestError(422, "A part of the form has no headers, or damaged ones.")
        headers = HeaderParser().parsestr(head.strip().decode("latin-1"))
        name = headers.get_param("name", header="content-disposition")
        if not isinstance(name, str) or name not in known:
            raise RequestError(
                422, f"There is no part '{str(name)[:60]}' of the form: {', '.join(known)}."
            )
        if name in parts:
            raise RequestError(422, f"The form has two parts '{name}'.")
        parts[name] = content
    return parts
