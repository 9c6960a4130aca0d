"""Backends on the load's core: nginx for plain answers, and a source of slow streams."""

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import uvloop

from benchmarks.gateway.paths import LOAD_CORE, Running, ended, free_port, on_core, until_up

ANSWER = (
    '{"id":"cmpl-1","object":"text_completion","model":"bench","choices":[{"index":0,"text":"A lighthouse guides ships.",'
    '"finish_reason":"stop"}],"usage":{"prompt_tokens":375,"completion_tokens":6,"total_tokens":381}}'
)
NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log error;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s; client_max_body_size 64m;
  client_body_buffer_size 16m; client_body_temp_path {folder}/body; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; default_type application/json;
  server {{ {listen} location = /health {{ return 200 '{{}}'; }} location / {{ return 200 '{answer}'; }} }}
}}
"""


@contextlib.contextmanager
def nginx(count: int) -> Iterator[list[int]]:
    """`count` ports that answer everything at once."""
    with tempfile.TemporaryDirectory(prefix="pltb-") as name:
        ports = [free_port() for _ in range(count)]
        config = Path(name) / "nginx.conf"
        listen = " ".join(f"listen 127.0.0.1:{port};" for port in ports)
        config.write_text(NGINX.format(folder=name, listen=listen, answer=ANSWER))
        log = Path(name) / "log"
        process = on_core(LOAD_CORE, ["nginx", "-c", str(config), "-e", f"{name}/error.log"], log)
        with ended(Running(ports[0], [process])):
            until_up(f"http://127.0.0.1:{ports[0]}/health", log)
            yield ports


@contextlib.contextmanager
def streams(count: int) -> Iterator[list[int]]:
    """`count` ports that stream 20 chunks a second, for ever; a plain request is answered once its body is read."""
    with tempfile.TemporaryDirectory(prefix="pltb-") as name:
        log = Path(name) / "log"
        ports = [free_port() for _ in range(count)]
        argv = [sys.executable, "-m", "benchmarks.gateway.backends", *map(str, ports)]
        with ended(Running(ports[0], [on_core(LOAD_CORE, argv, log)])):
            until_up(f"http://127.0.0.1:{ports[0]}/health", log)
            yield ports


CHUNK_EVERY_S = 0.05
CHUNK = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"bench","choices":[{"index":0,'
    b'"text":" light","logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":375,"completion_tokens":%d,'
    b'"total_tokens":400}}\n\n'
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(ANSWER),
    ANSWER.encode(),
)


async def _stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                continue
            length = int(
                next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1]
            )
            body = await reader.readexactly(length)
            if b'"stream": true' not in body[-64:]:
                writer.write(PLAIN)
                continue
            writer.write(HEAD)
            number = 0
            while not writer.is_closing() and not reader.at_eof():
                number += 1
                chunk = CHUNK % number
                writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                await asyncio.sleep(CHUNK_EVERY_S)
            return
    writer.close()


async def _serve(ports: list[int]) -> None:
    servers = [await asyncio.start_server(_stream, "127.0.0.1", port, backlog=4096, limit=2**20) for port in ports]
    await asyncio.gather(*(server.serve_forever() for server in servers))


def require(program: str, package: str) -> None:
    """Exit with a sentence when a program of the system is missing."""
    if subprocess.run(["which", program], capture_output=True, check=False).returncode:
        sys.exit(f"{program} is not here: apt-get install {package}")


if __name__ == "__main__":
    uvloop.run(_serve([int(port) for port in sys.argv[1:]]))
