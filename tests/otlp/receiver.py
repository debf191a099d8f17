"""A receiver of OTLP over HTTP: parses requests with OpenTelemetry's own messages and writes what it got, a JSON object a line.

receiver.py PORT DIRECTORY [CERTIFICATE KEY]: writes DIRECTORY/got, and does what DIRECTORY/mode says: take, slow, busy, refuse, or
part. With a certificate and its key it speaks TLS.
"""

import gzip
import http.server
import json
import pathlib
import ssl
import sys
import time

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

port, directory = int(sys.argv[1]), pathlib.Path(sys.argv[2])


def plain(value):
    """What an AnyValue holds."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: plain(item.value) for item in value.kvlist_value.values}
    return getattr(value, kind) if kind else None


def attributes(pairs):
    names = [pair.key for pair in pairs]
    assert len(names) == len(set(names)), f"an attribute twice: {names}"
    return {pair.key: plain(pair.value) for pair in pairs}


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = ExportLogsServiceRequest()
        body = self.rfile.read(int(self.headers["content-length"]))
        request.ParseFromString(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
        mode = (directory / "mode").read_text().strip()
        if mode == "slow":
            time.sleep(0.3)
        records = [
            {
                "path": self.path,
                "token": self.headers.get("x-token"),
                "type": self.headers.get("content-type"),
                "resource": attributes(resource.resource.attributes),
                "scope": scope.scope.name,
                "time": record.time_unix_nano,
                "observed": record.observed_time_unix_nano,
                "severity": record.severity_number,
                "severity_text": record.severity_text,
                "event": record.event_name,
                "body": plain(record.body),
                "attributes": attributes(record.attributes),
            }
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]
        answer = ExportLogsServiceResponse()
        status = {"busy": 503, "refuse": 400}.get(mode, 200)
        if mode == "part":
            answer.partial_success.rejected_log_records = 1
            answer.partial_success.error_message = "one is too many"
            records.pop()
        if status == 200:
            with (directory / "got").open("a") as got:
                got.writelines(json.dumps(record) + "\n" for record in records)
        body = answer.SerializeToString()
        self.send_response(status)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(body)))
        if status == 503:
            self.send_header("retry-after", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Receiver)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3], sys.argv[4])
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
