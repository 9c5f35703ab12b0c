// A page opened from a file, whose origin is null, and `serve --cors-origin null`: what nChat asks, in Chromium.
const assert = require("node:assert");
const fs = require("node:fs");
const path = require("node:path");
const { pathToFileURL } = require("node:url");
const { BUILT_IN, launch, scratch, serve } = require("./browser.cjs");

/** Runs in the page; `files` are data URLs of a picture and a recording. */
async function use({ base, files }) {
  const json = async (response) => {
    const id = response.headers.get("X-Request-ID");
    return { status: response.status, id, body: await response.json() };
  };
  const chat = (body) =>
    fetch(`${base}/v1/chat/completions`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ stream: true, ...body }),
    });
  const streamed = async (body) => {
    let text = "";
    const reader = (await chat(body)).body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) text += part.value;
    const lines = text.split("\n").filter((line) => line.startsWith("data: {"));
    const said = lines.map((line) => JSON.parse(line.slice(6)).choices[0]?.delta.content ?? "");
    return { done: text.includes("data: [DONE]"), text: said.join("") };
  };
  const transcribe = async (model) => {
    const form = new FormData();
    form.append("file", await (await fetch(files.sound)).blob(), "recording.wav");
    const fields = { model, response_format: "json", temperature: "0" };
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    return json(await fetch(`${base}/v1/audio/transcriptions`, { method: "POST", body: form }));
  };
  const user = (content) => [{ role: "user", content }];
  const picture = [
    { type: "text", text: "What color is it?" },
    { type: "image_url", image_url: { url: files.picture } },
  ];
  return {
    origin: self.origin,
    models: await json(await fetch(`${base}/v1/models`)),
    health: await json(await fetch(`${base}/health`)),
    chat: await streamed({ model: "demo", messages: user("What is mlxk?") }),
    vision: await streamed({ model: "demo-vision", messages: user(picture) }),
    unknown: await json(await chat({ model: "no/such", messages: user("Hello!") })),
    tooLarge: await json(await chat({ model: "demo", messages: user("x".repeat(3_000_000)) })),
    heard: await transcribe("demo-speech"),
    refused: await transcribe("demo"),
  };
}

const dataUrl = (type, file) => `data:${type};base64,${fs.readFileSync(path.join(BUILT_IN, file)).toString("base64")}`;

async function main() {
  const allowed = ["--cors-origin", "null", "--image-metadata", "--max-body", "2"];
  const started = Promise.all([serve(allowed), serve([])]);
  const { browser, elsewhere, close } = await launch();
  const [base, other] = await started;
  const file = path.join(scratch(), "index.html");
  fs.writeFileSync(file, "<!doctype html><title>A page from a file</title>");
  const page = await browser.newPage();
  await page.goto(pathToFileURL(file).href);
  const files = {
    picture: dataUrl("image/jpeg", "demo-vision/blue-square.jpg"),
    sound: dataUrl("audio/wav", "demo-speech/hello.wav"),
  };
  const got = await page.evaluate(use, { base, files });

  assert.equal(got.origin, "null");
  assert.equal(got.models.status, 200);
  assert.ok(got.models.body.data.find((each) => each.id === "demo").context_length > 0);
  assert.equal(got.health.status, 200);
  assert.match(got.chat.text, /knife for local models/);
  assert.ok(got.chat.done);
  assert.ok(got.vision.text.includes("<!-- mlxk:filenames -->"), got.vision.text);
  assert.match(got.vision.text, /blue/);
  const failures = [
    [got.unknown, 404, "model_not_found"],
    [got.tooLarge, 413, "payload_too_large"],
  ];
  for (const [answer, status, type] of failures) {
    assert.deepEqual([answer.status, answer.body.status, answer.body.error.type], [status, "error", type]);
    assert.equal(answer.id, answer.body.request_id);
  }
  assert.match(got.heard.body.text, /hello/i);
  assert.match(got.refused.body.error.message, /not a .*transcription/i);

  // Without the flag the page learns nothing.
  const refused = (url) => fetch(`${url}/v1/models`).then(() => "answered", (error) => error.message);
  assert.equal(await page.evaluate(refused, other), "Failed to fetch");
  assert.deepEqual(elsewhere, []);
  await close();
  process.exit(0);
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
