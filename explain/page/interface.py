"""The page of `page` for uploaded images, in an interface of gradio in which heads and levels are switched off.

Nothing leaves the machine: no fonts, no analytics, no look for a newer version. Uploads are bounded, and removed after
an hour and at the end. `Guard` says who is answered.
"""

import base64
import html
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ...common.text import counted
from ...models.inference.images import read_image
from ...models.inference.predictor import Predictor
from ...train.serving.guard import Guard, is_loopback, token_for
from ...train.serving.limits import Refused, open_image
from ...train.visual.boxes import Box, draw_boxes
from ..ablation.effects import SAME_OBJECT, pair_detections
from ..core.masks import Mask
from ..core.sites import sites
from ..core.trace import AttentionTrace, QueryPrediction
from ..options import ExploreOptions
from .page import page

HEADINGS = {
    "decoder.*.cross": "Decoder, cross-attention",
    "decoder.*.self": "Decoder, self-attention",
    "encoder.*.self": "Encoder, self-attention",
}
PICTURE = 640
MOST_BYTES, MOST_PIXELS = 20_000_000, 50_000_000
"""Of an uploaded image."""
_KEPT = 3600
"""Seconds."""
# gradio's own scripts and styles are inline, and it makes functions of text; nothing is loaded from or sent elsewhere
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-src 'self'; manifest-src 'self'; "
    "worker-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)


Change = tuple[str, QueryPrediction | None, QueryPrediction | None]
"""What became of a detection, kept, changed, lost or gained, and it before, if it was there, and after."""


def changes(before: Sequence[QueryPrediction], after: Sequence[QueryPrediction]) -> list[Change]:
    """Detections of one image, best first, paired by `pair_detections`; of another class one is changed."""
    boxes = [torch.tensor([one.box for one in found]).view(-1, 4) for found in (before, after)]
    labels = [torch.tensor([one.label for one in found]) for found in (before, after)]
    matches = pair_detections(boxes[0], labels[0], boxes[1], labels[1])
    found: list[Change] = []
    for old, match in zip(before, matches, strict=True):
        new = None if match is None else after[match]
        found.append(("lost" if new is None else "kept" if new.label == old.label else "changed", old, new))
    return [*found, *(("gained", None, new) for place, new in enumerate(after) if place not in matches)]


class Switch(NamedTuple):
    """A row of boxes to tick: heads of one attention, or levels of all attentions of a kind."""

    sites: str
    what: Literal["heads", "levels"]
    number: int


def switches(model: Predictor) -> dict[str, list[Switch]]:
    """What can be switched off in a model, by the patterns of `HEADINGS`."""
    found: dict[str, list[Switch]] = {}
    for pattern in HEADINGS:
        group = [site for site in sites(model).values() if f"{site.stack}.*.{site.kind}" == pattern]
        if group:
            found[pattern] = [Switch(site.name, "heads", site.heads) for site in group]
            found[pattern] += [Switch(pattern, "levels", group[0].levels)] * group[0].deformable
    return found


def masks_of(rows: Sequence[Switch], ticked: Sequence[Sequence[int]]) -> list[Mask]:
    """The masks for what is not ticked."""
    masks = []
    for (pattern, what, count), on in zip(rows, ticked, strict=True):
        off: dict[str, Any] = {what: tuple(number for number in range(count) if number not in on)}
        masks += [Mask(pattern, **off)] if off[what] else []
    return masks


def look(
    model: Predictor, options: ExploreOptions, image: Tensor, confidence: float, masks: Sequence[Mask], title: str
) -> tuple[list[QueryPrediction], str]:
    """The detections under the masks, best first, and the page of the image as text."""
    trace = AttentionTrace(model, image, size=options.image_size, masks=tuple(masks))
    methods = ("raw", "relevance") if options.relevance else ("raw",)
    text = page(trace, confidence=confidence, title=title, methods=methods, most=options.relevance or 20)
    return trace.detections(confidence), text


def _frame(text: str) -> str:
    """A page in a frame of its own, which may run its script and nothing else."""
    return (
        '<iframe title="What the detector attends to" sandbox="allow-scripts" '
        'style="width:100%;height:1180px;border:0;border-radius:8px" '
        f'srcdoc="{html.escape(text)}"></iframe>'
    )


