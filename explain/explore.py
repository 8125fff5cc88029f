"""``msdeform explore``: the page of `page` for uploaded images on the local host, with heads and levels switched off.

The interface is gradio's. Nothing leaves the machine: no fonts, no analytics, no look for a newer version; what was
uploaded is removed at the end.
"""

import base64
import html
import io
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from ..common.device import choose_device
from ..common.text import counted
from ..models.families.detector import Detector
from ..models.inference.images import read_image
from ..train.engine.checkpoint import load_trained
from ..train.visual.boxes import Box, draw_boxes
from .core.masks import Mask
from .core.sites import Site, sites
from .core.trace import AttentionTrace, QueryPrediction
from .options import ExploreOptions
from .page.page import page

HEADINGS = {
    "decoder.cross": "Decoder, cross-attention",
    "decoder.self": "Decoder, self-attention",
    "encoder.self": "Encoder, self-attention",
}
SAME_PLACE = 0.5
PICTURE = 640


Fate = Literal["kept", "changed", "lost", "gained"]


@dataclass(frozen=True)
class Change:
    """What became of one detection; `before` is None for one that was gained, `after` for one that was lost."""

    fate: Fate
    before: QueryPrediction | None
    after: QueryPrediction | None


def changes(before: Sequence[QueryPrediction], after: Sequence[QueryPrediction]) -> list[Change]:
    """Pairs detections of one image by place, the best of `before` first.

    A pair overlaps by an IoU of 0.5 at least, and of several the one of the same class, then of the highest IoU. Of
    another class it is changed.
    """
    left = list(after)
    found: list[Change] = []
    for old in before:
        overlaps = box_iou(torch.tensor([old.box]), torch.tensor([new.box for new in left]).view(-1, 4))[0].tolist()
        near = [(new.label == old.label, iou, i) for i, (new, iou) in enumerate(zip(left, overlaps, strict=True))]
        near = [candidate for candidate in near if candidate[1] >= SAME_PLACE]
        if not near:
            found.append(Change("lost", old, None))
            continue
        same, _, i = max(near)
        found.append(Change("kept" if same else "changed", old, left.pop(i)))
    return [*found, *(Change("gained", None, new) for new in left)]


def groups(model: Detector) -> dict[str, list[Site]]:
    """The attentions of a model by stack and kind, such as ``decoder.cross``, in the order of `HEADINGS`."""
    every = sites(model).values()
    grouped = {key: [site for site in every if f"{site.stack}.{site.kind}" == key] for key in HEADINGS}
    return {key: found for key, found in grouped.items() if found}


def masks_of(group: Sequence[Site], heads_on: Sequence[Sequence[int]], levels_on: Sequence[int]) -> list[Mask]:
    """The masks for what is switched off: heads by layer, levels in all layers of the group."""
    masks = []
    for site, on in zip(group, heads_on, strict=True):
        off = tuple(head for head in range(site.heads) if head not in on)
        if off:
            masks.append(Mask(sites=site.name, heads=off))
        levels_off = tuple(level for level in range(site.levels if site.deformable else 0) if level not in levels_on)
        if levels_off:
            masks.append(Mask(sites=site.name, levels=levels_off))
    return masks


@dataclass
class Explorer:
    """One detector, asked by one visitor at a time."""

    model: Detector
    image_size: int | None = None
    relevance: int = 3
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def look(
        self, image: Tensor, confidence: float, masks: Sequence[Mask], title: str
    ) -> tuple[list[QueryPrediction], str]:
        """The detections under the masks, best first, and the page of the image as text."""
        with self._turn:
            trace = AttentionTrace(self.model, image, size=self.image_size, masks=tuple(masks))
            more: dict[str, Any] = {"methods": ("raw",)}
            if self.relevance:
                more = {"methods": ("raw", "relevance"), "most": self.relevance}
            return trace.detections(confidence), page(trace, confidence=confidence, title=title, **more)


