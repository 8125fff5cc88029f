"""Steps 7 to 10: programs, lanes, rows of the gradient, counts."""

from .sheet import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LINE,
    MUTED,
    ORANGE,
    PALE,
    RED,
    VIOLET,
    arrow,
    box,
    canvas,
    cells,
    say,
    squares,
    step,
)


def first_kernel() -> None:
    ax = canvas(3.8)
    say(ax, 1.35, 0.35, "the grid: Q x H programs", weight="bold")
    for q in range(8):
        for head in range(4):
            chosen = (q, head) == (3, 2)
            box(
                ax,
                0.55 + 0.4 * head,
                0.6 + 0.32 * q,
                0.36,
                0.28,
                PALE[ORANGE] if chosen else PALE[BLUE],
                ORANGE if chosen else LINE,
            )
    say(ax, 1.35, 3.3, "heads", MUTED, 9)
    say(ax, 0.33, 1.9, "queries", MUTED, 9, rotation=90)
    arrow(ax, (1.75, 1.7), (2.75, 1.7), ORANGE)
    say(ax, 5.25, 0.35, "a program: one warp, 32 lanes, a channel each", weight="bold")
    lane = 0.155
    rows = (
        ("x, y, floor, pixel, shares", ORANGE, "32 times the same"),
        ("load the row of pixel 00", BLUE, "128 bytes"),
        ("load the row of pixel 01", BLUE, "128 bytes"),
        ("load the row of pixel 10", BLUE, "128 bytes"),
        ("load the row of pixel 11", BLUE, "128 bytes"),
        ("total += weight · share · row", GREEN, "in registers"),
    )
    for number, (text, color, note) in enumerate(rows):
        y = 0.72 + 0.36 * number
        cells(ax, 2.9, y, 32 * lane, 0.27, 32, 1, PALE[color])
        plate = {"fc": PALE[color], "ec": "none", "pad": 1}
        say(ax, 2.9 + 16 * lane, y + 0.135, f"{text}: {note}", color, 9, weight="bold", bbox=plate)
    arrow(ax, (7.92, 2.75), (7.92, 0.75), MUTED, 1.2)
    say(ax, 5.35, 3.02, "again for each of the L x P points; then one store of 32 numbers", MUTED, 9)
    say(ax, 4.0, 3.58, "no sample is stored: instead of step 5's 292 MB, a sum in a register of each lane", MUTED, 9)


def lanes_share_points() -> None:
    ax = canvas(4.3)
    say(ax, 1.5, 0.35, "step 7", weight="bold")
    say(ax, 1.5, 0.62, "32 lanes prepare all 16 points", MUTED, 9)
    cell = 0.072
    cells(ax, 0.92, 0.9, 16 * cell, 32 * cell, 16, 32, ORANGE)
    say(ax, 0.72, 0.9 + 16 * cell, "lanes", MUTED, 9, rotation=90)
    say(ax, 1.5, 3.35, "points", MUTED, 9)
    say(ax, 1.5, 3.7, "512 times", ORANGE, 11, weight="bold")

    say(ax, 5.5, 0.35, "step 8", weight="bold")
    say(ax, 5.5, 0.62, "8 lanes of a query, one level with 4 points", MUTED, 9)
    y, h = 0.95, 0.27
    for lane in range(8):
        say(ax, 3.2, y + (lane + 0.45) * h, f"lane {lane}", MUTED, 8)
        own = lane < 4
        box(ax, 3.55, y + lane * h, 0.9, h * 0.85, PALE[ORANGE], ORANGE if own else LINE)
        say(ax, 4.0, y + (lane + 0.43) * h, f"point {lane % 4}", ORANGE if own else MUTED, 8)
        for point in range(4):
            x = 5.1 + 0.62 * point
            box(
                ax,
                x,
                y + lane * h,
                0.55,
                h * 0.85,
                PALE[BLUE],
                BLUE if lane != point else ORANGE,
                0.8 if lane != point else 1.8,
            )
            say(ax, x + 0.275, y + (lane + 0.43) * h, f"{4 * lane}-{4 * lane + 3}", BLUE, 7)
    say(ax, 4.0, y + 8 * h + 0.18, "prepare", ORANGE, 9)
    for point in range(4):
        say(ax, 5.375 + 0.62 * point, y + 8 * h + 0.18, f"point {point}", BLUE, 8)
    arrow(ax, (4.5, y + 4 * h), (5.05, y + 4 * h))
    say(ax, 4.77, y + 3.3 * h, "five\nnumbers", MUTED, 7.5)
    say(ax, 5.5, 3.7, "32 times: 4 levels, 8 lanes", ORANGE, 11, weight="bold")
    say(ax, 4.0, 4.05, "blue: channels that a lane reads, 16 bytes at once; orange edge: the lane that sends", MUTED, 9)


