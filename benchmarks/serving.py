"""Loads a model server with many clients: throughput, latency and memory.

    python -m benchmarks.serving saved_models/first/onnx --server kserve \\
        --python SERVER_VENV/bin/python

starts a server of `examples/serving` with the Python of its environment.
Half-way through, a new version of the model appears in its folder.
"""

import argparse
import base64
import contextlib
import http.client
import io
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLES = Path(__file__).parents[1] / "examples" / "serving"
SERVERS = ("kserve", "triton")
_STARTED = 120  # seconds until a server must answer


@dataclass
class Server:
    """A running server on a port of 127.0.0.1."""

    process: subprocess.Popen
    port: int

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Posts bytes, or anything else as JSON; returns status and answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, 60)
        with contextlib.closing(connection):
            return post(connection, path, body)

    def infer(self, images: np.ndarray) -> np.ndarray:
        """Returns the probabilities of images, by the V2 protocol."""
        status, answer = self.post(INFER, infer_request(images))
        if status != 200:
            raise RuntimeError(f"the server answers {status}: {answer}")
        output = answer["outputs"][0]
        return np.array(output["data"]).reshape(output["shape"])

    def memory(self) -> int:
        """Returns the resident bytes of the server and its children."""
        pages, parents = {}, {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                pid, rest = int(path.parent.name), path.read_text()
                fields = rest.rpartition(")")[2].split()
                parents[pid], pages[pid] = int(fields[1]), int(fields[21])
        own = {self.process.pid}
        while more := {p for p in parents if parents[p] in own} - own:
            own |= more
        return sum(pages[p] for p in own) * os.sysconf("SC_PAGE_SIZE")


INFER = "/v2/models/first/infer"
PREDICT = "/v1/models/first:predict"


def post(connection: Any, path: str, body: Any) -> tuple[int, Any]:
    """Posts to an open connection; see `Server.post`."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    with contextlib.suppress(ValueError):
        return response.status, json.loads(content)
    return response.status, content


def infer_request(images: np.ndarray) -> dict[str, Any]:
    """Returns the V2 request for uint8 images `[N, H, W, 3]`."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": images.shape}
    return {"id": "1", "inputs": [tensor | {"data": images.ravel().tolist()}]}


def file_instance(image: np.ndarray) -> dict[str, str]:
    """Returns the V1 instance of an image as a PNG file in base64."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return {"b64": base64.b64encode(file.getvalue()).decode()}


@contextlib.contextmanager
def running(name: str, python: Path, folder: Path, log: Path) -> Iterator:
    """Runs a server of `SERVERS` in this context; yields the `Server`."""
    port = _free_port()
    command = [python, EXAMPLES / f"{name}_server.py", folder]
    command += ["--http-port", port]
    # Triton's own process needs the library of a Python that is not Debian's.
    libraries = {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **libraries, "PYTHONPATH": ""},
        )
    server = Server(process, port)
    try:
        _wait_until_ready(server, log)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait_until_ready(server, log):
    end = time.monotonic() + _STARTED
    while time.monotonic() < end and server.process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, 5)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/v2/models/first/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server does not answer: {log.read_text()[-2000:]}")


def hold(
    server: Server, images: np.ndarray, folder: Path, clients: int, seconds: int
) -> dict[str, float]:
    """Sends one image per request from many clients; adds a version half-way.

    `images`, uint8 `[N, H, W, 3]`, are sent in turn. Each client is a
    connection that waits for its answer. `folder` holds the versions that the
    server serves; the newest is copied to the next number.
    """
    bodies = [json.dumps(infer_request(i[None])).encode() for i in images]
    latencies: list[float] = []
    answered = begin = time.monotonic()
    failures: list[Any] = []

    def client(first):
        nonlocal answered
        connection = http.client.HTTPConnection("127.0.0.1", server.port, 60)
        with contextlib.closing(connection):
            for i in itertools.count(first):
                if time.monotonic() - begin > seconds:
                    return
                start = time.perf_counter()
                body = bodies[i % len(bodies)]
                try:
                    status, answer = post(connection, INFER, body)
                except (OSError, http.client.HTTPException) as error:
                    status, answer = 0, error
                    connection.close()
                if status == 200:
                    latencies.append(time.perf_counter() - start)
                    answered = time.monotonic()
                else:
                    failures.append(answer)

    threads = [
        threading.Thread(target=client, args=[i]) for i in range(clients)
    ]
    for thread in threads:
        thread.start()
    peak, added = 0, False
    while any(thread.is_alive() for thread in threads):
        peak = max(peak, server.memory())
        if not added and time.monotonic() - begin > seconds / 2:
            add_version(folder)
            added = True
        time.sleep(0.2)
    if len(latencies) < 2:
        raise RuntimeError(f"{len(failures)} requests failed: {failures[:1]}")
    shares = statistics.quantiles(latencies, n=100)
    return {
        "requests": len(latencies),
        "failed": len(failures),
        "per_second": len(latencies) / (answered - begin),
        "p50_ms": 1e3 * shares[49],
        "p99_ms": 1e3 * shares[98],
        "peak_mib": peak / 2**20,
    }


def add_version(folder: Path) -> None:
    """Copies the newest version to the next number, atomically."""
    newest = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    shutil.copytree(folder / str(newest), folder / ".new")
    (folder / ".new").rename(folder / str(newest + 1))


def main() -> None:
    from keras_resnet_cifar.data import shapes

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--server", choices=SERVERS, required=True)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--log", type=Path, default=Path("server.log"))
    args = parser.parse_args()
    images, _ = shapes.draw(64, seed=2)
    with running(args.server, args.python, args.folder, args.log) as server:
        server.infer(images)
        result = hold(server, images, args.folder, args.clients, args.seconds)
    for name, value in result.items():
        print(f"{name}: {value:,.1f}")


if __name__ == "__main__":
    main()
