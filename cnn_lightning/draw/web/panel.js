"use strict";

const MOST_PATCHES = 8, MOST_NUMBERS = 49, MOST_TERMS = 10;

/** The panel that says where a value comes from: the patches, the kernels, their products and the sum. */
class Panel {
  constructor(root, layers) {
    this.layers = layers;
    this.heading = make("h3");
    this.text = make("p", { className: "sum" });
    this.body = make("div", { className: "patches" });
    this.toggle = make("button", { type: "button" });
    this.toggle.addEventListener("click", () => layers.toggle());
    this.close = make("button", { type: "button", "aria-label": "Close" }, "×");
    this.close.addEventListener("click", () => layers.leave());
    root.addEventListener("keydown", ({ key }) => key === "Escape" && layers.leave());
    root.append(make("header", {}, this.heading, this.toggle, this.close), this.text, this.body);
    this.root = root;
  }

  spoken() {
    return `${this.heading.textContent}, ${this.text.textContent}`;
  }

  /** Show the value that is selected, computed by a network with some values, or a hint. */
  show(selected, model, network, values) {
    this.root.classList.toggle("empty", !selected);
    this.toggle.hidden = this.close.hidden = !selected;
    if (!selected || !values) {
      this.heading.textContent = "Where does a value come from?";
      this.text.textContent = selected ? "Draw something first." : "Point at a value in one of the maps.";
      this.body.replaceChildren();
      this.layers.outline([]);
      return;
    }
    const { view, channel, y, x } = selected, { index } = view, isLast = index === model.layers.length - 1;
    const explained = explainValue(model, network, values, index, channel, y, x), { patches } = explained;
    const place = view.isStrip ? "" : `, row ${y}, column ${x}`;
    const unit = view.isStrip ? "value" : "channel";
    const what = isLast ? `score of ${model.classes[channel]}` : `${unit} ${channel}`;
    this.heading.textContent = `${view.name}, ${what}${place}: ${show(explained.value)}`;
    const isOff = this.layers.isOff();
    this.text.textContent = isOff ? "Switched off: 0, whatever the numbers below give." : explained.text;
    this.toggle.textContent = isOff ? "Switch on" : "Switch off";
    const strongest = [...patches].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum));
    const shown = strongest.slice(0, MOST_PATCHES), others = strongest.slice(MOST_PATCHES);
    this.body.replaceChildren(...shown.map((patch) => this.patch(patch, model, values)));
    if (others.length) {
      const rest = others.reduce((sum, patch) => sum + patch.sum, 0);
      const text = `The ${others.length} other channels add up to ${show(rest)}.`;
      this.body.append(make("p", { className: "note" }, text));
    }
    this.layers.outline(patches);
  }

  patch(patch, model, values) {
    const { from, channel, rows, columns, input, kernel, sum } = patch, shape = shapeOf(model, from);
    const parts = [this.source(patch, shape, values[from])];
    const products = kernel?.map((weight, i) => weight * input[i]);
    const part = (name, numbers) => make("figure", {}, table(numbers, rows, columns), make("figcaption", {}, name));
    if (!kernel) {
      if (input.length <= MOST_NUMBERS) parts.push(part(input.length > 1 ? "values" : "value", input));
    } else if (input.length <= MOST_NUMBERS && columns <= 7) {
      parts.push(part("input", input), "×", part("kernel", kernel), "=", part("products", products));
    } else parts.push(this.terms(patch, products));
    const name = from ? this.layers.views[from - 1].name : "image, normalised";
    const title = shape.length === 3 ? `${name}, channel ${channel}` : name;
    const caption = make("p", { className: "note" }, title, ...(kernel ? [": sum ", make("b", {}, show(sum))] : []));
    return make("div", { className: "patch" }, caption, make("div", { className: "parts" }, ...parts));
  }

  /** The map that is read, with the patch outlined. */
  source({ channel, top, left, rows, columns, step }, shape, values) {
    const [height, width] = sides(shape);
    if (height * width === 1) return "";
    const canvas = canvasOf(width, height), map = make("div", { className: "source" }, canvas);
    map.style.aspectRatio = `${width} / ${height}`;
    const area = height * width, part = values.subarray(channel * area, (channel + 1) * area);
    paintValues(canvas, part, 0, largestOf(part));
    map.append(frameOf(top, left, (rows - 1) * step[0] + 1, (columns - 1) * step[1] + 1, height, width));
    return map;
  }

  /** The largest products of a patch that has too many for a table of them all. */
  terms({ input, kernel, rows, columns, sum }, products) {
    const bySize = (a, b) => Math.abs(products[b]) - Math.abs(products[a]);
    const order = [...products.keys()].sort(bySize).slice(0, MOST_TERMS);
    const place = (i) => (rows > 1 ? `${Math.floor(i / columns)}, ${i % columns}` : i);
    const row = (name, text) => make("tr", {}, make("th", {}, name), ...order.map((i) => make("td", {}, text(i))));
    const rest = sum - order.reduce((total, i) => total + products[i], 0), others = products.length - order.length;
    return make("figure", {},
      make("table", { className: "terms" },
        row(rows > 1 ? "row, column" : "from", place), row("input", (i) => show(input[i])),
        row("× weight", (i) => show(kernel[i])), row("= product", (i) => show(products[i]))),
      make("figcaption", {}, others > 0 ? `the ${others} smaller products add up to ${show(rest)}` : ""));
  }
}

const largestOf = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

/** A table of numbers on their colours. */
function table(numbers, rows, columns) {
  const limit = largestOf(numbers) || 1;
  return make("table", {}, ...Array.from({ length: rows }, (_, row) => make("tr", {},
    ...numbers.slice(row * columns, (row + 1) * columns).map((value) => {
      const cell = make("td", {}, show(value)), [red, green, blue] = colourOf(value / limit);
      cell.style.background = `rgb(${red}, ${green}, ${blue})`;
      cell.style.color = 0.299 * red + 0.587 * green + 0.114 * blue > 100 ? "#000" : "#fff";
      return cell;
    }))));
}
