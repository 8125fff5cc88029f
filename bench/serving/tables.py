"""Rows of the server as tables."""

from collections.abc import Sequence

from ..harness.records import Row
from ..harness.tables import Column, Line, fields, lines_of, numbers


def serve_table(rows: Sequence[Row]) -> list[Line]:
    """A head, and a line for the loop and for each number of clients, of each model and engine."""
    columns: dict[str, Column] = {
        **fields("model", "engine", "way", "clients", "requests"),
        "a second": numbers("per_second"),
        "p50 ms": numbers("p50_ms"),
        "p95 ms": numbers("p95_ms"),
        "p99 ms": numbers("p99_ms"),
        "images a batch": numbers("images_a_batch"),
        "": lambda row: row["failure"] or "",
    }
    return lines_of(rows, columns)


def broken_table(row: Row) -> list[Line]:
    """How many requests of each way got each answer."""
    return [("request", "answer", "count"), *((way, answer, str(count)) for way, answer, count in row["answers"])]


def summary(row: Row) -> str:
    """What else is to be known, in a line each."""
    memory = ", ".join(f"{value:.0f}" for value in row["memory_mb"])
    return "\n".join(
        [
            f"wrong answers: {row['wrong']}",
            f"tracebacks: {row['tracebacks']}",
            f"the server's memory at the start, the middle and the end: {memory} MB",
            f"crashes: {'none' if row['failure'] is None else row['failure']}",
        ]
    )
