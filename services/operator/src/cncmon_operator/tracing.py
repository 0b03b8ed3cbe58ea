"""Traces by OpenTelemetry, exported by OTLP over HTTP where its own variables name a receiver.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) switches them on; without it nothing of the SDK
is loaded, and spans cost next to nothing. Sampling, headers and resource attributes: OpenTelemetry's variables as well
(OpenTelemetry specification, "SDK environment variables" and "OTLP exporter").
"""

import os
from collections.abc import Callable
from typing import Final

from opentelemetry import trace

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

TRACER: Final = trace.get_tracer("cncmon_operator")


def start(service: str, version: str) -> Callable[[], None]:
    """Begin to export spans where a receiver is named; return what sends the last of them."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return lambda: None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": service, "service.version": version}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown
