"""HEALTHCHECK: exit 0 when the host answers /health with 200. Sockets alone: it must cost next to nothing."""

import os
import socket
import sys

REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

try:
    with socket.create_connection(
        ("localhost", int(os.environ.get("PORT") or 9000)), timeout=4
    ) as connection:
        connection.sendall(REQUEST)
        status = connection.recv(64).split(b" ")[1:2]
except (OSError, ValueError) as error:
    sys.exit(f"no answer: {error}")
sys.exit(0 if status == [b"200"] else f"the answer was {status}")
