"""Words for what is printed."""


def counted(count: int, noun: str) -> str:
    """A number and its noun, such as "1 image", "2 images", "2 boxes"."""
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith(('x', 's')) else 's'}"
