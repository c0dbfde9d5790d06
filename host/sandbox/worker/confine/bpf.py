"""Rules about system calls, compiled to classic BPF as seccomp runs it (include/uapi/linux/filter.h).

Jumps name labels; offsets are computed when the program is assembled. Only forward jumps exist in classic
BPF.
"""

import errno
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from .. import syscalls

LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
RETURN: Final = 0x06  # BPF_RET | BPF_K
JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
JUMP_BITS: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS

# seccomp(2)
ALLOW: Final = 0x7FFF0000
NOTIFY: Final = 0x7FC00000
_ERRNO: Final = 0x00050000
_GROUP: Final = 8

# struct seccomp_data, seccomp(2)
NUMBER: Final = 0
ARCHITECTURE: Final = 4


class Test(NamedTuple):
    """A condition on the low 32 bits of an argument: ``(argument & mask) in values``, or not in, if negated.

    ``nonzero`` instead: any bit of ``mask`` set, in the high half if ``high``.
    """

    argument: int
    mask: int = 0xFFFFFFFF
    values: tuple[int, ...] = ()
    negated: bool = False
    high: bool = False


class Rule:
    """An action for some system calls when all tests hold; otherwise later rules, and at last "allow".

    ``calls``: their names, as one text.
    """

    def __init__(self, calls: str, action: int, *tests: Test) -> None:
        self.calls = calls
        self.action = action
        self.tests = tests


def refuse(code: int = errno.EPERM) -> int:
    """Return the action "fail with this errno"."""
    return _ERRNO | code


def argument_low(index: int) -> int:
    """Return the offset of the low 32 bits of a system call argument (little endian)."""
    return 16 + 8 * index


def argument_high(index: int) -> int:
    """Return the offset of the high 32 bits of a system call argument."""
    return argument_low(index) + 4


class _Instruction(NamedTuple):
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


def compile_filter(rules: Sequence[Rule]) -> bytes:
    """Return the BPF program: foreign and unknown calls answer ENOSYS, then the rules, then allow.

    Calls are compared in groups by number, so that most need few steps (and the kernel, which tries the
    program for every call when it is installed, takes less time over it).
    """
    program = Program()
    program.load(ARCHITECTURE)
    program.jump(JUMP_EQUAL, syscalls.ARCHITECTURES[syscalls.MACHINE], true="ours")
    program.give(refuse(errno.ENOSYS))
    program.label("ours")
    program.load(NUMBER)
    # also catches x32, whose numbers carry a high bit
    program.jump(JUMP_GREATER, syscalls.NEWEST_KNOWN, false="known")
    program.give(refuse(errno.ENOSYS))
    program.label("known")
    by_number = sorted(_by_number(rules).items())
    for start in range(0, len(by_number), _GROUP):
        _compile_group(program, by_number[start : start + _GROUP])
    program.give(ALLOW)
    return program.assemble()


def _by_number(rules: Sequence[Rule]) -> dict[int, list[Rule]]:
    found: dict[int, list[Rule]] = {}
    for rule in rules:
        for name in rule.calls.split():
            number = syscalls.number(name)
            if number is not None:
                found.setdefault(number, []).append(rule)
    return found


def _compile_group(program: Program, group: list[tuple[int, list[Rule]]]) -> None:
    after = f"after {group[-1][0]}"
    program.jump(JUMP_GREATER, group[-1][0], true=after)
    for number, rules in group:
        program.jump(JUMP_EQUAL, number, false=f"not {number}")
        for index, rule in enumerate(rules):
            _compile_rule(program, rule, f"{number} {index}")
        program.give(ALLOW)
        program.label(f"not {number}")
    program.give(ALLOW)
    program.label(after)


def _compile_rule(program: Program, rule: Rule, name: str) -> None:
    for position, test in enumerate(rule.tests):
        _compile_test(program, test, f"{name} hold {position}", f"{name} miss")
    program.give(rule.action)
    program.label(f"{name} miss")


def _compile_test(program: Program, test: Test, hold: str, miss: str) -> None:
    program.load((argument_high if test.high else argument_low)(test.argument))
    if not test.values:
        program.jump(JUMP_BITS, test.mask, false=miss)
        program.label(hold)
        return
    if test.mask != 0xFFFFFFFF:
        program.mask(test.mask)
    for position, value in enumerate(test.values):
        last = position == len(test.values) - 1
        if test.negated:
            program.jump(JUMP_EQUAL, value, true=miss)
        else:
            program.jump(JUMP_EQUAL, value, true=hold, false=miss if last else None)
    program.label(hold)
