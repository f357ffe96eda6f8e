"""The addresses of a server and what each answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from recbole_escm2 import __version__
from recbole_escm2.serve.http.openapi import described, predict_operation
from recbole_escm2.serve.http.rows import Refused
from recbole_escm2.serve.http.service import Service

_STATIC = Path(__file__).parent / "static"
_READ_ON = 4  # times max_body that is read of a body that is too long, so that its answer is seen
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def make_app(
    service: Service, choices: bool = True, beside: Sequence[Callable[[], Any]] = ()
) -> FastAPI:
    """The application.

    Args:
        service: what it answers with.
        choices: whether it shows values that train has, for the page.
        beside: each gives what is to run beside it until it ends.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(own()) for own in beside]
        yield
        for task in tasks:
            task.cancel()
        service.close()

    # The pages that FastAPI has for its schema load scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_exception_handler(HTTPException, _no_such_place)
    app.add_api_route(
        "/predict",
        _predict_with(service),
        methods=["POST"],
        summary="Scores of rows",
        openapi_extra=predict_operation(service.limits),
    )
    _add_told(app, service, choices)
    _add_page(app)

    def schema() -> dict[str, Any]:
        whole = get_openapi(title="recbole_escm2", version=__version__, routes=app.routes)
        return described(whole, service.told, service.limits)

    app.openapi = schema  # type: ignore[method-assign]  # anew: the model is exchanged
    return app


def _add_told(app: FastAPI, service: Service, choices: bool) -> None:
    """What a server tells of itself."""

    @app.get("/health", summary="Whether it answers, and with which model")
    async def health() -> JSONResponse:
        told = service.told
        status = "stopping" if service.draining else "ok" if service.there else "no worker"
        content = {
            "status": status,
            "model": told.model,
            "digest": told.digest,
            "loaded": told.loaded.isoformat(timespec="seconds"),
            "reload_error": service.reload_error,
            "workers": service.there,
        }
        return JSONResponse(content, 200 if status == "ok" else 503)

    @app.get("/metrics", summary="Numbers for Prometheus")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/model", summary="The model and its fields")
    async def model() -> JSONResponse:
        return JSONResponse({**service.told.about(choices), "limits": vars(service.limits)})


def _add_page(app: FastAPI) -> None:
    """The page to try a row, of files that stand beside this module."""
    for path, name in (("/", "page.html"), ("/page.css", "page.css"), ("/page.js", "page.js")):

        def file(name: str = name) -> FileResponse:
            return FileResponse(_STATIC / name, headers=_PAGE_HEADERS)

        app.add_api_route(path, lambda own=file: own(), methods=["GET"], include_in_schema=False)


async def _no_such_place(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    said = "GET / is a page to try a row, POST /predict scores rows, GET /openapi.json has all"
    what = f"{request.method} {request.url.path}: {error.detail}. {said}"
    return JSONResponse({"error": what}, error.status_code, headers=error.headers)


def _predict_with(service: Service) -> Callable[[Request], Any]:
    metrics, limits = service.metrics, service.limits

    async def predict(request: Request) -> Response:
        start = time.perf_counter()
        if service.active >= limits.max_requests:
            answer = _full(service)
        else:
            service.active += 1
            metrics.active.inc()
            try:
                answer = await _answered(service, request)
            finally:
                service.active -= 1
                metrics.active.dec()
        metrics.requests.labels(str(answer.status_code)).inc()
        metrics.seconds.observe(time.perf_counter() - start)
        return answer

    return predict


def _full(service: Service) -> Response:
    most = service.limits.max_requests
    error = f"{most:,} requests are at work, no more are taken (--max_requests): try again"
    return JSONResponse({"error": error}, 503, {"retry-after": "1", "connection": "close"})


async def _answered(service: Service, request: Request) -> Response:
    come = False
    try:
        async with asyncio.timeout(service.limits.timeout):
            body = await _body(request, service.limits.max_body)
            come = True
            found = await service.answer(body)
        return Response(found.body, media_type="application/json")
    except Refused as refused:
        content = {"error": refused.error, "faults": list(refused.faults)}
        headers = {"retry-after": "1"} if refused.status == 503 else {}
        if refused.status == 413 and not come:
            headers = {"connection": "close"}
        return JSONResponse(content, refused.status, headers)
    except TimeoutError:
        seconds = f"{service.limits.timeout:g} s (--timeout)"
        if come:
            said = f"not scored within {seconds}: send fewer rows, or try again"
            return JSONResponse({"error": said}, 503, {"retry-after": "1"})
        said = f"the body hasn't come within {seconds}: send it at once"
        return JSONResponse({"error": said}, 408, {"connection": "close"})
    except ClientDisconnect:
        return Response(status_code=499)  # which nobody reads
    except Exception:
        getLogger().exception("a request couldn't be answered")
        return JSONResponse({"error": "the server failed; its log says how"}, 500)


async def _body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        Refused: it is longer, or compressed.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Refused(415, f"content-encoding {encoding[:40]}: send the body as it is")
    said = request.headers.get("content-length", "")
    too_long = Refused(413, f"the body may have {most:,} bytes (--max_body): send fewer rows")
    if said.isdecimal() and int(said) > _READ_ON * most:
        raise too_long
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size <= most:
            pieces.append(piece)
        else:
            pieces.clear()
        if size > _READ_ON * most:
            break
    if size > most:
        raise too_long
    return b"".join(pieces)
