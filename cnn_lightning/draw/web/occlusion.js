"use strict";
/**
 * Measure which parts of an image carry the prediction: how much the probability of a class falls when a square covers
 * the place. Source: Zeiler and Fergus 2013, arXiv 1311.2901, section 4.2.
 * @param {Uint8Array} pixels C * H * W.
 * @param {{size?: number, stride?: number, signal?: AbortSignal, onProgress?: function(number)}} options Side of the
 *   square and its step in pixels; the signal stops it with an error; onProgress is told the share that is done.
 * @returns {Promise<{map: Float32Array, size: number, stride: number}>} H * W: the mean fall over all squares that
 *   cover the pixel; negative where the probability rises.
 */
async function occlusionMap(model, network, pixels, classIndex, options = {}) {
  const [channels, height, width] = model.input, { signal, onProgress, stride = 2 } = options;
  const side = options.size ?? Math.max(3, Math.round(Math.min(height, width) / 5));
  const probability = (image) => {
    return softmax(network.run(normalise(model, image)).at(-1), model.temperature)[classIndex];
  };
  const before = probability(pixels), [falls, counts] = [1, 2].map(() => new Float32Array(height * width));
  const starts = (length) => Array.from({ length: Math.ceil((length - side) / stride) + 1 }, (_, i) => i * stride);
  // Black is the background of drawings; in other pictures, the mean of the dataset says least.
  const cover = model.scale.map((scale, c) => (model.preparation?.kind === "ToSquare" ? -model.shift[c] / scale : 0));
  let rested = performance.now();
  for (const top of starts(height)) {
    for (const left of starts(width)) {
      const covered = pixels.slice(), bottom = Math.min(top + side, height), right = Math.min(left + side, width);
      for (let c = 0; c < channels; c++) {
        for (let y = top, row = (c * height + top) * width; y < bottom; y++, row += width) {
          covered.fill(cover[c], row + left, row + right);
        }
      }
      const fall = before - probability(covered);
      for (let y = top; y < bottom; y++) {
        for (let i = y * width + left; i < y * width + right; i++) (falls[i] += fall), counts[i]++;
      }
      if (performance.now() - rested > 12) {
        onProgress?.(top / height);
        await new Promise((resolve) => setTimeout(resolve));
        signal?.throwIfAborted();
        rested = performance.now();
      }
    }
  }
  return { map: falls.map((fall, i) => fall / counts[i]), size: side, stride };
}

