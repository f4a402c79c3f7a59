"""Models as a collector of ``prometheus_client``."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from piecewise_core.errors import ConfigError
from piecewise_core.metrics.reading import FAMILIES, Family, Models

__all__ = ["Scraped", "register"]

_Metric = CounterMetricFamily | GaugeMetricFamily


class Scraped(Collector):
    """Shows ``models`` to whoever scrapes ``registry``, until it is closed."""

    def __init__(self, models: Models, registry: CollectorRegistry) -> None:
        self._models = models
        self._registry = registry
        self._closed = False

    def describe(self) -> Iterable[_Metric]:
        """The families, without reading a model."""
        return map(_metric, FAMILIES)

    def collect(self) -> Iterable[_Metric]:
        """Every family of every model."""
        views = list(self._models.views())
        for family in FAMILIES:
            metric = _metric(family)
            for name, view in views:
                for labels, value in family.read(view):
                    metric.add_metric([name, *labels], float(value))
            yield metric

    def close(self) -> None:
        """Take them out of the registry."""
        if not self._closed:
            self._registry.unregister(self)
        self._closed = True


def register(models: Models, registry: CollectorRegistry | None) -> Scraped:
    """Add a collector of ``models`` to ``registry``."""
    registry = REGISTRY if registry is None else registry
    if not isinstance(registry, CollectorRegistry):
        raise ConfigError(f"metrics: {type(registry).__name__} is no CollectorRegistry")
    made = Scraped(models, registry)
    try:
        registry.register(made)
    except ValueError as error:
        raise ConfigError(
            f"metrics: the registry shows models already ({error}); close() what "
            "metrics.prometheus returned before, and give it all models at once"
        ) from error
    return made


def _metric(family: Family) -> _Metric:
    name = "_".join(filter(None, ("piecewise", family.name, family.unit)))
    labels = ("model", *family.labels)
    if family.kind == "counter":
        return CounterMetricFamily(name, family.about, labels=labels)
    return GaugeMetricFamily(name, family.about, labels=labels)
