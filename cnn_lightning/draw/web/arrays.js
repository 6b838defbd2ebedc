"use strict";
/**
 * What ink.js and photos.js need of NumPy and SciPy, with the same results: sums are in double precision, what
 * is stored is rounded to float32.
 *
 * Pixels are {height, width, channels, data}: data in the order row, column, channel.
 */

const float32 = Math.fround;

/** Pixels that are 0. */
function newPixels(height, width, channels = 1) {
  return { height, width, channels, data: new Float32Array(height * width * channels) };
}

/** Pixels of value(row, column, channel). */
function makePixels(height, width, channels, value) {
  const pixels = newPixels(height, width, channels);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++) for (let c = 0; c < channels; c++) pixels.data[i++] = value(y, x, c);
  }
  return pixels;
}

/** Pixels with other values: change(value, index). */
function mapped(pixels, change) {
  const data = new Float32Array(pixels.data.length);
  for (let i = 0; i < data.length; i++) data[i] = change(pixels.data[i], i);
  return { ...pixels, data };
}

/** 1 where pixels are above a level, 0 elsewhere. */
const above = (pixels, level) => mapped(pixels, (value) => (value > level ? 1 : 0));

/** Float32Array of the values that pass test(value, index). */
function chosen(values, test) {
  const some = new Float32Array(values.length);
  let count = 0;
  for (let i = 0; i < values.length; i++) if (test(values[i], i)) some[count++] = values[i];
  return some.subarray(0, count);
}

/** Nearest to an index among the indices of a length. */
const clamp = (index, length) => Math.max(0, Math.min(index, length - 1));

/** Rectangle of pixels; where it reaches beyond them it is 0. */
function cutOut({ height, width, channels, data }, top, left, rows, columns) {
  const part = newPixels(rows, columns, channels), from = Math.max(left, 0), to = Math.min(left + columns, width);
  for (let y = Math.max(top, 0); y < Math.min(top + rows, height); y++) {
    const line = data.subarray((y * width + from) * channels, (y * width + to) * channels);
    part.data.set(line, ((y - top) * columns + from - left) * channels);
  }
  return part;
}

/** Pixels with a frame of zeros, or with a frame removed. */
const padded = (pixels, by) => cutOut(pixels, -by, -by, pixels.height + 2 * by, pixels.width + 2 * by);

function largest(values) {
  let most = values[0];
  for (let i = 1; i < values.length; i++) if (values[i] > most) most = values[i];
  return most;
}

function total(values) {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i];
  return sum;
}

/** The k-th smallest value; moves the smaller ones before it (Hoare's quickselect). */
function quickSelect(values, k) {
  for (let low = 0, high = values.length - 1; low < high; ) {
    const pivot = values[(low + high) >> 1];
    let i = low, j = high;
    while (i <= j) {
      while (values[i] < pivot) i++;
      while (values[j] > pivot) j--;
      if (i <= j) [values[i++], values[j--]] = [values[j], values[i]];
    }
    if (k > j && k < i) break;
    if (k <= j) high = j;
    else low = i;
  }
  return values[k];
}

/** np.quantile of a Float32Array, which it reorders. */
function quantile(values, share) {
  const place = float32(float32(share) * (values.length - 1)), next = clamp(Math.floor(place) + 1, values.length);
  const upper = quickSelect(values, next), lower = next ? largest(values.subarray(0, next)) : upper;
  return float32(lower + (upper - lower) * (place - next + 1));
}

const median = (values) => quantile(values, 0.5);

/** Fit the values of samples from index 6 on by their first `size` values: weights as np.linalg.lstsq finds them. */
function leastSquares(samples, size) {
  const rows = Array.from({ length: size }, () => new Array(size + samples[0].length - 6).fill(0));
  for (const sample of samples) {
    for (let i = 0; i < size; i++) {
      for (let j = 0; j < rows[i].length; j++) rows[i][j] += sample[i] * sample[j < size ? j : j - size + 6];
    }
  }
  const squares = rows.map((row, i) => row[i]);
  rows.forEach((row, k) => {
    // Terms that depend on the others get the weight 0.
    if (row[k] <= 1e-13 * squares[k]) return row.fill(0);
    rows.forEach((other, i) => {
      const factor = other[k] / row[k];
      if (i !== k) row.forEach((value, j) => (other[j] -= factor * value));
    });
  });
  return rows.map((row, k) => row.slice(size).map((value) => (row[k] ? float32(value / row[k]) : 0)));
}

/** Turn each column (axis 0) or row (axis 1) into one of another length by filter(line, out). */
function alongAxis({ height, width, channels, data }, axis, length, filter) {
  const old = axis ? width : height, step = axis ? channels : width * channels;
  const result = newPixels(axis ? height : length, axis ? length : width, channels);
  const line = new Float64Array(old), out = new Float64Array(length);
  for (let i = 0; i < data.length / old; i++) {
    const block = Math.floor(i / step) * step, inside = i - block;
    for (let j = 0; j < old; j++) line[j] = data[block * old + j * step + inside];
    filter(line, out);
    for (let j = 0; j < length; j++) result.data[block * length + j * step + inside] = out[j];
  }
  return result;
}

/** Apply filter(line, out) to columns, then to rows. */
const filtered = (pixels, filter) =>
  alongAxis(alongAxis(pixels, 0, pixels.height, filter), 1, pixels.width, filter);

