"use strict";

// Seven times 28: larger drawings take longer to prepare, and look no different at 28×28.
const PAPER = 196;

/**
 * The drawing pad: white ink on black. What was done is a list of strokes, pictures and clearings, so that undo
 * removes the last one and paints the rest again.
 */
class Pad {
  constructor(canvas, onChange) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.onChange = onChange;
    this.width = 20;
    this.items = [];
    this.version = 0;
    canvas.addEventListener("pointerdown", (event) => this.start(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, ({ isPrimary }) => isPrimary && (this.stroke = null));
    }
    this.repaint();
  }

  start(event) {
    if (!event.isPrimary || event.button) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.stroke = { width: this.width, points: [] };
    this.items.push(this.stroke);
    this.extend([event]);
  }

  move(event) {
    if (!this.stroke || !event.isPrimary) return;
    const events = event.getCoalescedEvents?.() ?? [];
    this.extend(events.length ? events : [event]);
  }

  extend(events) {
    const box = this.canvas.getBoundingClientRect(), { points } = this.stroke, first = points.length;
    for (const { clientX, clientY } of events) {
      points.push([((clientX - box.left) * PAPER) / box.width, ((clientY - box.top) * PAPER) / box.height]);
    }
    this.paintStroke(this.stroke, first);
    this.changed();
  }

  /**
   * Show a picture instead of the drawing.
   * @param {object} item canvas: what to paint, to fit; and what else prepare() of app.js wants to know of it.
   */
  show(item) {
    this.items.push(item);
    this.repaint();
  }

  clear() {
    if (this.content()) this.show({});
  }

  undo() {
    this.items.pop();
    this.stroke = null;
    this.repaint();
  }

  /** What is on the pad: null, the picture alone that was shown, or {picture} of the drawing. */
  content() {
    const first = this.items.findLastIndex((item) => !item.points), visible = this.items.slice(Math.max(first, 0));
    if (visible.length === 1 && visible[0].canvas) return visible[0];
    const isEmpty = !visible.some((item) => item.points || item.canvas);
    return isEmpty ? null : { picture: this.context.getImageData(0, 0, PAPER, PAPER) };
  }

  repaint() {
    this.paintPicture(null);
    for (const item of this.items) {
      if (item.points) this.paintStroke(item);
      else this.paintPicture(item.canvas);
    }
    this.changed();
  }

  changed() {
    this.version++;
    this.onChange();
  }

  /** Paint a stroke from a point on, line by line, so that painting it again gives the same pixels. */
  paintStroke({ points, width }, first = 0) {
    const context = this.context;
    Object.assign(context, { strokeStyle: "#fff", lineWidth: width, lineCap: "round" });
    for (let i = first; i < points.length; i++) {
      context.beginPath();
      context.moveTo(...points[Math.max(i - 1, 0)]);
      context.lineTo(...points[i]);
      context.stroke();
    }
  }

  /** Paint a picture, or nothing, over all that is there. */
  paintPicture(canvas) {
    const context = this.context;
    context.fillStyle = "#000";
    context.fillRect(0, 0, PAPER, PAPER);
    if (!canvas) return;
    const scale = PAPER / Math.max(canvas.width, canvas.height), [w, h] = [canvas.width * scale, canvas.height * scale];
    context.imageSmoothingEnabled = scale < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(canvas, (PAPER - w) / 2, (PAPER - h) / 2, w, h);
  }
}

/** Call back with whole pixels that the pointer or the arrow keys move an image by, while that is wanted. */
function watchDrag(canvas, isOn, onMove) {
  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (!isOn()) return;
    canvas.setPointerCapture(event.pointerId);
    from = [event.clientX, event.clientY];
  });
  canvas.addEventListener("pointermove", ({ clientX, clientY }) => {
    if (!from) return;
    const pixel = canvas.clientWidth / canvas.width;
    const [right, down] = [clientX - from[0], clientY - from[1]].map((way) => Math.trunc(way / pixel));
    from = [from[0] + right * pixel, from[1] + down * pixel];
    if (right || down) onMove(right, down);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (from = null));
  canvas.addEventListener("keydown", (event) => {
    const step = ARROWS[event.key];
    if (!step || !isOn()) return;
    event.preventDefault();
    onMove(step[1], step[0]);
  });
}
