"""Models as asynchronous instruments of OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

from piecewise_core.metrics.reading import FAMILIES, Family, Models

__all__ = ["Instruments", "register"]

_UNITS = {"": "", "seconds": "s", "bytes": "By"}


class Instruments:
    """Has ``models`` observed until it is closed."""

    def __init__(self, models: Models, provider: MeterProvider | None) -> None:
        self._models = models
        meter = get_meter("piecewise_core", meter_provider=provider)
        for family in FAMILIES:
            make = (
                meter.create_observable_counter
                if family.kind == "counter"
                else meter.create_observable_gauge
            )
            make(
                f"piecewise.{family.name}",
                callbacks=[_Read(family, models)],
                unit=_UNITS[family.unit],
                description=family.about,
            )

    def close(self) -> None:
        """Observe no more; OpenTelemetry keeps the instruments."""
        self._models.close()


class _Read:
    """The callback of one instrument."""

    def __init__(self, family: Family, models: Models) -> None:
        self._family, self._models = family, models

    def __call__(self, options: CallbackOptions) -> Iterable[Observation]:
        return list(self._read())

    def _read(self) -> Iterator[Observation]:
        for name, view in self._models.views():
            for values, value in self._family.read(view):
                labels = zip(self._family.labels, values, strict=True)
                yield Observation(value, {"model": name, **dict(labels)})


def register(models: Models, provider: MeterProvider | None) -> Instruments:
    """Make the instruments of ``models`` at ``provider``."""
    return Instruments(models, provider)
