"""The server over HTTP, on this machine only.

The host is 127.0.0.1 and cannot be changed. A page in a browser may reach such a server by a name that resolves to it (DNS
rebinding), so the Host and Origin headers are compared, by the SDK; and other accounts of the machine may reach it, so every
request carries a token that is made anew at each start.
"""  # fmt: skip

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from microtome.agents.server import Service, need_sdk
from microtome.errors import LabError

if TYPE_CHECKING:
    from microtome.agents.settings import Settings

__all__ = ["serve_http"]

HOST, PATH = "127.0.0.1", "/mcp"
_BODY = 1_000_000  # bytes of a request
_CLOSING = 3  # seconds for open connections at the end


def serve_http(settings: Settings, port: int, ready: Callable[[str, str], None]) -> None:
    """Serve over streamable HTTP until interrupted.

    port: 0 for a free one. ready: called with the address and the token once connections are accepted.

    Raises LabError: the SDK is not installed, or the port cannot be had.
    """
    need_sdk()
    import uvicorn

    taken = _listen(port)
    where = taken.getsockname()[1]
    token = secrets.token_urlsafe(32)
    service = Service(settings)
    config = uvicorn.Config(_app(service, where, token), log_level="warning", access_log=False, server_header=False,
                            timeout_graceful_shutdown=_CLOSING, lifespan="on")  # fmt: skip
    try:
        ready(f"http://{HOST}:{where}{PATH}", token)
        uvicorn.Server(config).run(sockets=[taken])
    finally:
        taken.close()
        service.close()


def _listen(port: int) -> socket.socket:
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((HOST, port))
        taken.listen(64)
    except (OSError, OverflowError) as error:
        taken.close()
        raise LabError(
            f"port {port} of {HOST} cannot be had",
            why=str(error),
            instead="another port, or 0 for a free one",
        ) from error
    return taken


def _app(service: Service, port: int, token: str) -> Any:
    from mcp.server.transport_security import TransportSecuritySettings

    names = [f"{HOST}:{port}", f"localhost:{port}"]
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=names,
        allowed_origins=[f"http://{name}" for name in names],
    )
    inner = service.server().streamable_http_app(
        streamable_http_path=PATH, host=HOST, transport_security=security, max_request_body_size=_BODY
    )
    return _Guarded(inner, token)


class _Guarded:
    """Lets requests with the token through."""

    def __init__(self, app: Any, token: str) -> None:
        self.app, self._wanted = app, f"Bearer {token}".encode()

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if scope["type"] != "lifespan":
            given = [v for k, v in scope.get("headers", ()) if k.lower() == b"authorization"]
            if len(given) != 1 or not hmac.compare_digest(given[0], self._wanted):
                from starlette.responses import PlainTextResponse

                refused = PlainTextResponse("the token that the server printed is needed", 401, {"WWW-Authenticate": "Bearer"})  # fmt: skip
                await refused(scope, receive, send)
                return
        await self.app(scope, receive, send)
