"""``msdeform serve``: a detector over HTTP, until Ctrl-C or SIGTERM."""

import errno
import socket
import warnings
from dataclasses import replace
from importlib.util import find_spec

from .options import ServeOptions

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def run(options: ServeOptions) -> int:
    """Serves until a signal ends it; requests that were accepted are answered first.

    Raises RuntimeError where a package is missing, ValueError where the address cannot be listened at, and what
    `open_detector` raises.
    """
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise RuntimeError(
                f"msdeform serve needs the package {package.replace('_', '-')}, which is not installed: "
                "pip install 'msdeform[serve]'"
            )
    from PIL import Image

    from .app import create_app
    from .guard import token_for
    from .listening import Server, configuration
    from .service import Service

    # our own limit is checked right after an image's header is read
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    token, new = token_for(options.host, options.token)
    options = replace(options, token=token)
    with listen(options.host, options.port) as listening:
        service = Service(options)
        server = Server(configuration(create_app(service), options), service)
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        service.batcher.loaded.add_done_callback(lambda loaded: server.tell(address, loaded.exception()))
        if new:
            print(f"requests need the header Authorization: Bearer {token}", flush=True)
        try:
            server.run(sockets=[listening])
        finally:
            service.close(options.grace)
        if service.batcher.loaded.done():
            service.batcher.loaded.result()  # raises why there is no model
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, at an address that a server which was killed may have left a moment ago.

    Raises ValueError where the address is not this machine's, or the port is taken or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # create_server sets SO_REUSEADDR where that means what is said above
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} is in use; name another with --port") from error
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise ValueError(f"host: expected an address of this machine, got {host}") from error
        raise ValueError(
            f"port {port} at {host} cannot be listened at: {(error.strerror or str(error)).lower()}"
        ) from error
