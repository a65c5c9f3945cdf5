// OpenAI's own package for Node against a server of ours: `node --test` with BASE_URL, KEY, SMALL_KEY and MANAGER_KEY.

import assert from "node:assert/strict";
import { createReadStream, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import OpenAI, { toFile } from "openai";

const ENDPOINT = "/v1/chat/completions";
const OVER = new Set(["completed", "failed", "expired", "cancelled"]);

const clientOf = (apiKey, options = {}) =>
  new OpenAI({ baseURL: process.env.BASE_URL, apiKey, maxRetries: 0, timeout: 60_000, ...options });
const client = clientOf(process.env.KEY);

function lines(count, prompt = (number) => `Question ${number}?`) {
  const line = (number) => ({
    custom_id: `größe-${number}`,
    method: "POST",
    url: ENDPOINT,
    body: { model: "gpt-4o-mini", messages: [{ role: "user", content: prompt(number) }] },
  });
  return Array.from({ length: count }, (_, number) => JSON.stringify(line(number)) + "\n").join("");
}

const uploaded = async (text, name = "requests.jsonl", by = client) =>
  by.files.create({ file: await toFile(Buffer.from(text), name), purpose: "batch" });

const created = (file, options = {}, by = client) =>
  by.batches.create({ input_file_id: file.id, endpoint: ENDPOINT, completion_window: "24h" }, options);

async function untilOver(id) {
  const ends = Date.now() + 60_000;
  for (;;) {
    const batch = await client.batches.retrieve(id);
    if (OVER.has(batch.status)) return batch;
    assert.ok(Date.now() < ends, JSON.stringify(batch));
    await sleep(50);
  }
}

async function all(pages, most = 1_000) {
  const ids = [];
  for await (const each of pages) {
    ids.push(each.id);
    assert.ok(ids.length <= most, "the pages do not end");
  }
  return ids;
}

test("a batch goes from a file on disk to its results", async () => {
  const path = join(mkdtempSync(join(tmpdir(), "requests-")), "Größe.jsonl");
  const text = lines(12, (number) => (number % 4 ? `${number}?` : `${number} simulate:status=400`));
  writeFileSync(path, text);
  const file = await client.files.create({
    file: createReadStream(path),
    purpose: "batch",
    expires_after: { anchor: "created_at", seconds: 3_600 },
  });
  assert.equal(file.bytes, Buffer.byteLength(text));
  assert.equal(file.expires_at, file.created_at + 3_600);
  assert.equal((await client.files.waitForProcessing(file.id)).filename, "Größe.jsonl");

  const batch = await client.batches.create({
    input_file_id: file.id,
    endpoint: ENDPOINT,
    completion_window: "24h",
    metadata: { project: "node" },
    output_expires_after: { anchor: "created_at", seconds: 7_200 },
  });
  const over = await untilOver(batch.id);

  assert.equal(over.status, "completed");
  assert.deepEqual(over.request_counts, { total: 12, completed: 9, failed: 3 });
  assert.deepEqual(over.metadata, { project: "node" });
  const output = (await (await client.files.content(over.output_file_id)).text()).trimEnd().split("\n").map(JSON.parse);
  const wanted = [1, 2, 3, 5, 6, 7, 9, 10, 11].map((number) => `größe-${number}`);
  assert.deepEqual(output.map((line) => line.custom_id), wanted);
  assert.ok(output.every((line) => line.response.body.choices[0].message.content));
  const errors = (await (await client.files.content(over.error_file_id)).text()).trimEnd().split("\n").map(JSON.parse);
  assert.deepEqual(errors.map((line) => [line.custom_id, line.error.code]), [
    ["größe-0", "invalid_request"],
    ["größe-4", "invalid_request"],
    ["größe-8", "invalid_request"],
  ]);

  assert.deepEqual(await client.files.delete(file.id), { id: file.id, object: "file", deleted: true });
  await assert.rejects(client.files.content(file.id), OpenAI.NotFoundError);
});

test("content comes by ranges of bytes and as a stream", async () => {
  const text = lines(2_000);
  const file = await uploaded(text);

  const part = await client.files.content(file.id, { headers: { Range: "bytes=10-19" } });
  assert.deepEqual([part.status, await part.text()], [206, Buffer.from(text).subarray(10, 20).toString()]);
  const pieces = [];
  for await (const piece of (await client.files.content(file.id)).body) pieces.push(piece);
  assert.ok(Buffer.concat(pieces).equals(Buffer.from(text)));
});

test("lists are paged by themselves", async () => {
  const files = [];
  for (let number = 0; number < 5; number++) files.unshift((await uploaded("{}\n", `page-${number}.jsonl`)).id);
  const batches = [];
  for (let number = 0; number < 5; number++) batches.unshift((await created({ id: files[0] })).id);

  const mine = new Set([...files, ...batches]);
  const listed = async (pages) => (await all(pages)).filter((id) => mine.has(id));
  assert.deepEqual(await listed(client.files.list({ limit: 2 })), files);
  assert.deepEqual(await listed(client.files.list({ limit: 2, order: "asc", purpose: "batch" })), files.toReversed());
  assert.deepEqual(await listed(client.batches.list({ limit: 2 })), batches);
  const page = await client.batches.list({ limit: 2 });
  assert.deepEqual((await page.getNextPage()).data.map((batch) => batch.id), batches.slice(2, 4));
});

test("a batch under way is cancelled and what was answered is kept", async () => {
  const file = await uploaded(lines(60, (number) => (number < 5 ? `${number}?` : `${number} simulate:hanging`)));
  const batch = await created(file);
  while ((await client.batches.retrieve(batch.id)).request_counts.completed < 5) await sleep(50);

  assert.equal((await client.batches.cancel(batch.id)).status, "cancelling");
  const over = await untilOver(batch.id);

  assert.equal(over.status, "cancelled");
  assert.deepEqual(over.request_counts, { total: 60, completed: 5, failed: 0 });
  const output = await (await client.files.content(over.output_file_id)).text();
  assert.equal(output.trimEnd().split("\n").length, 5);
});

test("an input that does not validate tells each bad line", async () => {
  const over = await untilOver((await created(await uploaded(lines(1) + "no JSON\n{}\n"))).id);

  assert.equal(over.status, "failed");
  assert.deepEqual(over.errors.data.map((error) => [error.line, error.code, error.param ?? null]), [
    [2, "invalid_json_line", null],
    [3, "missing_required_parameter", "custom_id"],
    [3, "missing_required_parameter", "method"],
    [3, "missing_required_parameter", "url"],
    [3, "missing_required_parameter", "body"],
  ]);
});

test("the same Idempotency-Key gives the same batch", async () => {
  const file = await uploaded(lines(1));
  const headers = { "Idempotency-Key": "once" };

  const first = await created(file, { headers });

  assert.equal((await created(file, { headers })).id, first.id);
  await untilOver(first.id);
});

test("errors come as the package's own classes", async () => {
  const failed = await created(await uploaded("{}\n"));
  await untilOver(failed.id);
  const small = clientOf(process.env.SMALL_KEY);
  const wrong = {
    "a key that is none": [() => clientOf("bl-none").files.list(), OpenAI.AuthenticationError, "invalid_api_key", undefined],
    "a page too long": [() => client.batches.list({ limit: 101 }), OpenAI.BadRequestError, "invalid_value", "limit"],
    "a parameter misspelt": [
      () => client.batches.create({ input_file: "x", endpoint: ENDPOINT, completion_window: "24h" }),
      OpenAI.BadRequestError,
      "missing_required_parameter",
      "input_file_id",
    ],
    "somebody else's batch": [() => small.batches.retrieve(failed.id), OpenAI.NotFoundError, undefined, undefined],
    "a path that is none": [() => client.get("/fine-tunes"), OpenAI.NotFoundError, "unknown_url", undefined],
    "what is over": [() => client.batches.cancel(failed.id), OpenAI.ConflictError, "conflict", undefined],
    "what managers do": [
      () => client.get(new URL("/metrics", process.env.BASE_URL).href),
      OpenAI.PermissionDeniedError,
      "insufficient_permissions",
      undefined,
    ],
    "a file too large": [() => uploaded(lines(100), "r.jsonl", small), OpenAI.APIError, "file_too_large", "file"],
  };
  for (const [name, [ask, kind, code, param]] of Object.entries(wrong)) {
    const error = await ask().then(() => assert.fail(name), (raised) => raised);
    assert.ok(error instanceof kind, `${name}: ${error}`);
    assert.deepEqual([error.code ?? undefined, error.param ?? undefined], [code, param], name);
    assert.equal(error.type, "invalid_request_error", name);
    assert.match(error.message, new RegExp(`^${error.status} .{10}`), name);
  }
});

test("what is refused for now comes as a rate limit that says when to come again", async () => {
  const small = clientOf(process.env.SMALL_KEY);
  const file = await uploaded(lines(1, () => "simulate:hanging"), "r.jsonl", small);
  const open = await created(file, {}, small);

  const error = await created(file, {}, small).then(assert.fail, (raised) => raised);

  assert.ok(error instanceof OpenAI.RateLimitError, String(error));
  assert.equal(error.code, "too_many_open_batches");
  assert.ok(Number(error.headers.get("retry-after")) > 0);
  await small.batches.cancel(open.id);
});

test("a manager sees what members have made, by ids that never come twice", async () => {
  const manager = clientOf(process.env.MANAGER_KEY);
  const file = await uploaded("{}\n");

  const seen = await all(manager.files.list({ limit: 3 }));

  assert.ok(seen.includes(file.id));
  assert.equal(new Set(seen).size, seen.length);
});
