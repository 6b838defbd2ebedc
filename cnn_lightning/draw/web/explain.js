"use strict";
/** Says in words and numbers what a layer does, and where one of its values comes from. */

const MINUS = "\u2212", NAMES = {
  relu: "ReLU", relu6: "ReLU6", leaky_relu: "leaky ReLU", gelu: "GELU", silu: "SiLU", log_softmax: "log-softmax",
  hardtanh: "limits", clamp: "limits",
  hardswish: "hard swish", hardsigmoid: "hard sigmoid", affine: "scale and shift", batch_norm: "batch normalisation",
  add: "sum", sub: "difference", mul: "product", div: "quotient", cat: "concatenation", pad: "padding",
  pixel_unshuffle: "pixels to channels",
};

/** Round a number to three digits after the point, with a real minus sign. */
function show(number) {
  const text = number.toFixed(Math.abs(number) >= 1000 ? 0 : 3);
  return Number(text) === 0 ? "0.000" : text.replace("-", MINUS);
}

const shapeOf = (model, value) => (value ? model.layers[value - 1].shape : model.input);
const times = (numbers) => numbers.join(" × ");
const square = ([rows, columns]) => `${rows}×${columns}`;

/**
 * Describe a layer.
 * @returns {{operation: string, size: string, rule: string, sentence: string}} What it computes with its settings, the
 *   size of its output, the formula of that size or of a value, and what it is good for.
 */
function describe(layer, model) {
  const shape = shapeOf(model, layer.inputs[0]), kind = layer.kind, size = times(layer.shape);
  const name = NAMES[kind] ?? kind;
  if (kind === "conv2d") {
    const kernel = model.tensors[layer.weight][1];
    const settings = [
      `${square(kernel.slice(2))} convolution`, `${kernel[0]} kernels`, ...step(layer),
      ...(layer.groups > 1 ? [`${layer.groups} groups`] : []), ...folded(layer),
    ];
    const rule = layer.shape.slice(1).map((_, axis) => sizeRule(layer, shape, kernel.slice(2), axis));
    return { operation: settings.join(", "), size, rule: unique(rule), sentence: SENTENCES.conv2d };
  }
  if (kind === "linear") {
    const [outputs, inputs] = model.tensors[layer.weight][1];
    const rule = `${inputs} × ${outputs} weights${layer.bias === null ? "" : ` + ${outputs} biases`}`;
    const operation = [`linear layer, ${outputs} outputs`, ...folded(layer)].join(", ");
    return { operation, size, rule, sentence: SENTENCES.linear };
  }
  if (kind.endsWith("pool2d")) {
    const isMax = kind.includes("max"), what = isMax ? "max-pooling" : "average pooling";
    const sentence = isMax ? SENTENCES.max : SENTENCES.average;
    if (kind.startsWith("adaptive")) {
      const whole = layer.shape.slice(1).every((side) => side === 1);
      const operation = whole ? `${what} over the whole map` : `${what} to ${square(layer.shape.slice(1))}`;
      return { operation, size, rule: `${times(shape.slice(1))} → ${times(sides(layer.shape))}`, sentence };
    }
    const rule = layer.shape.slice(1).map((_, axis) => sizeRule(layer, shape, layer.kernel, axis));
    const operation = [`${square(layer.kernel)} ${what}`, ...step(layer)].join(", ");
    return { operation, size, rule: unique(rule), sentence };
  }
  const rules = {
    relu: "max(x, 0)", relu6: "max(x, 0), at most 6",
    leaky_relu: `x, or ${layer.slope} · x below 0`, sigmoid: "1 / (1 + exp(−x))", tanh: "tanh(x)",
    softmax: "exp(x) / sum of all exp(x)", log_softmax: "log of softmax", add: "x + y",
    sub: "x − y", mul: "x · y", div: "x / y",
    batch_norm: "x · scale + shift, one of each a channel", flatten: `${times(shape)} = ${layer.shape[0]}`,
    affine: `x · ${layer.factor} + ${layer.offset}`, silu: "x · sigmoid(x)", gelu: "x · Φ(x)",
    hardtanh: `x, at least ${layer.low} and at most ${layer.high}`,
    clamp: `x, at least ${layer.low ?? "any"} and at most ${layer.high ?? "any"}`,
    hardsigmoid: "x / 6 + 1/2, at least 0 and at most 1", hardswish: "x · hard sigmoid(x)",
    cat: layer.inputs.map((value) => shapeOf(model, value)[0]).join(" + ") + ` = ${layer.shape[0]}`,
    pad: layer.sides && `left, right, top, bottom: ${layer.sides.join(", ").replaceAll("-", MINUS)}`,
    pixel_unshuffle: `${layer.factor} × ${layer.factor} pixels become ${layer.factor ** 2} channels`,
  };
  return { operation: name, size, rule: rules[kind], sentence: SENTENCES[kind] ?? SENTENCES.activation };
}

