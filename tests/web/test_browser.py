"""The pages in a real browser: a batch's life by mouse and by keys, what runs, phones, the dark, and strangers."""

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.api_server import ApiServer, root_of
from helpers.browser_scripts import NAMELESS, REDDISH, TOO_FAINT, drop, tab_to
from helpers.record_edits import change_batch
from helpers.request_files import chat_line, write_requests

from batchline.models.status import TERMINAL_STATUSES

pytestmark = pytest.mark.system

WAIT_MS = 60_000
ELSEWHERE = "http://127.0.0.1:4"
Look = Callable[..., Any]


@pytest.fixture
def look(chromium: Any) -> Iterator[Look]:
    """Open pages in windows of their own; in none did a script fail or the policy have to refuse anything."""
    opened: list[Any] = []
    problems: list[str] = []

    def heard(message: Any) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            problems.append(message.text)

    def open_window(address: str, **options: Any) -> Any:
        window = chromium.new_context(**options)
        opened.append(window)
        page = window.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", heard)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        return page

    yield open_window
    for window in opened:
        window.close()
    assert problems == []


@contextmanager
def same_document(page: Any) -> Iterator[None]:
    """Check that the page is not reloaded within the block."""
    page.evaluate("() => { window.isTheSame = true; }")
    yield
    assert page.evaluate("() => window.isTheSame")


def lines(count: int, *, failing: int = 0) -> bytes:
    """Return the lines of requests, of which the first are rejected."""
    prompts = (f"{n} simulate:status=400" if n < failing else f"Question {n}?" for n in range(count))
    return "".join(f"{chat_line(n, prompt)}\n" for n, prompt in enumerate(prompts)).encode()


def _fulfil(body: str, route: Any) -> None:
    route.fulfill(body=body, content_type="text/html")


def batch_id(page: Any) -> str:
    return page.url.partition("/batches/")[2].partition("/")[0]


def test_dropped_file_is_fixed_run_searched_and_retried(served: ApiServer, look: Look, tmp_path: Path):
    page = look(f"{root_of(served.url)}/new", accept_downloads=True)
    with same_document(page):
        drop(page, "night.jsonl", b'{"custom_id": "a"\n' + lines(3))
        page.wait_for_selector("table.errors")
        assert "One thing is wrong with night.jsonl" in page.inner_text("main")
        assert "invalid_json_line" in page.inner_text("table.errors")
        assert page.evaluate("() => document.activeElement.id") == "problem"
        assert served.client.batches.list().data == []

        drop(page, "night.jsonl", lines(30, failing=2))
        page.wait_for_selector("#start")
        assert "night.jsonl is ready" in page.inner_text("main")
    page.click("#start")

    page.wait_for_selector("#retry")  # it comes to its end while it is looked at
    assert "28 of 30 requests were answered, 2 failed." in page.inner_text("main")
    with page.expect_download() as download:
        page.click("text=Output")
    kept = Path(download.value.path()).read_bytes()
    assert [json.loads(line)["custom_id"] for line in kept.splitlines()] == [f"request-{n}" for n in range(2, 30)]

    page.click("#results")
    page.fill("input[name=search]", "request-1")
    page.select_option("select[name=status]", "failed")
    page.click("text=Filter")
    page.click("summary:has-text('request-1')")
    assert "1 simulate:status=400" in page.inner_text(".inside")
    page.check("input[name=request_id]")
    page.click("#retry-chosen")

    page.wait_for_selector("text=Sending again")
    page.wait_for_selector("#retry")
    batch = served.client.batches.wait(batch_id(page), timeout_s=60)
    assert served.client.batches.record(batch.id).generation == 1
    assert batch.dwext is not None
    assert batch.dwext.source == "frontend"


def test_running_batch_page_updates_in_place_and_can_be_cancelled(start_api, look: Look):
    served = start_api(simulator={"latency_s": 0.2}, flush_interval_s=0.1)
    file = served.client.files.create(file=("long.jsonl", lines(5_000)))
    batch = served.client.batches.create(input_file_id=file.id)
    page = look(f"{root_of(served.url)}/batches/{batch.id}", viewport={"width": 800, "height": 400})
    with same_document(page):
        page.wait_for_selector("text=In flight")
        page.focus("#delete")
        page.evaluate("() => scrollTo(0, 150)")
        before = page.inner_text(".lead")
        page.wait_for_function("(before) => document.querySelector('.lead').innerText !== before", arg=before)
        assert page.evaluate("() => [document.activeElement.id, scrollY]") == ["delete", 150]

    page.click("#cancel")

    page.wait_for_selector("#retry")
    assert "Cancelled" in page.inner_text("h2")
    assert served.client.batches.retrieve(batch.id).status == "cancelled"


