"""A page of HTML as tests look at it: strict about its tags, with its text, tables and attributes."""

import re
from html.parser import HTMLParser
from math import isfinite

VOID = {"meta", "br", "hr", "wbr", "input", "link"}
WITHIN_WORDS = {"a", "bdi", "data", "time"}
NUMBERS = {"x", "y", "x1", "x2", "y1", "y2", "dx", "width", "height"}
PLACES = {"href", "src", "srcset", "action", "data", "poster", "xlink:href", "background"}


class Page(HTMLParser):
    """Raises `AssertionError` while it reads a page whose tags do not balance."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.size = len(content)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: list[list[list[str]]] = []
        self.styles = self.text = ""
        self._open: list[str] = []
        self.feed(content.decode())
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in WITHIN_WORDS:
            self.text += " "
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            self.styles += data
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def words(self) -> str:
        """All of its text with single spaces."""
        return " ".join(self.text.split())

    def row(self, start: str) -> list[str]:
        """The first row of a table whose first cell starts so."""
        rows = (row for table in self.tables for row in table if row)
        return next(row for row in rows if row[0].strip().startswith(start))

    def assert_stands_alone(self) -> None:
        """Check that the page has no scripts and loads nothing from elsewhere."""
        assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(self.tags)
        places = {value for name, value in self.attributes if name in PLACES}
        assert places <= {"output.jsonl", "errors.jsonl", "requests.parquet", "report.json"}
        assert not [name for name, _ in self.attributes if name.startswith("on")]
        assert "@import" not in self.styles
        assert set(re.findall(r"url\((.*?)\)", self.styles)) == {"#hatch"}

    def assert_drawn_with_numbers(self) -> None:
        """Every place and size of its pictures is a finite number, every path made of such."""
        for name, value in self.attributes:
            if value is None:
                continue
            if name in NUMBERS:
                assert isfinite(float(value.removesuffix("%"))), (name, value)
                assert name not in {"width", "height"} or float(value.removesuffix("%")) >= 0
            elif name == "d" and value.endswith("Z"):
                assert all(isfinite(float(part)) for part in re.split(r"[MVHZ\s]+", value) if part), value