def backward() -> None:
    ax = canvas(4.2)
    say(ax, 2.0, 0.35, "with atomics: a program for each query", weight="bold")
    colors = (BLUE, ORANGE, GREEN, VIOLET)
    entries = ((0, 1, 3), (1, 2), (1, 3), (0, 1, 2))  # rows that each query's points add to
    for query, (color, rows) in enumerate(zip(colors, entries, strict=True)):
        x = 0.5 + 0.85 * query
        box(ax, x, 0.75, 0.65, 0.4, PALE[color], color)
        say(ax, x + 0.325, 0.95, f"query {query}", color, 8)
        for row in rows:
            arrow(ax, (x + 0.325, 1.18), (0.9 + 0.75 * row, 2.72), color, 1)
    for row in range(4):
        crowd = row == 1
        box(
            ax,
            0.6 + 0.75 * row,
            2.75,
            0.6,
            0.35,
            PALE[RED] if crowd else "white",
            RED if crowd else LINE,
            1.5 if crowd else 0.8,
        )
        say(ax, 0.9 + 0.75 * row, 2.93, f"row {row}", size=8)
    say(ax, 2.0, 3.35, "row 1: four additions in any order", RED, 9)

    say(ax, 6.0, 0.35, "without: sort, then a program for each row", weight="bold")
    listed = sorted((row, query) for query, rows in enumerate(entries) for row in rows)
    w, x0 = 0.34, 4.3
    for place, (_, query) in enumerate(listed):
        x = x0 + place * w
        box(ax, x, 0.85, w * 0.9, 0.35, PALE[colors[query]], colors[query])
        say(ax, x + w * 0.45, 1.03, f"{query}", colors[query], 8)
    for row in range(4):
        places = [place for place, (r, _) in enumerate(listed) if r == row]
        a, b = x0 + places[0] * w, x0 + (places[-1] + 0.9) * w
        ax.plot((a, a, b, b), (1.3, 1.38, 1.38, 1.3), color=INK, lw=1)
        arrow(ax, ((a + b) / 2, 1.42), ((a + b) / 2, 1.78))
        box(ax, (a + b) / 2 - 0.28, 1.8, 0.56, 0.35, "#f1f5f9")
        say(ax, (a + b) / 2, 1.98, "sum", size=8)
        arrow(ax, ((a + b) / 2, 2.18), ((a + b) / 2, 2.72))
        box(ax, (a + b) / 2 - 0.28, 2.75, 0.56, 0.35)
        say(ax, (a + b) / 2, 2.93, f"row {row}", size=8)
    say(ax, 6.0, 3.35, "one store for each row, always the same order", GREEN, 9)
    say(
        ax,
        4.0,
        3.85,
        "numbers in the sorted list: which query an entry came from; equal rows keep the order of queries",
        MUTED,
        9,
    )


def ptx_and_bounds() -> None:
    lesson = step("step10_ptx_and_bounds")
    launched = {name: lesson.execute(name)[1] for name in lesson.KERNELS}
    ax = canvas(4.6)
    say(ax, 2.1, 0.35, "instructions for a query and head", weight="bold")
    shown = {"loads": BLUE, "shuffles": VIOLET, "multiply-adds": GREEN}
    side, y = 0.13, 0.65
    for name, one in launched.items():
        count = lesson.instructions(one)
        say(ax, 0.3, y + 0.08, name, size=9, ha="left", weight="bold")
        say(ax, 0.3, y + 0.3, f"{count['all']:.0f}", size=9, ha="left")
        amounts = [count[group] for group in shown]
        ends = [round(sum(amounts[: k + 1]) / 10) for k in range(3)] + [round(count["all"] / 10)]
        for begin, end, color in zip([0, *ends], ends, [*shown.values(), GREY], strict=False):
            corners = [(1.1 + k % 20 * side, y + k // 20 * side) for k in range(begin, end)]
            squares(ax, corners, side * 0.85, color)
        y += 0.25 + side * -(-round(count["all"] / 10) // 20)
    for number, (text, color) in enumerate((*shown.items(), ("everything else", GREY))):
        x, low = 0.45 + 1.65 * (number % 2), 3.45 + 0.26 * (number // 2)
        box(ax, x, low, side * 0.85, side * 0.85, color, "none", 0)
        say(ax, x + 0.22, low + 0.06, text, MUTED, 9, ha="left")
    say(ax, 2.1, 4.02, "a square: ten instructions", MUTED, 9)

    say(ax, 5.9, 0.35, "cycles, each part alone: the longest bounds", weight="bold")
    parts = {name: lesson.cycles(one) for name, one in launched.items()}
    longest = max(max(part.values()) for part in parts.values())
    y = 0.62
    for name, part in parts.items():
        say(ax, 4.35, y + 0.1, name, size=9, ha="left", weight="bold")
        y += 0.24
        for label, amount in part.items():
            bound = amount == max(part.values())
            say(ax, 5.45, y + 0.08, label, ORANGE if bound else MUTED, 8, ha="right")
            w = 1.9 * amount / longest
            box(ax, 5.52, y, w, 0.16, ORANGE if bound else GREY, "none", 0)
            say(ax, 5.58 + w, y + 0.08, f"{amount:.0f}", ORANGE if bound else MUTED, 8, ha="left")
            y += 0.215
        y += 0.08
    say(ax, 4.0, 4.35, "counted by executing the compiled kernels' PTX on a CPU; no GPU measured this", MUTED, 9)
