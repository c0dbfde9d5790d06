"""Spans that hold an error's kind, never its text: a stray exception may say what nobody should read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue


@contextmanager
def span(
    tracer: Tracer, name: str, kind: SpanKind, attributes: Mapping[str, AttributeValue]
) -> Iterator[Span]:
    """Yield a span that is current until the block ends; what the block raises marks it as failed."""
    with tracer.start_as_current_span(
        name, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as opened:
        try:
            yield opened
        except BaseException as error:
            fail(opened, kind_of(error))
            raise


def fail(failed: Span, error_type: str) -> None:
    """Mark a span as failed."""
    failed.set_attribute("error.type", error_type)
    failed.set_status(Status(StatusCode.ERROR))


def kind_of(error: BaseException) -> str:
    """Return the error's code where it has one, else the name of its class."""
    status = getattr(error, "status", None)
    code = getattr(error, "code", None)
    return str(code or (status if isinstance(status, int) else None) or type(error).__name__)
