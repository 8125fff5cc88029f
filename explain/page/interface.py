"""The page of `page` for uploaded images, in an interface of gradio in which heads and levels are switched off.

Two images stand side by side, under the same switches; what is switched off gives nothing, or is changed otherwise.

Nothing leaves the machine: no fonts, no analytics, no look for a newer version. Uploads are bounded, and removed after
an hour and at the end. `Guard` says who is answered.
"""

import html
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ...common.text import counted
from ...models.attention import MSDeformAttn
from ...models.inference.images import read_image
from ...models.inference.predictor import Predictor
from ...train.serving.guard import Guard, is_loopback, token_for
from ...train.serving.limits import Refused, open_image
from ..core.masks import Mask, Mode
from ..core.sites import sites
from ..core.trace import AttentionTrace, QueryPrediction
from ..options import ExploreOptions
from .became import changes, left_of, report
from .page import page

HEADINGS = {
    "decoder.*.cross": "Decoder, cross-attention",
    "decoder.*.self": "Decoder, self-attention",
    "encoder.*.self": "Encoder, self-attention",
}
MODES: dict[Mode, str] = {
    "zero": "nothing: its weights are zero",
    "uniform": "the same weight for all",
    "shuffled": "another query's weights and places",
    "frozen": "the places that the layer has for every query",
}
"""What a part that is switched off gives instead."""
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


def modes(model: Predictor) -> list[Mode]:
    """The modes of `MODES` that act on a model: places are frozen in our own deformable attention alone."""
    own = any(site.deformable and isinstance(site.module, MSDeformAttn) for site in sites(model).values())
    return [mode for mode in MODES if own or mode != "frozen"]


def masks_of(rows: Sequence[Switch], ticked: Sequence[Sequence[int]], mode: Mode = "zero") -> list[Mask]:
    """The masks for what is not ticked."""
    masks = []
    for (pattern, what, count), on in zip(rows, ticked, strict=True):
        off: dict[str, Any] = {what: tuple(number for number in range(count) if number not in on)}
        masks += [Mask(pattern, mode=mode, **off)] if off[what] else []
    return masks


class Visit(NamedTuple):
    """An uploaded image, and what is detected in it with everything on."""

    image: Tensor
    name: str
    found: list[QueryPrediction]


class Look(NamedTuple):
    """One image in the model, under masks or none."""

    found: list[QueryPrediction]
    """Detections, best first."""
    text: str
    """The page."""
    left: Callable[[QueryPrediction], QueryPrediction]
    """What is left of a detection that is not found."""


def look(
    model: Predictor, options: ExploreOptions, image: Tensor, confidence: float, masks: Sequence[Mask], title: str
) -> Look:
    """The detections under the masks, best first, and the page of the image. Errors are those of the masks."""
    trace = AttentionTrace(model, image, size=options.image_size, masks=tuple(masks))
    methods = ("raw", "relevance") if options.relevance else ("raw",)
    text = page(trace, confidence=confidence, title=title, methods=methods, most=options.relevance or 20)
    found = trace.detections(confidence)
    return Look(found, text, partial(left_of, trace, found))


def _frame(text: str) -> str:
    """A page in a frame of its own, which may run its script and save what it shows, and nothing else."""
    return (
        '<iframe title="What the detector attends to" sandbox="allow-scripts allow-downloads" '
        'style="width:100%;height:1180px;border:0;border-radius:8px" '
        f'srcdoc="{html.escape(text)}"></iframe>'
    )


