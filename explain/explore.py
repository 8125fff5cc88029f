"""``msdeform explore``: the page of attention for uploaded images on the local host."""

import threading
from importlib.util import find_spec

from .options import ExploreOptions
from .page.interface import serving
from .workspace import trained_model


def run(options: ExploreOptions) -> int:
    """``msdeform explore``."""
    if find_spec("gradio") is None:
        raise RuntimeError("the interface needs the package gradio, which is not installed: pip install gradio")
    try:
        with serving(trained_model(options).model, options) as address:
            print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:  # the way to end it
        print("stopped by Ctrl-C")
    return 0
