"""A Telegram Bot API server on loopback, in a thread of the test (https://core.telegram.org/bots/api).

It outlives the host that talks to it, checks what Telegram checks (tokens, lengths, HTML, who may be written
to), confirms updates by offset, calls webhooks, and can be told to fail: by status, by asking for a pause, by
breaking the connection before or after it did what was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from html.parser import HTMLParser
from typing import Any, Final
from urllib.parse import parse_qs

import httpx2

TOKEN: Final = "4242:AAE-the-bot-s-token-CANARY-0123456789"
LONGEST: Final = 4096
TAGS: Final = frozenset({"b", "i", "s", "u", "code", "pre", "a", "blockquote"})

Json = dict[str, Any]


class Refusal(Exception):
    """An answer with ``ok: false``."""

    def __init__(self, status: int, description: str, retry_after: int | None = None, **more: int) -> None:
        super().__init__(description)
        self.status = status
        self.body: Json = {"ok": False, "error_code": status, "description": description}
        if retry_after is not None:
            more["retry_after"] = retry_after
        if more:
            self.body["parameters"] = more


@dataclass(slots=True)
class Fault:
    """What goes wrong with the next calls of a method; ``drop``: the connection, before or after the deed."""

    method: str
    times: int
    status: int = 0
    description: str = ""
    retry_after: int | None = None
    chat: str | None = None
    drop: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A call that arrived."""

    method: str
    at: float
    parameters: Json


