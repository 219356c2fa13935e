// The page: images come in, some are marked, the object is found in all of them.

import * as api from "./api.js";
import { Classes } from "./classes.js";
import { useColours } from "./colours.js";
import { Editor } from "./editor.js";
import { facts, next } from "./guide.js";
import { shortcuts } from "./keyboard.js";
import { Marks, maskOf } from "./marks.js";
import { Strip } from "./strip.js";
import { Threshold } from "./threshold.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const DELAY = 300; // milliseconds from a stroke until the server is told

const pictures = new Map(); // by number, as the server describes them
const marked = new Map(); // Marks by the number of their image, as far as they are known here
const unsaved = new Map(); // timers of marks that the server does not know yet
let current = null; // the number of the image that is shown
let planes = null; // of its prediction
let running = null; // an AbortController while the object is being found
let arriving = 0; // uploads
let limits, view, editor, strip, classes, threshold;

// ------------------------------------------------------------------ what the page says

function tell(sentence) {
  $("problem").textContent = sentence;
  $("problem").hidden = !sentence;
}

// An action of the user, whose error is told.
const action = (function_) => async (...values) => {
  tell("");
  try {
    return await function_(...values);
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
  }
};

function refresh() {
  const all = [...pictures.values()], picture = pictures.get(current);
  const marks = marked.get(current), found = all.some((x) => x.confidence !== null);
  const { step, sentence } = next({ all, arriving, running, names: classes.names });
  for (const item of $("steps").children) {
    item.toggleAttribute("aria-current", item.dataset.step === step);
  }
  if ($("next").textContent !== sentence) $("next").textContent = sentence;
  $("empty").hidden = all.length > 0;
  $("work").classList.toggle("none", !picture);
  $("results").hidden = !found && !all.some((x) => x.whole);
  $("validation").hidden = !found || !threshold.says || all.some((x) => x.stale);
  $("find").textContent = running ? "Stop" : "Find in all images";
  $("find").classList.toggle("next", step === "find" && !running);
  $("progress").hidden = !running;
  $("undo").disabled = !marks?.past.length;
  $("redo").disabled = !marks?.future.length;
  $("rest").checked = Boolean(marks?.rest);
  $("rest").disabled = $("clear").disabled = !marks || marks.isEmpty();
  $("accept").disabled = !planes || !picture || picture.whole;
  $("remove").disabled = !picture;
  $("add-class").disabled = Object.keys(classes.names).length >= limits.colours.length;
  $("facts").textContent = picture ? facts(picture, view.mask, classes.names) : "";
  for (const each of all) strip.label(each, each.number === current);
}

// ------------------------------------------------------------------ images

const add = action(async (files) => {
  const problems = [];
  arriving += files.length;
  refresh();
  for (const file of [...files]) {
    try {
      if (file.size > limits.bytes) {
        throw new Error(`${file.name} is too large: the page takes up to ${limits.bytes / 1e6} MB.`);
      }
      take(await api.upload(file));
    } catch (error) {
      problems.push(error.message);
    }
    arriving--;
    refresh();
  }
  if (problems.length) {
    const more = problems.length > 1 ? ` (${problems.length - 1} more images were not taken.)` : "";
    throw new Error(problems[0] + more);
  }
});

function take(picture) {
  pictures.set(picture.number, picture);
  strip.add(picture);
  if (picture.confidence !== null) predicted(picture);
  if (current === null) select(picture.number);
}

const select = action(async (number) => {
  editor.end();
  current = number;
  planes = null;
  const picture = pictures.get(number);
  view.show(null);
  refresh();
  if (!picture) return;
  strip.reveal(number);
  const [height, width] = picture.shape;
  const [image, known, found] = await Promise.all([
    api.image(number, "png"),
    !marked.has(number) && picture.has_marks ? api.bytes(number, "marks") : null,
    picture.confidence !== null ? api.bytes(number, "planes") : null,
  ]);
  if (!marked.has(number)) marked.set(number, new Marks(width, height, known, picture.rest, picture.boxed));
  if (current !== number) return; // another one was chosen meanwhile
  planes = found;
  view.show(image, marked.get(number), mask());
  refresh();
});

const mask = () => planes && maskOf(planes, planes.length / 3, threshold.value);

