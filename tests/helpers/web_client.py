"""A client of the web pages without scripts, which parses pages strictly and fills in forms."""

from html.parser import HTMLParser
from types import TracebackType
from typing import Self

import httpx

from helpers.api_server import WITHOUT_TLS
from helpers.page_parser import Page

HTML = "text/html,application/xhtml+xml,*/*;q=0.8"
ELSEWHERE = {"src", "href", "action", "formaction", "data", "poster", "srcset"}


class Form(HTMLParser):
    """A form of a page, with the initial values of its fields."""

    def __init__(self, text: str, action: str) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.method = self.kind = ""
        self.buttons = 0
        self._wanted = action
        self._is_in = self.was_found = False
        self.feed(text)
        assert self.was_found, f"no form goes to {action}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "form" and found.get("action") == self._wanted:
            self._is_in = self.was_found = True
            self.method, self.kind = found.get("method") or "", found.get("enctype") or ""
        if self._is_in and tag in {"input", "textarea"} and found.get("type") not in {"checkbox", "file"}:
            self.fields[str(found["name"])] = found.get("value") or ""
        self.buttons += self._is_in and tag == "button"

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._is_in = False


class WebPage(Page):
    """A page as somebody gets it."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.status = answer.status_code
        self.html = answer.text
        super().__init__(answer.content)

    def form(self, action: str) -> Form:
        return Form(self.html, action)

    def links(self) -> set[str]:
        return {value or "" for name, value in self.attributes if name == "href"}

    def assert_no_foreign_content(self) -> None:
        """No script or style is in it, no attribute runs one, and nothing is loaded from or sent to elsewhere."""
        assert self.tags.count("script") == 1
        assert "style" not in self.tags
        assert not {"img", "iframe", "object", "embed", "base"} & set(self.tags)
        for name, value in self.attributes:
            assert not name.startswith("on"), (name, value)
            assert name not in {"style", "srcdoc"}
            if name in ELSEWHERE:
                assert value is not None
                assert value.startswith(("/", "#")), (name, value)
                assert not value.startswith("//")


class WebClient:
    """A client of the web pages."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.http = httpx.Client(
            base_url=root,
            headers={"Accept": HTML},
            follow_redirects=True,
            timeout=60,
            trust_env=False,
            verify=WITHOUT_TLS,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def open(self, path: str, **query: str | int) -> WebPage:
        """The page at that path."""
        return self._seen(self.http.get(path, params=query or None))

    def send(self, page: WebPage, action: str, **fields: str | list[str]) -> WebPage:
        """Submit the page's form with the given values and return the next page."""
        form = page.form(action)
        assert form.method == "post"
        return self.post(action, **{**form.fields, **fields})

    def upload(self, name: str, content: bytes, **fields: str) -> WebPage:
        """Upload a file on the page for a new batch and return the next page."""
        form = self.open("/new").form("/new")
        assert form.kind == "multipart/form-data"
        answer = self.http.post(
            "/new", data={**form.fields, **fields}, files={"file": (name, content)}, headers={"Origin": self.root}
        )
        return self._seen(answer)

    def post(self, path: str, **fields: str | list[str]) -> WebPage:
        return self._seen(self.http.post(path, data=fields, headers={"Origin": self.root}))

    def sign_in(self, token: str) -> WebPage:
        return self.send(self.open("/sign-in"), "/sign-in", key=token)

    def _seen(self, answer: httpx.Response) -> WebPage:
        seen = WebPage(answer)
        seen.assert_no_foreign_content()
        return seen
