"""Metrics as the libraries' own clients get them, against what models count."""

from __future__ import annotations

import gc
import json
import re
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

import piecewise_core as pw
from piecewise_core import metrics
from piecewise_core.testing import SimulatedPlatform

ROWS = pw.Dim("rows", min=1, max=64)
SIZES = (5, 8, 8, 9, 33)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def double(x):
    return x * 2


def settings(**config):
    return pw.Config(
        dynamic={"x": {0: ROWS}},
        compiler="eager",
        capture_sizes=(8, 64),
        padding="capture_sizes",
        **config,
    )


@pytest.fixture(params=["compile", "record"])
def model(request):
    fast = getattr(pw, request.param)(double, settings(), SimulatedPlatform())
    fast(torch.ones(8, 2))
    fast.warmup()
    for rows in SIZES:
        fast(torch.ones(rows, 2))
    return fast


@pytest.fixture
def scrape():
    """What a scrape over HTTP finds, by name and labels."""
    client = pytest.importorskip("prometheus_client", reason="the extra prometheus is missing")
    from prometheus_client.parser import text_string_to_metric_families

    registry = client.CollectorRegistry()
    server, thread = client.start_http_server(0, "127.0.0.1", registry)

    def read():
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    read.registry = registry
    yield read
    server.shutdown()
    server.server_close()
    thread.join()


def total(found, name, **labels):
    keys = [k for k in found if k[0] == name and set(labels.items()) <= set(k[1:])]
    return sum(found[key] for key in keys)