function neighbour(step) {
  const numbers = [...strip.list.querySelectorAll("button")].map((x) => Number(x.dataset.number));
  const at = numbers.indexOf(current) + step;
  if (numbers[at] !== undefined) select(numbers[at]);
}

const remove = action(async () => {
  const number = current, picture = pictures.get(number);
  if (!picture || !confirm(`Remove ${picture.name} for good?`)) return;
  clearTimeout(unsaved.get(number));
  unsaved.delete(number);
  await api.remove(number);
  const numbers = [...pictures.keys()], at = numbers.indexOf(number);
  pictures.delete(number);
  marked.delete(number);
  strip.remove(number);
  if (picture.marked.length) outdate();
  await select(numbers[at + 1] ?? numbers[at - 1] ?? null);
});

function order() {
  const all = [...pictures.values()];
  const sure = (x) => (x.confidence === null || x.marked.length ? 2 : x.confidence);
  if ($("order").value === "unsure") all.sort((a, b) => sure(a) - sure(b));
  strip.order(all.map((x) => x.number));
}

// ------------------------------------------------------------------ marks

function outdate() {
  for (const picture of pictures.values()) picture.stale = true;
}

// Before a stroke: drawing on a predicted mask corrects it.
function begin() {
  const marks = marked.get(current);
  if (!view.picture || !marks || running) return false;
  marks.begin();
  if (marks.isEmpty() && view.mask?.some((value) => value)) {
    adopt(marks);
    tell("You are correcting the predicted mask: complete it, and it becomes an example (Ctrl+Z undoes).");
  }
  return true;
}

// Takes the prediction as the mask of the whole image; what is drawn on it stays.
function adopt(marks) {
  const own = marks.boxed ? [] : marks.data;
  marks.replace(view.mask.map((value, i) => (own[i] < 254 ? own[i] : value)), true, false);
  view.repaint();
}

function ended() {
  const number = current, marks = marked.get(number), picture = pictures.get(number);
  const values = new Set(marks.data);
  values.delete(254);
  picture.marked = [...values].filter((value) => value > 0);
  picture.has_marks = values.size > 0;
  if (!picture.has_marks) marks.rest = marks.boxed = marks.chosen = false;
  picture.background = marks.rest || values.has(0);
  picture.whole = picture.has_marks && marks.rest && !marks.boxed;
  outdate();
  clearTimeout(unsaved.get(number));
  unsaved.set(number, setTimeout(() => save(number).catch((error) => tell(error.message)), DELAY));
  refresh();
}

async function save(number) {
  clearTimeout(unsaved.get(number));
  unsaved.delete(number);
  const { confidence, made_by, stale, ...told } = await api.mark(number, marked.get(number));
  if (pictures.has(number) && !unsaved.has(number)) Object.assign(pictures.get(number), told);
}

const saveAll = () => Promise.all([...unsaved.keys()].map(save));

// A change that is not a stroke.
function change(function_) {
  const marks = marked.get(current);
  if (!marks || editor.busy || running) return;
  marks.begin();
  function_(marks);
  marks.end();
  view.repaint();
  ended();
}

function step(which) {
  const marks = marked.get(current);
  if (!marks || editor.busy || running || !marks[which]()) return;
  tell("");
  view.repaint();
  ended();
}

// ------------------------------------------------------------------ classes

const name = action(async (names) => {
  const before = Object.keys(classes.names);
  editor.end();
  await saveAll();
  const state = await api.name(names).catch((error) => {
    classes.show(classes.names);
    throw error;
  });
  classes.show(state.classes);
  editor.choose(editor.tool, classes.current);
  if (before.some((number) => !(number in state.classes))) await renew(state.pictures);
  refresh();
});

// Takes what the server says of all images: what is known here of their marks is no longer so.
async function renew(all) {
  editor.end();
  for (const timer of unsaved.values()) clearTimeout(timer);
  unsaved.clear();
  marked.clear();
  for (const told of all.filter((x) => pictures.has(x.number))) {
    const picture = Object.assign(pictures.get(told.number), told);
    if (picture.confidence !== null) predicted(picture);
  }
  await select(current);
}

// ------------------------------------------------------------------ finding, and what follows

