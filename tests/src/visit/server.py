"""A small HTTP server for tests of public URLs: it does what its path says and tells what it has understood.

python3 server.py PORT [HOST]. Everything by hand, so that nothing helpful stands between the proxy and the test."""

import asyncio
import base64
import hashlib
import json
import os
import sys

seen = 0
listeners = []


async def head_of(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, version = head[0].split(" ", 2)
    headers = []
    for line in head[1:-2]:
        name, _, value = line.partition(":")
        headers.append([name.lower(), value.strip()])
    return method, path, version, headers


async def pieces_of(reader, headers):
    named = dict(headers)
    if "chunked" in named.get("transfer-encoding", ""):
        while True:
            size = int((await reader.readline()).split(b";")[0], 16)
            if size == 0:
                while (await reader.readline()).strip():
                    pass
                return
            yield await reader.readexactly(size)
            await reader.readline()
    left = int(named.get("content-length", "0"))
    while left:
        piece = await reader.read(min(left, 65536))
        if not piece:
            return
        left -= len(piece)
        yield piece


def answer(writer, status, body, extra=""):
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body)


async def websocket(reader, writer, headers):
    key = dict(headers)["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    writer.write(
        f"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode()
    )
    while True:
        first, second = await reader.readexactly(2)
        size = second & 127
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await reader.readexactly(8), "big")
        mask = await reader.readexactly(4)
        data = bytes(b ^ mask[i % 4] for i, b in enumerate(await reader.readexactly(size)))
        head = bytes([first])
        head += bytes([size]) if size < 126 else bytes([126]) + size.to_bytes(2, "big")
        writer.write(head + data)
        await writer.drain()
        if first & 15 == 8:
            return


async def serve(reader, writer):
    global seen
    try:
        while await one(reader, writer):
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def one(reader, writer):
    global seen
    method, path, version, headers = await head_of(reader)
    seen += 1
    path_only, _, query = path.partition("?")
    if path_only == "/ws":
        await websocket(reader, writer, headers)
        return False
    if path_only == "/early":
        answer(writer, 413, b"too much", "Connection: close\r\n")
        return False
    digest, size = hashlib.sha256(), 0
    async for piece in pieces_of(reader, headers):
        digest.update(piece)
        size += len(piece)
    if path_only == "/seen":
        answer(writer, 200, str(seen).encode())
    elif path_only == "/sse":
        writer.write(b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\n\r\ndata: hello\n\n")
        await writer.drain()
        queue = asyncio.Queue()
        listeners.append(queue)
        gone = asyncio.create_task(reader.read(1))
        while True:
            event = asyncio.create_task(queue.get())
            await asyncio.wait([event, gone], return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                listeners.remove(queue)
                return False
            writer.write(f"data: {event.result()}\n\n".encode())
            await writer.drain()
    elif path_only == "/emit":
        for queue in listeners:
            queue.put_nowait(query)
        answer(writer, 200, str(len(listeners)).encode())
    elif path_only == "/slow":
        await asyncio.sleep(float(query))
        answer(writer, 200, b"slow")
    elif path_only == "/until":
        while not os.path.exists(query):
            await asyncio.sleep(0.05)
        answer(writer, 200, b"until")
    elif path_only == "/never":
        open("/tmp/came", "w").close()
        await reader.read(1)
        with open("/tmp/gone", "w") as file:
            file.write("gone")
        return False
    elif path_only == "/download":
        left = int(query)
        writer.write(f"HTTP/1.1 200 X\r\nContent-Length: {left}\r\n\r\n".encode())
        while left:
            piece = b"d" * min(left, 65536)
            writer.write(piece)
            await writer.drain()
            left -= len(piece)
    elif path_only == "/trailers":
        writer.write(
            b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\nTrailer: X-After\r\n\r\n3\r\nabc\r\n0\r\nX-After: yes\r\n\r\n"
        )
    elif path_only == "/raw":
        writer.write(base64.b64decode(query))
        return False
    elif path_only == "/endless":
        while True:
            writer.write(b"HTTP/1.1 200 X\r\n" + b"X-Filler: " + b"f" * 1000 + b"\r\n")
            await writer.drain()
            writer.write((b"X-More: " + b"f" * 1000 + b"\r\n") * 100)
    elif path_only == "/switch":
        writer.write(b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
    else:
        told = {"method": method, "path": path, "version": version, "headers": headers, "size": size, "sha": digest.hexdigest()}
        body = json.dumps(told).encode()
        answer(writer, 200, b"" if method == "HEAD" else body, "X-Told: yes\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n")
    return True


async def main():
    host = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    server = await asyncio.start_server(serve, host, int(sys.argv[1]), limit=1 << 20, backlog=512)
    async with server:
        await server.serve_forever()


asyncio.run(main())