def _frame(text: str) -> str:
    """A page in a frame of its own, which may run its script and nothing else."""
    return (
        '<iframe title="What the detector attends to" sandbox="allow-scripts" '
        'style="width:100%;height:1180px;border:0;border-radius:8px" '
        f'srcdoc="{html.escape(text)}"></iframe>'
    )


def _picture(image: Tensor, prediction: Sequence[tuple[QueryPrediction, bool]]) -> str:
    """The image with boxes, dashed where told, as an element."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    boxes = [Box(s.box, s.label, f"{s.name} {s.score:.2f}", dashed=dashed) for s, dashed in reversed(prediction)]
    encoded = io.BytesIO()
    draw_boxes(picture, boxes, magnify=PICTURE / max(picture.size)).save(encoded, "JPEG", quality=90)
    data = base64.b64encode(encoded.getvalue()).decode()
    alt = counted(len(prediction), "detection")
    return f'<img alt="{alt}" style="width:100%" src="data:image/jpeg;base64,{data}">'


def report(image: Tensor, found: Sequence[Change], confidence: float) -> str:
    """Two pictures beside each other, all on and as switched, and a line for every detection, as HTML."""
    before = [(change.before, change.fate == "lost") for change in found if change.before is not None]
    after = [(change.after, change.fate != "kept") for change in found if change.after is not None]
    counts = ", ".join(f"{sum(c.fate == fate for c in found)} {fate}" for fate in ("kept", "changed", "lost", "gained"))

    def cell(prediction: QueryPrediction | None) -> str:
        return (
            "<td>" + ("" if prediction is None else f"{html.escape(prediction.name)} {prediction.score:.2f}") + "</td>"
        )

    lines = "".join(f"<tr>{cell(c.before)}{cell(c.after)}<td><b>{c.fate}</b></td></tr>" for c in found)
    pictures = "".join(
        f'<figure style="flex:1 1 280px;margin:0"><figcaption>{caption}</figcaption>{_picture(image, one)}</figure>'
        for caption, one in (
            ("All on (dashed: lost)", before),
            ("As switched (dashed: changed or gained)", after),
        )
    )
    return (
        f"<p>Of detections of at least {confidence:g}: {counts}. A pair overlaps by an IoU of {SAME_PLACE:g} or more."
        f'</p><div style="display:flex;flex-wrap:wrap;gap:12px">{pictures}</div>'
        f'<table style="width:100%"><thead><tr><th>all on</th><th>as switched</th><th></th></tr></thead>'
        f"<tbody>{lines}</tbody></table>"
    )


@dataclass(frozen=True)
class _Visit:
    """What the server keeps of an upload."""

    image: Tensor
    name: str
    found: list[QueryPrediction]


def interface(explorer: Explorer, confidence: float) -> Any:
    """The interface, a ``gradio.Blocks`` that is not served yet."""
    import gradio as gr

    grouped = groups(explorer.model)

    def upload(path: str | None, least: float) -> tuple[Any, ...]:
        if path is None:
            return None, "Choose an image.", "", "", ""
        try:
            image = read_image(path)
        except ValueError as error:  # the sentence names the server's own copy of the file
            return None, html.escape(str(error).replace(path, Path(path).name)), "", "", ""
        name = Path(path).name
        found, text = explorer.look(image, least, (), name)
        said = f"{name}: {counted(len(found), 'detection')} of at least {least:g}."
        return _Visit(image, name, found), html.escape(said), _frame(text), "", ""

    def run_again(visit: _Visit | None, least: float, *switches: list[int]) -> tuple[str, str, str]:
        if visit is None:
            return "Choose an image first.", "", ""
        masks, rest = [], list(switches)
        for group in grouped.values():
            heads_on, rest = rest[: len(group)], rest[len(group) :]
            levels_on, rest = (rest[0], rest[1:]) if group[0].deformable else ([], rest)
            masks += masks_of(group, heads_on, levels_on)
        if not masks:
            return "Every head and level is on: switch one off first.", "", ""
        after, text = explorer.look(visit.image, least, masks, f"{visit.name}, as switched")
        off = " ".join(map(str, masks))
        return f"Off: {html.escape(off)}", report(visit.image, changes(visit.found, after), least), _frame(text)

    with gr.Blocks(title="msdeform explore", analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown(f"# What the detector attends to\n{type(explorer.model).__name__}, on this machine alone.")
        visit = gr.State(None, time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                file = gr.File(label="Image", type="filepath", height=140, elem_id="image")
                least = gr.Slider(0, 1, confidence, step=0.01, label="Minimum score")
                switches: list[Any] = []
                for key, group in grouped.items():
                    with gr.Accordion(HEADINGS[key], open=key == "decoder.cross"):
                        for site in group:
                            heads = [(str(head), head) for head in range(site.heads)]
                            on = list(range(site.heads))
                            label, name = f"{site.name}: heads on", site.name.replace(".", "-")
                            switches.append(
                                gr.CheckboxGroup(heads, value=on, label=label, elem_id=name, elem_classes="heads")
                            )
                        if group[0].deformable:
                            levels = [(str(level), level) for level in range(group[0].levels)]
                            on = list(range(group[0].levels))
                            switches.append(
                                gr.CheckboxGroup(levels, value=on, label=f"{site.stack}.*.{site.kind}: levels on")
                            )
                again = gr.Button("Run again as switched", variant="primary", elem_id="again")
                reset = gr.Button("All on", elem_id="reset")
            with gr.Column(scale=4, min_width=420):
                status = gr.HTML("Choose an image.", elem_id="status")
                with gr.Tabs() as tabs:
                    with gr.Tab("All on", id="on"):
                        shown = gr.HTML(elem_id="page")
                    with gr.Tab("What became of the detections", id="became"):
                        became = gr.HTML(elem_id="became")
                    with gr.Tab("As switched", id="switched"):
                        switched = gr.HTML(elem_id="switched")
        upload_event = gr.on(
            [file.change, least.release], upload, [file, least], [visit, status, shown, became, switched]
        )
        upload_event.then(lambda: gr.Tabs(selected="on"), None, tabs)
        run_event = again.click(run_again, [visit, least, *switches], [status, became, switched])
        run_event.then(lambda: gr.Tabs(selected="became"), None, tabs)
        reset.click(lambda: [[value for _, value in switch.choices] for switch in switches], None, switches)
    return blocks


@contextmanager
def serving(explorer: Explorer, confidence: float, host: str, port: int) -> Iterator[str]:
    """Serves the interface while the block runs; yields its address.

    Raises:
        ValueError: the port is taken, or the address is not one of this machine.
    """
    with tempfile.TemporaryDirectory(prefix="msdeform-explore-") as uploads:
        # read when gradio is imported, and later
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=uploads)
        import gradio as gr

        port = _free_port(host, port)
        blocks = interface(explorer, confidence)
        try:
            _, address, _ = blocks.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                share=False,
                quiet=True,
                ssr_mode=False,
                footer_links=[],
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                css=".heads .wrap { gap: 4px } .heads label { padding: 2px 7px }",
            )
            yield address
        finally:
            blocks.close(verbose=False)


def _free_port(host: str, port: int) -> int:
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another with --port (0 takes a "
            "free one) or --host"
        ) from None


def run(options: ExploreOptions) -> int:
    """``msdeform explore``."""
    if find_spec("gradio") is None:
        raise RuntimeError("the interface needs the package gradio, which is not installed: pip install gradio")
    trained = load_trained(options.checkpoint, choose_device(options.device), options.attn_backend, options.model)
    explorer = Explorer(trained.model, options.image_size, options.relevance)
    try:
        with serving(explorer, options.confidence, options.host, options.port) as address:
            print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:  # the way to end it
        print("stopped by Ctrl-C")
    return 0
