"""The report's small parts in HTML: tables, legends, figures, notes. Text is escaped, unless it is `Html` already."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from markupsafe import Markup as Html
from markupsafe import escape

__all__ = ["Html", "escape"]
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def join(parts: Iterable[object]) -> Html:
    """The parts, one after another; text is escaped."""
    return Html("").join(escape(part) for part in parts)


def _attributes(values: Mapping[str, object]) -> Html:
    """`class_` is the class, and an underscore in a name is a hyphen."""
    names = {key: Html(key.rstrip("_").replace("_", "-")) for key in values}
    return join(Html(' {}="{}"').format(names[key], value) for key, value in values.items())


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element."""
    return Html("<{0}{1}>{2}</{0}>").format(Html(name), _attributes(attributes), join(content))


def image(source: str, text: str, **attributes: object) -> Html:
    """An image; `text` is for those who do not see it."""
    return Html("<img{}>").format(_attributes({"src": source, "alt": text} | attributes))


def note(*content: object) -> Html:
    """A paragraph of what a section says about itself."""
    return tag("p", *content, class_="note")


def not_run(what: str, command: str) -> Html:
    """A paragraph in place of what a stage would have left."""
    return tag("p", what, " ", tag("code", command), class_="not-run")


def figure(content: object, caption: object) -> Html:
    return tag("figure", content, tag("figcaption", caption))


def legend(names: Mapping[str, str]) -> Html:
    """Names and the colours of what they stand for, as CSS."""
    keys = [tag("li", Html(f'<i style="background:{color}"></i>'), name) for name, color in names.items()]
    return tag("ul", *keys, class_="legend")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], num_text: int = 1) -> Html:
    """A table; all but the first `num_text` columns are numbers. On a phone a row is a block, and each of its cells a
    line that begins with the column's name.
    """

    def cells(name: str, row: Sequence[object]) -> Html:
        kinds: list[dict[str, object]] = [{} if k < num_text else {"class_": "number"} for k in range(len(row))]
        if name == "td":
            kinds = [kind | {"data_name": column} for kind, column in zip(kinds, head, strict=True)]
        return tag("tr", *(tag(name, cell, **kind) for cell, kind in zip(row, kinds, strict=True)))

    body = [cells("td", row) for row in rows]
    return tag("div", tag("table", tag("thead", cells("th", head)), tag("tbody", *body)), class_="scroll")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and what they are."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts")


def details(summary: str, content: object) -> Html:
    """Shown on demand."""
    return tag("details", tag("summary", summary), content)


def bar(share: float, color: str) -> Html:
    """A horizontal bar, `share` of its cell wide."""
    return Html(f'<span class="bar"><i style="width:{100 * share:.1f}%;background:{color}"></i></span>')


def document(title: str, *body: object) -> str:
    """A whole page: it may show what is inside it and ask for nothing. Control characters, which names may hold, are
    spelled out."""
    head = [
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        tag("title", title),
        tag("style", Html((Path(__file__).parent / "report.css").read_text())),
    ]
    page = f'<!doctype html>\n<html lang="en">{tag("head", *head)}\n{tag("body", *body)}</html>\n'
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], page)


def section(name: str, title: str, *content: object) -> Html:
    return tag("section", tag("h2", title), *content, id=name)


def sentence(parts: Sequence[str]) -> str:
    """Remarks as one sentence."""
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def counted(count: int, of: int, noun: str) -> str:
    """The words for `count` things out of `of`, or for all of them."""
    things = noun if of == 1 else f"{noun}s"
    return f"{count} {things}" if count == of else f"{count} of {of} {things}"


def short(name: str) -> str:
    """A network's name without the folders of the file that it comes from."""
    return name.rpartition("/")[2] if ".py:" in name else name