/** Correlate with a symmetric kernel along both axes; beyond its edges the picture is mirrored. */
function correlate(pixels, kernel) {
  const reach = kernel.length >> 1;
  return filtered(pixels, (line, out) => {
    const length = line.length, wide = new Float64Array(length + 2 * reach);
    for (let i = 0; i < wide.length; i++) {
      const place = (((i - reach) % (2 * length)) + 2 * length) % (2 * length);
      wide[i] = line[Math.min(place, 2 * length - 1 - place)];
    }
    for (let i = 0; i < length; i++) {
      let sum = wide[i + reach] * kernel[reach];
      for (let j = 0; j < reach; j++) sum += (wide[i + j] + wide[i + 2 * reach - j]) * kernel[j];
      out[i] = sum;
    }
  });
}

function gaussianFilter(pixels, sigma) {
  const reach = Math.floor(4 * sigma + 0.5);
  const kernel = Array.from({ length: 2 * reach + 1 }, (_, i) => Math.exp((-0.5 / (sigma * sigma)) * (i - reach) ** 2));
  return correlate(pixels, kernel.map((value) => value / total(kernel)));
}

/** Maximum in a square of side 2 half + 1, or minimum with sign −1; valid `half` pixels from the edges. */
function greyDilation(pixels, half, sign) {
  const size = 2 * half + 1, most = Math.max(pixels.height, pixels.width);
  const left = new Float64Array(most), right = new Float64Array(most + 1);
  // Running maxima of blocks, from both sides, give the maximum of any window at once (van Herk 1992).
  return filtered(pixels, (line, out) => {
    for (let i = 0; i < line.length; i++) left[i] = Math.max(i % size ? left[i - 1] : -Infinity, sign * line[i]);
    right[line.length] = -Infinity;
    for (let i = line.length; i--; ) right[i] = Math.max((i + 1) % size ? right[i + 1] : -Infinity, sign * line[i]);
    for (let i = half; i < line.length - half; i++) out[i] = sign * Math.max(right[i - half], left[i + half]);
  });
}

/** Fold combine(result, value) over blocks of step × step pixels that start `before` pixels earlier. */
function blocks(pixels, step, before, start, combine) {
  const rows = Math.ceil(pixels.height / step), columns = Math.ceil(pixels.width / step);
  const fold = (line, out) => {
    for (let i = 0; i < out.length; i++) {
      out[i] = start;
      for (let j = 0; j < step; j++) out[i] = combine(out[i], line[clamp(i * step - before + j, line.length)]);
    }
  };
  return alongAxis(alongAxis(pixels, 1, columns, fold), 0, rows, fold);
}

/** Mean of each block. */
const blockMeans = (pixels, step) =>
  mapped(blocks(pixels, step, 0, 0, (a, b) => a + b), (sum) => sum / (step * step));

/** Every step-th row and column of scipy.ndimage.maximum_filter(pixels, step). */
const blockMaxima = (pixels, step) => blocks(pixels, step, step >> 1, -Infinity, Math.max);

/** Number the pieces of a mask whose pixels touch, also at corners: Int32Array, 0 for no piece. */
function labelPieces({ height, width, data }) {
  const pieces = new Int32Array(data.length), stack = new Int32Array(data.length);
  for (let start = 0, count = 0; start < data.length; start++) {
    if (!data[start] || pieces[start]) continue;
    pieces[start] = ++count;
    stack[0] = start;
    for (let length = 1; length; ) {
      const place = stack[--length], x = place % width, y = (place - x) / width;
      const left = Math.max(x - 1, 0), right = Math.min(x + 1, width - 1), bottom = Math.min(y + 1, height - 1);
      for (let row = Math.max(y - 1, 0); row <= bottom; row++) {
        for (let i = row * width + left; i <= row * width + right; i++) {
          if (!data[i] || pieces[i]) continue;
          pieces[i] = count;
          stack[length++] = i;
        }
      }
    }
  }
  return pieces;
}

/**
 * Distance of each pixel to the nearest one in a mask that is not empty, as Float64Array, in linear time.
 * Source: Felzenszwalb and Huttenlocher, "Distance transforms of sampled functions" (2012).
 */
function distanceTo({ height, width, data }) {
  const far = height + width, area = data.length, gaps = new Float64Array(area), distances = new Float64Array(area);
  for (let i = 0; i < area; i++) gaps[i] = data[i] ? 0 : i < width ? far : gaps[i - width] + 1;
  for (let i = area - width; i--; ) gaps[i] = Math.min(gaps[i], gaps[i + width] + 1);
  const lowest = new Int32Array(width), from = new Float64Array(width + 1);
  for (let row = 0; row < area; row += width) {
    let count = 0;
    for (let x = 0; x < width; x++) {
      const gap = gaps[row + x];
      let start = -Infinity;
      if (gap >= far) continue;
      for (; count; count--) {
        const other = lowest[count - 1], rest = gaps[row + other];
        start = (gap * gap - rest * rest + x * x - other * other) / (2 * (x - other));
        if (start > from[count - 1]) break;
      }
      from[count] = count ? start : -Infinity;
      lowest[count++] = x;
    }
    from[count] = Infinity;
    for (let x = 0, k = 0; x < width; x++) {
      while (from[k + 1] < x) k++;
      distances[row + x] = Math.sqrt(gaps[row + lowest[k]] ** 2 + (x - lowest[k]) ** 2);
    }
  }
  return distances;
}
