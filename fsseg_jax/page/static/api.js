// Requests to the server; what it says when something is wrong is an Error's message.

const LOST = "The page does not answer: is it still running?";
const KEY = "fsseg_jax session"; // of this tab, so that loading the page again loses nothing
let session = null;

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(LOST);
  }
  if (!answer.ok) throw Object.assign(new Error(await answer.text()), { status: answer.status });
  return answer;
}

const own = (path) => `sessions/${session}${path}`;
const json = async (answer) => (await answer).json();

export const about = () => json(ask("about"));

// The state of this tab's session, which is new if there was none.
export async function start() {
  session = sessionStorage.getItem(KEY);
  if (session) {
    try {
      return await json(ask(own("")));
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }
  session = (await json(ask("sessions", { method: "POST" }))).session;
  sessionStorage.setItem(KEY, session);
  return json(ask(own("")));
}

export const upload = (file) =>
  json(ask(own(`/images?name=${encodeURIComponent(file.name)}`), { method: "POST", body: file }));

export const remove = (number) => ask(own(`/images/${number}`), { method: "DELETE" });

export const name = (classes) => json(ask(own("/classes"), { method: "PUT", body: JSON.stringify(classes) }));

export const mark = (number, marks) =>
  json(ask(own(`/images/${number}/marks?rest=${marks.rest}&boxed=${marks.boxed}`), {
    method: "PUT", body: marks.data,
  }));

export async function bytes(number, kind) {
  return new Uint8Array(await (await ask(own(`/images/${number}/${kind}`))).arrayBuffer());
}

// An image, once it is decoded.
export async function image(number, kind) {
  const element = new Image();
  element.src = own(`/images/${number}/${kind}`);
  await element.decode();
  return element;
}

// Segments all images; `each` is called with what is known of each.
export async function find(each, signal) {
  const answer = await ask(own("/find"), { method: "POST", signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (text + value).split("\n");
    text = lines.pop();
    for (const line of lines) each(JSON.parse(line));
  }
}

// All masks, as a zip file.
export async function masks(threshold) {
  const query = threshold === null ? "" : `?threshold=${threshold}`;
  return (await ask(own(`/masks.zip${query}`))).blob();
}
