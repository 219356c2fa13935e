// Colours over an image: what is marked, and what is predicted.

import { NONE } from "./marks.js";

const DARK = rgba([0, 0, 0], 0.45); // background, where it is not drawn
const BACKGROUND = [rgba([20, 20, 30], 0.75), rgba([225, 225, 235], 0.6)]; // stripes of its strokes
let palette = [], edges = [], strokes = [];

export function useColours(colours) {
  palette = [0, ...colours.map((colour) => rgba(colour, 0.4))];
  edges = [0, ...colours.map((colour) => rgba(colour, 1))];
  strokes = [0, ...colours.map((colour) => rgba(colour, 0.7))];
}

// A pixel in the memory of an image.
function rgba([red, green, blue], alpha) {
  return ((Math.round(255 * alpha) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

// Colours the pixels of an area. size: width and height; pixels: an ImageData of the area;
// marks: Marks or null; mask: what is predicted, or null.
export function colour(pixels, area, size, marks, mask) {
  const target = new Uint32Array(pixels.data.buffer);
  const { left, top, right, bottom } = area;
  const whole = marks && marks.rest && !marks.boxed; // it is itself a mask
  let at = 0;
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++, at++) {
      const i = y * size.width + x;
      const value = marks ? marks.data[i] : NONE;
      if (value !== NONE && value !== 0) {
        target[at] = whole ? (isEdge(marks.data, i, x, y, size) ? edges : palette)[value] : strokes[value];
      } else if (value === 0 && !marks.rest) {
        target[at] = BACKGROUND[((x + y) >> 3) & 1];
      } else if (marks && marks.rest) {
        target[at] = DARK;
      } else {
        const found = mask ? mask[i] : 0;
        target[at] = found && isEdge(mask, i, x, y, size) ? edges[found] : palette[found];
      }
    }
  }
}

// Whether a pixel is at the border of what has its value.
function isEdge(values, i, x, y, { width, height, line = 1 }) {
  const value = values[i];
  return (
    (x >= line && values[i - line] !== value) || (x + line < width && values[i + line] !== value) ||
    (y >= line && values[i - line * width] !== value) ||
    (y + line < height && values[i + line * width] !== value)
  );
}
