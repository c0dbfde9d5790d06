"""Print what the host POSTs: python receiver.py 8800."""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Receiver(BaseHTTPRequestHandler):
    """Takes everything."""

    def do_POST(self) -> None:
        """Print the text, then answer 204."""
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print(said["text"], flush=True)
        self.send_response(204)
        self.end_headers()


HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
