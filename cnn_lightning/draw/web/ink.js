"use strict";
/**
 * Ink of a drawing or a photo: what differs from the background, without shadows, printed lines and dirt. The functions
 * are those of cnn_lightning/data/ink.py, which says why; only the distance from the background is computed once here.
 */

const INK = { same: 24, photo: 112, small: 250, sure: 0.6, seed: 0.4, speck: 0.01 };
const NO_INK = "nothing but background: expected an object that is clearly darker or lighter";

/** Product of a constant and a float32, as NumPy has it. */
const shareOf = (constant, value) => float32(float32(constant) * value);

/** Sum over the channels of term(value, channel) for each pixel. */
function channelSums({ height, width, channels, data }, term) {
  return makePixels(height, width, 1, (y, x) => {
    const place = (y * width + x) * channels;
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += term(data[place + c], c);
    return sum;
  });
}

const channelMeans = (pixels) => channelSums(pixels, (value) => value / pixels.channels);

/** Distance of pixels from the background's colour. */
function backgroundDistance(pixels) {
  const { height, width, channels, data } = pixels, paper = background(pixels);
  const step = paper.length > channels ? channels : 0, distance = newPixels(height, width);
  for (let i = 0; i < distance.data.length; i++) {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += float32(data[i * channels + c] - paper[i * step + c]) ** 2;
    distance.data[i] = Math.sqrt(float32(sum / channels));
  }
  return distance;
}

function noiseOf({ data }) {
  const faint = chosen(data, (value) => value < INK.same);
  return faint.length ? 6 * median(faint) : 0;
}

const isPhoto = ({ height, width }, noise) => Math.max(height, width) >= INK.photo && noise > 0;

/** The distance, and 0 where that is noise. */
function inkOnBackground(distance, noise) {
  if (largest(distance.data) < Math.max(INK.same, float32(2 * noise))) throw new Error(NO_INK);
  const level = float32(noise);
  return mapped(distance, (value) => (value > level ? value : 0));
}

/** Opacity of the strokes in a photo. */
function inkInPhoto(pixels, distance, noise) {
  const longest = Math.max(pixels.height, pixels.width), ink = gaussianFilter(contrast(pixels), longest / 1000);
  const most = largest(ink.data);
  if (most < Math.max(INK.same / 2, shareOf(9, median(ink.data.map(Math.abs))))) {
    return wideInk(inkOnBackground(distance, noise));
  }
  const level = shareOf(INK.sure, most), typical = median(chosen(ink.data, (value) => value > level));
  const maxima = blockMaxima(ink, Math.ceil(longest / INK.small)), gaps = distanceTo(above(maxima, level));
  const far = chosen(maxima.data, (_, i) => gaps[i] > INK.small / 20);
  const other = far.length > 0.1 * gaps.length ? quantile(far, 0.98) : 0;
  const faint = Math.min(Math.max(1.2 * other, 0.12 * typical), 0.7 * typical);
  const pieces = labelPieces(above(ink, float32(faint))), seed = float32(Math.max(INK.seed * typical, 1.3 * faint));
  const isInk = new Set(pieces.filter((_, i) => ink.data[i] > seed));
  return mapped(ink, (value, i) => (isInk.has(pieces[i]) ? Math.min(value / typical, 1) : 0));
}

/** Opacity of an object as wide as a shadow. */
function wideInk(ink) {
  if (largest(correlate(ink, new Array(5).fill(0.2)).data) < INK.same) throw new Error(NO_INK);
  const most = largest(ink.data);
  return mapped(ink, (value) => Math.max(value / most - INK.seed, 0) / (1 - INK.seed));
}

/** Difference of pixels from their paper in the direction of the ink's colour, in even light. */
function contrast(pixels) {
  const { height, width, channels } = pixels, step = Math.ceil(Math.max(height, width) / INK.small);
  const small = blockMeans(pixels, step), grey = channelMeans(small), smooth = gaussianFilter(grey, INK.small / 20);
  const dark = grey.data.reduce((sum, value, i) => sum + (value - smooth.data[i]) ** 3, 0) < 0;
  let wide = 0.25 * Math.max(small.height, small.width), paper, light, even, sure;
  for (let time = 0; time < 2; time++) {
    paper = closedGaps(small, wide, dark);
    const mean = total(paper.data) / paper.data.length;
    light = mapped(channelMeans(paper), (value) => (dark ? mean / Math.max(value, 1) : 1));
    even = mapped(small, (value, i) => float32(value - paper.data[i]) * light.data[Math.floor(i / channels)]);
    const amount = channelSums(even, (value) => (value * value) / channels);
    const least = shareOf(INK.sure ** 2, largest(amount.data));
    sure = mapped(amount, (value) => (value >= least ? 1 : 0));
    wide = Math.min(wide, 5 * Math.max(1, strokeWidth(sure)));
  }
  const sum = new Float32Array(channels);
  even.data.forEach((value, i) => sure.data[Math.floor(i / channels)] && (sum[i % channels] += value));
  const length = Math.hypot(...sum) * Math.sqrt(channels), colour = sum.map((value) => value / Math.max(length, 1e-6));
  const along = (picture) => channelSums(picture, (value, c) => value * colour[c]);
  const [onPaper, lit] = [along(paper), light].map((part) => cutOut(enlarged(part, step), 0, 0, height, width).data);
  return mapped(along(pixels), (value, i) => float32(value - onPaper[i]) * lit[i]);
}

