"""The HTTP interface of a `LocalizationService`, with FastAPI.

Images come as the plain body of a POST. Clients name maps and numbers, never files.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, Query, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from reloc_core import __version__
from reloc_core.errors import InputError, did_you_mean
from reloc_core.serving.bodies import FORM, content_type, form_parts, read_body
from reloc_core.serving.limits import RateLimiter
from reloc_core.serving.models import (
    Answer,
    Batch,
    CameraMessage,
    Health,
    MapEntry,
    Prior,
    Refusal,
    prior_covariance,
    problem_of,
    schemas_by_hand,
)
from reloc_core.serving.page import api_page
from reloc_core.serving.service import CameraOption, Frame, LocalizationService
from reloc_core.serving.sessions import RequestError
from reloc_core.types import CAMERA_MODELS, Camera, PosePrior

_log = logging.getLogger("reloc.serve")
_TYPES = {
    **dict.fromkeys(
        ("image/jpeg", "image/png", "application/octet-stream"),
        "the image itself as image/jpeg or image/png",
    ),
    FORM: f"a form as {FORM}",
}
_JSON = {"application/json": "JSON as application/json"}
_FILE = {"type": "string", "format": "binary"}
_FORM_PARTS = {
    "image": {**_FILE, "description": "a JPEG or PNG file"},
    "depth": {**_FILE, "description": "a PNG of 16 bits in millimetres, registered to the image"},
    "prior": {"$ref": "#/components/schemas/Prior"},
}
_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/jpeg": {"schema": _FILE},
            "image/png": {"schema": _FILE},
            FORM: {
                "schema": {"type": "object", "required": ["image"], "properties": _FORM_PARTS},
                "encoding": {"prior": {"contentType": "application/json"}},
            },
        },
    },
}
_BATCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Batch"}}},
    }
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "model": Refusal}
    for status, text in (
        (404, "There is no such map."),
        (408, "The image came too slowly."),
        (409, "The frame before of this sequence is still worked on."),
        (413, "The image is too large, in bytes or in pixels."),
        (415, "The body is no JPEG or PNG image, and no form with one."),
        (422, "The image is damaged, or a parameter is unknown or makes no sense."),
        (429, "This client asks too often; see Retry-After."),
        (503, "The server is busy or shutting down; see Retry-After."),
    )
}
Next = Callable[[Request], Awaitable[Response]]
Model = TypeVar("Model", bound=BaseModel)


def create_app(service: LocalizationService) -> FastAPI:
    """The application; closes the service when it stops."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="reloc",
        version=__version__,
        description="Where was the camera? POST an image, get its pose.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(_known_parameters)],
    )
    limiter = RateLimiter(service.limits.rate_per_minute)

    @app.middleware("http")
    async def count_answers(request: Request, call_next: Next) -> Response:
        try:
            response = await call_next(request)
        except Exception:
            # A defect: the log has the trace, the client learns nothing of the inside.
            _log.exception("%s %s failed", request.method, request.url.path)
            response = _error(500, "The server made a mistake; its log says more.")
        service.metrics.answered(response.status_code)
        return response

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return _error(error.status, str(error), error.retry_after)

    @app.exception_handler(HTTPException)
    async def no_such_page(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def bad_parameters(_: Request, error: RequestValidationError) -> Response:
        problems = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        return _error(422, "; ".join(problems))

    @app.get(
        "/health",
        summary="Whether the server takes requests",
        response_model=Health,
        responses={503: {"description": "The server shuts down.", "model": Health}},
    )
    async def health() -> Response:
        status = 503 if service.closing else 200
        content = {"status": "closing" if service.closing else "ok", "version": __version__}
        return JSONResponse({**content, "maps": sorted(service.localizers)}, status)

    @app.get("/maps", summary="The maps and what made them", response_model=dict[str, MapEntry])
    async def maps() -> dict[str, Any]:
        return {
            name: {
                "component": localizer.map.info.component,
                "unit": localizer.map.info.unit,
                "bytes": localizer.map.bytes,
            }
            for name, localizer in service.localizers.items()
            if localizer.map is not None
        }

    @app.get("/metrics", summary="Counters for Prometheus")
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(service.waiting, service.working))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(api_page(app.openapi()))

    @app.post(
        "/localize",
        summary="Localize one image, or the next frame of a sequence",
        openapi_extra=_IMAGE_BODY,
        response_model=Answer,
        responses=_REFUSALS,
    )
    async def localize(
        request: Request,
        map: str | None = Query(None, description="name of the map; needed with several maps"),
        camera: Literal["map"] | None = Query(
            None, description="map: the camera of the mapping images"
        ),
        focal: float | None = Query(None, description="focal length in pixels", gt=0, lt=1e6),
        model: str | None = Query(None, description=f"camera model: {', '.join(CAMERA_MODELS)}"),
        params: str | None = Query(
            None, description="its parameters with commas, in COLMAP's order; pixel (0, 0) is the "
            "centre of the top-left pixel", max_length=500,
        ),
        width: int | None = Query(None, description="image width of `params`", gt=0, le=65535),
        height: int | None = Query(None, description="image height of `params`", gt=0, le=65535),
        name: str = Query("", description="comes back in the answer", max_length=200),
        sequence: str | None = Query(
            None, description="video that this is the next frame of; it is tracked",
            min_length=1, max_length=100,
        ),
        timestamp: float | None = Query(None, description="seconds", allow_inf_nan=False),
        prior: str | None = Query(
            None, description="what is known of world_from_cam: 16 numbers with commas, row by row",
            max_length=1000,
        ),
        prior_std: str = Query(
            "5,0.5", description="its standard deviation: degrees, and the map's unit",
            max_length=60,
        ),
    ) -> dict[str, Any]:  # fmt: skip
        _limit_rate(request, limiter)
        service.localizer(map)  # a wrong name is told before the image is sent
        chosen = _camera(focal, model, params, width, height, camera)
        known = _prior(prior, prior_std)
        parts = {"image": await read_body(request, service.limits, _TYPES)}
        if content_type(request).lower().startswith(FORM):
            parts = form_parts(content_type(request), parts["image"], list(_FORM_PARTS))
        if "image" not in parts:
            raise RequestError(422, "The form has no part 'image'.")
        if "prior" in parts:
            if known is not None:
                raise RequestError(422, "prior is given twice.")
            known = _read(Prior, parts["prior"], "prior").evidence()
        frame = Frame(parts["image"], chosen, name, sequence, timestamp, known, parts.get("depth"))
        return await asyncio.wrap_future(service.submit(map, frame))

    @app.post(
        "/localize/batch",
        summary="Localize several images, with depth where there is some",
        openapi_extra=_BATCH_BODY,
        response_model=list[Answer | Refusal],
        responses=_REFUSALS,
    )
    async def localize_batch(request: Request) -> list[dict[str, Any]]:
        _limit_rate(request, limiter)
        batch = _read(Batch, await read_body(request, service.limits, _JSON))
        frames = [image.frame(image.image) for image in batch.images]
        return await asyncio.wrap_future(service.submit_batch(batch.map, frames))

    @app.websocket("/track")
    async def track(socket: WebSocket, map: str | None = None) -> None:
        await camera_stream(socket, service, map, limiter)

    describe = app.openapi

    def openapi() -> dict[str, Any]:
        description = describe()
        description["components"]["schemas"].update(schemas_by_hand())
        return description

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _known_parameters(request: HTTPConnection) -> None:
    """Refuse parameters that do not exist; a websocket says so itself, once it is open.

    Raises:
        RequestError: names the first one.
    """
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    _refuse_unknown(request, [field.alias for field in route.dependant.query_params])


