"""Counts in sentences: "1 class", "4 classes"."""


def counted(n: int, noun: str) -> str:
    """A number with its noun."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun[:-1] + 'ie' if noun.endswith('ry') else noun}{'es' if noun.endswith(('s', 'x')) else 's'}"
