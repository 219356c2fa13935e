"""A page of all predictions, least confident first: the file `index.html` among the results.

It is a single file that a browser opens from the disk, without a server. Its data are embedded as
JSON, and a script of its own shows a page of them at a time, so that ten thousand pictures are no
more for a browser than sixty. Pictures are files beside it; a content security policy keeps it from
fetching anything else or running another script.
"""

import base64
import hashlib
import heapq
import html
import json
import os
import pathlib
import urllib.parse
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fsseg_jax.evaluation.report import WAY_COLOURS
from fsseg_jax.files import write_text

SHEET = "index.html"
MOST = 50_000  # pictures on it, about 10 MB; of more, the least confident


class Picture(NamedTuple):
    """A prediction on the sheet. Paths are relative to the sheet's folder, with slashes."""

    name: str  # of the image, below the folder of queries
    overlay: str
    thumbnail: str
    mask: str  # or "", if it was not saved
    shape: tuple[int, int]  # height and width of the image
    confidence: float  # in 0..1
    areas: Mapping[int, int]  # pixels by class number, of classes that occur
    corrected: bool = False  # whether its mask is a person's


def write_sheet(
    path: pathlib.Path,
    pictures: Iterable[Picture],
    classes: Sequence[str],
    suggested: Collection[str] = (),
    table: str = "predictions.json",
) -> None:
    """Writes the page, atomically.

    Args:
        path: the HTML file.
        pictures: predictions in any order; they are taken one by one.
        classes: names of the classes 1, 2 ...
        suggested: names of images to label next, in that order.
        table: what holds all predictions if there are too many for the page.

    Raises:
        UserError: the file cannot be written.
    """
    rank = {name: number for number, name in enumerate(suggested, 1)}
    count = 0

    def counted() -> Iterable[tuple[tuple[bool, float, str], Picture]]:
        nonlocal count
        for picture in pictures:
            count += 1
            # Suggested ones are on it in any case.
            key = picture.name not in rank, picture.confidence, picture.name
            yield key, picture

    shown = [picture for _, picture in heapq.nsmallest(MOST, counted())]
    data = {
        "classes": list(classes),
        "colours": [colour_of(number) for number in range(1, len(classes) + 1)],
        "count": count,
        "table": table,
        "pictures": [_entry(picture, rank.get(picture.name, 0)) for picture in shown],
    }
    # As the text of an element it must not have "</script>", nor "<!--", in it.
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    script_hash = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    title = html.escape(f"{count} pictures: {', '.join(classes)}")
    page = _HEAD.replace("$hash", script_hash).replace("$title", title)
    page += f"<style>{_STYLE}</style>\n{_BODY}"
    page += f"<script id=data type=application/json>{embedded}</script>\n"
    write_text(path, f"{page}<script>{_SCRIPT}</script></html>\n")


def colour_of(number: int) -> str:
    """The colour of class `number` in overlays, for CSS."""
    return "#" + bytes(WAY_COLOURS[(number - 1) % len(WAY_COLOURS)]).hex()


def _entry(picture: Picture, rank: int) -> list[Any]:
    height, width = picture.shape
    areas = [[number, area] for number, area in sorted(picture.areas.items())]
    files = [_address(path) for path in (picture.overlay, picture.thumbnail, picture.mask)]
    confidence = round(picture.confidence, 4)
    return [picture.name, *files, width, height, confidence, areas, rank, int(picture.corrected)]


def _address(path: str) -> str:
    """A relative path as an address; its bytes may be in no encoding."""
    return urllib.parse.quote(os.fsencode(path))


_HEAD = """<!doctype html>
<html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; img-src 'self' file:;
 style-src 'unsafe-inline'; script-src 'sha256-$hash'; base-uri 'none'; form-action 'none'">
<title>$title</title>
"""
_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --text: #1c1d20; --dim: #5c6068;
  --line: #e2e2de; --bar: #3b5fdb; --mark: #b4540a }
