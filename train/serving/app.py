"""The HTTP interface: /detect, /health, /ready, /model, /metrics, /docs and /openapi.json."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ... import __version__
from ...common.text import printable
from ...models.inference.detections import Detections
from .guard import Guard
from .limits import Refused, drain
from .metrics import CONTENT_TYPE
from .page import POLICY, page
from .service import GONE, Service, Wanted

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "What was found, best first, in pixels of the image as displayed; or a picture of it.",
        "content": {
            "application/json": {
                "example": {
                    "image": {"height": 480, "width": 640},
                    "detections": [{"label": 16, "name": "dog", "score": 0.93, "box": [98.2, 40.5, 310.0, 415.7]}],
                    "model": "mine",
                    "milliseconds": 131.2,
                }
            },
            "image/jpeg": {},
            "image/png": {},
        },
    },
    400: {"description": "The body is empty, or the form has no image."},
    401: {"description": "The token is missing or wrong."},
    403: {"description": "The request comes from a page of another server."},
    408: {"description": "The body did not come in time."},
    413: {"description": "Too many bytes, or too many pixels."},
    415: {"description": "The body is no image of a known format."},
    421: {"description": "The header Host names another machine."},
    422: {"description": "The image is damaged, or the query is wrong."},
    500: {"description": "The model failed."},
    503: {"description": "Too many requests wait, or the server starts or ends; Retry-After says when to come again."},
    504: {"description": "The answer did not come in time."},
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}, "description": "The bytes of an image."},
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary"},
                "description": "The bytes of an image.",
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                },
                "description": "A form with the image in its field image.",
            },
        },
    }
}


def create_app(service: Service) -> FastAPI:
    """The application; entering its lifespan starts to load the model."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield

    app = FastAPI(
        title="MSDeform",
        version=__version__,
        description='Detects objects in images. Every error is a JSON object with one sentence: {"error": "..."}.',
        docs_url=None,  # FastAPI's own page loads scripts from a server of others
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,  # to an address of the client's own choice, and it decodes the query first
    )
    app.add_middleware(
        Guard,
        host=service.options.host,
        token=service.options.token,
        names=service.options.allowed_host,
        free=("/health", "/ready"),  # for those who start and stop servers, whom nobody tells a token
        policy=f"{POLICY}; frame-ancestors 'none'",
    )

    @app.post("/detect", responses=_ANSWERS, openapi_extra=_BODY, response_class=Response)
    async def detect(request: Request, wanted: Annotated[Wanted, Query()]) -> Response:
        """Detects objects in one image. The answer's format is that of the query, or of the header Accept, or JSON."""
        begun = time.perf_counter()
        kind = wanted.format or _accepted(request.headers.get("accept", ""))
        status = 500
        try:
            found, picture = await service.detect(request, wanted, kind)
            status = 200
        except Refused as refused:
            status = refused.status
            # one whose body is late has been waited for
            close = refused.unread and (status == 408 or not await drain(request))
            return _error(status, refused.sentence, close=close)
        except ClientDisconnect:
            status = GONE
            return _error(status, "the client went away", close=True)
        except asyncio.CancelledError:  # by uvicorn, after the time that a shutdown leaves
            status = 503
            return _error(status, "the server ended before the answer was found", close=True)
        finally:
            service.metrics.answered(status, time.perf_counter() - begun)
        if kind != "json":
            return Response(picture, media_type=f"image/{kind}")
        milliseconds = round(1000 * (time.perf_counter() - begun), 3)
        return JSONResponse({**as_json(found), "model": service.name, "milliseconds": milliseconds})

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process is alive, whether or not its model is ready."""
        return {"status": "alive"}

    @app.get("/ready", responses={503: {"description": "The model is being loaded, or the server is shutting down."}})
    async def ready() -> Response:
        """Images are taken."""
        why = service.not_ready
        return JSONResponse({"status": "ready"}) if why is None else _error(503, why)

    @app.get("/model", responses={503: {"description": "The model is being loaded, or the server is shutting down."}})
    async def model() -> Response:
        """What is served: its name, engine, classes, the minimum score of each class, and the size of images."""
        why = service.not_ready
        return JSONResponse(service.about()) if why is None else _error(503, why)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Requests, seconds, batches, the queue and the process, in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))

    @app.exception_handler(RequestValidationError)
    async def wrong_query(request: Request, error: RequestValidationError) -> Response:
        service.metrics.answered(422, 0.0)
        return _error(422, _sentence(error), close=not await drain(request))

    @app.exception_handler(HTTPException)
    async def wrong_path(request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, f"{request.method} {request.scope['path']}: {str(error.detail).lower()}")

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> Response:
        return _error(500, f"the server failed: {type(error).__name__}")

    return app


def as_json(found: Detections) -> dict[str, Any]:
    """An image's height and width, and its detections with boxes xyxy in pixels."""
    height, width = found.image_size
    rows = zip(found.labels.tolist(), found.names, found.scores.tolist(), found.boxes.tolist(), strict=True)
    keys = ("label", "name", "score", "box")
    return {
        "image": {"height": height, "width": width},
        "detections": [dict(zip(keys, row, strict=True)) for row in rows],
    }


def _error(status: int, sentence: str, *, close: bool = False) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else {}
    if close:  # the rest of the body is not read
        headers["Connection"] = "close"
    return JSONResponse({"error": printable(sentence)}, status, headers)


def _accepted(header: str) -> str:
    """The first of the formats that a header Accept names, or JSON."""
    for kind in header.split(","):
        name = kind.partition(";")[0].strip().lower()
        if name in ("image/jpeg", "image/png"):
            return name.removeprefix("image/")
        if name in ("application/json", "*/*"):
            break
    return "json"


def _sentence(error: RequestValidationError) -> str:
    """The first of the mistakes in a query."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or "the query"
    if first["type"] == "extra_forbidden":
        return f"no parameter is called {name}; there are {', '.join(Wanted.model_fields)}"
    return f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {first['input']!r:.100}"
