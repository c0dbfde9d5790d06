"""Say something to a PicoClaw host and show the answer while it comes: python chat.py "what did I say?"."""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid

URL = os.environ.get("PICOCLAW_URL", "http://localhost:9000")
HEADERS = {"Authorization": f"Bearer {os.environ['API_TOKEN']}", "Content-Type": "application/json"}


def events(path, headers, body=None):
    """Yield the events of a stream: id, name, data."""
    request = urllib.request.Request(URL + path, body, {**HEADERS, **headers})
    event = {}
    for line in urllib.request.urlopen(request, timeout=60):
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name in ("id", "event", "data"):
            event[name] = value
        elif not name and event:
            yield int(event["id"]), event["event"], json.loads(event["data"])
            event = {}


def say(message):
    """Return how the run ended, a dictionary; a lost connection is taken up where it broke off."""
    body = json.dumps({"message": message, "stream": True}).encode()
    path, headers = "/chat", {"Idempotency-Key": str(uuid.uuid4())}
    while True:
        try:
            for number, name, data in events(path, headers, body):
                if name == "start":
                    path, body = f"/chat/{data['conversation_id']}/runs/{data['run_id']}/events", None
                elif name == "chunk":
                    print(data["text"], end="", flush=True)
                elif name == "done":
                    return data
                headers = {"Last-Event-ID": str(number)}
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise SystemExit(error.read().decode()) from None
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(1)


print(f"\n[{say(' '.join(sys.argv[1:]))['status']}]")
