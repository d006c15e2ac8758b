"""The HTTP interface of a predictor."""

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from finetune.evaluation.predictor import Predictor
from finetune.serving.batcher import Batcher, QueueFullError
from finetune.serving.body_limit import BodyLimit
from finetune.serving.models import (
    ViewModel,
    describe,
    make_body_type,
    make_prediction_model,
    make_row_model,
)
from task_formats import Example, RowError, Task

_MAX_ERRORS = 20
"""Errors that are listed for one request."""
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class ServingLimits(NamedTuple):
    """What one request, and all that wait, may hold."""

    max_rows: int = 256
    """Rows of one request."""
    max_body_bytes: int = 2**20
    """Bytes of the body of one request."""
    max_waiting_rows: int = 1024
    """Rows of all requests that wait for the model."""


DEFAULT_LIMITS = ServingLimits()


def create_app(
    predictor: Predictor,
    *,
    title: str = "gptft",
    token: str | None = None,
    limits: ServingLimits = DEFAULT_LIMITS,
) -> FastAPI:
    """Builds the application.

    Args:
        predictor: Used by one thread only, which the application starts.
        title: Shown on the page and in the OpenAPI document.
        token: Clients must send it as a bearer token; None lets everyone in.
        limits: Larger requests are refused.
    """
    task = predictor.task.without_prompt().without_labels()
    row_model, prediction_model = make_row_model(task), make_prediction_model(task)
    batcher = Batcher(
        lambda examples: list(predictor.stream(examples)),
        max_waiting_rows=max(limits.max_waiting_rows, limits.max_rows),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()

    app = FastAPI(
        title=title,
        summary=predictor.recipe.about or None,
        version=version("gptft"),
        lifespan=lifespan,
        # Their pages load scripts from the network.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, max_bytes=limits.max_body_bytes)
    app.add_exception_handler(RequestValidationError, _explain_invalid_request)
    app.add_exception_handler(QueueFullError, _explain_full_queue)
    protected = [Depends(_check_token(token))] if token else []
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    body_type = make_body_type(row_model, limits.max_rows)

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    @app.get("/health")
    async def health() -> dict[str, str | int]:
        """Says that the server runs, and how many rows wait."""
        return {"status": "ok", "waiting_rows": batcher.waiting_rows}

    @app.get("/schema", include_in_schema=False, dependencies=protected)
    async def schema() -> dict[str, Any]:
        return app.openapi()

    @app.post(
        "/predict",
        dependencies=protected,
        response_model=prediction_model | list[prediction_model],  # type: ignore[valid-type]
        responses={503: {"description": "Too many rows wait; try again later."}},
    )
    async def predict(body: body_type) -> Any:  # type: ignore[valid-type]
        """Predicts one row, or a list of rows in order."""
        rows: Any = body
        if not isinstance(rows, list):
            [prediction] = await batcher.predict([_build_example(task, rows)])
            return describe(prediction, task)
        examples = [_build_example(task, row, n) for n, row in enumerate(rows)]
        return [describe(prediction, task) for prediction in await batcher.predict(examples)]

    @app.post("/tokens", dependencies=protected)
    async def tokens(row: row_model) -> list[ViewModel]:  # type: ignore[valid-type]
        """Shows one row as the model reads it, token by token."""
        example = _build_example(task, row)
        views = await batcher.call(lambda: predictor.view_tokens(example))
        return [ViewModel.of(view) for view in views]

    return app


def _build_example(task: Task, row: BaseModel, *place: int) -> Example:
    """The example of a row; RequestValidationError names the row's place in the request."""
    try:
        return task.example(row.model_dump(by_alias=True), "row", labelled=False)
    except RowError as error:
        details = {"type": "row", "loc": ("body", *place), "msg": str(error)}
        raise RequestValidationError([details]) from None


def _check_token(token: str) -> Callable[..., None]:
    """A dependency that answers 401 to requests without the token."""
    scheme = HTTPBearer(auto_error=False)

    def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)],
    ) -> None:
        sent = given.credentials if given else ""
        # In constant time: how long it takes says nothing about the token.
        if not secrets.compare_digest(sent.encode(), token.encode()):
            headers = {"WWW-Authenticate": "Bearer"}
            raise HTTPException(401, "Send the bearer token of this server.", headers)

    return check


async def _explain_invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Lists what is wrong and where, without repeating what was sent."""
    assert isinstance(error, RequestValidationError)
    details = [
        {"loc": _locate(problem), "msg": problem["msg"], "type": problem["type"]}
        for problem in error.errors()[:_MAX_ERRORS]
    ]
    return JSONResponse({"detail": details}, 422)


def _locate(problem: Mapping[str, Any]) -> list[str | int]:
    """The place in the request, without the branch of the union that pydantic chose."""
    first, *rest = problem["loc"]
    return [first, *(rest[1:] if rest[:1] in (["row"], ["rows"]) else rest)]


async def _explain_full_queue(request: Request, error: Exception) -> JSONResponse:
    detail = "Too many rows wait. Try again later."
    return JSONResponse({"detail": detail}, 503, headers={"Retry-After": "1"})
