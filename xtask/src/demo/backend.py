"""Batchivo's backend as far as the demo needs it: HTTP on 8000 (both families), statsd counters on UDP 8125."""

import http.server
import socket
import threading


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 64

    def server_bind(self):
        # One socket for both families. The base class would look up the host's name here.
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "backend", self.server_address[1]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def count():
    counters = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    counters.bind(("0.0.0.0", 8125))
    while True:
        counters.recvfrom(2048)


threading.Thread(target=count, daemon=True).start()
Server(("::", 8000), Handler).serve_forever()
