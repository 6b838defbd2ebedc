"use strict";
/**
 * Runs a network over the operators that program.py wrote, one image at a time. Feature maps are Float32Arrays in the
 * order channel, row, column; sums are in double precision.
 */

/** Return all parameters of a model, one after the other; stored are first bytes, then all second bytes and so on. */
async function decodeWeights(model) {
  const stored = await inflate(model.weights), width = model.half ? 2 : 4, count = stored.length / width;
  const bytes = Uint8Array.from(stored, (_, i) => stored[(i % width) * count + Math.floor(i / width)]);
  return model.half ? Float32Array.from(new Uint16Array(bytes.buffer), halfToFloat) : new Float32Array(bytes.buffer);
}

/** Value of a float16 given as its 16 bits; IEEE 754. */
function halfToFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

/** Turn pixels of 0 to 255 into the input of the network, as the dataset's normalize does. */
function normalise(model, pixels) {
  const area = model.input[1] * model.input[2];
  return Float32Array.from(pixels, (pixel, i) => pixel * model.scale[(i / area) | 0] + model.shift[(i / area) | 0]);
}

/** Probabilities of the classes; a temperature other than 1 calibrates them. */
function softmax(scores, temperature = 1) {
  const most = Math.max(...scores), powers = Array.from(scores, (score) => Math.exp((score - most) / temperature));
  const sum = powers.reduce((a, b) => a + b);
  return Float32Array.from(powers, (power) => power / sum);
}

const size = (shape) => shape.reduce((a, b) => a * b, 1);

/** Height and width of a feature map; a flat vector has maps of one value. */
const sides = (shape) => (shape.length === 3 ? [shape[1], shape[2]] : [1, 1]);

class Network {
  /** Decode the parameters of a model and build its network. */
  static async load(model) {
    return new Network(model, await decodeWeights(model));
  }

  constructor(model, weights) {
    this.layers = model.layers;
    this.shapes = [model.input, ...model.layers.map((layer) => layer.shape)];
    this.tensors = model.tensors.map(([offset, shape]) => weights.subarray(offset, offset + size(shape)));
    this.kernels = model.tensors.map(([, shape]) => shape.slice(2));
  }

  /**
   * Compute all feature maps for one image.
   * @param {Float32Array} input C * H * W, normalised.
   * @param {?Map<number, Set<number>>} off Layer -> channels whose output becomes 0.
   * @returns {Float32Array[]} The input, then the output of each layer; the last one holds the scores.
   */
  run(input, off = null) {
    const values = [input];
    this.layers.forEach((layer, i) => {
      const output = this.layer(layer, values);
      const [height, width] = sides(layer.shape), area = height * width;
      for (const channel of off?.get(i) ?? []) output.fill(0, channel * area, (channel + 1) * area);
      values.push(output);
    });
    return values;
  }

  /** Compute the output of one layer from the values before it. */
  layer(layer, values) {
    const [a, b] = layer.inputs.map((i) => values[i]), shape = this.shapes[layer.inputs[0]];
    const out = new Float32Array(size(layer.shape));
    if (layer.kind in ELEMENTWISE) {
      const f = ELEMENTWISE[layer.kind](layer);
      for (let i = 0; i < out.length; i++) out[i] = f(a[i]);
    } else if (layer.kind in COMBINING) {
      const f = COMBINING[layer.kind];
      for (let i = 0; i < out.length; i++) out[i] = f(a[i], b[i]);
    } else if (layer.kind === "flatten") out.set(a);
    else if (layer.kind === "softmax") out.set(softmax(a));
    else if (layer.kind === "log_softmax") {
      const most = Math.max(...a), sum = a.reduce((total, score) => total + Math.exp(score - most), 0);
      for (let i = 0; i < out.length; i++) out[i] = a[i] - most - Math.log(sum);
    }
    else if (layer.kind === "cat") {
      layer.inputs.reduce((start, i) => (out.set(values[i], start), start + values[i].length), 0);
    } else if (layer.kind === "batch_norm") {
      const [weight, bias] = [layer.weight, layer.bias].map((i) => this.tensors[i]), area = a.length / weight.length;
      for (let i = 0; i < out.length; i++) out[i] = a[i] * weight[(i / area) | 0] + bias[(i / area) | 0];
    } else if (layer.kind === "linear") {
      out.set(layer.bias === null ? out : this.tensors[layer.bias]);
      multiply(this.tensors[layer.weight], Float64Array.from(a), out, 0, out.length, 1, 0);
    } else if (layer.kind === "conv2d") this.convolve(layer, a, shape, out);
    else if (layer.kind === "pad") pad(a, shape, layer, out);
    else if (layer.kind === "pixel_unshuffle") pixelUnshuffle(a, shape, layer, out);
    else if (layer.kind.endsWith("pool2d")) pool(layer, a, shape, out);
    else throw new Error(`unknown operator ${layer.kind}`);
    return out;
  }

