// Tools: what mouse, fingers, pen and keys do on the image.

import { NONE } from "./marks.js";

export class Editor {
  // changed(area): marks have changed there; ended(): a stroke has ended; begin(): whether one may
  // begin, before which the prediction may become the marks.
  constructor(view, { begin, changed, ended }) {
    Object.assign(this, { view, begin, changed, ended });
    this.tool = "brush";
    this.value = 1; // what is marked: 0 for the background, n for class n
    this.points = null; // of the stroke that is being drawn
    this.fingers = new Map();
    const { canvas } = view;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", (event) => this.up(event, true));
    canvas.addEventListener("pointerleave", () => this.hover(null));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => {
      view.cross = null;
      if (this.points && !this.fingers.size) this.end();
      view.draw();
    });
  }

  get isDrawn() {
    return this.tool === "brush" || this.tool === "eraser";
  }

  get busy() {
    return this.points !== null;
  }

  choose(tool, value) {
    this.tool = tool;
    this.value = value;
    this.view.draw();
  }

  set width(width) {
    this.brush = width;
    this.view.draw();
  }

  // ------------------------------------------------------------------ strokes, in pixels of the image

  start(point) {
    if (this.points || !this.begin()) return;
    this.points = [point];
    this.marks = this.view.marks;
    if (this.isDrawn) this.line(point, point);
  }

  extend(point) {
    if (!this.points) return;
    const last = this.points.at(-1);
    if (this.isDrawn) this.line(last, point);
    if (this.tool === "box") {
      const [a] = this.points, b = point;
      this.view.shape = [a, { x: b.x, y: a.y }, b, { x: a.x, y: b.y }, a];
      this.points = [a, b];
    } else {
      this.points.push(point);
      if (this.tool === "outline") this.view.shape = this.points;
    }
    this.view.draw();
  }

  end(cancelled = false) {
    if (!this.points) return;
    const { points, marks } = this;
    this.points = this.view.shape = null;
    if (cancelled) {
      marks.cancel();
      this.changed();
    } else {
      if (this.tool === "box" && points.length > 1) this.fill(marks.rectangle(...points, this.value));
      if (this.tool === "outline" && points.length > 2) this.fill(marks.polygon(points, this.value));
      marks.end();
      this.ended();
    }
    this.view.draw();
  }

  line(a, b) {
    const value = this.tool === "eraser" ? NONE : this.value;
    this.changed(this.marks.line(a, b, this.brush / this.view.scale, value));
  }

  // After a box or an outline, the object is marked as a whole: the rest is background, unless the
  // user has chosen otherwise.
  fill(area) {
    const { marks } = this;
    if (this.value > 0) {
      if (!marks.chosen) marks.rest = true;
      if (this.tool === "box") marks.boxed = true;
    }
    this.changed(marks.rest ? undefined : area);
  }

  // ------------------------------------------------------------------ mouse, fingers and pen

  down(event) {
    event.preventDefault();
    const { canvas } = this.view;
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    this.view.cross = null;
    this.fingers.set(event.pointerId, event);
    if (this.fingers.size === 2) this.end(true); // it was no stroke but the first of two fingers
    else if (this.fingers.size === 1 && event.button === 0) this.start(this.view.at(event));
  }

  moved(event) {
    const before = this.fingers.get(event.pointerId);
    if (!before) return this.hover(event);
    if (this.fingers.size === 2) {
      const [other] = [...this.fingers.values()].filter((x) => x.pointerId !== event.pointerId);
      const apart = (x) => Math.hypot(x.clientX - other.clientX, x.clientY - other.clientY);
      const middle = { x: (event.clientX + other.clientX) / 2, y: (event.clientY + other.clientY) / 2 };
      this.view.move((event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
      this.view.zoom(apart(event) / Math.max(1, apart(before)), middle);
    } else if (this.points) {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) this.extend(this.view.at(each));
      this.hover(event);
    } else if (event.buttons & 6) {
      this.view.move(event.clientX - before.clientX, event.clientY - before.clientY);
    }
    this.fingers.set(event.pointerId, event);
  }

  up(event, cancelled = false) {
    this.fingers.delete(event.pointerId);
    if (this.points) this.end(cancelled);
  }

  hover(event) {
    const mouse = event && event.pointerType !== "touch";
    this.view.pointer = mouse ? this.view.at(event) : null;
    this.view.width = this.isDrawn ? this.brush : 0;
    this.view.draw();
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode ? 30 : 1;
    this.view.zoom(Math.exp(-event.deltaY * lines * 0.002), { x: event.clientX, y: event.clientY });
  }

  // ------------------------------------------------------------------ keys

  key(event) {
    const { view } = this;
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!view.picture || event.ctrlKey || event.metaKey || event.altKey) return;
    const place = view.cross ?? { x: view.size.width / 2, y: view.size.height / 2 };
    if (event.key in steps) {
      const far = (event.shiftKey ? 40 : 8) / view.scale;
      const [dx, dy] = steps[event.key];
      view.cross = {
        x: Math.min(view.size.width, Math.max(0, place.x + dx * far)),
        y: Math.min(view.size.height, Math.max(0, place.y + dy * far)),
      };
      this.extend(view.cross);
    } else if (event.key === " ") {
      view.cross = place;
      if (this.points) this.end();
      else this.start(place);
    } else if (event.key === "Escape" && this.points) {
      this.end(true);
    } else {
      return;
    }
    event.preventDefault();
    view.pointer = null;
    view.width = this.isDrawn ? this.brush : 0;
    view.reveal(view.cross ?? place);
  }
}