const folded = (layer) => (layer.folded ? ["batch normalisation folded in"] : []);
const unique = (texts) => [...new Set(texts)].join(", ");

/** Stride, padding and dilation, where they are not the usual ones. */
function step(layer) {
  const usual = layer.kernel ?? [1, 1], same = ([a, b]) => (a === b ? a : square([a, b]));
  return [
    ...(String(layer.stride) === String(usual) ? [] : [`stride ${same(layer.stride)}`]),
    ...(layer.padding.some((side) => side) ? [`padding ${same(layer.padding)}`] : []),
    ...(layer.dilation?.some((side) => side > 1) ? [`dilation ${same(layer.dilation)}`] : []),
  ];
}

/** The formula of an output side: (I - K + 2P) / S + 1, rounded down. */
function sizeRule(layer, shape, kernel, axis) {
  const [stride, padding, dilation] = [layer.stride, layer.padding, layer.dilation ?? [1, 1]].map((pair) => pair[axis]);
  const extent = dilation * (kernel[axis] - 1) + 1;
  const exact = (shape[axis + 1] - extent + 2 * padding) % stride === 0;
  const quotient = `(${shape[axis + 1]} ${MINUS} ${extent} + 2 · ${padding}) / ${stride}`;
  return `${exact ? quotient : `⌊${quotient}⌋`} + 1 = ${layer.shape[axis + 1]}`;
}

const SENTENCES = {
  conv2d: "Slides each kernel over the image and answers strongly where the image looks like the kernel.",
  linear: "Weighs all its inputs and adds them up, once for each output, wherever in the image they come from.",
  max: "Keeps the strongest answer of each neighbourhood, so the map shrinks and small moves matter less.",
  average: "Keeps the mean of each neighbourhood, so the map shrinks.",
  relu: "Sets what is below zero to zero: without such a bend, several layers could do no more than one.",
  activation: "Bends each value on its own: without such a bend, several layers could do no more than one.",
  batch_norm: "Scales and shifts each channel to a common range, with figures measured in training.",
  flatten: "Writes all maps into one long list, channel by channel; no value changes.",
  add: "Adds the maps of a shortcut to those of the layers that it skips.",
  sub: "Subtracts one map from another, value by value.",
  mul: "Multiplies two maps, value by value.",
  div: "Divides one map by another, value by value.",
  cat: "Puts the channels of several layers behind each other.",
  pad: "Adds a border of zeros, or cuts one off where the number is negative.",
  pixel_unshuffle: "Spreads neighbouring pixels over several smaller channels; no value changes.",
  softmax: "Turns scores into probabilities that add up to 1.",
  log_softmax: "Turns scores into logarithms of probabilities.",
  affine: "Scales and shifts all values.",
};

/**
 * Say where a value comes from.
 * @returns {{value: number, text: string, bias: ?number, patches: {from: number, channel: number, top: number,
 *   left: number, rows: number, columns: number, step: number[], input: number[], kernel: ?number[], sum: ?number}[]}}
 *   For each channel that is read: its value index and place, the patch, the kernel and the sum of products, if any.
 */