@dataclass(slots=True)
class Shown:
    """A message as its chat shows it now."""

    id: int
    text: str
    html: str
    reply_to: int | None = None
    edits: int = 0
    topic: int | None = None
    buttons: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class BotApi:
    """The server's state; every method may be called from the test's thread."""

    token: str = TOKEN
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    documents: dict[str, list[tuple[str, bytes, str]]] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    migrated: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    webhook: Json = field(default_factory=dict)
    brought: list[Json] = field(default_factory=list)
    noticed: threading.Event | None = None
    """Where it is set, who sends buttons hears so only after a notice, or a second: people are faster."""
    _chats: dict[str, dict[int, Shown]] = field(default_factory=dict)
    _updates: list[Json] = field(default_factory=list)
    _update_id: int = 1000
    _message_id: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    def say(
        self,
        text: str | None,
        *,
        user: int = 7,
        name: str | None = "ann",
        chat: int | None = None,
        topic: int | None = None,
        edited: int | None = None,
        **more: Any,
    ) -> int:
        """Have a person write, or edit what they wrote; returns the message's id."""
        sender: Json = {"id": user, "is_bot": False, "first_name": (name or "someone").title()}
        if name is not None:
            sender["username"] = name
        place: Json = {"id": user, "type": "private", "first_name": sender["first_name"]}
        if chat is not None:
            kind = "supergroup" if str(chat).startswith("-100") else "group"
            place = {"id": chat, "type": kind, "title": "g"}
        if topic is not None:
            place["is_forum"] = True
            more |= {"message_thread_id": topic, "is_topic_message": True}
            # What a topic begins with counts as replied to.
            begun = {"message_id": topic, "date": 1, "chat": place, "forum_topic_created": {"name": "t"}}
            more.setdefault("reply_to_message", begun)
        with self._lock:
            if edited is None:
                self._message_id += 1
            else:
                more["edit_date"] = int(time.time())
            message: Json = {
                "message_id": edited or self._message_id,
                "date": int(time.time()),
                "from": sender,
                "chat": place,
                **more,
            }
            if text is not None:
                message["text"] = text
            kind = "message" if edited is None else "edited_message"
            return self.bring({kind: message}, message["message_id"])

    def press(
        self, label: str, *, user: int = 7, name: str = "ann", chat: int | None = None, data: str = ""
    ) -> int:
        """Have a person press the newest button of that label (or one with other data), or an older one."""
        where = user if chat is None else chat
        with self._lock:
            found = [each for each in self.shown(where) if label in each.buttons or data]
            message = found[-1]
            place: Json = {"id": where, "type": "private" if chat is None else "group", "title": "g"}
            query = {
                "id": f"query-{self._update_id}",
                "from": {"id": user, "is_bot": False, "first_name": name.title(), "username": name},
                "message": {"message_id": message.id, "date": int(time.time()), "chat": place},
                "chat_instance": "1",
                "data": data or message.buttons[label],
            }
            return self.bring({"callback_query": query}, message.id)

    def notices(self) -> list[str]:
        """Return what people were told who pressed buttons."""
        return [str(call.parameters["text"]) for call in self.called("answerCallbackQuery")]

    def migrate(self, old: int, new: int, *, told: bool = True) -> None:
        """Make a supergroup of a group, which service messages in both tell."""
        with self._lock:
            self.migrated[str(old)] = new
        if told:
            self.say(None, chat=old, migrate_to_chat_id=new)
            self.say(None, chat=new, migrate_from_chat_id=old)

    def bring(self, update: Json, answer: int = 0) -> int:
        """Queue an update of any form."""
        with self._lock:
            self._update_id += 1
            self._updates.append({"update_id": self._update_id, **update})
            self.brought.append(self._updates[-1])
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._news.set)
        return answer

    def bring_again(self, update: Json) -> None:
        """Queue an update under the id it has."""
        with self._lock:
            self._updates.append(update)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._news.set)

    def fail(self, method: str, times: int = 1, **fault: Any) -> None:
        """Let the next calls of a method fail."""
        with self._lock:
            self.faults.append(Fault(method, times, **fault))

    def texts(self, chat: int = 7) -> list[str]:
        """Return what a chat shows of the bot's messages, in order."""
        with self._lock:
            return [shown.text for _, shown in sorted(self._chats.get(str(chat), {}).items())]

    def shown(self, chat: int = 7) -> list[Shown]:
        """Return the bot's messages in a chat."""
        with self._lock:
            return [shown for _, shown in sorted(self._chats.get(str(chat), {}).items())]

    def pending(self) -> int:
        """Return how many updates nobody has confirmed."""
        with self._lock:
            return len(self._updates)

    def called(self, method: str, chat: int | None = None) -> list[Call]:
        """Return the calls of a method."""
        with self._lock:
            return [
                call
                for call in self.calls
                if call.method == method and (chat is None or call.parameters.get("chat_id") == str(chat))
            ]

    # --- the server's side

    async def answer(self, path: str, parameters: Json) -> Any:
        """Do what a method does; raises Refusal."""
        token, _, method = path.removeprefix("/bot").partition("/")
        if token != self.token:
            raise Refusal(401, "Unauthorized")
        with self._lock:
            self.calls.append(Call(method, time.monotonic(), parameters))
        handler = getattr(self, f"_do_{method}", None)
        if handler is None:
            raise Refusal(404, "Not Found")
        result = handler(parameters)
        if self.noticed is not None and "reply_markup" in parameters:
            await asyncio.to_thread(self.noticed.wait, 1)
        return await result if asyncio.iscoroutine(result) else result

    def fault_for(self, path: str, parameters: Json) -> Fault | None:
        """Return what is to go wrong with this call."""
        method = path.rpartition("/")[2] if path.startswith("/bot") else "file"
        with self._lock:
            for fault in self.faults:
                wanted = fault.chat is None or fault.chat == parameters.get("chat_id")
                if fault.method == method and wanted and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def _do_getMe(self, parameters: Json) -> Json:
        return {"id": 4242, "is_bot": True, "first_name": "Pico", "username": "pico_bot"}

    def _do_deleteWebhook(self, parameters: Json) -> bool:
        self.webhook = {}
        return True

    def _do_setWebhook(self, parameters: Json) -> bool:
        self.webhook = parameters
        return True

    async def _do_getUpdates(self, parameters: Json) -> list[Json]:
        if self.webhook:
            raise Refusal(409, "Conflict: can't use getUpdates method while webhook is active")
        offset = int(parameters.get("offset", 0))
        deadline = time.monotonic() + int(parameters.get("timeout", 0))
        while True:
            self._news.clear()
            with self._lock:
                self._updates = [each for each in self._updates if each["update_id"] >= offset]
                found = self._updates[: int(parameters.get("limit", 100))]
            left = deadline - time.monotonic()
            if found or left <= 0:
                return found
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), left)

    def _do_sendChatAction(self, parameters: Json) -> bool:
        self._check_chat(parameters["chat_id"])
        return True

    def _do_sendMessage(self, parameters: Json) -> Json:
        chat = parameters["chat_id"]
        self._check_chat(chat)
        text = plain_text(parameters)
        reply = json.loads(parameters.get("reply_parameters", "{}")).get("message_id")
        with self._lock:
            self._message_id += 1
            topic = int(parameters.get("message_thread_id", 0)) or None
            shown = Shown(self._message_id, text, parameters["text"], reply, topic=topic)
            shown.buttons = buttons(parameters)
            self._chats.setdefault(chat, {})[shown.id] = shown
        return {
            "message_id": shown.id,
            "date": int(time.time()),
            "chat": {"id": int(chat), "type": "private"},
            "text": text,
        }

    def _do_sendDocument(self, parameters: Json) -> Json:
        chat = parameters["chat_id"]
        self._check_chat(chat)
        name, data = parameters["document"]
        with self._lock:
            self._message_id += 1
            self.documents.setdefault(chat, []).append((name, data, parameters.get("caption", "")))
        return {"message_id": self._message_id, "date": int(time.time())}

    def _do_editMessageText(self, parameters: Json) -> Json:
        chat = parameters["chat_id"]
        self._check_chat(chat)
        text = plain_text(parameters)
        with self._lock:
            shown = self._chats.get(chat, {}).get(int(parameters["message_id"]))
            if shown is None:
                raise Refusal(400, "Bad Request: message to edit not found")
            if (shown.html, shown.buttons) == (parameters["text"], buttons(parameters)):
                raise Refusal(
                    400, "Bad Request: message is not modified: specified new message content is the same"
                )
            shown.text, shown.html, shown.buttons = text, parameters["text"], buttons(parameters)
            shown.edits += 1
        return {
            "message_id": shown.id,
            "date": int(time.time()),
            "chat": {"id": int(chat), "type": "private"},
            "text": text,
        }

    def _do_answerCallbackQuery(self, parameters: Json) -> bool:
        if self.noticed is not None:
            self.noticed.set()
        known = [each["callback_query"]["id"] for each in self.brought if "callback_query" in each]
        if parameters["callback_query_id"] not in known or len(parameters.get("text", "")) > 200:
            raise Refusal(
                400, "Bad Request: query is too old and response timeout expired or query ID is invalid"
            )
        return True

    def _do_deleteMessage(self, parameters: Json) -> bool:
        with self._lock:
            if self._chats.get(parameters["chat_id"], {}).pop(int(parameters["message_id"]), None) is None:
                raise Refusal(400, "Bad Request: message to delete not found")
        return True

    def _do_getFile(self, parameters: Json) -> Json:
        data = self.files.get(parameters["file_id"])
        if data is None:
            raise Refusal(400, "Bad Request: invalid file_id")
        return {"file_id": parameters["file_id"], "file_path": f"documents/{parameters['file_id']}"}

    def _check_chat(self, chat: str) -> None:
        if chat in self.blocked:
            raise Refusal(403, "Forbidden: bot was blocked by the user")
        if chat in self.missing:
            raise Refusal(400, "Bad Request: chat not found")
        if (new := self.migrated.get(chat)) is not None:
            said = "Bad Request: group chat was upgraded to a supergroup chat"
            raise Refusal(400, said, migrate_to_chat_id=new)

    async def call_webhooks(self) -> None:
        """Post updates to the webhook, one after the other, each until it is taken."""
        async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
            while True:
                with self._lock:
                    hook, update = dict(self.webhook), self._updates[0] if self._updates else None
                if not hook.get("url") or update is None:
                    self._news.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._news.wait(), 0.05)
                    continue
                headers = {"X-Telegram-Bot-Api-Secret-Token": hook.get("secret_token", "")}
                with contextlib.suppress(httpx2.TransportError):
                    answer = await client.post(hook["url"], json=update, headers=headers)
                    if answer.is_success:
                        with self._lock:
                            self._updates.remove(update)
                        continue
                await asyncio.sleep(0.1)


