"""Steps 4 to 6: the whole operator, its memory, its gradient."""

from collections.abc import Callable

from matplotlib.patches import Circle, Polygon

from .sheet import BLUE, GREEN, INK, LINE, MUTED, ORANGE, PALE, arrow, box, canvas, say


def heads_and_levels() -> None:
    ax = canvas(4.3)
    shear = 0.45

    def sheet(
        x: float, y: float, w: float, h: float, rows: int, columns: int, color: str
    ) -> Callable[[float, float], tuple[float, float]]:
        def at(u: float, v: float) -> tuple[float, float]:
            return x + u * w + (1 - v) * h * shear, y + v * h

        ax.add_patch(Polygon([at(0, 0), at(1, 0), at(1, 1), at(0, 1)], fc=PALE[color], ec=color, lw=1.2))
        for row in range(1, rows):
            ax.plot(*zip(at(0, row / rows), at(1, row / rows), strict=True), color=color, lw=0.5)
        for column in range(1, columns):
            ax.plot(*zip(at(column / columns, 0), at(column / columns, 1), strict=True), color=color, lw=0.5)
        return at

    for x, head, color, points in (
        (
            1.35,
            0,
            BLUE,
            (((0.35, 0.3, 60), (0.62, 0.75, 25), (0.8, 0.35, 110)), ((0.5, 0.2, 80), (0.7, 0.8, 30), (0.3, 0.6, 20))),
        ),
        (
            4.9,
            1,
            GREEN,
            (((0.2, 0.7, 30), (0.45, 0.85, 90), (0.7, 0.6, 40)), ((0.25, 0.35, 50), (0.6, 0.7, 120), (0.85, 0.4, 20))),
        ),
    ):
        say(ax, x + 1.35, 0.32, f"head {head}", color, 11, weight="bold")
        coarse = sheet(x, 0.6, 2.1, 0.95, 2, 3, color)
        fine = sheet(x, 2.0, 2.1, 0.95, 4, 6, color)
        for at, group in ((fine, points[0]), (coarse, points[1])):
            for u, v, size in group:
                ax.scatter(*at(u, v), s=size, color=color, zorder=4, edgecolor="white", lw=0.8)
            ax.scatter(*at(0.5, 0.5), marker="x", s=60, color=ORANGE, zorder=5, lw=2)
        ax.plot(*zip(coarse(0.5, 0.5), fine(0.5, 0.5), strict=True), color=ORANGE, lw=1, ls=":")
        arrow(ax, (x + 1.2, 3.05), (x + 1.2, 3.5), color)
        box(ax, 4.0 - 2.0 + 2.0 * head, 3.5, 2.0, 0.3, PALE[color], color)
        say(ax, 4.0 - 1.0 + 2.0 * head, 3.65, f"D channels of head {head}", color, 9)
    say(ax, 0.75, 1.08, "level 1\n2 x 3", MUTED, 9)
    say(ax, 0.75, 2.48, "level 0\n4 x 6", MUTED, 9)
    say(
        ax,
        4.0,
        4.05,
        "orange: one location, the same on every level; a head's weights add up to 1 over both levels",
        MUTED,
        9,
    )