@media (prefers-color-scheme: dark) { :root { --page: #131417; --card: #1c1e23; --text: #e8e9eb;
  --dim: #9ba0a9; --line: #32353c; --bar: #7896ff; --mark: #f0a050 } }
* { box-sizing: border-box; margin: 0; padding: 0 }
body { background: var(--page); color: var(--text); font: 15px/1.45 system-ui, sans-serif }
header { position: sticky; top: 0; z-index: 1; background: var(--page); display: flex;
  flex-wrap: wrap; gap: 8px; align-items: center; padding: 10px 16px;
  border-bottom: 1px solid var(--line) }
input, select, button { font: inherit; color: inherit; background: var(--card); height: 36px;
  border: 1px solid var(--line); border-radius: 8px; padding: 0 10px; max-width: 100% }
button { min-width: 40px; cursor: pointer } button:disabled { opacity: .4; cursor: default }
input { flex: 1 1 12rem; min-width: 0 } select { flex: 0 1 auto; min-width: 0 }
:focus-visible { outline: 2px solid var(--bar); outline-offset: 1px }
.pages { display: flex; gap: 6px; align-items: center; color: var(--dim); white-space: nowrap;
  font-variant-numeric: tabular-nums }
#legend { flex-basis: 100%; display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px;
  color: var(--dim); max-height: 4.2em; overflow: auto }
#legend i, .areas i { display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 5px }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(190px, 40vw), 1fr));
  gap: 12px; padding: 14px 16px 40px; max-width: 1800px; margin: auto }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; display: flex; flex-direction: column; min-width: 0 }
article a { display: block; background: var(--line) }
article img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain }
article div { padding: 7px 10px 9px; font-size: 13px; min-width: 0 }
.name { overflow-wrap: anywhere; line-height: 1.25 }
.sure { display: flex; gap: 8px; align-items: center; padding: 0 !important; margin: 3px 0;
  font-variant-numeric: tabular-nums }
.sure span { flex: 1; height: 6px; border-radius: 3px; background: var(--line); overflow: hidden }
.sure span i { display: block; height: 100%; background: var(--bar) }
.areas, .note { color: var(--dim); font-size: 12px; overflow-wrap: anywhere }
.areas span { margin-right: 9px } .next { color: var(--mark); font-weight: 600 }
.next, .corrected { font-size: 12px } .corrected { color: var(--bar); font-weight: 600 }
#empty { padding: 40px 16px; color: var(--dim); text-align: center }
dialog { margin: auto; border: 0; background: none; color: #fff; max-width: 100vw;
  max-height: 100vh } dialog::backdrop { background: rgb(0 0 0 / .86) }
dialog img { display: block; max-width: 96vw; max-height: 84vh; margin: auto; min-width: min(60vw,
  400px); object-fit: contain }
