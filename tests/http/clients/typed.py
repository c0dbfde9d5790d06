"""Clients that want answers of a shape, in their default modes at /v1/chat/completions.

Run by an interpreter that has their packages. DOOR in the environment is ``{"url", "key", "said"}``; it
prints what each of them made of the answer as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
from typing import Any

DOOR: dict[str, Any] = json.loads(os.environ.get("DOOR", "{}"))


def by_instructor(shape: Any) -> dict[str, Any]:
    package, openai = importlib.import_module("instructor"), importlib.import_module("openai")
    found = {}
    for mode in (package.Mode.TOOLS, package.Mode.JSON_SCHEMA):
        plain = openai.OpenAI(base_url=DOOR["url"], api_key=DOOR["key"], max_retries=0)
        client = package.from_openai(plain, mode=mode)
        said = DOOR["said"]["called" if mode is package.Mode.TOOLS else "typed"]
        messages = [{"role": "user", "content": said}]
        answer = client.chat.completions.create(
            model="picoclaw", messages=messages, response_model=shape, max_retries=0
        )
        found[mode.name.lower()] = answer.lives
    return found


def by_langchain(shape: Any) -> dict[str, Any]:
    package = importlib.import_module("langchain_openai")
    model = package.ChatOpenAI(base_url=DOOR["url"], api_key=DOOR["key"], model="picoclaw", max_retries=0)
    default = model.with_structured_output(shape)
    called = model.with_structured_output(shape, method="function_calling")
    return {
        "default": default.invoke(DOOR["said"]["typed"]).lives,
        "function_calling": called.invoke(DOOR["said"]["called"]).lives,
        "plain": model.invoke(DOOR["said"]["plain"]).content,
    }


def main() -> None:
    shape = importlib.import_module("pydantic").create_model("Cat", lives=(int, ...))
    print(json.dumps({"instructor": by_instructor(shape), "langchain": by_langchain(shape)}))


if __name__ == "__main__":
    main()
