"""Scripts that measure a page in a browser."""

from typing import Any

TOO_FAINT = """() => {
  const channel = (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    const words = texts.currentNode.textContent.trim();
    if (!words || !element.checkVisibility() || element.closest("script, noscript, title, .unseen")) continue;
    const style = getComputedStyle(element);
    const ink = parse(element.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faint.push(`${words.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""
"""Texts whose contrast with what is behind them is below 4.5."""

NAMELESS = """() => {
  const found = [];
  for (const element of document.querySelectorAll("a, button, input:not([type=hidden]), select, textarea")) {
    const label = Array.from(element.labels ?? []).map((each) => each.textContent).join("");
    const name = element.getAttribute("aria-label") || label || element.textContent;
    if (!name.trim()) found.push(element.outerHTML.slice(0, 100));
  }
  for (const table of document.querySelectorAll("table"))
    if (!table.querySelector("th[scope]")) found.push("a table without headers");
  for (const [selector, count] of [["main", 1], ["h1", 1], ["header", 1]])
    if (document.querySelectorAll(selector).length !== count) found.push(`${selector} is not there once`);
  const ids = Array.from(document.querySelectorAll("[id]")).map((each) => each.id);
  for (const id of new Set(ids)) if (ids.filter((each) => each === id).length > 1) found.push(`twice: #${id}`);
  return found;
}"""
"""Return controls without names, tables without headers, missing landmarks and duplicate ids."""

REDDISH = """async (png) => {
  const image = new Image();
  image.src = `data:image/png;base64,${png}`;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const { data } = pen.getImageData(0, 0, image.width, image.height);
  let count = 0;
  for (let at = 0; at < data.length; at += 4) count += data[at] > 60 + Math.max(data[at + 1], data[at + 2]);
  return count;
}"""
"""Pixels of a picture that are rather red."""

DROP = """({name, content}) => {
  const data = new DataTransfer();
  data.items.add(new File([content], name));
  const target = document.querySelector(".zone");
  for (const kind of ["dragenter", "dragover", "drop"])
    target.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def drop(page: Any, name: str, content: bytes) -> None:
    """Drop a file on the page."""
    page.evaluate(DROP, {"name": name, "content": content.decode()})


def tab_to(page: Any, selector: str, *, most: int = 60) -> None:
    """Press Tab until the focus is there; it must be seen on the way."""
    for _ in range(most):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            "() => { const s = getComputedStyle(document.activeElement);"
            " return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 1; }"
        )
        assert seen, page.evaluate("() => document.activeElement.outerHTML.slice(0, 200)")
        if page.evaluate("(s) => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"Tab never came to {selector}")