dialog p { text-align: center; padding: 8px; overflow-wrap: anywhere } dialog a { color: #9db4ff }
dialog button { background: #222; color: #fff; border-color: #555 }
"""
_BODY = """<header>
<input id=search type=search placeholder="Search names" aria-label="Search names">
<select id=filter aria-label="Which pictures"></select>
<select id=order aria-label="Order">
<option value=unsure>least confident first<option value=sure>most confident first
<option value=name>by name<option value=large>largest area first<option value=small>smallest area
 first</select>
<span class=pages><button id=back aria-label="Previous page">&lsaquo;</button>
<span id=where role=status></span>
<button id=on aria-label="Next page">&rsaquo;</button></span>
<span id=legend></span></header>
<main id=main></main><p id=empty hidden>No picture is like this.</p>
<dialog id=large><img alt=""><p></p><p><button value=-1 aria-label="Previous">&lsaquo;</button>
<button value=0>Close</button> <button value=1 aria-label="Next">&rsaquo;</button></p></dialog>
"""
_SCRIPT = """"use strict";
const PAGE = 60, $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const collator = new Intl.Collator(undefined, { numeric: true });
const all = data.pictures.map(([name, overlay, thumbnail, mask, width, height, confidence, areas,
  rank, corrected]) => ({ name, overlay, thumbnail, mask, width, height, confidence, areas, rank,
  corrected, text: name.toLowerCase() }));
let shown = all, first = 0, open = 0;
// The folder of all pictures, which their cards leave out.
const folder = path => path.slice(0, path.lastIndexOf("/", path.length - 2) + 1);
let common = all.length ? folder(all[0].name) : "";
for (const { name } of all) while (!name.startsWith(common)) common = folder(common);

function element(kind, text, name) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}
function chip(number) {
  const made = element("i");
  made.style.background = data.colours[number - 1];
  return made;
}
function part(picture, number) {  // of the image, of one class or of all
  const pixels = picture.areas.reduce((sum, [n, area]) =>
    sum + (number && n !== number ? 0 : area), 0);
  return pixels / (picture.width * picture.height);
}
function percent(value) {
  const points = 100 * value;
  return (points >= 9.95 || !points ? points.toFixed(0) : points < .1 ? "<0.1"
    : points.toFixed(1)) + " %";
}
function card(picture, place) {
  const made = element("article"), link = element("a"), image = element("img");
  const words = element("div"), sure = element("div", undefined, "sure");
  const bar = element("span"), inner = element("i"), areas = element("p", undefined, "areas");
  link.href = picture.overlay;
  link.addEventListener("click", event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    enlarge(place);
  });
  image.loading = "lazy";
  image.decoding = "async";
  image.alt = picture.name;
  image.addEventListener("error", () => { image.src = picture.overlay; }, { once: true });
  image.src = picture.thumbnail;
  link.append(image);
  inner.style.width = 100 * picture.confidence + "%";
  bar.append(inner);
  sure.append(bar, element("b", percent(picture.confidence)));
  for (const [number, area] of picture.areas) {
    const item = element("span");
    item.append(chip(number), data.classes[number - 1] + " "
      + percent(area / (picture.width * picture.height)));
    areas.append(item);
  }
  if (!picture.areas.length) areas.textContent = "nothing found";
  const name = element("p", picture.name.slice(common.length), "name");
  name.title = picture.name;
  words.append(name, sure, areas);
  if (picture.rank) words.append(element("p", "label next: " + picture.rank, "next"));
  if (picture.corrected) words.append(element("p", "corrected", "corrected"));
  made.append(link, words);
  return made;
}
function draw() {
  const end = Math.min(first + PAGE, shown.length);
  $("main").replaceChildren(...shown.slice(first, end).map((x, i) => card(x, first + i)));
  $("where").textContent = shown.length ? `${first + 1} to ${end} of ${shown.length}` : "0";
  $("back").disabled = !first;
  $("on").disabled = end >= shown.length;
  $("empty").hidden = shown.length > 0;
}
function select() {
  const text = $("search").value.trim().toLowerCase(), kind = $("filter").value;
  const number = Number(kind) || 0, order = $("order").value;
  shown = all.filter(picture => (!text || picture.text.includes(text)) && (
    number ? part(picture, number) > 0 : kind === "nothing" ? !picture.areas.length
    : kind === "next" ? picture.rank : kind === "corrected" ? picture.corrected : true));
  const key = { unsure: x => x.confidence, sure: x => -x.confidence,
    large: x => -part(x, number), small: x => part(x, number), name: () => 0 }[order];
  const pairs = shown.map(x => [kind === "next" && order === "unsure" ? x.rank : key(x), x]);
  shown = pairs.sort(([a, x], [b, y]) => a - b || collator.compare(x.name, y.name))
    .map(([, x]) => x);
  first = 0;
  draw();
}
function turn(by) {
  const next = first + by * PAGE;
  if (next < 0 || next >= shown.length) return;
  first = next;
  draw();
  scrollTo(0, 0);
}
function enlarge(place) {
  if (place < 0 || place >= shown.length) return;
  open = place;
  const picture = shown[place], [image, words] = $("large").children, link = element("a", "mask");
  image.src = picture.overlay;
  image.alt = picture.name;
  link.href = picture.mask;
  words.replaceChildren(`${picture.name} · ${percent(picture.confidence)}`,
    ...(picture.mask ? [" · ", link] : []));
  if (!$("large").open) $("large").showModal();
}
function option(value, text) {
  const made = element("option", text);
  made.value = value;
  $("filter").append(made);
}
option("", "all pictures");
if (all.some(x => x.rank)) option("next", "label these next");
if (all.some(x => x.corrected)) option("corrected", "corrected");
data.classes.forEach((name, i) => option(i + 1, "with " + name));
option("nothing", "nothing found");
data.classes.forEach((name, i) => {
  const made = element("span");
  made.append(chip(i + 1), name);
  $("legend").append(made);
});
if (data.count > all.length)
  $("legend").append(element("span", `of ${data.count} pictures, the ${all.length} least `
    + `confident are here; ${data.table} has all`));
$("search").addEventListener("input", select);
$("filter").addEventListener("change", select);
$("order").addEventListener("change", select);
$("back").addEventListener("click", () => turn(-1));
$("on").addEventListener("click", () => turn(1));
for (const button of $("large").querySelectorAll("button"))
  button.addEventListener("click", () =>
    +button.value ? enlarge(open + +button.value) : $("large").close());
addEventListener("keydown", event => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by || event.target.matches("input, select")) return;
  $("large").open ? enlarge(open + by) : turn(by);
});
select();
"""
