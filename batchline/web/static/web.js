// What HTML cannot do by itself: dropping a file, showing how far its upload is, and following what runs.
"use strict";

const main = document.getElementById("main");
const said = document.getElementById("said");

// Dropping and uploading

const uploadForm = () => document.querySelector("form[data-upload]");

function hasFiles(event) {
  return uploadForm() !== null && Array.from(event.dataTransfer?.types ?? []).includes("Files");
}

let depth = 0;
document.addEventListener("dragenter", (event) => {
  if (!hasFiles(event)) return;
  depth += 1;
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!hasFiles(event)) return;
  depth = Math.max(0, depth - 1);
  if (depth === 0) document.body.classList.remove("dropping");
});
document.addEventListener("dragover", (event) => {
  if (hasFiles(event)) event.preventDefault();
});
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dropping");
  const form = uploadForm();
  if (event.dataTransfer.files.length !== 1) {
    tell(form, "Drop one file at a time.");
    return;
  }
  form.elements.file.files = event.dataTransfer.files;
  upload(form);
});

document.addEventListener("submit", (event) => {
  if (!event.target.matches("form[data-upload]")) return;
  event.preventDefault();
  upload(event.target);
});

function tell(form, words) {
  const place = form.querySelector(".uploading");
  place.hidden = false;
  place.querySelector("progress").hidden = true;
  place.querySelector("[role=status]").textContent = words;
}

function upload(form) {
  const place = form.querySelector(".uploading");
  const bar = place.querySelector("progress");
  const words = place.querySelector("[role=status]");
  const button = form.querySelector("button");
  if (button.disabled) return;
  const request = new XMLHttpRequest();
  const end = (problem) => {
    button.disabled = false;
    tell(form, problem);
  };
  request.upload.addEventListener("progress", (event) => {
    if (!event.lengthComputable) return;
    const share = Math.floor((100 * event.loaded) / event.total);
    bar.value = share;
    words.textContent = share < 100 ? `Uploading: ${share} %` : "Checking every line…";
    if (share === 100) bar.removeAttribute("value");
  });
  request.addEventListener("load", () => show(request.responseText, request.responseURL));
  request.addEventListener("error", () =>
    end("The connection broke before the server had the file. Try again; nothing was kept."));
  request.open("POST", form.action);
  request.setRequestHeader("Accept", "text/html");
  place.hidden = false;
  bar.hidden = false;
  bar.value = 0;
  words.textContent = "Uploading";
  request.send(new FormData(form));
  button.disabled = true;
}

// Shows a page that the server answered with, in the place of this one.
function show(text, address) {
  const page = new DOMParser().parseFromString(text, "text/html");
  const found = page.getElementById("main");
  if (found === null) {
    location.reload();
    return;
  }
  main.replaceChildren(...found.childNodes);
  document.title = page.title;
  if (address && address !== location.href) history.pushState(null, "", address);
  const target = main.querySelector("#problem, #checked, [autofocus]") ?? main;
  if (!target.hasAttribute("tabindex") && !target.matches("input, textarea, select")) target.tabIndex = -1;
  target.focus();
  window.scrollTo(0, 0);
  plan();
}

window.addEventListener("popstate", () => location.reload());

// Following what runs

const SLOWEST_S = 60;
const PATIENCE_S = 20;
const stale = document.getElementById("stale");
let upToDateAt = new Date();
let timer = 0;
let failures = 0;

const live = () => main.querySelector("[data-live]");

function plan(seconds) {
  clearTimeout(timer);
  const wait = seconds ?? Number(live()?.dataset.live ?? 0);
  if (wait > 0) timer = setTimeout(follow, 1000 * wait);
}

async function follow() {
  if (document.hidden) return; // visibilitychange starts it again
  const interval = Number(live()?.dataset.live ?? 0);
  try {
    const answer = await fetch(location.href, {
      headers: { Accept: "text/html" },
      cache: "no-store",
      signal: AbortSignal.timeout(1000 * PATIENCE_S), // a server that hangs is as good as none
    });
    if (answer.redirected) {
      location.reload();
      return;
    }
    if (!answer.ok) {
      if (answer.status < 500 && answer.status !== 429) {
        location.reload();
        return;
      }
      throw new Error(answer.headers.get("Retry-After") ?? "");
    }
    const text = await answer.text();
    upToDateAt = new Date();
    failures = 0;
    document.body.classList.remove("stale");
    stale.textContent = "";
    renew(text);
    plan();
  } catch (error) {
    failures += 1;
    document.body.classList.add("stale");
    const at = upToDateAt.toLocaleTimeString(undefined, { timeZone: "UTC", hour12: false });
    stale.textContent = `Not up to date: the server has not answered since ${at} UTC. Trying again.`;
    plan(Number(error.message) || Math.min(SLOWEST_S, interval * 2 ** failures));
  }
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && Number(live()?.dataset.live ?? 0) > 0) follow();
});

// Takes over what has changed; focus and the place that is looked at stay.
function renew(text) {
  const page = new DOMParser().parseFromString(text, "text/html");
  const now = live();
  const then = page.getElementById(now.id);
  if (then === null) {
    location.reload();
    return;
  }
  document.title = page.title;
  if (now.dataset.status !== then.dataset.status) said.textContent = then.dataset.status ?? "";
  const isOver = now.dataset.live !== "" && then.dataset.live === "";
  const selection = getSelection();
  if (!isOver && !selection.isCollapsed && now.contains(selection.anchorNode)) return;
  if (now.isEqualNode(then)) return;
  const [left, top] = [window.scrollX, window.scrollY];
  const held = main.contains(document.activeElement) ? document.activeElement.id : "";
  if (isOver && now.id === "state") main.replaceChildren(...page.getElementById("main").childNodes);
  else now.replaceWith(then);
  if (held && document.activeElement?.id !== held) {
    (document.getElementById(held) ?? main).focus({ preventScroll: true });
  }
  window.scrollTo(left, top);
}

document.documentElement.classList.add("scripted");
plan();