def test_batch_list_updates_in_place_while_batch_runs(start_api, look: Look):
    served = start_api(simulator={"latency_s": 0.2}, flush_interval_s=0.1)
    file = served.client.files.create(file=("some.jsonl", lines(200)))
    batch = served.client.batches.create(input_file_id=file.id)
    page = look(root_of(served.url))
    with same_document(page):
        page.focus(f"#open-{batch.id}")
        page.wait_for_selector("tr.completed")
        assert "200 of 200" in page.inner_text("tr.completed")
        assert page.evaluate("() => document.activeElement.id") == f"open-{batch.id}"


def test_progress_bars_show_1000_failures_in_a_million(start_api, look: Look):
    served = start_api()
    file = served.client.files.create(file=("some.jsonl", lines(20, failing=2)))
    batch = served.client.batches.create(input_file_id=file.id)
    assert served.client.batches.wait(batch.id, timeout_s=60).status in TERMINAL_STATUSES
    change_batch(served.client.services.records, batch.id, total=1_000_000, completed=999_000, failed=1_000)
    for path, least in ((f"{root_of(served.url)}/", 3), (f"{root_of(served.url)}/batches/{batch.id}", 3)):
        page = look(path)
        bar, bad = page.locator("svg.bar").first, page.locator("svg.bar rect.bad").first
        assert bad.bounding_box()["width"] >= least
        red = look("about:blank").evaluate(REDDISH, b64encode(bar.screenshot()).decode())
        assert red >= 6, path


def test_unreachable_server_shows_stale_notice_and_stops_animation(start_api, look: Look):
    served = start_api(simulator={"latency_s": 30}, grace_s=0)
    file = served.client.files.create(file=("long.jsonl", lines(200)))
    batch = served.client.batches.create(input_file_id=file.id)
    page = look(f"{root_of(served.url)}/batches/{batch.id}", viewport={"width": 800, "height": 400})
    page.wait_for_selector(".turning")
    assert page.inner_text("#stale") == ""
    page.evaluate("() => scrollTo(0, 10000)")

    page.route("**/*", lambda route: route.abort())

    page.wait_for_selector("body.stale")
    assert page.inner_text("#stale").startswith("Not up to date: the server has not answered since ")
    assert 0 <= page.locator("#stale").bounding_box()["y"] < 400
    assert page.evaluate("() => getComputedStyle(document.querySelector('.turning')).animationName") == "none"
    page.unroute("**/*")
    page.wait_for_selector("body:not(.stale)")
    assert page.evaluate("() => getComputedStyle(document.querySelector('.turning')).animationName") == "turn"


def test_batch_can_be_created_cancelled_and_retried_by_keyboard(start_api, look: Look, tmp_path: Path):
    served = start_api(simulator={"latency_s": 0.3}, flush_interval_s=0.1)
    path = write_requests(tmp_path / "keys.jsonl", 6_000)
    page = look(f"{root_of(served.url)}/files")
    page.on("filechooser", lambda chooser: chooser.set_files(path))
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.innerText") == "Skip to the content"
    tab_to(page, "header a[href='/new']")
    page.keyboard.press("Enter")
    page.wait_for_selector("#file")
    tab_to(page, "#file")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('file').files.length === 1")
    tab_to(page, "#drop button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#start")
    tab_to(page, "#window")
    page.keyboard.type("6h")
    tab_to(page, "#start")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=In flight")
    tab_to(page, "#cancel")
    page.keyboard.press("Enter")
    page.wait_for_selector("#retry")
    tab_to(page, "#failed-results")
    page.keyboard.press("Enter")
    page.wait_for_selector("ul.results")
    tab_to(page, "input[name=request_id]")
    page.keyboard.press("Space")
    tab_to(page, "summary")
    page.keyboard.press("Enter")
    assert page.is_visible(".inside")
    tab_to(page, "#retry-chosen")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Sending again")
    (batch,) = served.client.batches.list().data
    assert batch.completion_window == "6h"


