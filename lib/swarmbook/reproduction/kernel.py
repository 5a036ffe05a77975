"""The kernel of a paper's notebook: ipykernel's, over Unix sockets that nobody else can open.

- On its channels a kernel takes code, and whoever can open them and knows its key can run some. Their sockets lie in a
  folder that only this user may enter, which goes away with the kernel
- ipykernel has one more port, for the output of processes that a cell forks. Here that is a socket in this folder, too
- ZeroMQ has no such sockets on Windows. There, and where no folder with a short name can be made, the channels are
  ports of this machine alone, with signed messages

Serves: `swarmbook run`, `sweep`, and all that executes notebooks. `python -m swarmbook.reproduction.kernel -f FILE` is
the kernel itself.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import zmq

LONGEST = 100  # bytes of a socket's path; Linux allows 107, and macOS 103


@contextmanager
def socket_folder() -> Iterator[Path | None]:
    """A folder for sockets that only this user may enter, which goes away with the block; None if there can be none."""
    import zmq

    for place in (tempfile.gettempdir(), "/tmp"):
        if zmq.has("ipc") and len(os.fsencode(place)) + len("/swarmbook-12345678/channel-12") <= LONGEST:
            with suppress(OSError):
                folder = tempfile.TemporaryDirectory(prefix="swarmbook-", dir=place, ignore_cleanup_errors=True)
                break
    else:
        yield None
        return
    with folder as name:
        yield Path(name)


def channels(folder: Path | None) -> dict[str, Any]:
    """Where a kernel manager has the channels of its kernel, as its traits."""
    if folder is None:
        return {}
    return {"transport": "ipc", "ip": str(folder / "channel"), "connection_file": str(folder / "kernel.json")}


def main() -> None:
    import zmq
    from ipykernel import kernelapp
    from ipykernel.iostream import IOPubThread
    from zmq.eventloop.zmqstream import ZMQStream

    class SocketPipe(IOPubThread):
        """As ipykernel's, but what forked processes print comes by a socket beside the connection file."""

        _path = f"ipc://{Path(sys.argv[sys.argv.index('-f') + 1]).parent / 'output'}"

        def _setup_pipe_in(self) -> None:
            self._pipe_uuid = os.urandom(16)
            pipe = self.socket.context.socket(zmq.PULL)
            pipe.linger = 0
            pipe.bind(self._path)
            self._pipe_in = ZMQStream(pipe, self.io_loop)
            self._pipe_in.on_recv(self._handle_pipe_msg)

        def _setup_pipe_out(self) -> "tuple[zmq.Context, zmq.Socket]":
            context = zmq.Context()  # a new one, as the process is forked
            pipe = context.socket(zmq.PUSH)
            pipe.linger = 3000  # ms
            pipe.connect(self._path)
            return context, pipe

    if sys.modules["rfc3987_syntax"] is None:  # which the code of a notebook may load
        del sys.modules["rfc3987_syntax"]
    kernelapp.IOPubThread = SocketPipe
    kernelapp.launch_new_instance()


if __name__ == "__main__":
    main()
