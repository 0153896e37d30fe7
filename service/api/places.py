"""Errors of a stream, told where in it they happened."""

from service.api.exchange import Exchange
from service.api.problems import problem
from service.errors import FieldError, InvalidRequest, ServiceError
from service.wire import json


def at_line(number: int) -> str:
    """The name of a line; editors and people count from 1."""
    return f"line {number}"


def at(place: str, error: ServiceError) -> ServiceError:
    """The same error, naming the place."""
    named = type(error).__new__(type(error))  # whatever arguments an error was made from, it keeps what it holds
    named.__dict__.update(error.__dict__)
    named.args = (f"{place}: {error}",)
    if isinstance(error, InvalidRequest):
        fields = [FieldError(item.loc, f"{place}: {item.msg}") for item in error.errors]
        named.__dict__["errors"] = fields
    return named


def error_line(error: ServiceError, exchange: Exchange) -> bytes:
    """The last line of a stream that failed."""
    return json.encode({"error": problem(error, exchange.request_id)}) + b"\n"