class _Html(HTMLParser):
    """Telegram's HTML: few tags, each closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in TAGS:
            raise Refusal(400, f'Bad Request: can\'t parse entities: Unsupported start tag "{tag}"')
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            raise Refusal(400, "Bad Request: can't parse entities: unmatched end tag")

    def handle_data(self, data: str) -> None:
        self.text += data

    def end(self) -> str:
        self.close()
        if self._open:
            raise Refusal(400, "Bad Request: can't parse entities: can't find end tag")
        return self.text


def buttons(parameters: Json) -> dict[str, str]:
    """Return a message's inline buttons with their data; raises Refusal."""
    rows = json.loads(parameters.get("reply_markup", "{}")).get("inline_keyboard", [])
    found = {each["text"]: each["callback_data"] for row in rows for each in row}
    if any(not 0 < len(data.encode()) <= 64 for data in found.values()):
        raise Refusal(400, "Bad Request: BUTTON_DATA_INVALID")
    if not all(text.strip() for text in found):
        raise Refusal(400, "Bad Request: a button has no text")
    return found


def plain_text(parameters: Json) -> str:
    """Return the text that people see; raises Refusal."""
    text: str = parameters["text"]
    if parameters.get("parse_mode") == "HTML":
        parser = _Html()
        parser.feed(text)
        text = parser.end()
    if not text.strip():
        raise Refusal(400, "Bad Request: message text is empty")
    if len(text.encode("utf-16-le")) // 2 > LONGEST:
        raise Refusal(400, "Bad Request: message is too long")
    return text


