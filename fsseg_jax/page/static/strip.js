// The small pictures of all images, with their masks and how sure the model is of them.

import * as api from "./api.js";
import { colour } from "./colours.js";
import { maskOf } from "./marks.js";

export class Strip {
  constructor(list, select) {
    this.list = list;
    this.select = select;
    this.items = new Map(); // by the number of the image
  }

  add(picture) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    const badge = document.createElement("span"), name = document.createElement("span");
    badge.className = "badge";
    name.className = "name";
    name.textContent = picture.name;
    button.append(canvas, badge, name);
    button.dataset.number = picture.number;
    button.addEventListener("click", () => this.select(picture.number));
    item.append(button);
    this.list.append(item);
    const ready = api.image(picture.number, "jpg").catch(() => null);
    this.items.set(picture.number, { item, button, canvas, badge, ready });
    this.draw(picture);
  }

  remove(number) {
    this.items.get(number).item.remove();
    this.items.delete(number);
  }

  // What is predicted for an image, from its planes.
  async update(picture, planes, threshold) {
    const item = this.items.get(picture.number), image = await item?.ready;
    if (!image) return;
    item.planes = smaller(planes, picture.shape, image);
    this.draw(picture, threshold);
  }

  async draw(picture, threshold = null) {
    const item = this.items.get(picture.number), image = await item?.ready;
    if (!image) return;
    const { canvas, planes } = item;
    const size = { width: image.width, height: image.height };
    Object.assign(canvas, size);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    if (!planes) return;
    const layer = document.createElement("canvas");
    Object.assign(layer, size);
    const pixels = new ImageData(size.width, size.height);
    const mask = maskOf(planes, size.width * size.height, threshold);
    colour(pixels, { left: 0, top: 0, right: size.width, bottom: size.height }, size, null, mask);
    layer.getContext("2d").putImageData(pixels, 0, 0);
    context.drawImage(layer, 0, 0);
  }

  // The words on a picture.
  label(picture, isCurrent) {
    const { button, badge } = this.items.get(picture.number);
    const sure = picture.confidence === null ? "" : `${Math.round(100 * picture.confidence)} %`;
    const example = picture.marked.length > 0 || picture.whole;
    badge.textContent = picture.error ? "not read" : example ? "example" : sure;
    badge.className = `badge ${picture.error ? "error" : example ? "example" : ""}`;
    badge.hidden = !badge.textContent;
    const words = example ? "example" : sure && `confidence ${sure}`;
    button.setAttribute("aria-label", [picture.name, words].filter(Boolean).join(", "));
    button.setAttribute("aria-current", isCurrent);
    button.classList.toggle("stale", Boolean(sure && picture.stale && !example));
  }

  // Scrolls the list, and nothing but the list, until a picture is in view.
  reveal(number) {
    const list = this.list.getBoundingClientRect();
    const own = this.items.get(number).item.getBoundingClientRect();
    const by = (before, after) => Math.min(0, before) || Math.max(0, after);
    this.list.scrollBy(
      by(own.left - list.left, own.right - list.right), by(own.top - list.top, own.bottom - list.bottom),
    );
  }

  order(numbers) {
    this.list.append(...numbers.map((number) => this.items.get(number).item));
  }
}

// Planes at the size of a small image.
function smaller(planes, [height, width], image) {
  const small = new Uint8Array(3 * image.width * image.height);
  let at = 0;
  for (let plane = 0; plane < 3; plane++) {
    for (let y = 0; y < image.height; y++) {
      const row = plane * height * width + Math.floor(((y + 0.5) * height) / image.height) * width;
      for (let x = 0; x < image.width; x++) {
        small[at++] = planes[row + Math.floor(((x + 0.5) * width) / image.width)];
      }
    }
  }
  return small;
}
