"""Bytes, seconds and names as people read them, and what the words of an error mean."""


def bytes_in_words(count: int) -> str:
    """Bytes in three digits or four, in B, kB, MB or GB."""
    if count < 1000:
        return f"{count} B"
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"


def seconds_in_words(value: float) -> str:
    """Seconds in the unit that fits: s, min, h or days."""
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h" if value < 48 * 3600 else f"{value / 86400:.1f} days"


def printable(text: str) -> str:
    """The text with what a terminal would obey, or could not show, spelled out: escapes, controls, no UTF-8."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)


def one_line(text: str) -> str:
    """The same on one line, as names stand in lines and pictures."""
    return " ".join(printable(text).split())


def is_short_of_memory(error: BaseException) -> bool:
    """Whether the machine had too little memory, rather than something having been wrong."""
    torchs = ("out of memory", "can't allocate memory")  # of a GPU and of the host
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in torchs)
    )
