"use strict";
/** Turns pictures into what a network was trained on: cnn_lightning/data/photos.py and ToSquare of decoding.py. */

const PREPARED_SIDE = 28, LARGEST_PHOTO = 1000, RIM = 0.15;

/**
 * Prepare a picture as the images of a dataset were.
 *
 * @param image {data, width, height}: red, green, blue and alpha of 0 to 255; alpha does not count.
 * @param preparation as in the page's data.
 * @returns Uint8Array of channel, row, column.
 * @throws Error where there is nothing but background.
 */
function preparePicture(image, preparation) {
  if (preparation.kind === "ToSquare") return toSquare(image, preparation.side, preparation.grey, preparation.square);
  const { box, cells, stroke_width: goal } = preparation;
  const pixels = pixelsOf(image), distance = backgroundDistance(pixels), noise = noiseOf(distance);
  const isPen = preparation.strokes && isPhoto(pixels, noise);
  // All ink and nothing around it: the steps below take less time.
  const whole = isPen ? inkInPhoto(pixels, distance, noise) : inkOnBackground(distance, noise);
  const corner = outline(whole, 0), raw = cropped(whole, corner);
  let ink = withoutSpecks(raw), [top, left, bottom, right] = outline(ink, 0), scale = 1;
  // An image of the dataset's own size is not scaled, which would blur it, and its faint edges count too.
  if (Math.abs(Math.max(bottom - top, right - left) - box) > 1) {
    if (goal) ink = strokesWidened(raw, largest(ink.data), box, goal);
    [top, left, bottom, right] = outline(ink, shareOf(RIM, largest(ink.data)));
    scale = box / Math.max(bottom - top, right - left);
  }
  let row = (top + bottom) / 2, column = (left + right) / 2;
  if (preparation.centre_by_mass) [row, column] = centreOfMass(ink).map((middle) => middle - 0.5 / scale);
  else if (scale === 1 && whole.height === PREPARED_SIDE && whole.width === PREPARED_SIDE) {
    [row, column] = [PREPARED_SIDE / 2 - corner[0], PREPARED_SIDE / 2 - corner[1]];
  }
  let view = windowAround(ink, row, column, scale);
  if (cells && scale !== 1) {
    view = resample(resample(view, cells, cells, BICUBIC), PREPARED_SIDE, PREPARED_SIDE, BILINEAR);
  }
  const factor = float32(255 / largest(view.data));
  return new Uint8Array(Uint8ClampedArray.from(view.data, (value) => float32(value * factor)));
}

const cropped = (pixels, [top, left, bottom, right]) => cutOut(pixels, top, left, bottom - top, right - left);

/** Widen strokes that are thinner than a goal after scaling, given their strongest ink; specks may be stronger. */
function strokesWidened(raw, most, box, goal) {
  const part = mapped(raw, (value) => Math.min(value / most, 1)), core = cropped(part, outline(part, 0.5));
  // Strokes that a pen broke are one piece if they will touch.
  const margin = Math.ceil((goal / (box - goal)) * Math.max(core.height, core.width)) + 1;
  const ink = withoutSpecks(padded(core, margin), margin), [top, left, bottom, right] = outline(ink, 0.5);
  const width = strokeWidth(above(ink, 0.5));
  // The box grows with the strokes, but not the distance of their middle lines, which is scaled to box − goal.
  const wanted = (goal * Math.max(Math.max(bottom - top, right - left) - width, 1)) / (box - goal);
  return wanted > width ? widened(ink, wanted - width) : ink;
}

function centreOfMass({ width, data }) {
  let sum = 0, row = 0, column = 0;
  for (let i = 0; i < data.length; i++) {
    const x = i % width;
    sum += data[i];
    row += data[i] * ((i - x) / width + 0.5);
    column += data[i] * (x + 0.5);
  }
  return [row / sum, column / sum];
}

/** Crop around a point what becomes 28×28 when scaled, and scale it. */
function windowAround(ink, row, column, scale) {
  const side = PREPARED_SIDE / scale, reach = Math.ceil(2 / scale) + 1, size = Math.ceil(side) + 2 * reach + 1;
  let [top, left] = [row - side / 2, column - side / 2];
  if (scale === 1) [top, left] = [Math.ceil(top - 0.5), Math.ceil(left - 0.5)];
  const y = Math.floor(top) - reach, x = Math.floor(left) - reach;
  const box = [left - x, top - y, left - x + side, top - y + side];
  const view = resample(cutOut(ink, y, x, size, size), PREPARED_SIDE, PREPARED_SIDE, BICUBIC, false, box);
  return mapped(view, (value) => Math.max(value, 0));
}

/** Red, green and blue of a picture, or one channel where they are equal everywhere. */
function pixelsOf({ data, width, height }) {
  let i = 0;
  while (i < data.length && data[i] === data[i + 1] && data[i] === data[i + 2]) i += 4;
  return makePixels(height, width, i < data.length ? 3 : 1, (y, x, c) => data[4 * (y * width + x) + c]);
}

