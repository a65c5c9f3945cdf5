"""Prefect's own pages, used as a person does: fill in and submit forms, press the buttons of a flow run.

Works with both versions of the pages that Prefect's server serves: `V1` at `/`, and `V2` at `/v2`.

    pages = PrefectPages(browser, "http://127.0.0.1:4200", V2)
    run_id = pages.deployment_form(deployment_id).fill(input_uri="/data/a.jsonl").submit()
    pages.press(run_id, "Suspend")
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final, Literal

Button = Literal["Suspend", "Resume", "Cancel", "Retry"]

V1: Final = ""
V2: Final = "/v2"
BOTH: Final = (V1, V2)
"""The paths below which the two versions of the pages are."""

WAIT_MS: Final = 120_000
"""Generous: the server, its worker and the browser share the machine with other tests."""

SETTLING_MS: Final = 1_000
"""The pages fill in the defaults of a form a moment after they show its fields."""


class Refused(AssertionError):
    """The page did not accept the form; the text is what it shows."""


class PrefectPages:
    """A browser window on the pages of the Prefect server at `root`."""

    def __init__(self, browser: Any, root: str, version: str = V2) -> None:
        self._root = root.removesuffix("/api")
        self.version = version
        self._context = browser.new_context(viewport={"width": 1400, "height": 1800})
        self.page = self._context.new_page()
        self.page.set_default_timeout(WAIT_MS)

    def close(self) -> None:
        """Close the window."""
        self._context.close()

    def open(self, path: str, *, wait_for: str = "main, .p-layout-default, body") -> None:
        """Open the page at that path, such as `/runs/flow-run/ID`, and wait for what the selector matches."""
        self.page.goto(f"{self._root}{self.version}{path}", wait_until="commit")
        self.page.wait_for_selector(wait_for)

    def text(self) -> str:
        """Return the visible text of the page."""
        return str(self.page.inner_text("body"))

    def picture(self, path: Path) -> None:
        """Save a picture of the window."""
        self.page.screenshot(path=path)

    def deployment_form(self, deployment_id: str) -> Form:
        """Open the form that starts a run of the deployment."""
        self.open(f"/deployments/deployment/{deployment_id}/run", wait_for="form fieldset")
        self.page.wait_for_timeout(SETTLING_MS)
        return Form(self)

    def block_form(self, slug: str) -> Form:
        """Open the form that makes a block of that type."""
        self.open(f"/blocks/catalog/{slug}/create", wait_for=SUBMIT)
        return Form(self)

    def press(self, run_id: str, button: Button) -> None:
        """Press the button on the flow run's page and confirm its dialog; return once the server has answered."""
        self.open(f"/runs/flow-run/{run_id}", wait_for=MENU[self.version])
        self._offered(button).click()
        confirm = self.page.locator(DIALOG).last.get_by_role("button", name=CONFIRM).last
        with self.page.expect_response(_changes_state) as answer:
            confirm.click()
        if answer.value.status == SHORT_OF_TIME:
            self.press(run_id, button)
        else:
            assert answer.value.ok, (answer.value.status, answer.value.text())

    def _offered(self, button: Button) -> Any:
        """Return the button. In V2 it is in the page's menu, where Suspend is called Pause."""
        if self.version == V1:
            return self.page.get_by_role("button", name=button, exact=True).first
        self.page.locator(MENU[V2]).first.click()
        return self.page.get_by_role("menuitem", name="Pause" if button == "Suspend" else button, exact=True)


MENU: Final = {V1: ".p-icon-button-menu button", V2: "button[aria-haspopup=menu]"}
DIALOG: Final = "[role=dialog], [role=alertdialog], .p-modal"
CONFIRM: Final = re.compile(r"^\s*(Suspend|Pause|Resume|Retry|Cancel Flow Run|Confirm|Submit|Cancel)\b")
SUBMIT: Final = "button[type=submit]"
MAKING: Final = "/schemas/validate$|/create_flow_run$|/block_documents/$"
"""The request that the pages send when a form is submitted."""


class Form:
    """A form that Prefect makes of a JSON schema; fields are found by their titles."""

    def __init__(self, pages: PrefectPages) -> None:
        self._pages = pages
        self._page = pages.page

    def field(self, title: str) -> Any:
        """Return the element that holds everything of the field: label, description, control and errors."""
        label = self._page.locator("label").filter(has_text=re.compile(rf"^\s*{re.escape(title)}\b"))
        return label.first.locator("xpath=ancestor::div[.//fieldset or .//input or .//textarea][1]")

    def fill(self, **values: str | list[str] | dict[str, Any]) -> Form:
        """Type each value into the field of that title: text, a list item by item, or an object as JSON."""
        for title, value in values.items():
            field = self.field(title)
            if isinstance(value, list):
                for item in value:
                    field.get_by_role("button", name="Add item").click()
                    field.locator("textarea, input").last.fill(item)
            else:
                self._type(field, value if isinstance(value, str) else json.dumps(value))
        return self

    def _type(self, field: Any, text: str) -> None:
        """Put the text into the field, again if the page puts its default in behind it."""
        control = field.locator("textarea, input:not([type=checkbox]), [contenteditable=true]").last
        for _ in range(TRIES):
            control.fill(text)
            self._page.wait_for_timeout(SETTLING_MS // 4)
            is_editor = control.get_attribute("contenteditable") is not None
            if (control.inner_text() if is_editor else control.input_value()).strip() == text:
                return
        raise AssertionError(f"the field does not keep {text}")

    def submit(self) -> str:
        """Press the form's last button and return the id of what it made; raise `Refused` if it made nothing.

        It is pressed again if the server is short of time, as SQLite's is while runs write as well.
        """
        answers: list[Any] = []
        self._page.on("response", lambda answer: answers.append(answer))  # noqa: PLW0108 - playwright marks it
        for _ in range(TRIES):
            answers.clear()
            self._page.locator(SUBMIT).last.click()
            if made := self._answered(answers):
                return made
        raise Refused(f"nothing was made: {self._pages.text()}")

    def _answered(self, answers: list[Any]) -> str | None:
        """Return the id of what was made, or None if the server was short of time."""
        for _ in range(WAIT_MS // 100):
            for answer in [each for each in answers if _is_decisive(each)]:
                if answer.status == SHORT_OF_TIME:
                    return None
                told = answer.json()
                if not answer.ok or told.get("valid") is False:
                    raise Refused(f"{answer.status} {json.dumps(told)}")
                if "id" in told:
                    return str(told["id"])
            self._page.wait_for_timeout(100)
        return None


SHORT_OF_TIME: Final = 503
TRIES: Final = 5


def _is_decisive(answer: Any) -> bool:
    return answer.request.method == "POST" and bool(re.search(MAKING, answer.url))


def _changes_state(response: Any) -> bool:
    return response.request.method == "POST" and bool(re.search("/set_state|/resume", response.url))