def reference() -> None:
    ax = canvas(3.3)
    sizes = ((100, 134), (50, 67), (25, 34), (13, 17))
    stored = sum(h * w for h, w in sizes) * 8 * 32 * 4 / 1e6  # MB of value, as step 5 prints it
    scale = 0.0095  # square inches a MB

    def block(x: float, w: float, megabytes: float, color: str, text: str, top: str) -> None:
        h = megabytes * scale / w
        box(ax, x, 1.75 - h / 2, w, h, PALE[color], color, 1.2)
        say(ax, x + w / 2, 1.75, text, color, 9)
        say(ax, x + w / 2, 0.4, top, size=10, weight="bold")

    block(0.55, 0.75, stored, BLUE, f"{stored:.1f}", "value")
    for level, (h, w) in enumerate(sizes):
        block(2.35 + 0.85 * level, 0.75, 4 * stored, ORANGE, f"level {level}\n{h} x {w}\n\n{4 * stored:.1f}", "")
    say(ax, 2.35 + 1.65, 0.4, "samples: Q x P x D for every head", weight="bold")
    block(6.7, 0.75, stored, GREEN, f"{stored:.1f}", "output")
    arrow(ax, (1.4, 1.75), (2.25, 1.75))
    say(ax, 1.82, 1.55, "grid_sample", MUTED, 8)
    arrow(ax, (5.75, 1.75), (6.6, 1.75))
    say(ax, 6.17, 1.5, "weighted\nsum", MUTED, 8)
    say(ax, 4.0, 3.0, "areas are megabytes in float32: an encoder, one photograph of 800 x 1066 pixels", MUTED, 9)


def gradient() -> None:
    ax = canvas(3.6)
    left, base, unit = 0.75, 2.6, 1.1

    def at(x: float, share: float) -> tuple[float, float]:
        return left + (x + 0.4) * unit, base - share * 1.5

    say(ax, 2.2, 0.35, "of the place: the slopes of the tents", weight="bold")
    ax.plot(*zip(at(-0.4, 0), at(2.3, 0), strict=True), color=LINE, lw=1)
    for pixel, color in ((0, BLUE), (1, GREEN), (2, MUTED)):
        tent = [at(x, max(0.0, 1 - abs(x - pixel))) for x in (-0.4, *(k / 20 for k in range(0, 47)))]
        ax.plot(
            *zip(*tent, strict=True), color=color, lw=1 if color == MUTED else 1.8, ls=":" if color == MUTED else "-"
        )
        say(ax, at(pixel, 0)[0], base + 0.2, f"pixel {pixel}" if color != MUTED else "pixel 2", color, 9)
    place = 0.3
    ax.plot(*zip(at(place, 0), at(place, 1.1), strict=True), color=INK, lw=1, ls="--")
    ax.plot([at(place, 0.7)[0]], [at(place, 0.7)[1]], "o", color=BLUE)
    ax.plot([at(place, 0.3)[0]], [at(place, 0.3)[1]], "o", color=GREEN)
    arrow(ax, (2.15, 0.85), (at(place, 0.7)[0] + 0.07, at(place, 0.7)[1] - 0.05), BLUE, 0.8)
    say(ax, 2.2, 0.8, "share 0.7, slope -1", BLUE, 9, ha="left")
    say(ax, at(-0.1, 0)[0] - 0.28, at(0, 0.22)[1], "share 0.3,\nslope +1", GREEN, 9)
    say(ax, at(place, 0)[0], at(0, 1.2)[1], "the place", size=9)

    say(ax, 6.1, 0.35, "of the pixels: a · c · g, four times", weight="bold")
    x, y, side = 5.55, 1.3, 1.1
    fx, fy = 0.3, 0.6
    point = (x + fx * side, y + fy * side)
    for right in (0, 1):
        for lower in (0, 1):
            share = (1 - fx, fx)[right] * (1 - fy, fy)[lower]
            corner = (x + right * side, y + lower * side)
            arrow(
                ax,
                point,
                (point[0] + 0.78 * (corner[0] - point[0]), point[1] + 0.78 * (corner[1] - point[1])),
                ORANGE,
                1 + 7 * share,
            )
            ax.add_patch(Circle(corner, 0.13, fc=PALE[BLUE], ec=BLUE, zorder=4))
            say(ax, corner[0] + (0.62 if right else -0.62), corner[1], f"+ a · {share:.2f} · g", ORANGE, 9)
    ax.add_patch(Circle(point, 0.07, fc=INK, zorder=6))
    say(ax, 6.1, 3.0, "of the weight: the share of each pixel times g · v", MUTED, 9)
    say(ax, 2.2, 3.25, "the place moves right: pixel 0 loses what pixel 1 gains", MUTED, 9)
