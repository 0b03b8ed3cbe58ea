"""The operator's traces arrive at a receiver of OTLP over HTTP, as its own protocol definitions read them."""

import asyncio
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from nats.aio.client import Client
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from cluster.operators import hall_of
from cluster.test_operator import machine
from testkit import ingest
from testkit.kubernetes import Cluster

pytestmark = [pytest.mark.needs("kubernetes")]


class Receiver:
    """What was exported: services, and spans by id."""

    def __init__(self) -> None:
        self.services: set[str] = set()
        self.spans: dict[bytes, Span] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """The test says what is wrong."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def take(self, request: ExportTraceServiceRequest) -> None:
        for of_resource in request.resource_spans:
            attributes = {one.key: one.value.string_value for one in of_resource.resource.attributes}
            self.services.add(attributes["service.name"])
            self.spans |= {span.span_id: span for scope in of_resource.scope_spans for span in scope.spans}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


async def test_what_was_done_for_an_edge_is_one_trace(
    resources: Cluster,
    namespace: str,
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    tmp_path: Path,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.server.server_port}")
    await ingest.prepare(nats_client, ingest.settings_for(postgres_dsn))
    async with hall_of(resources, namespace, nats_url, nats_client, tmp_path) as hall:
        operator = hall.operator()
        hall.apply(machine("m1"))
        await hall.until_machines(["m1"])
        await hall.until_condition("m1", "Configured", "True", "Written")
        # What is not sent yet is sent at the end.
        await asyncio.to_thread(operator.stop)
    assert receiver.services == {"cncmon-operator"}
    written = [
        span
        for span in receiver.spans.values()
        if span.name == "write document" and any(one.value.int_value == 1 for one in span.attributes)
    ]
    assert written
    parent = receiver.spans[written[0].parent_span_id]
    assert parent.name == "look at edge"
    assert {one.key: one.value.string_value for one in parent.attributes} == {
        "cncmon.site": "hall", "cncmon.edge": "e1",
    }  # fmt: skip
    told = [
        span for span in receiver.spans.values() if span.name == "patch status" and span.trace_id == parent.trace_id
    ]
    assert told
