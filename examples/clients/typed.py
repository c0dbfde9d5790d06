"""Ask a PicoClaw host for data instead of words: python typed.py "what is in my workspace?"."""

import json
import os
import sys
import urllib.error
import urllib.request

URL = os.environ.get("PICOCLAW_URL", "http://localhost:9000")
HEADERS = {"Authorization": f"Bearer {os.environ['API_TOKEN']}", "Content-Type": "application/json"}

FILES = {
    "type": "object",
    "properties": {
        "summary": {"type": "string"},
        "files": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["summary", "files"],
    "additionalProperties": False,
}


def ask(message, schema):
    """Return the answer as what the schema says."""
    body = json.dumps({"message": message, "output_schema": schema}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{URL}/chat", body, HEADERS)) as answer:
            told = json.load(answer)
    except urllib.error.HTTPError as error:
        raise SystemExit(error.read().decode()) from None
    if told["status"] != "success":
        raise SystemExit(f"{told.get('code')}: {told.get('error')}")
    return told["output"]


found = ask(" ".join(sys.argv[1:]), FILES)
print(f"{found['summary']} ({len(found['files'])} files)")
