// Shows an image with what is marked and predicted, at any zoom.

import { colour } from "./colours.js";

const MOST = 16; // screen pixels for one of the image's

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.layer = document.createElement("canvas"); // the colours, at the image's size
    this.layerContext = this.layer.getContext("2d");
    this.picture = null;
    this.marks = this.mask = null;
    this.cross = null; // the keyboard's place, in pixels of the image
    this.pointer = null; // the mouse's
    this.shape = null; // a box or an outline that is being drawn: points
    this.hidden = false;
    this.width = 30; // of the brush, in pixels of the screen
    this.waiting = false;
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
  }

  show(picture, marks, mask) {
    this.picture = picture;
    this.cross = this.pointer = this.shape = null;
    this.marks = marks;
    this.mask = mask;
    if (picture) {
      this.size = { width: picture.width, height: picture.height };
      this.size.line = Math.max(1, Math.round(Math.max(picture.width, picture.height) / 600));
      this.layer.width = picture.width;
      this.layer.height = picture.height;
      this.repaint();
      this.fit();
    }
    this.draw();
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas.parentElement;
    const fitted = this.isFitted;
    this.canvas.width = clientWidth * devicePixelRatio;
    this.canvas.height = clientHeight * devicePixelRatio;
    if (fitted) this.fit();
    this.paint();
  }

  get box() {
    return this.canvas.parentElement.getBoundingClientRect();
  }

  // The whole image, in the middle.
  fit() {
    if (!this.picture) return;
    const { width, height } = this.box;
    this.scale = Math.min(width / this.size.width, height / this.size.height, MOST);
    this.least = this.scale;
    this.x = (width - this.scale * this.size.width) / 2;
    this.y = (height - this.scale * this.size.height) / 2;
    this.isFitted = true;
    this.draw();
  }

  // Zooms around a place on the screen, by default the middle.
  zoom(factor, place) {
    if (!this.picture) return;
    const { width, height, left, top } = this.box;
    const x = place ? place.x - left : width / 2, y = place ? place.y - top : height / 2;
    const scale = Math.min(MOST, Math.max(this.least, this.scale * factor));
    if (scale === this.least) return this.fit();
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.move(0, 0);
  }

  // Moves the image, of which some stays in view.
  move(dx, dy) {
    if (!this.picture) return;
    const { width, height } = this.box;
    const bound = (value, side, extent) => Math.min(side - 40, Math.max(40 - extent, value));
    this.x = bound(this.x + dx, width, this.scale * this.size.width);
    this.y = bound(this.y + dy, height, this.scale * this.size.height);
    this.isFitted = false;
    this.draw();
  }

  // The pixel of the image at a place on the screen.
  at(event) {
    const { left, top } = this.box;
    return { x: (event.clientX - left - this.x) / this.scale, y: (event.clientY - top - this.y) / this.scale };
  }

  // Moves the image so that a pixel of it is in view.
  reveal({ x, y }) {
    const { width, height } = this.box, margin = 30;
    const sx = this.x + x * this.scale, sy = this.y + y * this.scale;
    const dx = Math.min(width - margin, Math.max(margin, sx)) - sx;
    const dy = Math.min(height - margin, Math.max(margin, sy)) - sy;
    if (!this.isFitted && (dx || dy)) this.move(dx, dy);
    this.draw();
  }

  // Colours an area of the image anew, or all of it.
  repaint(area) {
    if (!this.picture) return;
    const { width, height, line } = this.size;
    const around = area && {
      left: Math.max(0, area.left - line), top: Math.max(0, area.top - line),
      right: Math.min(width, area.right + line), bottom: Math.min(height, area.bottom + line),
    };
    const whole = { left: 0, top: 0, right: width, bottom: height };
    const { left, top, right, bottom } = around || whole;
    if (left < right && top < bottom) {
      const pixels = this.layerContext.createImageData(right - left, bottom - top);
      colour(pixels, { left, top, right, bottom }, this.size, this.marks, this.mask);
      this.layerContext.putImageData(pixels, left, top);
    }
    this.draw();
  }

  // Draws soon, once for all changes until then.
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.paint();
    });
  }

  paint() {
    const { context, canvas } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.picture) return;
    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    const where = [this.x, this.y, this.scale * this.size.width, this.scale * this.size.height];
    context.imageSmoothingEnabled = this.scale < 3;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.picture, ...where);
    if (!this.hidden) context.drawImage(this.layer, ...where);
    if (this.shape) this.paintShape();
    for (const place of [this.pointer, this.cross]) if (place) this.paintCursor(place);
  }

  paintShape() {
    const points = this.shape.map(({ x, y }) => [this.x + x * this.scale, this.y + y * this.scale]);
    this.twice([[5, 5], []], () => points.forEach((point) => this.context.lineTo(...point)));
  }

  paintCursor({ x, y }) {
    const sx = this.x + x * this.scale, sy = this.y + y * this.scale, radius = this.width / 2;
    const isCross = this.cross && this.cross.x === x && this.cross.y === y;
    this.twice([[], []], () => {
      if (radius) this.context.arc(sx, sy, Math.max(1.5, radius), 0, 7);
      if (isCross || !radius) {
        for (const [dx, dy] of [[12, 0], [0, 12]]) {
          this.context.moveTo(sx - dx, sy - dy);
          this.context.lineTo(sx + dx, sy + dy);
        }
      }
    });
  }

  // A line that is seen on anything: a dark one, and a light one over it.
  twice([dashes], path) {
    for (const [style, width, dash] of [["#000b", 3, []], ["#fff", 1.5, dashes]]) {
      this.context.strokeStyle = style;
      this.context.lineWidth = width;
      this.context.setLineDash(dash);
      this.context.beginPath();
      path();
      this.context.stroke();
    }
    this.context.setLineDash([]);
  }
}
