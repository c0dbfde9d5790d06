"""An assembler for classic BPF as seccomp runs it (seccomp(2), include/uapi/linux/filter.h).

Jumps name labels; offsets are computed when the program is assembled. Only forward jumps exist in classic
BPF.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
RETURN: Final = 0x06  # BPF_RET | BPF_K
JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
JUMP_BITS: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS

# struct seccomp_data, seccomp(2)
NUMBER: Final = 0
ARCHITECTURE: Final = 4


def argument_low(index: int) -> int:
    """Return the offset of the low 32 bits of a system call argument (little endian)."""
    return 16 + 8 * index


def argument_high(index: int) -> int:
    """Return the offset of the high 32 bits of a system call argument."""
    return argument_low(index) + 4


@dataclass(frozen=True, slots=True)
class _Instruction:
    code: int
    operand: int
    if_true: str | None = None
    if_false: str | None = None


class Program:
    """A filter under construction; a jump's missing label means the next instruction."""

    def __init__(self) -> None:
        self._instructions: list[_Instruction] = []
        self._labels: dict[str, int] = {}

    def load(self, offset: int) -> None:
        """Load a 32-bit word of ``seccomp_data`` into the accumulator."""
        self._instructions.append(_Instruction(LOAD_WORD, offset))

    def mask(self, bits: int) -> None:
        """Keep only ``bits`` of the accumulator."""
        self._instructions.append(_Instruction(AND, bits))

    def jump(self, code: int, operand: int, *, true: str | None = None, false: str | None = None) -> None:
        """Compare the accumulator and go to a label that is placed later."""
        self._instructions.append(_Instruction(code, operand, true, false))

    def give(self, action: int) -> None:
        """End with a seccomp action."""
        self._instructions.append(_Instruction(RETURN, action))

    def label(self, name: str) -> None:
        """Name the next instruction."""
        self._labels[name] = len(self._instructions)

    def assemble(self) -> bytes:
        """Return the ``struct sock_filter`` array. Raises ``ValueError`` when a jump or the whole is too
        long.
        """
        if len(self._instructions) > MAX_INSTRUCTIONS:
            raise ValueError("the filter has more instructions than the kernel takes")
        return b"".join(self._encode(at, step) for at, step in enumerate(self._instructions))

    def _encode(self, position: int, step: _Instruction) -> bytes:
        true, false = (self._distance(position, name) for name in (step.if_true, step.if_false))
        return struct.pack("HBBI", step.code, true, false, step.operand)

    def _distance(self, position: int, name: str | None) -> int:
        distance = 0 if name is None else self._labels[name] - position - 1
        if not 0 <= distance <= 255:
            raise ValueError(f"jump to {name} is out of reach")
        return distance