  /** 2-D convolution: the patch under the kernel as a vector, times the matrix of all kernels, at each place. */
  convolve(layer, input, shape, out) {
    const [outputs, rows, columns] = layer.shape, channels = shape[0] / layer.groups, count = outputs / layer.groups;
    const [kernelRows, kernelColumns] = this.kernels[layer.weight], weight = this.tensors[layer.weight];
    const patch = new Float64Array(channels * kernelRows * kernelColumns), area = rows * columns;
    if (layer.bias !== null) this.tensors[layer.bias].forEach((bias, o) => out.fill(bias, o * area, (o + 1) * area));
    for (let group = 0; group < layer.groups; group++) {
      for (let y = 0; y < rows; y++) {
        for (let x = 0; x < columns; x++) {
          patchAt(layer, input, shape, this.kernels[layer.weight], group * channels, channels, y, x, patch);
          multiply(weight, patch, out, group * count, count, area, y * columns + x);
        }
      }
    }
  }
}

/** Copy what lies under the kernel at an output place, channel by channel, zeros outside of the image. */
function patchAt(layer, input, [, height, width], [kernelRows, kernelColumns], first, channels, y, x, patch) {
  const [rowStep, columnStep] = layer.dilation;
  const top = y * layer.stride[0] - layer.padding[0], left = x * layer.stride[1] - layer.padding[1];
  let i = 0;
  for (let channel = first; channel < first + channels; channel++) {
    for (let row = top; row < top + kernelRows * rowStep; row += rowStep) {
      const start = (channel * height + row) * width, inside = row >= 0 && row < height;
      for (let column = left; column < left + kernelColumns * columnStep; column += columnStep) {
        patch[i++] = inside && column >= 0 && column < width ? input[start + column] : 0;
      }
    }
  }
}

/** Add rows first to first + count of a matrix, times a vector, to out[row * step + offset]; four rows at a time. */
function multiply(matrix, vector, out, first, count, step, offset) {
  const length = vector.length;
  let row = first;
  for (; row + 4 <= first + count; row += 4) {
    let a = row * length, b = a + length, c = b + length, d = c + length, i = row * step + offset;
    let sumA = 0, sumB = 0, sumC = 0, sumD = 0;
    for (let k = 0; k < length; k++) {
      const x = vector[k];
      sumA += matrix[a++] * x;
      sumB += matrix[b++] * x;
      sumC += matrix[c++] * x;
      sumD += matrix[d++] * x;
    }
    out[i] += sumA;
    out[(i += step)] += sumB;
    out[(i += step)] += sumC;
    out[i + step] += sumD;
  }
  for (; row < first + count; row++) {
    let sum = 0;
    for (let k = 0; k < length; k++) sum += matrix[row * length + k] * vector[k];
    out[row * step + offset] += sum;
  }
}

/** First and last + 1 row (axis 0) or column (axis 1) that a pooling layer reads for an output place. */
function poolWindow(layer, shape, axis, place) {
  const length = shape[axis + 1], outputs = layer.shape.length === 3 ? layer.shape[axis + 1] : 1;
  if (layer.kind.startsWith("adaptive")) {
    return [Math.floor((place * length) / outputs), Math.ceil(((place + 1) * length) / outputs)];
  }
  const start = place * layer.stride[axis] - layer.padding[axis];
  return [Math.max(start, 0), Math.min(start + layer.kernel[axis], length)];
}