@pytest.fixture(scope="module")
def addresses(served: ApiServer) -> list[str]:
    """A page of each kind, with names that are long and numbers that are large."""
    client, root = served.client, root_of(served.url)
    name = "a-very-long-name-of-a-pipeline_" * 4 + ".jsonl"
    file = client.files.create(file=(name, lines(40, failing=5)))
    batch = client.batches.create(input_file_id=file.id, metadata={"k" * 64: "v" * 512})
    over = client.batches.wait(batch.id, timeout_s=60)
    assert over.status in TERMINAL_STATUSES
    change_batch(client.services.records, batch.id, total=1_000_000, completed=998_412, failed=1_588)
    bad = client.files.create(file=("bad.jsonl", b"{\n" * 30))
    failed = client.batches.wait(client.batches.create(input_file_id=bad.id).id, timeout_s=60)
    general = ("/", "/?search=nothing-like-that", "/new", "/files", "/nothing")
    of_batch = (f"/batches/{batch.id}", f"/batches/{batch.id}/results", f"/batches/{batch.id}/delete")
    others = (f"/batches/{failed.id}", f"/files/{file.id}", f"/new?file={file.id}", f"/new?file={bad.id}")
    return [root + path for path in (*general, *of_batch, *others)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_phone_with_readable_contrast_and_labelled_controls(scheme, addresses, look: Look):
    page = look("about:blank", viewport={"width": 360, "height": 740}, color_scheme=scheme)
    for address in addresses:
        page.goto(address)
        if address.endswith("/results"):
            page.click("summary >> nth=0")
        assert page.evaluate("() => document.documentElement.scrollWidth") == 360, address
        assert page.evaluate(TOO_FAINT) == [], address
        assert page.evaluate(NAMELESS) == [], address
        red, *_ = page.evaluate("() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (red < 64) is (scheme == "dark")


def test_animation_is_off_with_reduced_motion(start_api, look: Look):
    served = start_api(simulator={"latency_s": 30}, grace_s=0)
    file = served.client.files.create(file=("long.jsonl", lines(1)))
    served.client.batches.create(input_file_id=file.id)
    moving = "() => getComputedStyle(document.querySelector('.turning')).animationName"
    assert look(root_of(served.url)).evaluate(moving) == "turn"
    assert look(root_of(served.url), reduced_motion="reduce").evaluate(moving) == "none"


def test_pages_without_javascript_allow_sign_in_new_batch_and_sign_out(
    keyed: ApiServer, look: Look, tmp_path: Path
):
    page = look(root_of(keyed.url), java_script_enabled=False)
    page.fill("#key", keyed.key("alice"))
    page.click("main button")
    assert "alice" in page.inner_text("header")
    page.click("text=New batch")
    page.set_input_files("#file", write_requests(tmp_path / "plain.jsonl", 2))
    page.click("text=Upload and check")
    page.click("#start")
    keyed.client.batches.wait(batch_id(page), timeout_s=60)
    page.reload()
    assert "All 2 requests were answered." in page.inner_text("main")
    page.click("text=Sign out")
    assert page.url.endswith("/sign-in")
    page.goto(root_of(keyed.url))
    assert "/sign-in" in page.url


def test_cross_site_form_post_is_rejected(keyed: ApiServer, look: Look):
    token = keyed.key("alice")
    file = keyed.openai(token).files.create(file=b"{}\n", purpose="batch")
    page = look(f"{root_of(keyed.url)}/files")
    page.fill("#key", token)
    page.click("main button")
    page.wait_for_selector("table")
    # In the same browser, which has the cookie; another port is the same site but another origin.
    other = page.context.new_page()
    for address in (f"{root_of(keyed.url)}/files/{file.id}/delete", f"{root_of(keyed.url)}/sign-out"):
        form = f'<form method="post" action="{address}"><button>Win</button></form>'
        other.route(f"{ELSEWHERE}/**", partial(_fulfil, form))
        other.goto(ELSEWHERE)
        other.click("button")
        other.wait_for_url(address)
        assert "nothing was done" in other.content()
    assert keyed.client.files.retrieve(file.id).id == file.id