/** Remove what is dark, or what is bright, and narrower than a number of pixels. */
function closedGaps(picture, wide, dark) {
  const { height, width, channels, data } = gaussianFilter(picture, 0.7), half = Math.ceil(wide / 2);
  const around = makePixels(height + 4 * half, width + 4 * half, channels, (y, x, c) =>
    data[(clamp(y - 2 * half, height) * width + clamp(x - 2 * half, width)) * channels + c]);
  const sign = dark ? 1 : -1;
  return padded(greyDilation(greyDilation(around, half, sign), half, -sign), -2 * half);
}

function enlarged(picture, factor) {
  return resample(picture, factor * picture.height, factor * picture.width, BILINEAR);
}

/** Background colour of a drawn picture, one number a channel, or of each pixel of a photo with uneven light. */
function background(pixels) {
  const { height, width, channels } = pixels;
  const frame = [[0, 0, 1, width], [height - 1, 0, 1, width], [0, 0, height, 1], [0, width - 1, height, 1]]
    .flatMap((box) => Array.from(cutOut(pixels, ...box).data));
  const colour = commonest(frame, channels);
  let same = 0;
  for (let i = 0; i < frame.length; i += channels) if (colour.every((value, c) => value === frame[i + c])) same++;
  return same >= frame.length / channels / 2 ? colour : surfaceNear(pixels, colour);
}

/** Plane, then curved surface, each fitted to the pixels near the previous one, starting at a colour. */
function surfaceNear({ height, width, channels, data }, colour) {
  const line = (i, length) => (i ? (i === length - 1 ? 1 : (i * 2) / (length - 1) - 1) : -1);
  const termsAt = (row, column) => {
    const x = line(column, width), y = line(row, height);
    return [1, float32(x), float32(y), float32(x * x), float32(x * y), float32(y * y)];
  };
  const samples = [], step = Math.ceil(Math.max(height, width) / 100);
  for (let y = 0; y < height; y += step) {
    for (let x = 0; x < width; x += step) {
      const place = (y * width + x) * channels;
      samples.push([...termsAt(y, x), ...data.subarray(place, place + channels)]);
    }
  }
  let weights = [colour];
  const fit = (terms, c) => {
    let sum = 0;
    for (let k = 0; k < weights.length; k++) sum += weights[k][c] * terms[k];
    return float32(sum);
  };
  for (let time = 0; time < 16; time++) {
    const isNear = (sample) => colour.every((_, c) => float32(Math.abs(sample[6 + c] - fit(sample, c))) < INK.same);
    const near = samples.filter(isNear), terms = time < 8 ? 3 : 6;
    if (near.length < 2 * terms) return colour;
    weights = leastSquares(near, terms);
  }
  return makePixels(height, width, channels, (y, x, c) => fit(termsAt(y, x), c)).data;
}

/** The colour with the most similar ones. */
function commonest(colours, channels) {
  const step = channels * Math.ceil(colours.length / channels / 400), count = Math.ceil(colours.length / step);
  let best = [];
  for (let i = 0; i < colours.length && best.length < count; i += step) {
    const near = [];
    for (let j = 0; j < colours.length; j += step) {
      let c = 0;
      while (c < channels && float32(Math.abs(colours[i + c] - colours[j + c])) < INK.same) c++;
      if (c === channels) near.push(j);
    }
    if (near.length > best.length) best = near;
  }
  return Float32Array.from({ length: channels }, (_, c) => median(Float32Array.from(best, (j) => colours[j + c])));
}

/** Mean width in pixels of the strokes in a mask. */
function strokeWidth(mask) {
  const around = padded(mask, 1), distances = distanceTo(mapped(around, (value) => 1 - value));
  return (4 * total(distances)) / total(around.data) - 2;
}

/** Widen strokes by a number of pixels in all. */
function widened(ink, by) {
  const distances = distanceTo(above(ink, 0.5));
  return mapped(ink, (value, i) => Math.max(value, Math.min(by / 2 + 1 - distances[i], 1)));
}

/** Remove pieces that are tiny compared with the largest; gaps in pixels count as connections. */
function withoutSpecks(ink, gap = 0) {
  let near = above(ink, 0);
  if (gap) near = mapped({ ...ink, data: distanceTo(near) }, (distance) => (distance <= gap / 2 ? 1 : 0));
  const pieces = labelPieces(near), amounts = new Float64Array(largest(pieces) + 1);
  for (let i = 0; i < pieces.length; i++) if (pieces[i]) amounts[pieces[i]] += ink.data[i];
  if (amounts.length === 2) return ink;
  const least = INK.speck * largest(amounts);
  return mapped(ink, (value, i) => (amounts[pieces[i]] >= least ? value : 0));
}

/** Bounding box of all ink above a level: top, left, bottom, right, the last two exclusive. */
function outline({ height, width, data }, level) {
  let top = height, left = width, bottom = 0, right = 0;
  for (let y = 0; y < height; y++) {
    let first = 0, last = width - 1;
    const row = y * width;
    while (first < width && data[row + first] <= level) first++;
    if (first === width) continue;
    while (data[row + last] <= level) last--;
    [top, bottom, left, right] = [Math.min(top, y), y + 1, Math.min(left, first), Math.max(right, last + 1)];
  }
  return [top, left, bottom, right];
}
