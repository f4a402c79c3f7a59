"""A model behind HTTP: uvicorn app:app, or gunicorn -c gunicorn.conf.py app:app."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import prometheus_client
import torch
from batching import Batcher, Stopped
from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel
from service import FEATURES, MOST, Service

from piecewise_core import metrics

service = Service()
if os.environ.get("SERVER_WARM") == "import":  # gunicorn's preload_app: before workers are forked
    service.warm_up()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Per worker: its thread for batches, its registry, and the warm-up if it is not done."""
    app.state.batcher = Batcher(service.score, MOST)
    app.state.registry = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=app.state.registry)
    metrics.prometheus({"scorer": service.fast}, app.state.registry)
    service.start()
    yield
    # The server takes no connections any more, and has answered those that it had.
    await asyncio.to_thread(app.state.batcher.stop)


app = FastAPI(lifespan=lifespan)


class Query(BaseModel):
    """Rows of features."""

    rows: list[list[float]]


def tensor_of(query: Query) -> torch.Tensor:
    """The rows, checked: what a model gets is what it was compiled for."""
    if not 1 <= len(query.rows) <= MOST or any(len(row) != FEATURES for row in query.rows):
        raise HTTPException(422, f"send 1 to {MOST} rows of {FEATURES} numbers")
    if not service.ready:
        raise HTTPException(503, "not warmed up yet", headers={"Retry-After": "1"})
    return torch.tensor(query.rows)


@app.post("/score")
async def score(query: Query) -> list[list[float]]:
    """Scores, computed together with those of other requests."""
    try:
        answer = app.state.batcher.submit(tensor_of(query))
    except Stopped as error:
        raise HTTPException(503, str(error)) from None
    return (await asyncio.wrap_future(answer)).tolist()


@app.post("/score-alone")
def score_alone(query: Query) -> list[list[float]]:
    """Scores, computed in a thread of the request's own."""
    return service.score(tensor_of(query)).tolist()


@app.get("/healthz")
async def healthz() -> str:
    """Whether the process lives; a failed warm-up does not heal by itself."""
    if service.failed:
        raise HTTPException(500, service.failed)
    return "ok"


@app.get("/readyz")
async def readyz() -> str:
    """Whether requests are to be sent here."""
    if not service.ready:
        raise HTTPException(503, service.failed or "warming up")
    return "ready"


@app.get("/status")
def status() -> Response:
    """What serves which sizes."""
    return Response(service.fast.status().to_json(), media_type="application/json")


@app.get("/metrics")
def scrape() -> Response:
    """For Prometheus."""
    body = prometheus_client.generate_latest(app.state.registry)
    return Response(body, media_type=prometheus_client.CONTENT_TYPE_LATEST)
