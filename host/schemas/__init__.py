"""JSON Schemas of strangers, judged in a process of its own: they keep busy and fill nothing else."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, Final, Self, cast

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, Process
from anyio.streams.buffered import BufferedByteReceiveStream

from shared import jsons
from shared.errors import InvalidInput
from shared.processes import terminate
from shared.store.contract import Turns

CHECKER: Final = Path(__file__).with_name("checker.py")
LONGEST_WAIT_S: Final = 10.0
"""For an answer, on a machine that has no time: the process bounds its own processor time."""
LONGEST_ANSWER: Final = 64 << 10
MOST_KNOWN: Final = 4000
"""Schemas whose verdict is remembered."""
DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
LARGEST: Final = 64 << 10
"""Bytes of a schema that an answer is promised to be of."""
NO_ANSWER: Final = (OSError, anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError)
TOO_MUCH: Final = "it takes more than 0.25 s of processor time or 64 MiB to check"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong: with the schema itself, or with the value by it; None where nothing is."""

    schema_fault: str | None = None
    value_fault: str | None = None


class SchemaJudge:
    """Judges values by JSON Schemas (draft 2020-12); one question at a time, of the principals in turn.

    Begins with the first one.
    """

    def __init__(self) -> None:
        self._process: Process | None = None
        self._turn = anyio.Lock()
        self._turns = Turns()
        self._known: dict[bytes, Verdict] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def schema(self, schema: Any, *, input_only: bool = False) -> Verdict:
        """Return whether a schema can be used at all; ``input_only``: by others, who take any pattern."""
        question = {"schema": schema, "shape": input_only}
        digest = sha256(jsons.dump_bytes(question)).digest() if jsons.fits(question) else b""
        if digest not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[digest] = await self._asked(question)
        return self._known[digest]

    async def value(self, schema: Any, value: Any) -> Verdict:
        """Return whether a value is what a schema says."""
        return await self._asked({"schema": schema, "value": value})

    async def require(self, schema: Any, field: str) -> None:
        """Raise InvalidInput, naming the field, for what no answer can be promised to be."""
        draft = schema.get("$schema", DRAFT) if isinstance(schema, dict) else DRAFT
        if str(draft).removesuffix("#") != DRAFT:
            raise InvalidInput(f"{field}: $schema: only {DRAFT} is taken")
        if jsons.fits(schema) and len(jsons.dump_bytes(schema)) > LARGEST:
            raise InvalidInput(f"{field}: has at most {LARGEST >> 10} KiB")
        if (fault := (await self.schema(schema)).schema_fault) is not None:
            raise InvalidInput(f"{field}: {fault}")

    async def fault(self, schema: Any, value: Any) -> str | None:
        """Return what is wrong with an answer, with the path in it, or None."""
        verdict = await self._asked({"schema": schema, "value": value, "name": "output"})
        return verdict.value_fault or verdict.schema_fault

    async def ends(self, patterns: Sequence[str], texts: Sequence[str]) -> bool:
        """Return whether regular expressions of Python come to an end on texts, soon."""
        return await self._asked({"patterns": patterns, "texts": texts}) == Verdict()

    async def _asked(self, question: dict[str, Any]) -> Verdict:
        if not jsons.fits(question):
            return Verdict(schema_fault="it is nested too deep, or has a number too large")
        async with self._turns.own(), self._turn:
            try:
                with anyio.fail_after(LONGEST_WAIT_S):
                    return Verdict(**jsons.loads(await self._line(jsons.dump_bytes(question))))
            except NO_ANSWER:
                await self._end()
                return Verdict(schema_fault=TOO_MUCH)
            except BaseException:
                await self._end()  # whoever asks next must not get this answer
                raise

    async def _line(self, question: bytes) -> bytes:
        if self._process is None:
            command = [sys.executable, "-I", str(CHECKER)]
            self._process = await anyio.open_process(
                command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}, start_new_session=True
            )
        said = cast(ByteSendStream, self._process.stdin)
        heard = cast(ByteReceiveStream, self._process.stdout)
        await said.send(question + b"\n")
        return await BufferedByteReceiveStream(heard).receive_until(b"\n", LONGEST_ANSWER)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await terminate(process, within_s=0)
