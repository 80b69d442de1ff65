#!/usr/bin/env bash
# uvicorn 0.54.0 on asyncio: a server that is given its socket streams with Nagle's algorithm on.
#
# asyncio turns Nagle's algorithm off for a connection only where the socket says that its protocol is TCP, and
# socket.socket(family) leaves that at 0 (Python 3.11). Config.bind_socket() makes such a socket. uvicorn calls it with
# --reload and --workers, and programs that want to know the port before the server starts do. Each small piece of a
# streamed reply then waits until the reader has acknowledged the piece before, which Linux may put off for 40 ms.
# uvloop always turns the algorithm off, and so does asyncio where it makes the socket from host and port.
# Wanted: TCP_NODELAY on every TCP connection, however the socket was made.
# What helps: sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1) on the listening socket; connections inherit it.
#
# Seen, TCP_NODELAY of the connection that an application streams on:
#   host and port: True   bind_socket(): False   bind_socket() and the option set: True
#
# Exits 0 while that is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install uvicorn==0.54.0
"$folder/venv/bin/python" - <<'PY'
import asyncio
import socket
import sys

import uvicorn


async def application(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"piece"})


async def nodelay(bound: str) -> bool:
    """Whether the option is on in a connection that was accepted."""
    config = uvicorn.Config(application, host="127.0.0.1", port=0, log_level="error", lifespan="off", loop="asyncio")
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()] if bound else None
    if bound == "with the option":
        sockets[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    running = asyncio.create_task(server.serve(sockets=sockets))
    while not server.started:
        await asyncio.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while not server.server_state.connections:
        await asyncio.sleep(0.05)
    accepted = next(iter(server.server_state.connections)).transport.get_extra_info("socket")
    found = bool(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    writer.close()
    server.should_exit = True
    await running
    return found


async def main() -> list[bool]:
    return [await nodelay(bound) for bound in ("", "plain", "with the option")]


made, bound, helped = asyncio.run(main())
print(f"host and port: {made}; bind_socket(): {bound}; bind_socket() and the option set: {helped}")
sys.exit(0 if (made, bound, helped) == (True, False, True) else 1)
PY
