"""A WebSocket before it is accepted: an HTTP request like others, in what it may say and in how it is refused."""

from base64 import urlsafe_b64decode
from binascii import Error

from starlette.types import Message

from service.api.exchange import Exchange

_BEARER = "bearer."


def translate(exchange: Exchange) -> None:
    """Let the exchange of a WebSocket be answered as an HTTP request, and take a key that came as a subprotocol.

    A browser cannot set headers: it offers `bearer.<base64url of the key>` beside the subprotocol that it wants.
    """
    send = exchange.send

    async def send_either(message: Message) -> None:
        if message["type"].startswith("http."):
            message = {**message, "type": f"websocket.{message['type']}"}
        await send(message)

    exchange.send = send_either
    if b"authorization" in exchange.headers:
        return
    for offered in exchange.scope.get("subprotocols", ()):
        if offered.startswith(_BEARER):
            key = offered.removeprefix(_BEARER)
            try:
                exchange.headers[b"authorization"] = b"Bearer " + urlsafe_b64decode(key + "=" * (-len(key) % 4))
            except (Error, ValueError):  # then there is no key
                return
