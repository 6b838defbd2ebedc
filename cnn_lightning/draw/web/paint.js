"use strict";
/** Elements, colours and small canvases. */

const byId = (id) => document.getElementById(id);

/** Make an element. Children may be texts, which are never read as HTML. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const percent = (share, digits = share > 0.9995 || share < 0.0005 ? 0 : 1) => `${(100 * share).toFixed(digits)}%`;

/** Let screen readers say a text once nothing else was to be said for a while. */
function announce(text) {
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => (byId("said").textContent = text), 800);
}

/** Stops of the colours for t in [0, 1]: black, then orange and blue of reporting/palette.py, then a light tint. */
const POSITIVE = [[0, 0, 0], [213, 94, 0], [255, 226, 150]], NEGATIVE = [[0, 0, 0], [0, 114, 178], [176, 226, 255]];

/** Colour [r, g, b] for a value in [-1, 1]. */
function colourOf(value) {
  const stops = value < 0 ? NEGATIVE : POSITIVE, place = 2 * Math.min(Math.abs(value), 1), i = Math.min(place | 0, 1);
  return stops[i].map((low, channel) => Math.round(low + (stops[i + 1][channel] - low) * (place - i)));
}

const COLOURS = Uint32Array.from({ length: 511 }, (_, i) => {
  const [red, green, blue] = colourOf((i - 255) / 255);
  return 0xff000000 | (blue << 16) | (green << 8) | red;
});

const canvasOf = (width, height) => make("canvas", { width, height });

/** Fill a canvas with words 0xAABBGGRR that a function returns for each pixel. */
function fill(canvas, word) {
  canvas.image ??= new ImageData(canvas.width, canvas.height);
  const words = new Uint32Array(canvas.image.data.buffer);
  for (let i = 0; i < words.length; i++) words[i] = word(i);
  (canvas.context ??= canvas.getContext("2d")).putImageData(canvas.image, 0, 0);
}

/** Paint values from a start on, one a pixel: black is 0, the lightest colours are -limit and limit. */
function paintValues(canvas, values, start, limit) {
  const scale = limit > 0 ? 255 / limit : 0;
  fill(canvas, (i) => (start + i < values.length ? COLOURS[Math.round(values[start + i] * scale) + 255] : 0));
}

/** Paint pixels of 0 to 255 in the order channel, row, column; one channel is grey. */
function paintPixels(canvas, pixels, channels) {
  const area = canvas.width * canvas.height, [green, blue] = channels < 3 ? [0, 0] : [area, 2 * area];
  fill(canvas, (i) => 0xff000000 | (pixels[blue + i] << 16) | (pixels[green + i] << 8) | pixels[i]);
}