@contextlib.contextmanager
def running_bot_api(token: str = TOKEN) -> Iterator[BotApi]:
    """Serve while the block runs."""
    api = BotApi(token)
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(api, ready)), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield api
    finally:
        assert api._loop is not None
        api._loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks()])
        thread.join(60)


async def _serve(api: BotApi, ready: threading.Event) -> None:
    api._loop = asyncio.get_running_loop()
    server = await asyncio.start_server(
        lambda reader, writer: _connection(api, reader, writer), "127.0.0.1", 0
    )
    api.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    ready.set()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(api.call_webhooks(), asyncio.Event().wait())
    server.close()


def _form(body: bytes) -> Json:
    return {name: values[-1] for name, values in parse_qs(body.decode(), keep_blank_values=True).items()}


def _multipart(head: str, body: bytes) -> Json:
    """Return the fields; a file as its name and bytes, under the name that the other fields attach it by."""
    kind = next(line for line in head.split("\r\n") if line.lower().startswith("content-type:"))
    parts = BytesParser(policy=HTTP).parsebytes(kind.encode() + b"\r\n\r\n" + body).iter_parts()
    found: Json = {}
    for part in parts:
        said: Any = part.get_payload(decode=True)
        name = part.get_filename()
        value = said.decode() if name is None else (name, said)
        found[str(part.get_param("name", header="content-disposition"))] = value
    return found


async def _connection(api: BotApi, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        while await _request(api, reader, writer):
            pass
    writer.close()


async def _request(api: BotApi, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request; False when the connection is to be broken."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lines = head.split("\r\n")
    path = lines[0].split(" ")[1]
    lengths = [line.partition(":")[2] for line in lines if line.lower().startswith("content-length:")]
    body = await reader.readexactly(int(lengths[0])) if lengths else b""
    parameters = _multipart(head, body) if "multipart/form-data" in head else _form(body)
    fault = api.fault_for(path, parameters)
    if fault is not None and fault.drop == "before":
        return False
    status, content = await _answer(api, path, parameters, fault)
    if fault is not None and fault.drop == "after":
        return False
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    return True


async def _answer(api: BotApi, path: str, parameters: Json, fault: Fault | None) -> tuple[int, bytes]:
    try:
        if fault is not None and fault.status:
            api.calls.append(Call(f"failed {fault.method}", time.monotonic(), parameters))
            raise Refusal(fault.status, fault.description, fault.retry_after)
        if path.startswith("/file/bot"):
            name = path.rpartition("/")[2]
            if not path.startswith(f"/file/bot{api.token}/") or name not in api.files:
                raise Refusal(404, "Not Found")
            return 200, api.files[name]
        return 200, json.dumps({"ok": True, "result": await api.answer(path, parameters)}).encode()
    except Refusal as refusal:
        return refusal.status, json.dumps(refusal.body).encode()