def _refuse_unknown(request: HTTPConnection, known: Sequence[str]) -> None:
    """Refuse parameters other than the known ones.

    Raises:
        RequestError: names the first one.
    """
    for name in request.query_params:
        if name not in known:
            hint = did_you_mean(name[:60], known)
            raise RequestError(422, f"There is no parameter '{name[:60]}'.{hint}")


def _prior(prior: str | None, std: str) -> PosePrior | None:
    """The prior of a request.

    Raises:
        RequestError: it is no pose.
    """
    if prior is None:
        return None
    try:
        pose = np.array([float(n) for n in prior.split(",")]).reshape(4, 4).tolist()
        degrees, length = (float(number) for number in std.split(","))
    except ValueError:
        raise RequestError(
            422, "prior takes 16 numbers with commas, prior_std two: degrees and a length."
        ) from None
    if not (0 < degrees <= 180 and 0 < length < 1e9):
        raise RequestError(422, "prior_std must be positive: degrees and a length.")
    covariance = prior_covariance(degrees, length).tolist()
    try:
        return Prior(world_from_cam=pose, covariance=covariance).evidence()
    except ValidationError as error:
        raise RequestError(422, f"prior is no pose: {problem_of(error)}.") from None


def _read(model: type[Model], text: str | bytes, place: str = "") -> Model:
    """JSON of a client.

    Raises:
        RequestError: no such JSON; begins with the place.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problem = f"{place}: {problem_of(error)}" if place else problem_of(error)
        raise RequestError(422, problem) from None


async def camera_stream(
    socket: WebSocket, service: LocalizationService, map_name: str | None, limiter: RateLimiter
) -> None:
    """A camera's frames over a websocket, tracked: an answer or a refusal for each.

    Binary messages are JPEG or PNG images. A text message is a `CameraMessage` in JSON.
    """
    await socket.accept()
    sequence, camera = f"websocket {uuid.uuid4().hex}", None
    said, chosen = CameraMessage(), ""
    try:
        try:
            _refuse_unknown(socket, ["map"])
            chosen = service.localizer(map_name)[0]
        except RequestError as error:
            await socket.send_json({"error": str(error), "status": error.status})
            return
        client = socket.client.host if socket.client else "unknown"
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                if message.get("text") is not None:
                    said = _read(CameraMessage, message["text"])
                    camera = said.camera or said.focal or camera
                    continue
                wait = limiter.wait_seconds(client)
                if wait:
                    raise RequestError(429, "Too many frames from this address.", wait)
                frame = said.frame(message.get("bytes") or b"", camera, sequence)
                said = CameraMessage()
                await socket.send_json(await asyncio.wrap_future(service.submit(chosen, frame)))
            except RequestError as error:
                service.metrics.answered(error.status)
                await socket.send_json({"error": str(error), "status": error.status})
    except (WebSocketDisconnect, RuntimeError):
        _log.debug("a camera went away", exc_info=True)
    finally:
        service.sessions.end(chosen, sequence)


def _error(status: int, message: str, retry_after: float | None = None) -> JSONResponse:
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    if status in (408, 413, 415):
        # What is still coming of the body is not read.
        headers["Connection"] = "close"
    return JSONResponse({"error": message}, status, headers)


def _limit_rate(request: Request, limiter: RateLimiter) -> None:
    client = request.client.host if request.client else "unknown"
    wait = limiter.wait_seconds(client)
    if wait:
        raise RequestError(429, "Too many requests from this address.", wait)


def _camera(
    focal: float | None,
    model: str | None,
    params: str | None,
    width: int | None,
    height: int | None,
    camera: Literal["map"] | None,
) -> CameraOption:
    """The camera of a request, None where it gives none.

    Raises:
        RequestError: the parameters do not fit together.
    """
    if camera is not None:
        if (focal, model, params, width, height) != (None,) * 5:
            raise RequestError(422, "Give either camera=map or focal or params.")
        return camera
    if params is None:
        if model is not None or width is not None or height is not None:
            raise RequestError(422, "model, width and height belong to params=...")
        return focal
    if focal is not None:
        raise RequestError(422, "Give either focal or params, not both.")
    if model is None or width is None or height is None:
        raise RequestError(422, "params needs model, width and height.")
    try:
        numbers = tuple(float(number) for number in params.split(","))
        return Camera(model, width, height, numbers)
    except (InputError, ValueError) as error:
        raise RequestError(422, f"params: {error}") from error
