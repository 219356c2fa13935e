// What is marked in an image: a byte for each pixel, changed by strokes that can be undone.

export const NONE = 254; // neither a class nor the background
const STROKES = 100; // that can be undone

export class Marks {
  // data: 0 for the background, n for class n, NONE elsewhere.
  // rest: whether NONE means background; boxed: whether some marks are boxes.
  constructor(width, height, data, rest = false, boxed = false) {
    this.width = width;
    this.height = height;
    this.data = data || new Uint8Array(width * height).fill(NONE);
    this.rest = rest;
    this.boxed = boxed;
    this.past = [];
    this.future = [];
  }

  // Notes the present state, for undo; `end` notes what has changed since.
  begin() {
    this.before = { data: this.data.slice(), rest: this.rest, boxed: this.boxed };
    this.touched = null;
  }

  end() {
    if (!this.before) return;
    const area = this.touched;
    const change = {
      area,
      before: { data: area && this.cut(this.before.data, area), ...flags(this.before) },
      after: { data: area && this.cut(this.data, area), ...flags(this) },
    };
    this.before = null;
    this.past.push(change);
    if (this.past.length > STROKES) this.past.shift();
    this.future = [];
  }

  // Takes back what has been done since `begin`.
  cancel() {
    if (!this.before) return;
    this.data.set(this.before.data);
    Object.assign(this, flags(this.before));
    this.before = null;
  }

  undo() {
    return this.step(this.past, this.future, "before");
  }

  redo() {
    return this.step(this.future, this.past, "after");
  }

  step(from, to, which) {
    const change = from.pop();
    if (!change) return false;
    to.push(change);
    Object.assign(this, flags(change[which]));
    if (change.area) this.paste(change[which].data, change.area);
    return true;
  }

  cut(data, { left, top, right, bottom }) {
    const part = new Uint8Array((right - left) * (bottom - top));
    for (let y = top; y < bottom; y++) {
      const row = y * this.width;
      part.set(data.subarray(row + left, row + right), (y - top) * (right - left));
    }
    return part;
  }

  paste(part, { left, top, right, bottom }) {
    const width = right - left;
    for (let y = top; y < bottom; y++) {
      this.data.set(part.subarray((y - top) * width, (y - top + 1) * width), y * this.width + left);
    }
  }

  // The pixels whose middle is nearer than half a width to the line from a to b get the value.
  line(a, b, width, value) {
    const radius = Math.max(width / 2, 0.71); // a thin line has no gaps
    const area = this.area(
      Math.min(a.x, b.x) - radius, Math.min(a.y, b.y) - radius,
      Math.max(a.x, b.x) + radius, Math.max(a.y, b.y) + radius,
    );
    const dx = b.x - a.x, dy = b.y - a.y;
    const length = dx * dx + dy * dy || 1;
    for (let y = area.top; y < area.bottom; y++) {
      for (let x = area.left; x < area.right; x++) {
        const px = x + 0.5 - a.x, py = y + 0.5 - a.y;
        const along = Math.min(1, Math.max(0, (px * dx + py * dy) / length));
        const ex = px - along * dx, ey = py - along * dy;
        if (ex * ex + ey * ey <= radius * radius) this.data[y * this.width + x] = value;
      }
    }
    return area;
  }

  rectangle(a, b, value) {
    const area = this.area(
      Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y),
    );
    for (let y = area.top; y < area.bottom; y++) {
      this.data.fill(value, y * this.width + area.left, y * this.width + area.right);
    }
    return area;
  }

  // The pixels whose middle is inside a closed line, by the even-odd rule.
  polygon(points, value) {
    const xs = points.map((p) => p.x), ys = points.map((p) => p.y);
    const area = this.area(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys));
    for (let y = area.top; y < area.bottom; y++) {
      const middle = y + 0.5, crossings = [];
      points.forEach((p, i) => {
        const q = points[(i + 1) % points.length];
        if ((p.y <= middle) !== (q.y <= middle)) {
          crossings.push(p.x + ((middle - p.y) / (q.y - p.y)) * (q.x - p.x));
        }
      });
      crossings.sort((p, q) => p - q);
      for (let i = 0; i + 1 < crossings.length; i += 2) {
        const left = Math.max(area.left, Math.ceil(crossings[i] - 0.5));
        const right = Math.min(area.right, Math.ceil(crossings[i + 1] - 0.5));
        if (left < right) this.data.fill(value, y * this.width + left, y * this.width + right);
      }
    }
    return area;
  }

  // All marks at once.
  replace(data, rest, boxed) {
    this.data.set(data);
    this.rest = rest;
    this.boxed = boxed;
    return this.area(0, 0, this.width, this.height);
  }

  isEmpty() {
    return this.data.every((value) => value === NONE);
  }

  // The pixels of a rectangle that are in the image, which are noted as changed.
  area(left, top, right, bottom) {
    const area = {
      left: clamp(Math.floor(left), this.width), top: clamp(Math.floor(top), this.height),
      right: clamp(Math.ceil(right), this.width), bottom: clamp(Math.ceil(bottom), this.height),
    };
    this.touched = union(this.touched, area);
    return area;
  }
}

const flags = ({ rest, boxed }) => ({ rest, boxed });
const clamp = (value, most) => Math.min(most, Math.max(0, value));

function union(a, b) {
  if (!a) return { ...b };
  return {
    left: Math.min(a.left, b.left), top: Math.min(a.top, b.top),
    right: Math.max(a.right, b.right), bottom: Math.max(a.bottom, b.bottom),
  };
}

// The mask of a prediction. planes: the model's mask, the most probable class besides the
// background, and its probability (255 is 1); threshold: in 0..1, or null for the model's mask.
export function maskOf(planes, pixels, threshold) {
  const mask = planes.subarray(0, pixels);
  if (threshold === null) return mask;
  const best = planes.subarray(pixels, 2 * pixels);
  const probability = planes.subarray(2 * pixels, 3 * pixels);
  return best.map((value, i) => (probability[i] >= 255 * threshold ? value : 0));
}