def _picture(image: Tensor, found: Sequence[tuple[QueryPrediction, bool]]) -> str:
    """The image with boxes, dashed where told, as an element."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    boxes = [Box(one.box, one.label, f"{one.name} {one.score:.2f}", dashed=dashed) for one, dashed in reversed(found)]
    encoded = io.BytesIO()
    draw_boxes(picture, boxes, magnify=PICTURE / max(picture.size)).save(encoded, "JPEG", quality=90)
    data = base64.b64encode(encoded.getvalue()).decode()
    return f'<img alt="{counted(len(found), "detection")}" style="width:100%" src="data:image/jpeg;base64,{data}">'


def report(image: Tensor, found: Sequence[Change], confidence: float) -> str:
    """Two pictures beside each other, all on and as switched, and a line for every detection, as HTML."""
    fates = [fate for fate, _, _ in found]
    counts = ", ".join(f"{fates.count(fate)} {fate}" for fate in ("kept", "changed", "lost", "gained"))
    before = [(one, fate == "lost") for fate, one, _ in found if one is not None]
    after = [(one, fate != "kept") for fate, _, one in found if one is not None]
    pictures = "".join(
        f'<figure style="flex:1 1 280px;margin:0"><figcaption>{caption}</figcaption>{_picture(image, one)}</figure>'
        for caption, one in (("All on (dashed: lost)", before), ("As switched (dashed: changed or gained)", after))
    )
    lines = ""
    for fate, *pair in found:
        cells = ["" if one is None else f"{html.escape(one.name)} {one.score:.2f}" for one in pair]
        lines += f"<tr><td>{cells[0]}</td><td>{cells[1]}</td><td><b>{fate}</b></td></tr>"
    return (
        f"<p>Of detections of at least {confidence:g}: {counts}. A pair overlaps by an IoU of {SAME_OBJECT:g} or more."
        f'</p><div style="display:flex;flex-wrap:wrap;gap:12px">{pictures}</div>'
        '<table style="width:100%;table-layout:fixed;overflow-wrap:anywhere"><thead>'
        "<tr><th>all on</th><th>as switched</th><th></th></tr></thead>"
        f"<tbody>{lines}</tbody></table>"
    )


def interface(model: Predictor, options: ExploreOptions) -> Any:
    """The interface, a ``gradio.Blocks`` that is not served yet. The model runs for one visitor at a time."""
    import gradio as gr

    grouped = switches(model)
    rows = [switch for group in grouped.values() for switch in group]

    def upload(path: str | None, least: float) -> tuple[Any, ...]:
        if path is None:
            return None, "Choose an image.", "", "", ""
        name = Path(path).name
        try:
            image = read_image(open_image(Path(path).read_bytes(), MOST_PIXELS), name=f"image {name}")
        except Refused as error:
            said = f"image {name} cannot be decoded: {error.sentence.replace('the body', 'it')}"
            return None, html.escape(said), "", "", ""
        except ValueError as error:
            return None, html.escape(str(error)), "", "", ""
        except FileNotFoundError:
            return None, "This image was removed here; choose it again.", "", "", ""
        found, text = look(model, options, image, least, (), name)
        said = f"{name}: {counted(len(found), 'detection')} of at least {least:g}."
        return (image, name, found), html.escape(said), _frame(text), "", ""

    def run_again(visit: Any, least: float, *ticked: list[int]) -> tuple[str, str, str]:
        if visit is None:
            return "Choose an image first.", "", ""
        masks = masks_of(rows, ticked)
        if not masks:
            return "Every head and level is on: switch one off first.", "", ""
        image, name, found = visit
        after, text = look(model, options, image, least, masks, f"{name}, as switched")
        off = html.escape(" ".join(map(str, masks)))
        return f"Off: {off}", report(image, changes(found, after), least), _frame(text)

    with gr.Blocks(
        title="msdeform explore", analytics_enabled=False, fill_width=True, delete_cache=(_KEPT // 60, _KEPT)
    ) as blocks:
        reached = "on this machine alone" if is_loopback(options.host) else "for all who have its token"
        gr.Markdown(f"# What the detector attends to\n{model.kind}, {reached}.")
        visit = gr.State(None, time_to_live=_KEPT)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                file = gr.File(label="Image", type="filepath", height=140, elem_id="image")
                least = gr.Slider(0, 1, options.confidence, step=0.01, label="Minimum score")
                boxes: list[Any] = []
                for pattern, group in grouped.items():
                    with gr.Accordion(HEADINGS[pattern], open=pattern == "decoder.*.cross"):
                        for place, what, count in group:
                            box = gr.CheckboxGroup(
                                [(str(number), number) for number in range(count)],
                                value=list(range(count)),
                                label=f"{place}: {what} on",
                                elem_id=f"{place}-{what}".replace(".", "-").replace("*", "all"),
                                elem_classes="switch",
                            )
                            boxes.append(box)
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
        # of one id, which one event has at a time
        alone: dict[str, Any] = {"concurrency_id": "detector", "concurrency_limit": 1}
        uploaded = gr.on(
            [file.change, least.release], upload, [file, least], [visit, status, shown, became, switched], **alone
        )
        uploaded.then(lambda: gr.Tabs(selected="on"), None, tabs)
        ran = again.click(run_again, [visit, least, *boxes], [status, became, switched], **alone)
        ran.then(lambda: gr.Tabs(selected="became"), None, tabs)
        reset.click(lambda: [list(range(switch.number)) for switch in rows], None, boxes)
    return blocks


@contextmanager
def serving(model: Predictor, options: ExploreOptions) -> Iterator[str]:
    """Serves the interface while the block runs; yields its address, with the token where one is needed.

    Raises:
        ValueError: the port is taken, or the address is not one of this machine.
    """
    token, _ = token_for(options.host, options.token)
    with tempfile.TemporaryDirectory(prefix="msdeform-explore-") as uploads:
        # read when gradio is imported, and later
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=uploads)
        import gradio as gr
        from starlette.middleware import Middleware

        # gradio asks itself for the one path when it starts
        guard = Middleware(
            Guard,
            host=options.host,
            token=token,
            names=options.allowed_host,
            free=("/gradio_api/startup-events",),
            policy=_POLICY,
        )
        blocks = interface(model, options)
        try:
            _, address, _ = blocks.launch(
                server_name=options.host,
                server_port=options.port or None,  # None takes a free one
                prevent_thread_lock=True,
                share=False,
                quiet=True,
                max_file_size=MOST_BYTES,
                enable_monitoring=False,
                app_kwargs={"middleware": [guard]},
                ssr_mode=False,
                footer_links=[],
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                css=".switch .wrap { gap: 4px } .switch label { padding: 2px 7px }",
            )
        except OSError:
            where = f"{options.host}, port {options.port}"
            raise ValueError(
                f"cannot listen on {where}; choose another with --port (0 takes a free one) or --host"
            ) from None
        try:
            yield address if token is None else f"{address}?token={token}"
        finally:
            blocks.close(verbose=False)