function explainValue(model, network, values, index, channel, y, x) {
  const layer = model.layers[index], [, width] = sides(layer.shape), shape = shapeOf(model, layer.inputs[0]);
  const value = values[index + 1][(channel * sides(layer.shape)[0] + y) * width + x], result = show(value);
  const input = values[layer.inputs[0]], kernel = network.kernels[layer.weight];
  const weight = network.tensors[layer.weight];
  const bias = layer.bias == null ? null : network.tensors[layer.bias][channel];
  if (layer.kind === "conv2d") {
    const channels = shape[0] / layer.groups, count = kernel[0] * kernel[1];
    const first = Math.floor(channel / (layer.shape[0] / layer.groups)) * channels, patches = [];
    for (let k = 0; k < channels; k++) {
      const patch = new Float64Array(count), start = (channel * channels + k) * count;
      patchAt(layer, input, shape, kernel, first + k, 1, y, x, patch);
      const [top, left] = [y, x].map((place, axis) => place * layer.stride[axis] - layer.padding[axis]);
      const place = { from: layer.inputs[0], channel: first + k, top, left, rows: kernel[0], columns: kernel[1] };
      patches.push(withSum({ ...place, step: layer.dilation }, patch, weight.subarray(start, start + count)));
    }
    return sumOfProducts(value, bias, patches);
  }
  if (layer.kind === "linear") {
    // Before it was flattened, the input had places in maps: show the weights there.
    let from = layer.inputs[0];
    while (from && model.layers[from - 1].kind === "flatten") from = model.layers[from - 1].inputs[0];
    const maps = shapeOf(model, from), [rows, columns] = maps.length === 3 ? maps.slice(1) : [1, maps[0]];
    const count = rows * columns, patches = [];
    for (let k = 0; k * count < input.length; k++) {
      const start = channel * input.length + k * count, place = { from, channel: k, top: 0, left: 0, rows, columns };
      const patch = input.subarray(k * count, (k + 1) * count);
      patches.push(withSum({ ...place, step: [1, 1] }, patch, weight.subarray(start, start + count)));
    }
    return sumOfProducts(value, bias, patches);
  }
  if (layer.kind.endsWith("pool2d")) {
    const [top, bottom] = poolWindow(layer, shape, 0, y), [left, right] = poolWindow(layer, shape, 1, x);
    const patch = patchOf(model, values, layer.inputs[0], channel, top, left, bottom - top, right - left);
    const count = patch.input.length, sum = patch.input.reduce((a, b) => a + b, 0);
    const isPartial = layer.count_include_pad && count < size(layer.kernel);  // at the edge zeros count too
    const what = layer.kind.includes("max") ? "largest of" : isPartial ? "sum of" : "mean of";
    const over = isPartial ? ` ${show(sum)} / ${size(layer.kernel)}` : "";
    return { value, bias: null, patches: [patch], text: `${what} ${count} values${over} = ${result}` };
  }
  const places = sourcesOf(model, layer, channel, y, x);
  const patches = places.map(([from, ...place]) => patchOf(model, values, from, ...place, 1, 1));
  const [a, b] = patches.map((patch) => show(patch.input[0]));
  const texts = {
    add: () => `${a} + ${b} = ${result}`,
    sub: () => `${a} ${MINUS} ${b} = ${result}`,
    mul: () => `${a} · ${b} = ${result}`,
    div: () => `${a} / ${b} = ${result}`,
    relu: () => `max(${a}, 0) = ${result}`,
    batch_norm: () => `${a} · ${show(weight[channel])} + ${show(bias)} = ${result}`,
    softmax: () => `exp(${a}) / sum of all exp = ${result}`,
  };
  const moved = () => (a === undefined ? `border = ${result}` : `${a}, moved here`);
  const otherwise = MOVING.includes(layer.kind) ? moved : () => `f(${a}) = ${result}`;
  return { value, bias: null, patches, text: (texts[layer.kind] ?? otherwise)() };
}

const MOVING = ["flatten", "pad", "cat", "pixel_unshuffle"];

/** The places that a layer without a kernel reads for a value: [value index, channel, row, column]. */
function sourcesOf(model, layer, channel, y, x) {
  const shape = shapeOf(model, layer.inputs[0]), [from] = layer.inputs;
  if (layer.kind === "flatten") {
    const [height, width] = sides(shape), [rows, columns] = sides(layer.shape), i = (channel * rows + y) * columns + x;
    return [[from, Math.floor(i / (height * width)), Math.floor(i / width) % height, i % width]];
  }
  if (layer.kind === "pad") {
    const [left, , top] = layer.sides, [row, column] = [y - top, x - left];
    return row >= 0 && row < shape[1] && column >= 0 && column < shape[2] ? [[from, channel, row, column]] : [];
  }
  if (layer.kind === "pixel_unshuffle") return [[from, ...shuffledFrom(layer.factor, channel, y, x)]];
  if (layer.kind === "cat") {
    let before = 0;
    for (const value of layer.inputs) {
      const channels = shapeOf(model, value)[0];
      if (channel < before + channels) return [[value, channel - before, y, x]];
      before += channels;
    }
  }
  return layer.inputs.map((value) => [value, channel, y, x]);
}

function patchOf(model, values, from, channel, top, left, rows, columns) {
  const [height, width] = sides(shapeOf(model, from)), input = [];
  for (let row = top; row < top + rows; row++) {
    for (let column = left; column < left + columns; column++) {
      input.push(values[from][(channel * height + row) * width + column]);
    }
  }
  return { from, channel, top, left, rows, columns, step: [1, 1], input, kernel: null, sum: null };
}

function withSum(place, input, kernel) {
  const sum = input.reduce((total, number, i) => total + number * kernel[i], 0);
  return { ...place, input: [...input], kernel: [...kernel], sum };
}

function sumOfProducts(value, bias, patches) {
  const count = patches.reduce((total, patch) => total + patch.input.length, 0);
  const sum = patches.reduce((total, patch) => total + patch.sum, 0);
  const rest = bias === null ? "" : ` + bias ${show(bias)}`;
  return { value, bias, patches, text: `sum of ${count} products ${show(sum)}${rest} = ${show(value)}` };
}

