"""Metrics of compiled models for Prometheus and OpenTelemetry, read when they are collected.

Nothing is done per call: the numbers are those that models count anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from piecewise_core.errors import ConfigError
from piecewise_core.metrics.reading import Model, Models

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from prometheus_client.registry import CollectorRegistry

    from piecewise_core.metrics.instruments import Instruments
    from piecewise_core.metrics.scraped import Scraped

__all__ = ["opentelemetry", "prometheus"]


def prometheus(models: Mapping[str, Model], registry: CollectorRegistry | None = None) -> Scraped:
    """Have the official Prometheus client show ``models``, by the names they are given.

    ``models``: what ``pw.compile``, ``pw.load``, ``pw.record`` or ``pw.Pool`` returned, referred to
    weakly; or ``pw.dynamo_graphs`` itself, for every graph that torch.compile has from here.
    ``registry``: None for the client's default one. ``close()`` on what is returned ends it.
    Raises ConfigError for what is no such model, and where ``prometheus-client`` is missing.
    """
    found = Models(models)
    try:
        from piecewise_core.metrics import scraped
    except ImportError as error:
        raise _missing("prometheus", "prometheus-client", error) from error
    return scraped.register(found, registry)


def opentelemetry(
    models: Mapping[str, Model], meter_provider: MeterProvider | None = None
) -> Instruments:
    """Have OpenTelemetry observe ``models``, by the names they are given.

    ``models``: as for ``prometheus``. ``meter_provider``: None for the global one. ``close()`` on
    what is returned ends it. Raises ConfigError for what is no such model, and where
    ``opentelemetry-api`` is missing.
    """
    found = Models(models)
    try:
        from piecewise_core.metrics import instruments
    except ImportError as error:
        raise _missing("otel", "opentelemetry-api", error) from error
    return instruments.register(found, meter_provider)


def _missing(extra: str, package: str, error: Any) -> ConfigError:
    return ConfigError(
        f"these metrics need {package}, which cannot be imported ({error}); install it: "
        f'pip install "piecewise-core[{extra}]"'
    )