def interface(model: Predictor, options: ExploreOptions) -> Any:
    """The interface, a ``gradio.Blocks`` that is not served yet. The model runs for one visitor at a time."""
    import gradio as gr

    grouped = switches(model)
    rows = [switch for group in grouped.values() for switch in group]

    def explained(path: str, least: float) -> tuple[Visit | None, str, str]:
        """What is kept of an image, what is said of it, and its page."""
        name = Path(path).name
        try:
            image = read_image(open_image(Path(path).read_bytes(), MOST_PIXELS), name=f"image {name}")
        except Refused as error:
            said = f"image {name} cannot be decoded: {error.sentence.replace('the body', 'it')}"
            return None, html.escape(said), ""
        except ValueError as error:
            return None, html.escape(str(error)), ""
        except FileNotFoundError:
            return None, "This image was removed here; choose it again.", ""
        found, text, _ = look(model, options, image, least, (), name)
        said = f"{name}: {counted(len(found), 'detection')} of at least {least:g}."
        return Visit(image, name, found), html.escape(said), _frame(text)

    def upload(path: str | None, least: float) -> tuple[Any, ...]:
        visit, said, frame = (None, "Choose an image.", "") if path is None else explained(path, least)
        return visit, said, frame, "", "", ""

    def upload_second(path: str | None, least: float) -> tuple[Any, ...]:
        # one that is not there says nothing, and takes no room
        visit, said, frame = (None, gr.skip(), "") if path is None else explained(path, least)
        return visit, said, gr.update(value=frame, visible=bool(frame)), "", "", ""

    def run_again(
        one: Visit | None, two: Visit | None, least: float, mode: Mode, *ticked: list[int]
    ) -> tuple[str, str, str, Any]:
        nothing = "", "", gr.update(value="", visible=False)
        if one is None and two is None:
            return "Choose an image first.", *nothing
        masks = masks_of(rows, ticked, mode)
        if not masks:
            return "Every head and level is on: switch one off first.", *nothing
        reports, frames = [], []
        for visit in (one, two):
            if visit is None:
                frames.append("")
                continue
            image, name, found = visit
            try:
                after, text, left = look(model, options, image, least, masks, f"{name}, as switched")
            except ValueError as error:
                return html.escape(str(error)), *nothing
            title = name if one is not None and two is not None else ""
            reports.append(report(image, changes(found, after, left), least, title))
            frames.append(_frame(text))
        off = html.escape(" ".join(map(str, masks)))
        beside = f'<div style="display:flex;flex-wrap:wrap;gap:20px">{"".join(reports)}</div>'
        return f"Off: {off}", beside, frames[0], gr.update(value=frames[1], visible=bool(frames[1]))

    with gr.Blocks(
        title="msdeform explore", analytics_enabled=False, fill_width=True, delete_cache=(_KEPT // 60, _KEPT)
    ) as blocks:
        reached = "on this machine alone" if is_loopback(options.host) else "for all who have its token"
        gr.Markdown(f"# What the detector attends to\n{model.kind}, {reached}.")
        visit, second = gr.State(None, time_to_live=_KEPT), gr.State(None, time_to_live=_KEPT)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                file = gr.File(label="Image", type="filepath", height=140, elem_id="image")
                file_2 = gr.File(label="A second image, beside it", type="filepath", height=140, elem_id="image-2")
                least = gr.Slider(0, 1, options.confidence, step=0.01, label="Minimum score")
                choices = [(MODES[one], one) for one in modes(model)]
                mode = gr.Radio(choices, value="zero", label="What is switched off gives instead", elem_id="mode")
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
                    with gr.Tab("All on", id="on"), gr.Row():
                        shown = gr.HTML(elem_id="page")
                        shown_2 = gr.HTML(elem_id="page-2", visible=False)
                    with gr.Tab("What became of the detections", id="became"):
                        became = gr.HTML(elem_id="became")
                    with gr.Tab("As switched", id="switched"), gr.Row():
                        switched = gr.HTML(elem_id="switched")
                        switched_2 = gr.HTML(elem_id="switched-2", visible=False)
        # of one id, which one event has at a time
        alone: dict[str, Any] = {"concurrency_id": "detector", "concurrency_limit": 1}
        for on, one, kept, where in ((upload, file, visit, shown), (upload_second, file_2, second, shown_2)):
            told = [kept, status, where, became, switched, switched_2]
            uploaded = gr.on([one.change, least.release], on, [one, least], told, **alone)
            uploaded.then(lambda: gr.Tabs(selected="on"), None, tabs)
        ran = again.click(
            run_again, [visit, second, least, mode, *boxes], [status, became, switched, switched_2], **alone
        )
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