def test_a_scrape_finds_what_the_model_counts(model, scrape):
    metrics.prometheus({"encoder": model}, scrape.registry)
    found, stats = scrape(), model.stats()
    for kind, calls in stats.calls.items():
        assert total(found, "piecewise_calls_total", kind=kind, model="encoder") == calls
    assert total(found, "piecewise_calls_total", kind="replayed", target="rows 8") >= 3
    assert total(found, "piecewise_rows_total") == 8 + sum(SIZES)
    assert total(found, "piecewise_padded_rows_total") == stats.padded_rows
    assert total(found, "piecewise_pool_bytes") == stats.pool_bytes
    assert total(found, "piecewise_ready") == model.status().ready == 1
    assert total(found, "piecewise_targets", state="ready") == len(model.status().of("ready"))
    assert total(found, "piecewise_events_total", kind="captured") == 2
    assert total(found, "piecewise_capture_seconds_total") > 0
    before = total(found, "piecewise_calls_total", target="rows 8")
    model(torch.ones(8, 2))
    assert total(scrape(), "piecewise_calls_total", target="rows 8") == before + 1


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(model, scrape):
    metrics.prometheus({"encoder": model}, scrape.registry)
    labels = {}
    for name, *pairs in scrape():
        labels.setdefault(name, set()).update(label for label, _ in pairs)
    howto = Path(__file__).parents[2] / "docs" / "howto"
    board = json.loads((howto / "grafana-dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    for name, text in re.findall(r"(piecewise_\w+)\{([^}]*)\}", " ".join(asked)):
        assert set(re.findall(r"(\w+)[=!]", text)) <= labels[name]
    page = (howto / "monitor.md").read_text()
    assert {name for name in labels if name.startswith("piecewise_")} <= set(
        re.findall(r"`(piecewise_\w+)`", page)
    )


def test_opentelemetry_observes_the_same(model, scrape):
    sdk = pytest.importorskip("opentelemetry.sdk.metrics", reason="the extra otel is missing")
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = sdk.MeterProvider([reader])
    made = metrics.opentelemetry({"encoder": model}, provider)
    metrics.prometheus({"encoder": model}, scrape.registry)
    scraped, observed = scrape(), {}
    for resource in reader.get_metrics_data().resource_metrics:
        for metric in resource.scope_metrics[0].metrics:
            unit = {"s": "_seconds", "By": "_bytes"}.get(metric.unit, "")
            is_sum = type(metric.data).__name__ == "Sum"
            name = metric.name.replace(".", "_") + unit + ("_total" if is_sum else "")
            for point in metric.data.data_points:
                observed[(name, *sorted(point.attributes.items()))] = point.value
    assert observed == {key: value for key, value in scraped.items() if key[0][:9] == "piecewise"}
    made.close()
    assert not list(made._models.views())
    provider.shutdown()


def test_counts_never_fall_whatever_is_dropped(scrape):
    fast = pw.compile(double, settings(), SimulatedPlatform())
    metrics.prometheus({"encoder": fast}, scrape.registry)
    last: dict[object, float] = {}
    for step in (lambda: None, fast.release, fast.retrace, fast.restore, gc.collect):
        step()
        for rows in SIZES:
            fast(torch.ones(rows, 2))
        found = {key: n for key, n in scrape().items() if key[0].endswith("_total")}
        assert not [key for key, n in last.items() if found[key] < n]
        assert total(found, "piecewise_calls_total") == sum(fast.stats().calls.values())
        last = found


def test_a_model_that_is_not_called_yet_is_not_ready_and_one_that_is_gone_is_not_shown(scrape):
    models = {name: pw.compile(double, settings(), SimulatedPlatform()) for name in "ab"}
    made = metrics.prometheus(models, scrape.registry)
    assert scrape()["piecewise_ready", ("model", "a")] == 0
    del models["a"]
    gc.collect()
    found = scrape()
    assert ("piecewise_ready", ("model", "a")) not in found
    assert ("piecewise_ready", ("model", "b")) in found
    with pytest.raises(pw.errors.ConfigError, match="shows models already"):
        metrics.prometheus(models, scrape.registry)
    made.close()
    made.close()
    assert not scrape()


@pytest.mark.parametrize(
    "models", [{}, [], {"": double}, {"a": double}, {"a": torch.nn.Linear(1, 1)}]
)
def test_what_is_no_model_is_refused(models):
    with pytest.raises(pw.errors.ConfigError, match="metrics: "):
        metrics.prometheus(models)


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("prometheus", "prometheus_client", "prometheus"),
        ("opentelemetry", "opentelemetry.metrics", "otel"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(
    name, library, extra, monkeypatch
):
    for module in list(sys.modules):
        if module.startswith((library, "piecewise_core.metrics.")):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(metrics, "scraped", raising=False)
    monkeypatch.delattr(metrics, "instruments", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    fast = pw.compile(double, settings(), SimulatedPlatform())
    with pytest.raises(pw.errors.ConfigError, match=rf"piecewise-core\[{extra}\]"):
        getattr(metrics, name)({"a": fast})


def test_a_pool_shows_its_bytes_once(scrape):
    pool, platform = pw.Pool(), SimulatedPlatform()
    made = {name: pw.compile(double, settings(), platform, pool=pool) for name in "ab"}
    for fast in made.values():
        fast(torch.ones(8, 2))
    metrics.prometheus({**made, "pool": pool}, scrape.registry)
    found = scrape()
    held = pool.stats()
    assert total(found, "piecewise_pool_bytes") == held.pool_bytes > 0
    assert found["piecewise_pool_bytes", ("model", "pool")] == held.pool_bytes
    assert total(found, "piecewise_driver_bytes", model="pool") == held.driver_bytes
    assert {key[0] for key in found if ("model", "pool") in key} == {
        "piecewise_pool_bytes",
        "piecewise_driver_bytes",
    }


def test_graphs_of_torch_compile_are_scraped_by_number(scrape):
    torch._dynamo.reset()
    metrics.prometheus({"door": pw.dynamo_graphs}, scrape.registry)
    assert total(scrape(), "piecewise_calls_total") == 0
    options = {"platform": SimulatedPlatform(), "compiler": "eager"}
    door = {"backend": "piecewise", "options": options}
    functions = [torch.compile(fn, **door) for fn in (double, torch.sin)]
    with torch.inference_mode(False), torch.no_grad():
        for fast in functions:
            for _ in range(3):
                fast(torch.ones(5, 2))
    found = scrape()
    told = pw.dynamo_graphs()
    assert len(told) == 2
    names = {dict(key[1:])["model"] for key in found if key[0] == "piecewise_ready"}
    assert len(names) == 2
    assert all(name.startswith("door ") for name in names)
    for name, graph in zip(sorted(names, key=lambda n: int(n[5:])), told, strict=True):
        assert total(found, "piecewise_calls_total", model=name) == 3
        assert total(found, "piecewise_calls_total", model=name, kind="replayed") == 2
        assert total(found, "piecewise_events_total", model=name, kind="captured") == 1
        assert graph.status.ready
        assert [(row.kind, row.state, row.hits) for row in graph.status.targets] == [
            ("replayed", "ready", 2),
            ("compiled_range", "ready", 1),
        ]
    assert found["piecewise_pool_bytes", ("model", "door")] > 0
    torch._dynamo.reset()
    assert not [key for key in scrape() if key[0] == "piecewise_ready"]
