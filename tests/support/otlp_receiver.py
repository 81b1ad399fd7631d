"""A small OTLP receiver on loopback, HTTP and gRPC: it keeps what apps export, decoded by OpenTelemetry's own protocol.

A stand-in for a Collector where a test looks at every span; tests marked e2e use the real ones.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc  # type: ignore[import-untyped]
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, NumberDataPoint
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One exported span."""

    name: str
    span_id: bytes
    parent_id: bytes
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """The newest value of one metric with one set of attributes; of a histogram its sum and count."""

    attributes: Mapping[str, Any]
    value: float
    count: int = 1


@dataclass
class OtlpReceiver:
    """What was received, and where to send it."""

    http_endpoint: str
    grpc_endpoint: str
    spans: list[ReceivedSpan] = field(default_factory=list)
    metrics: dict[str, list[Point]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def take_traces(self, request: trace_service_pb2.ExportTraceServiceRequest, how: str) -> None:
        """Keep the spans of one request."""
        self.requests.append(how)
        for resource_spans in request.resource_spans:
            for scope_spans in resource_spans.scope_spans:
                self.spans.extend(_span(span) for span in scope_spans.spans)

    def take_metrics(self, request: metrics_service_pb2.ExportMetricsServiceRequest) -> None:
        """Keep the newest points of each metric: sums are cumulative."""
        for resource_metrics in request.resource_metrics:
            for scope_metrics in resource_metrics.scope_metrics:
                for metric in scope_metrics.metrics:
                    self.metrics[metric.name] = list(_points(metric))


@contextmanager
def receiving_otlp() -> Iterator[OtlpReceiver]:
    """A receiver for the length of the block."""
    traces = futures.ThreadPoolExecutor(2)
    rpc = grpc.server(traces)
    rpc_port = rpc.add_insecure_port("127.0.0.1:0")
    web = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    web.daemon_threads = True
    receiver = OtlpReceiver(f"http://127.0.0.1:{web.server_port}", f"http://127.0.0.1:{rpc_port}")
    web.receiver = receiver  # type: ignore[attr-defined]
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(receiver), rpc)  # type: ignore[no-untyped-call]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(receiver), rpc)  # type: ignore[no-untyped-call]
    rpc.start()
    thread = threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        rpc.stop(None)
        traces.shutdown()
        web.shutdown()
        web.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """OTLP over HTTP, protobuf, plain or gzip."""

    def do_POST(self) -> None:
        receiver: OtlpReceiver = self.server.receiver  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            receiver.take_traces(trace_service_pb2.ExportTraceServiceRequest.FromString(body), "http")
        elif self.path == "/v1/metrics":
            receiver.take_metrics(metrics_service_pb2.ExportMetricsServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the base class gives it
        """Not to standard error."""


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(  # noqa: N802 - the name of the remote procedure
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self._receiver.take_traces(request, "grpc")
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(  # noqa: N802 - the name of the remote procedure
        self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: grpc.ServicerContext
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        self._receiver.take_metrics(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()


def _span(span: Span) -> ReceivedSpan:
    return ReceivedSpan(span.name, span.span_id, span.parent_span_id, _attributes(span.attributes))


def _points(metric: Metric) -> Iterator[Point]:
    for point in (*metric.sum.data_points, *metric.gauge.data_points):
        yield Point(_attributes(point.attributes), _number(point))
    for histogram in metric.histogram.data_points:
        yield Point(_attributes(histogram.attributes), histogram.sum, histogram.count)


def _number(point: NumberDataPoint) -> float:
    return point.as_double if point.WhichOneof("value") == "as_double" else float(point.as_int)


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return None if kind is None else getattr(value, kind)
