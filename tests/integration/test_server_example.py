"""examples/server: batches, readiness, and a real server under load that is told to stop."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra server is missing")
pytest.importorskip("uvicorn", reason="the extra server is missing")

import loadtest
from batching import Batcher, Stopped
from service import FEATURES, MOST, Scorer, Service

SERVER = Path(__file__).parents[2] / "examples" / "server"


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)[:, None].float()


def test_each_request_is_answered_with_its_own_rows_whatever_was_batched_with_it():
    calls = []

    def double(batch):
        calls.append(len(batch))
        return batch * 2

    batcher = Batcher(double, most=8, wait=0.5)
    given = [rows(*range(first, first + size)) for first, size in ((0, 3), (3, 5), (8, 1), (9, 8))]
    answers = [batcher.submit(each) for each in given]
    for each, answer in zip(given, answers, strict=True):
        assert torch.equal(answer.result(60), each * 2)
    assert sum(calls) == 17
    assert max(calls) <= 8
    assert len(calls) < len(given)
    batcher.stop()


def test_an_error_reaches_those_whose_call_it_was_and_nobody_else():
    def picky(batch):
        if (batch < 0).any():
            raise ArithmeticError("negative")
        return batch

    batcher = Batcher(picky, most=2, wait=0)
    bad, good = batcher.submit(rows(-1, -2)), batcher.submit(rows(1, 2))
    with pytest.raises(ArithmeticError):
        bad.result(60)
    assert torch.equal(good.result(60), rows(1, 2))
    with pytest.raises(ValueError, match="send 1 to 2"):
        batcher.submit(rows(1, 2, 3))
    batcher.stop()


def test_what_was_taken_is_answered_before_the_stop_and_nothing_behind_it():
    free = threading.Event()

    def slow(batch):
        assert free.wait(60)
        return batch + 1

    batcher = Batcher(slow, most=4, wait=0)
    answers = [batcher.submit(rows(n, n)) for n in range(5)]
    assert answers[-1].cancel()
    ends = threading.Thread(target=batcher.stop)
    ends.start()
    free.set()
    ends.join(60)
    assert [answer.result(0)[0].item() for answer in answers[:-1]] == [1, 2, 3, 4]
    with pytest.raises(Stopped):
        batcher.submit(rows(1))
    batcher.stop()


def test_a_service_is_ready_behind_its_warm_up_and_says_why_one_failed(monkeypatch):
    monkeypatch.setenv("PIECEWISE_COMPILER", "eager")
    service = Service()
    assert (service.ready, service.failed) == (False, "")
    service.warm_up()
    assert service.ready
    assert service.fast.status().ready
    asked = torch.randn(5, FEATURES)
    with torch.inference_mode():
        torch.testing.assert_close(service.score(asked), service.model(asked))
    assert service.fast.stats().captures >= 1
    monkeypatch.setattr(Scorer, "forward", lambda self, rows: 1 / 0)
    broken = Service()
    broken.warm_up()
    assert not broken.ready
    assert "ZeroDivisionError" in broken.failed


def test_a_server_without_a_home_answers_8_threads_and_stops_when_told(tmp_path):
    env = {
        "PIECEWISE_COMPILER": "eager",
        "PIECEWISE_CACHE_DIR": str(tmp_path),
        "HOME": "/nonexistent",
    }
    with loadtest.server(env=env) as (port, run):
        loadtest.wait_for(port, "/readyz", run)
        load = loadtest.put_load(port, run.pid, 240, 8)
        assert load.errors == []
        assert len(load.seconds) == 240
        for query in ([], [[0.0]], [[0.0] * FEATURES] * (MOST + 1)):
            assert loadtest.ask(port, "/score", json.dumps({"rows": query}))[0] == 422
        assert json.loads(loadtest.ask(port, "/status")[1])["ready"]
        scraped = loadtest.ask(port, "/metrics")[1]
        assert 'piecewise_ready{model="scorer"} 1.0' in scraped
        assert 'piecewise_events_total{kind="missed"' not in scraped
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) in (0, -signal.SIGTERM)
    assert loadtest.ask(port, "/healthz") == (0, "")


def test_the_probes_and_the_image_ask_for_what_the_server_has():
    yaml = pytest.importorskip("yaml", reason="PyYAML is missing")
    deployment, _ = yaml.safe_load_all((SERVER / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    routes = (SERVER / "app.py").read_text()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert f'@app.get("{container[probe]["httpGet"]["path"]}")' in routes
    docker = (SERVER / "Dockerfile").read_text()
    assert f"USER {pod['securityContext']['runAsUser']}:" in docker
    assert f"EXPOSE {container['ports'][0]['containerPort']}" in docker
    assert (SERVER / "app.py").is_file()
    assert "app:app" in docker


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_workers_that_gunicorn_forks_share_what_was_compiled_and_stop_when_told(tmp_path):
    pytest.importorskip("gunicorn", reason="the extra server is missing")
    env = {
        "PIECEWISE_COMPILER": "eager",
        "PIECEWISE_CACHE_DIR": str(tmp_path),
        "HOME": "/nonexistent",
        "OMP_NUM_THREADS": "1",
        "SERVER_WORKERS": "2",
    }
    with loadtest.server("gunicorn", env=env) as (port, run):
        # Compiled before the fork: no worker is ever seen that is not ready.
        assert set(loadtest.wait_for(port, "/readyz", run)) <= {0}
        load = loadtest.put_load(port, run.pid, 120, 4)
        assert load.errors == []
        scraped = loadtest.ask(port, "/metrics")[1]
        assert 'piecewise_ready{model="scorer"} 1.0' in scraped
        assert 'piecewise_events_total{kind="missed"' not in scraped
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        assert len(children) >= 2
        os.kill(int(children[0]), signal.SIGKILL)  # another is forked in its place, ready at once
        again = loadtest.put_load(port, run.pid, 40, 1)
        assert len(again.errors) < len(again.seconds) == 40
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 0
    assert loadtest.ask(port, "/healthz") == (0, "")
