"""Steps 1 to 3: one query on one map."""

from matplotlib.patches import Circle, Rectangle

from .sheet import BLUE, GREEN, INK, LINE, MUTED, ORANGE, PALE, VIOLET, arrow, box, canvas, pixel_map, say, step


def one_pixel() -> None:
    ax, cell, lesson = canvas(3.5), 0.42, step("step01_one_pixel")

    def shade(at: tuple[float, float], color: str, alpha: float) -> None:
        ax.add_patch(Rectangle((at[0] - cell / 2, at[1] - cell / 2), cell, cell, fc=color, alpha=alpha, ec="none"))

    def outline(at: tuple[float, float]) -> None:
        corner = (at[0] - cell / 2, at[1] - cell / 2)
        ax.add_patch(Rectangle(corner, cell, cell, fill=False, ec=ORANGE, lw=2.5, zorder=5))

    place = pixel_map(ax, 0.35, 0.6, cell)
    say(ax, 0.35 + 4 * cell, 0.35, "ordinary attention: reads all 48 pixels", weight="bold")
    ordinary = (lesson.keys @ lesson.query).flatten().softmax(0)
    for number, weight in enumerate((ordinary / ordinary.max()).tolist()):
        shade(place(number % 8, number // 8), BLUE, 0.6 * weight)
    outline(place(3, 2))
    say(ax, 2.03, 3.3, "darker: a larger weight", MUTED, 9)

    place = pixel_map(ax, 4.3, 0.6, cell)
    say(ax, 4.3 + 4 * cell, 0.35, "deformable attention: reads 2 places", weight="bold")
    x, y = place(3, 2)
    badge = {"fc": BLUE, "ec": "none", "boxstyle": "round,pad=0.15"}
    for (dx, dy), weight in zip(lesson.offsets.tolist(), lesson.weights.tolist(), strict=True):
        to_x, to_y = place(3 + dx, 2 + dy)
        shade((to_x, to_y), BLUE, 0.6 * weight)
        arrow(
            ax,
            (x + 0.1 * (to_x - x), y + 0.25 * (to_y - y)),
            (to_x - 0.2 * (to_x - x), to_y - 0.3 * (to_y - y)),
            BLUE,
            2,
        )
        say(ax, to_x, to_y + cell / 2, f"{weight:.2f}", "white", 9, weight="bold", bbox=badge, zorder=6)
    outline((x, y))
    say(ax, 5.98, 3.3, "the query (orange) says where to look, and with which weight", MUTED, 9)


def bilinear() -> None:
    ax, lesson = canvas(3.7), step("step02_bilinear")
    colors = (BLUE, ORANGE, GREEN, VIOLET)
    for left, (px, py), title in (
        (1.0, (2.25, 1.5), "between four pixels"),
        (5.0, (7.5, 3.0), "half a pixel past the last column"),
    ):
        side, top = 2.0, 0.95
        say(ax, left + side / 2, 0.35, title, weight="bold")
        around = lesson.neighbours(px, py)
        fx, fy = px - around[0][0], py - around[0][1]
        x, y = left + fx * side, top + fy * side
        # the rectangle opposite to each pixel, in the pixel's colour
        for (column, row, share), color, (right, lower) in zip(
            around, colors, ((0, 0), (1, 0), (0, 1), (1, 1)), strict=True
        ):
            inside = column < 8
            w, h = (1 - fx, fx)[right] * side, (1 - fy, fy)[lower] * side
            rx, ry = (x, left)[right], (y, top)[lower]
            box(ax, rx, ry, w, h, PALE[color] if inside else "#f1f5f9", LINE)
            if share:
                say(ax, rx + w / 2, ry + h / 2, f"{share:g}", color if inside else MUTED, 11, weight="bold")
            cx, cy = left + right * side, top + lower * side
            ax.add_patch(
                Circle(
                    (cx, cy),
                    0.21,
                    fc=color if inside else "white",
                    ec=color if inside else MUTED,
                    ls="-" if inside else "--",
                    zorder=4,
                )
            )
            say(
                ax,
                cx,
                cy,
                f"{row}{column}" if inside else "0",
                "white" if inside else MUTED,
                10,
                weight="bold",
                zorder=5,
            )
        ax.add_patch(Circle((x, y), 0.08, fc=INK, zorder=6))
        text = " + ".join(
            f"{share:g}·{10 * row + column if column < 8 else 0}" for column, row, share in around if share
        )
        say(ax, left + side / 2, 3.35, f"{text} = {lesson.bilinear(lesson.value, px, py):g}", size=10)
    say(ax, 4.0, 2.0, "a pixel's share:\nthe area of its\ncolour, opposite", MUTED, 9)


def many_points() -> None:
    ax, cell, lesson = canvas(3.9), 0.5, step("step03_many_points")
    place = pixel_map(ax, 0.5, 0.45, cell)
    start = place(3, 2)
    rows = list(
        zip(
            lesson.offsets[0].tolist(),
            lesson.logits.softmax(-1)[0].tolist(),
            (BLUE, ORANGE, GREEN, VIOLET),
            strict=True,
        )
    )
    say(ax, 6.3, 0.75, "weight · sample", weight="bold")
    for number, ((dx, dy), weight, color) in enumerate(rows):
        end = place(3 + dx, 2 + dy)
        ax.plot((start[0], end[0]), (start[1], end[1]), color=color, lw=1.4)
        ax.add_patch(Circle(end, 0.48 * weight**0.5, fc=color, alpha=0.75, zorder=4))
        sampled = float(lesson.sample(lesson.value, lesson.torch.tensor(3 + dx), lesson.torch.tensor(2 + dy)))
        ax.add_patch(Circle((5.05, 1.2 + 0.45 * number), 0.28 * weight**0.5, fc=color, alpha=0.75))
        say(ax, 6.3, 1.2 + 0.45 * number, f"{weight:.1f} · {sampled:.3f} = {weight * sampled:6.3f}", color, 11)
    ax.plot((5.3, 7.3), (2.85, 2.85), color=INK, lw=0.8)
    say(
        ax,
        6.3,
        3.1,
        f"output = {lesson.attend(lesson.value, lesson.reference, lesson.offsets, lesson.logits).item():.3f}",
        size=11,
        weight="bold",
    )
    ax.add_patch(Rectangle((start[0] - cell / 2, start[1] - cell / 2), cell, cell, fill=False, ec=INK, lw=2, zorder=5))
    say(ax, 2.5, 3.68, "lines: offsets from the reference point; areas of circles: weights", MUTED, 9)