function pool(layer, input, shape, out) {
  const [channels, height, width] = shape, [rows, columns] = sides(layer.shape), isMax = layer.kind.includes("max");
  for (let y = 0, i = 0; y < rows; y++) {
    const [top, bottom] = poolWindow(layer, shape, 0, y);
    for (let x = 0; x < columns; x++, i++) {
      const [left, right] = poolWindow(layer, shape, 1, x);
      const count = layer.count_include_pad ? size(layer.kernel) : (bottom - top) * (right - left);
      for (let channel = 0; channel < channels; channel++) {
        let most = -Infinity, sum = 0;
        for (let row = top; row < bottom; row++) {
          for (let k = (channel * height + row) * width + left, end = k + right - left; k < end; k++) {
            sum += input[k];
            if (input[k] > most) most = input[k];
          }
        }
        out[channel * rows * columns + i] = isMax ? most : sum / count;
      }
    }
  }
}

function pad(input, [channels, height, width], { shape, sides: [left, , top] }, out) {
  for (let channel = 0, i = 0; channel < channels; channel++) {
    for (let y = -top; y < shape[1] - top; y++) {
      for (let x = -left; x < shape[2] - left; x++, i++) {
        const inside = y >= 0 && y < height && x >= 0 && x < width;
        out[i] = inside ? input[(channel * height + y) * width + x] : 0;
      }
    }
  }
}

/** The place in the input that pixel_unshuffle moves to a channel, row and column: [channel, row, column]. */
function shuffledFrom(factor, channel, y, x) {
  const within = channel % factor ** 2;
  return [Math.floor(channel / factor ** 2), y * factor + Math.floor(within / factor), x * factor + (within % factor)];
}

function pixelUnshuffle(input, [, height, width], { shape, factor }, out) {
  for (let channel = 0, i = 0; channel < shape[0]; channel++) {
    for (let y = 0; y < shape[1]; y++) {
      for (let x = 0; x < shape[2]; x++, i++) {
        const [from, row, column] = shuffledFrom(factor, channel, y, x);
        out[i] = input[(from * height + row) * width + column];
      }
    }
  }
}

/** Functions of two values, by operator. */
const COMBINING = {
  add: (x, y) => x + y,
  sub: (x, y) => x - y,
  mul: (x, y) => x * y,
  div: (x, y) => x / y,
};

/** Functions of one value, by operator, given the arguments of the layer. */
const ELEMENTWISE = {
  relu: () => (x) => Math.max(x, 0),
  relu6: () => (x) => Math.min(Math.max(x, 0), 6),
  leaky_relu: ({ slope }) => (x) => (x > 0 ? x : slope * x),
  sigmoid: () => (x) => 1 / (1 + Math.exp(-x)),
  tanh: () => Math.tanh,
  silu: () => (x) => x / (1 + Math.exp(-x)),
  hardsigmoid: () => (x) => Math.min(Math.max(x + 3, 0), 6) / 6,
  hardswish: () => (x) => (x * Math.min(Math.max(x + 3, 0), 6)) / 6,
  gelu: ({ approximate }) => (approximate === "tanh" ? geluByTanh : geluByError),
  clamp: ({ low, high }) => (x) => Math.min(Math.max(x, low ?? -Infinity), high ?? Infinity),
  hardtanh: ({ low, high }) => (x) => Math.min(Math.max(x, low), high),
  affine: ({ factor, offset }) => (x) => x * factor + offset,
};

const geluByError = (x) => (x * (1 + errorFunction(x / Math.SQRT2))) / 2;
const geluByTanh = (x) => (x / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

/** erf within 1.2e-7; Press et al., Numerical Recipes, section 6.2 (erfc by a Chebyshev fit). */
function errorFunction(x) {
  const t = 1 / (1 + Math.abs(x) / 2);
  const terms = [
    -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223,
    0.17087277,
  ];
  const rest = t * Math.exp(-x * x + terms.reduceRight((sum, term) => sum * t + term, 0));
  return x >= 0 ? 1 - rest : rest - 1;
}