/** Bring a picture to a square: "crop" its centre, "pad" it with black or "stretch" it. */
function toSquare({ data, width, height }, side, grey, square) {
  const photo = makePixels(height, width, grey ? 1 : 3, (y, x, c) => {
    const i = 4 * (y * width + x);
    return grey ? (data[i] * 19595 + data[i + 1] * 38470 + data[i + 2] * 7471 + 0x8000) >> 16 : data[i + c];
  });
  const short = Math.min(width, height), long = Math.max(width, height);
  let size = [side, side], box;
  if (square === "pad") size = [height, width].map((length) => Math.max(1, roundEven(length * (side / long))));
  else if (square === "crop" && long > 20 * short) {
    const [left, top] = [(width - short) / 2, (height - short) / 2];
    box = [left, top, left + short, top + short];
  } else if (square === "crop") size = [height, width].map((length) => Math.trunc((side * length) / short));
  const [top, left] = size.map((length) => roundEven((length - side) / 2));
  const { channels, data: values } = cutOut(resample(photo, ...size, BILINEAR, true, box), top, left, side, side);
  return Uint8Array.from(values, (_, i) => values[(i % (side * side)) * channels + Math.floor(i / side / side)]);
}

/** Round halves to even, as Python's round does. */
const roundEven = (number) => (Math.abs(number % 1) === 0.5 ? 2 * Math.round(number / 2) : Math.round(number));

/** A picture that is only scaled to a square: what the network sees when the preparation is switched off. */
const plainPicture = (image, channels, side) => toSquare(image, side, channels === 1, "pad");

/** Move the square pixels of an image right and down, on black, into a square of another side. */
function shiftPicture(pixels, channels, side, dx, dy, newSide = side) {
  const image = new Uint8Array(channels * newSide * newSide);
  pixels.forEach((value, i) => {
    const x = (i % side) + dx, y = (Math.floor(i / side) % side) + dy, c = Math.floor(i / side / side);
    if (x >= 0 && x < newSide && y >= 0 && y < newSide) image[(c * newSide + y) * newSide + x] = value;
  });
  return image;
}

/** Add black pixels on each side. */
const padPicture = (pixels, channels, side, pad) => shiftPicture(pixels, channels, side, pad, pad, side + 2 * pad);

/** Reduce a photo to 1,000 pixels a side, as Pillow's thumbnail does; on black or white where it is transparent. */
function shrunk({ data, width, height }) {
  const photo = { height, width, channels: 4, data: opaque(data) }, aspect = width / height;
  if (Math.max(width, height) <= LARGEST_PHOTO) return photo;
  const nearest = (length, ratio) => [Math.ceil(length), Math.max(Math.floor(length), 1)]
    .reduce((high, low) => (Math.abs(aspect - ratio(high)) < Math.abs(aspect - ratio(low)) ? high : low));
  const columns = aspect > 1 ? LARGEST_PHOTO : nearest(LARGEST_PHOTO * aspect, (n) => n / LARGEST_PHOTO);
  const rows = aspect > 1 ? nearest(LARGEST_PHOTO / aspect, (n) => LARGEST_PHOTO / n) : LARGEST_PHOTO;
  const step = Math.trunc(Math.max(width, height) / LARGEST_PHOTO / 2) || 1;
  const small = step > 1 ? mapped(blockMeans(photo, step), (mean) => Math.floor(mean + 0.5)) : photo;
  const result = resample(small, rows, columns, BILINEAR, true, [0, 0, width / step, height / step]);
  return { data: Uint8ClampedArray.from(result.data), width: columns, height: rows };
}

/** Put red, green, blue and alpha on black or white, whichever gives more contrast. */
function opaque(data) {
  let first = 3;
  while (data[first] === 255) first += 4;
  if (first > data.length) return data;
  const [onBlack, onWhite] = [0, 255].map((paper) => {
    const pixels = new Uint8ClampedArray(data.length).fill(255);
    let sum = 0, squares = 0;
    for (let i = 0; i < data.length; i += 4) {
      for (let k = i; k < i + 3; k++) {
        pixels[k] = paper + ((data[k] - paper) * data[i + 3]) / 255;
        sum += pixels[k];
        squares += pixels[k] ** 2;
      }
    }
    return { pixels, spread: squares - sum ** 2 / (0.75 * data.length) };
  });
  return (onWhite.spread > onBlack.spread ? onWhite : onBlack).pixels;
}

/** Filters of Pillow: how far they reach, and their weight at a distance. */
const BILINEAR = [1, (x) => Math.max(1 - x, 0)];
const BICUBIC = [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0)];

/** Scale a box (left, top, right, bottom) of pixels with antialiasing, as Pillow does, with 8 bits or in float32. */
function resample(pixels, height, width, [reach, weight], eightBit, box = [0, 0, pixels.width, pixels.height]) {
  const [left, top, right, bottom] = box.map(float32);
  const scaled = (old, axis, length, from, to) => {
    const scale = (to - from) / length, wide = Math.max(scale, 1), size = axis ? old.width : old.height;
    const taps = Array.from({ length }, (_, i) => {
      const centre = from + (i + 0.5) * scale, first = Math.max(Math.trunc(centre - reach * wide + 0.5), 0);
      const end = Math.min(Math.trunc(centre + reach * wide + 0.5), size);
      const values = Float64Array.from({ length: end - first }, (_, k) =>
        weight(Math.abs((k + first - centre + 0.5) * (1 / wide))));
      const sum = total(values), round = (share) => (eightBit ? Math.round(share * 2 ** 22) / 2 ** 22 : share);
      return { first, weights: values.map((value) => round(value / sum)) };
    });
    return alongAxis(old, axis, length, (line, out) => {
      for (let i = 0; i < length; i++) {
        const { first, weights } = taps[i];
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += line[first + k] * weights[k];
        out[i] = eightBit ? clamp(Math.floor(sum + 0.5), 256) : sum;
      }
    });
  };
  return scaled(scaled(pixels, 1, width, left, right), 0, height, top, bottom);
}
