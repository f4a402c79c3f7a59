"""Start the server, send it requests from several threads, check every answer, and stop it.

python examples/server/loadtest.py --requests 20000 --threads 8
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from service import FEATURES, Scorer

HERE = Path(__file__).parent

_JSON = {"Content-Type": "application/json"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def command(port: int, kind: str) -> list[str]:
    if kind == "gunicorn":
        return [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "app:app"]
    options = ["--port", str(port), "--log-level", "warning", "--timeout-graceful-shutdown", "20"]
    return [sys.executable, "-m", "uvicorn", "app:app", *options]


@contextmanager
def server(kind: str = "uvicorn", **options: object) -> Iterator[tuple[int, subprocess.Popen]]:
    """A server on a free port, ended at the end. ``options``: of ``subprocess.Popen``."""
    port = free_port()
    env = {**os.environ, **options.pop("env", {}), "SERVER_BIND": f"127.0.0.1:{port}"}
    run = subprocess.Popen(command(port, kind), cwd=HERE, env=env, **options)
    try:
        yield port, run
    finally:
        if run.poll() is None:
            run.send_signal(signal.SIGTERM)
        try:
            run.wait(30)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()


def ask(port: int, path: str, body: str | None = None) -> tuple[int, str]:
    """One request; status 0 where nobody listens."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        link.request("GET" if body is None else "POST", path, body, _JSON)
        answer = link.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return 0, ""
    finally:
        link.close()


def wait_for(port: int, path: str, run: subprocess.Popen, seconds: float = 300) -> list[int]:
    """Ask until it is 200; the other states on the way, each once."""
    seen: list[int] = []
    ends = time.monotonic() + seconds
    while (state := ask(port, path)[0]) != 200:
        if run.poll() is not None or time.monotonic() > ends:
            raise RuntimeError(f"{path} gave {state}; the server's exit status is {run.poll()}")
        if state not in seen:
            seen.append(state)
        time.sleep(0.02)
    return seen


def resident(pid: int) -> int:
    """Bytes of memory that a process and those that it started have."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident(int(child)) for child in children)


@dataclass
class Load:
    """What came of a load test. ``memory``: bytes by number of requests answered."""

    errors: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: dict[int, int] = field(default_factory=dict)
    took: float = 0.0

    def growth(self, since: int) -> float:
        """How far memory is above what it was after ``since`` requests, at most, as a share."""
        late = [size for count, size in self.memory.items() if count >= since]
        return max(late) / late[0] - 1

    def __str__(self) -> str:
        cut = statistics.quantiles(self.seconds, n=100)
        done = len(self.seconds)
        return (
            f"{done} requests, {len(self.errors)} errors, {done / self.took:.0f} a second, "
            f"median {cut[49] * 1e3:.1f} ms, p99 {cut[98] * 1e3:.1f} ms"
        )


def queries(count: int = 200) -> list[tuple[str, torch.Tensor]]:
    """Bodies of requests, and what the model as written answers."""
    torch.manual_seed(0)
    model, sizes = Scorer().eval(), random.Random(0)
    made = []
    for _ in range(count):
        rows = torch.randn(sizes.choice((1, 1, 1, 2, 3, 5, 8, 13, 21)), FEATURES)
        with torch.inference_mode():
            made.append((json.dumps({"rows": rows.tolist()}), model(rows)))
    return made


def put_load(port: int, pid: int, requests: int, threads: int) -> Load:
    """Send ``requests`` from ``threads`` threads, half of them to each of the two ways."""
    load, asked, lock = Load(), queries(), threading.Lock()
    numbers = iter(range(requests))
    begun = time.monotonic()

    def client() -> None:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return link.close()
            body, expected = asked[number % len(asked)]
            path = "/score-alone" if number % 2 else "/score"
            at, wrong = time.perf_counter(), ""
            try:
                link.request("POST", path, body, _JSON)
                answer = link.getresponse()
                text = answer.read()
                if answer.status != 200:
                    wrong = f"{path}: {answer.status}"
                elif not torch.allclose(torch.tensor(json.loads(text)), expected, atol=1e-5):
                    wrong = f"{path}: another answer than the model's"
            except (OSError, http.client.HTTPException) as error:
                wrong = f"{path}: {type(error).__name__}: {error}"
                link.close()
            with lock:
                load.seconds.append(time.perf_counter() - at)
                if wrong:
                    load.errors.append(wrong)
                if len(load.seconds) % max(requests // 40, 1) == 0:
                    load.memory[len(load.seconds)] = resident(pid)

    clients = [threading.Thread(target=client) for _ in range(threads)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    load.took = time.monotonic() - begun
    return load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--server", choices=("uvicorn", "gunicorn"), default="uvicorn")
    asked = parser.parse_args()
    with server(asked.server) as (port, run):
        wait_for(port, "/healthz", run)
        states = wait_for(port, "/readyz", run)
        print(f"/readyz gave {states} until warmed up, then 200")
        load = put_load(port, run.pid, asked.requests, asked.threads)
        print(load)
        for text in dict.fromkeys(load.errors[:5]):
            print(f"  {text}")
        since = asked.requests // 4
        late = [size for count, size in load.memory.items() if count >= since]
        print(
            f"resident memory {late[0] / 2**20:.1f} MiB after {since} requests, "
            f"{late[-1] / 2**20:.1f} MiB at the end: at most {load.growth(since):+.2%}"
        )
        lines = ask(port, "/metrics")[1].splitlines()
        names = ("calls_total", "events_total", "ready", "padded_rows_total")
        starts = tuple(f"piecewise_{name}{{" for name in names)
        for line in lines:
            if line.startswith(starts) and not line.endswith(" 0.0"):
                print(f"  {line}")
        run.send_signal(signal.SIGTERM)
        run.wait(30)
    print(f"stopped by SIGTERM with exit status {run.returncode}")
    return len(load.errors) > 0 or load.growth(since) > 0.01


if __name__ == "__main__":
    sys.exit(main())