const find = action(async () => {
  if (running) return running.abort();
  editor.end();
  running = new AbortController();
  $("progress").max = pictures.size;
  $("progress").removeAttribute("value");
  refresh();
  let done = 0, problem = null;
  try {
    await saveAll();
    await api.find((told) => {
      if (told.error && !told.number) problem = told.error;
      if (told.fit) threshold.learn(told.fit);
      const picture = pictures.get(told.number);
      if (told.waiting || !picture) return;
      $("progress").value = ++done;
      Object.assign(picture, { error: undefined }, told);
      if (!told.error) predicted(picture);
      refresh();
    }, running.signal);
  } finally {
    running = null;
    order();
    refresh();
  }
  if (problem) throw new Error(problem);
});

// Shows what is newly predicted for an image, unless that has been removed meanwhile.
async function predicted(picture) {
  const received = await api.bytes(picture.number, "planes").catch(() => null);
  if (!received) return;
  strip.update(picture, received, threshold.value);
  if (picture.number !== current || !view.picture) return;
  planes = received;
  showMask();
}

function showMask() {
  view.mask = mask();
  view.repaint();
  refresh();
}

function showMasks() {
  showMask();
  for (const picture of pictures.values()) strip.draw(picture, threshold.value);
}

const download = action(async () => {
  await saveAll();
  const content = await api.masks(threshold.value);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = "masks.zip";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});

// ------------------------------------------------------------------ the parts of the page

function useTool(tool) {
  editor.choose(tool, classes.current);
  for (const button of document.querySelectorAll("[data-tool]")) {
    const chosen = button.dataset.tool === tool;
    button.setAttribute("aria-checked", chosen);
    button.tabIndex = chosen ? 0 : -1;
  }
  view.width = editor.isDrawn ? editor.brush : 0;
}

function useWidth(width) {
  $("width").value = editor.width = width;
  view.width = editor.isDrawn ? editor.brush : 0;
}

function hide(hidden = !view.hidden) {
  view.hidden = hidden;
  $("hide").setAttribute("aria-pressed", hidden);
  view.draw();
}

const commands = {
  find, remove, neighbour, hide, useTool,
  undo: () => step("undo"),
  redo: () => step("redo"),
  accept: () => view.mask && !pictures.get(current)?.whole && change(adopt),
  clear: () => change((marks) => marks.replace(new Uint8Array(marks.data.length).fill(254), false, false)),
  zoom: (factor) => view.zoom(factor),
  fit: () => view.fit(),
  help: () => $("keys").showModal(),
  class: (number) => classes.choose(number),
  widen: (by) => useWidth(Number($("width").value) + by),
};

function connect() {
  const clicks = {
    undo: commands.undo, redo: commands.redo, fit: commands.fit, hide: () => hide(), help: commands.help,
    in: () => view.zoom(1.5), out: () => view.zoom(1 / 1.5), accept: commands.accept,
    clear: commands.clear, remove, find, export: download,
    "add-class": () => classes.add(),
  };
  for (const [id, function_] of Object.entries(clicks)) $(id).addEventListener("click", function_);
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => useTool(button.dataset.tool));
  }
  $("width").addEventListener("input", () => useWidth(Number($("width").value)));
  $("order").addEventListener("change", order);
  $("problem").addEventListener("click", () => tell(""));
  $("rest").addEventListener("change", () => change((marks) => {
    marks.rest = $("rest").checked;
    marks.chosen = true;
  }));
  $("files").addEventListener("change", () => {
    add($("files").files);
    $("files").value = "";
  });
  addEventListener("paste", (event) => event.clipboardData.files.length && add(event.clipboardData.files));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) add(event.dataTransfer.files);
  });
  addEventListener("beforeunload", () => unsaved.size && saveAll());
  shortcuts(commands);
}

async function open() {
  limits = await api.about();
  $("model").textContent = limits.model;
  $("limits").textContent = limits.sentence;
  useColours(limits.colours);
  view = new View($("canvas"));
  editor = new Editor(view, { begin, changed: (area) => view.repaint(area), ended });
  strip = new Strip($("pictures"), select);
  classes = new Classes($("classes"), limits.colours, limits.name, {
    chosen: (number) => editor.choose(editor.tool, number), named: name,
  });
  threshold = new Threshold(showMasks);
  const state = await api.start();
  classes.show(state.classes);
  connect();
  useTool("brush");
  useWidth(Number($("width").value));
  state.pictures.forEach(take);
  threshold.learn(state.fit);
  threshold.use(null);
  refresh();
}

open().catch((error) => tell(error.message));
